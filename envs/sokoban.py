"""Sokoban: push every box onto a target. Procedural levels, all of them or a fixed few, that can be solved by construction.

The task of Weber et al. 2017 (I2A, https://arxiv.org/abs/1707.06203) and Guez et al. 2018 (Boxoban,
https://github.com/google-deepmind/boxoban-levels). Their levels are files; ours are drawn inside XLA: a room grows from small
pieces, boxes start on targets, and the player pulls them away. Whatever was pulled can be pushed back.

* `mini`: 7x7 cells with walls, two boxes, 60 steps.
* `full`: 10x10 cells, four boxes, 120 steps.

To ask what carries over to unseen levels, train with `num_levels=1000` and evaluate with `num_levels=1000 first_level=1000`.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import ConfigError, filled, require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs import boards, drawing
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

CHANNELS = ("wall", "target", "box", "player")
_PIECES = (((0, 0), (0, 1), (0, 2)), ((0, 0), (1, 0), (2, 0)), ((0, 0), (0, 1), (1, 0), (1, 1)))


@dataclasses.dataclass(frozen=True)
class SokobanConfig:
    """size: side of the board with its walls; num_boxes: boxes and targets; 0 for the task's own.

    walls: share of the cells inside that are walls, at most; rooms grow by small pieces and may end a cell or two above.
    num_pulls: of boxes away from targets, which draw a level; more make harder levels and slower resets. 0 for the task's own.
    reward: `shaped`, -0.1 a step, 1 for a box that comes onto a target, -1 for one that leaves it, and 10 for the level
      (Weber et al. 2017); or `sparse`, 1 for the level and 0 otherwise.
    num_levels: 0 draws a new level for every episode; N > 0 one of the levels `first_level .. first_level + N - 1`.
      first_level: the number of the first.
    max_steps: time limit, a truncation; 0 for the task's own.
    """

    size: int = 0
    num_boxes: int = 0
    walls: float = 0.3
    num_pulls: int = 0
    reward: Literal["shaped", "sparse"] = "shaped"
    num_levels: int = 0
    first_level: int = 0
    max_steps: int = 0

    def __post_init__(self) -> None:
        if self.size and self.size < 5:
            raise ConfigError(f"size must be 0 (the task's own) or at least 5, not {self.size}")
        require(self, "num_boxes", "num_pulls", "num_levels", "first_level", "max_steps", at_least=0)
        require(self, "walls", at_least=0, below=1)
        if self.reward not in ("shaped", "sparse"):
            raise ConfigError(f"reward must be shaped or sparse, not {self.reward!r}")
        if self.num_levels + self.first_level >= 2**31:
            raise ConfigError(f"levels are numbered below 2**31: first_level={self.first_level} is too large")


class SokobanState(NamedTuple):
    """walls, targets, boxes: `[H, W]` bool. player: `[2]` int32, row and column."""

    walls: Array
    targets: Array
    boxes: Array
    player: Array


class Sokoban(JaxEnvironment):
    """Actions: up, right, down, left. The player pushes one box at a time, and never pulls.

    Observation: `[H, W, 4]` uint8, 0 or 255, one plane for each of CHANNELS; a box on a target is on both planes. Reward: see
    SokobanConfig. The episode terminates when all boxes are on targets. A level that can no longer be solved goes on until
    its time limit, as in the papers: to see that coming is what the task is about.
    """

    def __init__(self, task: str, config: SokobanConfig):
        self.config, self._shape = config, (config.size, config.size)
        self._generator = _Generator(config)
        self.spec = EnvironmentSpec(
            name=f"sokoban/{task}",
            observation=specs.BoundedArray((*self._shape, len(CHANNELS)), np.uint8, 0, 255, name="cells"),
            action=specs.DiscreteArray(len(boards.MOVES), name="move"),
        )

    def reset(self, key: Key) -> tuple[SokobanState, TimeStep]:
        num_levels, first_level = self.config.num_levels, self.config.first_level
        if num_levels:  # a level depends on its number alone
            number = first_level + boards.uniform_index(jax.random.uniform(key), num_levels)
            key = jax.random.fold_in(jax.random.key(0), number)
        state = self._generator.draw(key)
        return state, types.restart(self._observe(state))

    def step(self, state: SokobanState, action: Array, key: Key) -> tuple[SokobanState, TimeStep]:
        del key
        move = jnp.asarray(boards.MOVES)[action]
        target, beyond = state.player + move, state.player + 2 * move
        box = state.boxes[target[0], target[1]]
        # Beyond the outer wall `beyond` means nothing, but there `target` is a wall.
        stuck = state.walls[beyond[0], beyond[1]] | state.boxes[beyond[0], beyond[1]]
        moved = ~state.walls[target[0], target[1]] & ~(box & stuck)
        pushed = moved & box
        left, entered = boards.at(self._shape, target), boards.at(self._shape, beyond)
        boxes = jnp.where(pushed, (state.boxes & ~left) | entered, state.boxes)
        new = state._replace(boxes=boxes, player=jnp.where(moved, target, state.player))
        solved = jnp.all(new.boxes == new.targets)
        return new, types.transition(self._reward(state, new, solved), self._observe(new), terminated=solved)

    def render(self, state: SokobanState) -> Array:
        """16 pixels a cell: walls grey, targets red, boxes brown and, on a target, green, the player blue."""
        player = boards.at(self._shape, state.player)
        done = state.boxes & state.targets
        return drawing.paint(jnp.stack([state.walls, state.targets, state.boxes, done, player], axis=-1), _COLOURS)

    def _reward(self, old: SokobanState, new: SokobanState, solved: Array) -> Array:
        if self.config.reward == "sparse":
            return jnp.where(solved, 1.0, 0.0)
        gained = jnp.sum(new.boxes & new.targets) - jnp.sum(old.boxes & old.targets)
        return -0.1 + gained + 10.0 * solved

    def _observe(self, state: SokobanState) -> Array:
        player = boards.at(self._shape, state.player)
        return jnp.stack([state.walls, state.targets, state.boxes, player], axis=-1).astype(jnp.uint8) * 255


_COLOURS = np.array([[20, 20, 20], [120, 120, 120], [200, 80, 80], [150, 100, 50], [92, 186, 92], [80, 140, 240]])


class _Generator:
    """Levels of one size. Cells are flat: row times size plus column.

    pieces: `[P, 4]`, cells of each piece of floor wherever it fits, the last one repeated. lines: `[L, 3]`, three cells in a
    row, in both directions: a box, and where the player stands before and after pulling it.
    """

    def __init__(self, config: SokobanConfig):
        size, self._config = config.size, config
        cells = np.arange(size * size).reshape(size, size)
        self.pieces = np.array(
            [
                [cells[row + d_row, column + d_column] for d_row, d_column in (*piece, piece[-1])[:4]]
                for piece in _PIECES
                for row in range(1, size - 1 - piece[-1][0])
                for column in range(1, size - 1 - piece[-1][1])
            ]
        )
        straight = self.pieces[: 2 * (size - 2) * (size - 4), :3]
        self.lines = np.concatenate([straight, straight[:, ::-1]])
        self.num_floor = int(np.ceil((1 - config.walls) * (size - 2) ** 2))
        if self.num_floor < config.num_boxes + 3:
            raise ConfigError(
                f"a board of size {size} with walls={config.walls} has {self.num_floor} free cells, too few for"
                f" {config.num_boxes} boxes: it needs {config.num_boxes + 3}"
            )

    def draw(self, key: Key) -> SokobanState:
        """A level that can be solved, with at least one box that is not on a target."""
        size, num_boxes, num_pulls = self._config.size, self._config.num_boxes, self._config.num_pulls
        counts = np.cumsum([len(self.pieces), len(self.lines), size * size, size * size])
        noise = jax.random.uniform(key, (int(counts[-1]) + num_pulls * num_boxes * 4,))
        of_pieces, of_lines, of_targets, of_player, of_pulls = jnp.split(noise, counts)
        floor = self._grow(of_pieces)
        targets, player = self._set_up(floor, of_lines, of_targets)
        boxes, player = self._pull(floor, targets, player, of_pulls.reshape(num_pulls, num_boxes, 4))
        # The player would stand where the last pull ended, and give the first push away.
        reached = self._reachable(floor & ~boards.among(boxes, len(floor)), player)
        player = jnp.argmax(jnp.where(reached, of_player, -1.0)).astype(jnp.int32)
        return SokobanState(
            walls=~floor.reshape(size, size),
            targets=boards.among(targets, len(floor)).reshape(size, size),
            boxes=boards.among(boxes, len(floor)).reshape(size, size),
            player=jnp.stack(jnp.divmod(player, size)),
        )

    def _grow(self, noise: Array) -> Array:
        """A connected room `[cells]` bool of `num_floor` cells, or up to two more, with a straight line of three in it."""
        pieces = jnp.asarray(self.pieces)

        def grow(floor: Array) -> Array:
            covered = floor[pieces]
            fits = jnp.any(covered, axis=-1) & ~jnp.all(covered, axis=-1)
            return floor | boards.among(pieces[jnp.argmax(jnp.where(fits, noise, -1.0))], len(floor))

        first = pieces[jnp.argmax(noise[: len(self.lines) // 2])]
        floor = boards.among(first, self._config.size**2)
        return jax.lax.while_loop(lambda floor: jnp.sum(floor) < self.num_floor, grow, floor)

    def _set_up(self, floor: Array, of_lines: Array, of_targets: Array) -> tuple[Array, Array]:
        """Targets `[N]` and a cell for the player, next to the first of them: its box can be pulled."""
        lines = jnp.asarray(self.lines, jnp.int32)
        free = jnp.all(floor[lines], axis=-1)
        line = lines[jnp.argmax(jnp.where(free, of_lines, -1.0))]
        # A box that cannot be pulled in an empty room would never move: targets for such come last.
        loose = jnp.zeros(floor.shape, bool).at[lines[:, 0]].max(free)
        score = jnp.where(boards.among(line, len(floor)), -2.0, jnp.where(floor, of_targets + loose, -1.0))
        return jnp.concatenate([line[:1], boards.pick(score, self._config.num_boxes - 1)]), line[1]

    def _pull(self, floor: Array, targets: Array, player: Array, noise: Array) -> tuple[Array, Array]:
        """Pulls boxes from their targets. Returns boxes `[N]` and player of the moment that is farthest from a solution.

        Args:
          noise: `[num_pulls, N, 4]` in [0, 1): a preference for each box and direction.
        """
        size = self._config.size
        steps = jnp.asarray(boards.MOVES @ np.array([size, 1], np.int32))

        def distance(boxes: Array) -> Array:
            """Rows and columns between boxes `[N, ...]` and their own targets."""
            own = targets.reshape(-1, *(1,) * (boxes.ndim - 1))
            return jnp.abs(boxes // size - own // size) + jnp.abs(boxes % size - own % size)

        def pull(carry: tuple[Any, Any, Array], noise: Array) -> tuple[tuple[Any, Any, Array], None]:
            (boxes, player), best, best_score = carry
            free = floor & ~boards.among(boxes, len(floor))
            before, after = boxes[:, None] + steps, boxes[:, None] + 2 * steps
            legal = self._reachable(free, player)[before] & free[after]
            wish = noise + 0.5 * (distance(before) - distance(boxes)[:, None]) + 2.0 * (boxes == targets)[:, None]
            box, move = jnp.divmod(jnp.argmax(jnp.where(legal, wish, -jnp.inf)), 4)
            possible = jnp.any(legal)
            boxes = jnp.where(possible & (jnp.arange(len(boxes)) == box), before[box, move], boxes)
            player = jnp.where(possible, after[box, move], player)
            away = jnp.all(boxes[:, None] != targets, axis=-1)
            score = jnp.sum(distance(boxes) + 4 * size * away)
            better = score > best_score
            best = (jnp.where(better, boxes, best[0]), jnp.where(better, player, best[1]))
            return ((boxes, player), best, jnp.maximum(score, best_score)), None

        start = (targets, player)
        (_, best, _), _ = jax.lax.scan(pull, (start, start, jnp.int32(0)), noise)
        return best

    def _reachable(self, free: Array, player: Array) -> Array:
        """Cells `[cells]` bool that the player can walk to over cells that are `free` `[cells]`."""
        size = self._config.size

        def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            reached, _ = carry
            # The border is never free, so that cells which `roll` carries around it do no harm.
            near = jnp.stack([jnp.roll(reached, shift) for shift in (-size, -1, 1, size)])
            new = (reached | jnp.any(near, axis=0)) & free
            return new, jnp.any(new != reached)

        start = jnp.arange(size * size) == player
        return jax.lax.while_loop(lambda carry: carry[1], spread, (start, jnp.bool_(True)))[0]


_TASKS = {
    "mini": {"size": 7, "num_boxes": 2, "num_pulls": 8, "max_steps": 60},
    "full": {"size": 10, "num_boxes": 4, "num_pulls": 20, "max_steps": 120},
}


def _make(task: str, config: SokobanConfig) -> JaxEnvironment:
    config = filled(config, _TASKS[task])
    return TimeLimit(Sokoban(task, config), config.max_steps)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: tuple(_TASKS),
    config=SokobanConfig,
    summary="boxes to be pushed onto targets, in procedural levels that can be solved",
    default_task="mini",
)
