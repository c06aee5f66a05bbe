"""Counterfactual credit assignment: baselines that know the future, as far as it is independent of the action."""
