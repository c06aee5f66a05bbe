"""Reinforcement-learning agents at the scale of the hardware. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
