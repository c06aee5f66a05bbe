"""jumanji (https://github.com/instadeepai/jumanji): combinatorial problems and puzzles as pure JAX.

jumanji calls its time limits terminations. They are switched off here, and ours truncate in their place.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

# Left out: Sokoban-v0, which downloads its levels, and the environments of several agents (Cleaner, Connector, JobShop,
# LevelBasedForaging, MMST, MultiCVRP, RobotWarehouse, SearchAndRescue), whose actions or rewards are vectors over agents.
TASKS = (
    "Snake-v1",
    "BinPack-v2",
    "CVRP-v1",
    "FlatPack-v0",
    "Game2048-v1",
    "GraphColoring-v1",
    "Knapsack-v1",
    "Maze-v0",
    "Minesweeper-v0",
    "PacMan-v1",
    "RubiksCube-partly-scrambled-v0",
    "RubiksCube-v0",
    "SlidingTilePuzzle-v0",
    "Sudoku-v0",
    "Sudoku-very-easy-v0",
    "TSP-v1",
    "Tetris-v0",
)
_NO_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class JumanjiConfig:
    """max_steps: time limit in steps, a truncation; 0 keeps the one of the task, if it has one."""

    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "max_steps", at_least=0)


class Jumanji(JaxEnvironment):
    """A jumanji problem without its time limit.

    Observation: a dictionary of jumanji's fields under dotted names, and `legal_actions` `[A]` bool in place of its action
    mask (all true where no action is left). An action of several parts is one integer, row-major over the parts.
    """

    def __init__(self, task: str, environment: Any):
        self._env = environment
        action = environment.action_spec
        self._parts = np.atleast_1d(np.asarray(action.num_values))
        self._scalar_action = action.shape == ()
        _, timestep = jax.eval_shape(self.reset, jax.random.key(0))
        self.spec = EnvironmentSpec(
            name=f"jumanji/{task}",
            observation={name: specs.Array(x.shape, x.dtype, name=name) for name, x in timestep.observation.items()},
            action=specs.DiscreteArray(math.prod(self._parts.tolist()), name="action"),
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = self._env.reset(key)
        return state, types.restart(self._observe(timestep.observation))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        del key
        if not self._scalar_action:
            action = jnp.stack(jnp.unravel_index(action, tuple(self._parts))).astype(jnp.int32)
        state, timestep = self._env.step(state, action)
        finished = timestep.last()
        terminated = finished & (timestep.discount == 0)
        return state, types.transition(
            timestep.reward, self._observe(timestep.observation), terminated=terminated, truncated=finished
        )

    def _observe(self, observation: Any) -> dict[str, Array]:
        leaves = jax.tree_util.tree_leaves_with_path(observation)
        fields = {jax.tree_util.keystr(path).strip("."): jnp.asarray(leaf) for path, leaf in leaves}
        mask = fields.pop("action_mask", None)
        if mask is not None:
            mask = mask.reshape(-1)
            fields["legal_actions"] = mask | ~jnp.any(mask)
        return fields


def _make(task: str, config: JumanjiConfig) -> JaxEnvironment:
    import jumanji

    environment: Any = jumanji.make(task)
    limit = config.max_steps or getattr(environment, "time_limit", 0)
    environment.time_limit = _NO_LIMIT
    bare = Jumanji(task, environment)
    return TimeLimit(bare, limit) if limit else bare


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: TASKS,
    config=JumanjiConfig,
    summary="combinatorial problems and puzzles in JAX (Snake-v1, Maze-v0, TSP-v1, RubiksCube-v0, ...)",
    package="jumanji",
    extra="jumanji",
    default_task="Snake-v1",
)
