"""NAV: learning to navigate, with depth and loop closure as what else there is to predict."""
