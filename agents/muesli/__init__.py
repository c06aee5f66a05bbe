"""Muesli: policy optimisation with a learned model and without search (Hessel et al. 2021)."""
