"""Small procedural gridworlds: every episode is a new layout. They test what an agent can do, fast and on any machine.

* `empty`: walk to the goal in an empty room.
* `four_rooms`: four rooms joined by four gaps (Sutton, Precup & Singh 1999); gaps, start and goal are drawn anew.
* `key_door`: pick up a key, open the door of a dividing wall, reach the goal behind it.
* `tmaze`: a cue seen only at the start tells which arm of a T holds the goal (Bakker 2002). The agent sees 3x3 cells around
  itself, so a policy without memory has an expected return of 0 at best and one with memory reaches 1.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import ConfigError, require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs import boards, drawing
from podracer.envs.boards import MOVES
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

EMPTY, WALL, GOAL, TRAP, KEY, DOOR, CUE_UP, CUE_DOWN = range(8)
CHANNELS = ("wall", "target", "key", "door", "cue_up", "cue_down", "agent", "has_key")


@dataclasses.dataclass(frozen=True)
class GridworldConfig:
    """size: side of the board with its walls; in `tmaze`, cells of the corridor.

    view: side of the square of cells that the agent sees around itself, odd; 0 for the task's own (all; 3 in `tmaze`).
    max_steps: time limit, a truncation; 0 means 10 times `size`.
    """

    size: int = 9
    view: int = 0
    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "size", at_least=5)
        require(self, "max_steps", at_least=0)
        if self.view and (self.view < 3 or self.view % 2 == 0):
            raise ConfigError(f"view must be 0 or odd and at least 3, not {self.view}")


class GridState(NamedTuple):
    """cells: `[H, W]` int8, kinds of cell. position: `[2]` int32, row and column. has_key: `[]` bool."""

    cells: Array
    position: Array
    has_key: Array


class Gridworld(JaxEnvironment):
    """Moves up, right, down, left on a board; walls stop, the key opens the door.

    Observation: `[H, W, 8]` uint8, 0 or 255, one channel for each of CHANNELS; of the cells around the agent if `view` is
    not 0. Goal and trap look alike. Reward: 1 at the goal and -1 at the trap, which end the episode; otherwise 0.
    """

    def __init__(self, task: str, layout: Callable[[Key], GridState], view: int):
        self._layout, self._view = layout, view
        shape = (view, view) if view else jax.eval_shape(layout, jax.random.key(0)).cells.shape
        self.spec = EnvironmentSpec(
            name=f"gridworld/{task}",
            observation=specs.BoundedArray((*shape, len(CHANNELS)), np.uint8, 0, 255, name="cells"),
            action=specs.DiscreteArray(len(MOVES), name="move"),
        )

    def reset(self, key: Key) -> tuple[GridState, TimeStep]:
        state = self._layout(key)
        return state, types.restart(self._observe(state))

    def step(self, state: GridState, action: Array, key: Key) -> tuple[GridState, TimeStep]:
        del key
        target = state.position + jnp.asarray(MOVES)[action]
        kind = state.cells[target[0], target[1]]
        blocked = (kind == WALL) | (kind >= CUE_UP) | ((kind == DOOR) & ~state.has_key)
        position = jnp.where(blocked, state.position, target)
        used = ((kind == KEY) | (kind == DOOR)) & ~blocked
        cells = jnp.where(boards.at(state.cells.shape, target) & used, EMPTY, state.cells).astype(jnp.int8)
        state = GridState(cells=cells, position=position, has_key=state.has_key | (kind == KEY))
        reward = jnp.where(kind == GOAL, 1.0, jnp.where(kind == TRAP, -1.0, 0.0))
        return state, types.transition(reward, self._observe(state), terminated=(kind == GOAL) | (kind == TRAP))

    def render(self, state: GridState) -> Array:
        """The whole board, 16 pixels a cell: the agent red, the goal green, a trap purple, key and door yellow and brown."""
        kinds = state.cells[..., None] == jnp.arange(1, 8)
        agent = boards.at(state.cells.shape, state.position)[..., None]
        return drawing.paint(jnp.concatenate([kinds, agent], axis=-1), _COLOURS)

    def _observe(self, state: GridState) -> Array:
        cells, position = state.cells, state.position
        if self._view:
            margin = self._view // 2
            padded = jnp.pad(cells, margin, constant_values=WALL)
            cells = jax.lax.dynamic_slice(padded, position, (self._view, self._view))
            position = jnp.array([margin, margin])
        layers = (
            cells == WALL,
            (cells == GOAL) | (cells == TRAP),
            cells == KEY,
            cells == DOOR,
            cells == CUE_UP,
            cells == CUE_DOWN,
            boards.at(cells.shape, position),
            jnp.broadcast_to(state.has_key, cells.shape),
        )
        return jnp.stack(layers, axis=-1).astype(jnp.uint8) * 255


_COLOURS = np.array(
    [
        [20, 20, 20],
        [120, 120, 120],
        [92, 186, 92],
        [150, 80, 170],
        [240, 220, 80],
        [150, 100, 50],
        [80, 140, 240],
        [240, 140, 40],
        [220, 60, 60],
    ]
)


def _walled(size: int) -> np.ndarray:
    cells = np.full((size, size), WALL, np.int8)
    cells[1:-1, 1:-1] = EMPTY
    return cells


# A layout draws all its noise at once: each call of jax.random costs compile time and run time on a CPU.


def _draw_cells(noise: Array, allowed: Array, count: int) -> Array:
    """`count` different cells `[count, 2]` int32, uniformly among those `allowed` `[H, W]`. noise: `[H, W]` in [0, 1)."""
    chosen = boards.pick(jnp.where(allowed, noise, -1.0).reshape(-1), count)
    return jnp.stack(jnp.divmod(chosen, allowed.shape[1]), axis=-1)


def _start_and_goal(noise: Array, cells: Array) -> GridState:
    start, goal = _draw_cells(noise, cells == EMPTY, 2)
    return GridState(cells=cells.at[goal[0], goal[1]].set(GOAL), position=start, has_key=jnp.bool_(False))


def _empty(key: Key, size: int) -> GridState:
    return _start_and_goal(jax.random.uniform(key, (size, size)), jnp.asarray(_walled(size)))


def _four_rooms(key: Key, size: int) -> GridState:
    noise = jax.random.uniform(key, (size + 1, size))
    middle, rows, columns = size // 2, np.arange(size)[:, None], np.arange(size)[None, :]
    low, high = np.array([1, 1, middle + 1, middle + 1]), np.array([middle, middle, size - 1, size - 1])
    top, left, bottom, right = low + boards.uniform_index(noise[0, :4], high - low)
    gap = ((columns == middle) & ((rows == top) | (rows == bottom))) | (
        (rows == middle) & ((columns == left) | (columns == right))
    )
    walls = _walled(size)
    walls[middle, :] = walls[:, middle] = WALL
    return _start_and_goal(noise[1:], jnp.where(gap, EMPTY, walls).astype(jnp.int8))


def _key_door(key: Key, size: int) -> GridState:
    noise = jax.random.uniform(key, (2 * size + 1, size))
    wall = 2 + boards.uniform_index(noise[0, 0], size - 4)
    door = 1 + boards.uniform_index(noise[0, 1], size - 2)
    columns = np.arange(size)[None, :]
    free = jnp.asarray(_walled(size)) == EMPTY
    start, treasure = _draw_cells(noise[1 : size + 1], free & (columns < wall), 2)
    (goal,) = _draw_cells(noise[size + 1 :], free & (columns > wall), 1)
    cells = jnp.where(free & (columns != wall), EMPTY, WALL).astype(jnp.int8)
    cells = cells.at[door, wall].set(DOOR).at[treasure[0], treasure[1]].set(KEY).at[goal[0], goal[1]].set(GOAL)
    return GridState(cells=cells, position=start, has_key=jnp.bool_(False))


def _tmaze(key: Key, size: int) -> GridState:
    cells = np.full((5, size + 2), WALL, np.int8)
    cells[2, 1 : size + 1] = EMPTY
    up = jax.random.bernoulli(key)
    board = jnp.asarray(cells)
    board = board.at[1, 1].set(jnp.where(up, CUE_UP, CUE_DOWN).astype(jnp.int8))
    board = board.at[1, size].set(jnp.where(up, GOAL, TRAP).astype(jnp.int8))
    board = board.at[3, size].set(jnp.where(up, TRAP, GOAL).astype(jnp.int8))
    return GridState(cells=board, position=jnp.array([2, 1]), has_key=jnp.bool_(False))


_LAYOUTS = {"empty": _empty, "four_rooms": _four_rooms, "key_door": _key_door, "tmaze": _tmaze}


def _make(task: str, config: GridworldConfig) -> JaxEnvironment:
    view = config.view or (3 if task == "tmaze" else 0)
    if task == "tmaze" and config.size - view // 2 < 2:
        raise ConfigError(f"gridworld/tmaze with size={config.size} needs a view below {2 * config.size - 3}, not {view}")
    environment = Gridworld(task, lambda key: _LAYOUTS[task](key, config.size), view)
    return TimeLimit(environment, config.max_steps or 10 * config.size)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: tuple(_LAYOUTS),
    config=GridworldConfig,
    summary="procedural gridworlds: rooms, key and door, and a T-maze that needs memory",
    default_task="empty",
)
