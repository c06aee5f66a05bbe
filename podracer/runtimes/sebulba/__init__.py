"""Sebulba: environments on the host feed actor devices, whose unrolls feed learner devices. Hessel et al. 2021, section 3.

* `parameters.py`: what actors act with, published by the learner as immutable, numbered references.
* `actor.py`: one actor: its environments, and unrolls that grow on its device.
* `supervisor.py`: the actors' threads; restarts those that fail or hang.
* `runtime.py`: the learner's side, and the whole as a runtime like Anakin.

Unrolls wait in `podracer.stores.handover`; the update is `podracer.runtimes.learner`, as in Anakin.
"""
