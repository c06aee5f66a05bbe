"""Programs before their devices: what one costs, what a chip of a pod makes of it, and whether it fits there.

`cost` counts a traced program, `topologies` knows the chips, `roofline` puts the two together, and `compiled` has XLA say what
memory and which collectives the program comes to. None of them needs the devices.
"""
