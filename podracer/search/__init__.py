"""Planning with a model, learned or true: batched tree search on top of mctx."""

from podracer.search.config import SearchConfig
from podracer.search.planner import ModelStep, Planner, Root, Searched

__all__ = ["ModelStep", "Planner", "Root", "SearchConfig", "Searched"]
