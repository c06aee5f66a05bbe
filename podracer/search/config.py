"""Settings of a search."""

import dataclasses
from typing import Literal

from podracer.config import require


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How to plan.

    kind: `gumbel` (sequential halving at the root, Danihelka et al. 2022), `puct` (MuZero, Schrittwieser et al. 2020), or
      `bfs` (breadth first: every action equally often at every node, values backed up by their maximum).
    num_simulations: evaluations of the model, one a simulation.
    max_depth: `D_tree`, the deepest node, in actions from the root; 0 for no limit. At the limit a node is evaluated anew.
    uct_depth: `D_UCT` of Hamrick et al. 2021: nodes at this depth and below follow the policy instead of PUCT, so that what
      is left of a simulation is a Monte-Carlo rollout; -1 for no limit. Of `puct` alone.
    num_sampled_actions: `K` of Sampled MuZero (Hubert et al. 2021): actions drawn from the policy at every node, among which
      the search chooses; 0 for all actions, where they are discrete. Discrete ones are drawn without replacement.

    max_considered_actions: of `gumbel`: at the root. value_scale, rescale_values: of `gumbel` and `bfs`: values `q` count
      `(50 + max visits) * value_scale * q` beside logits, rescaled to [0, 1] at each node or as they are. With few actions
      rescaled values make any difference a large one: take a small scale there.
    pb_c_init, pb_c_base: of `puct`. dirichlet_fraction, dirichlet_alpha: of `puct`: noise at the root while exploring.
    """

    kind: Literal["gumbel", "puct", "bfs"] = "gumbel"
    num_simulations: int = 32
    max_depth: int = 0
    uct_depth: int = -1
    num_sampled_actions: int = 0
    max_considered_actions: int = 16
    value_scale: float = 0.1
    rescale_values: bool = True
    pb_c_init: float = 1.25
    pb_c_base: float = 19652.0
    dirichlet_fraction: float = 0.25
    dirichlet_alpha: float = 0.3

    def __post_init__(self) -> None:
        require(self, "num_simulations", "max_considered_actions", at_least=1)
        require(self, "max_depth", "num_sampled_actions", at_least=0)
        require(self, "value_scale", "pb_c_init", "pb_c_base", "dirichlet_alpha", above=0)
        require(self, "dirichlet_fraction", at_least=0, at_most=1)
