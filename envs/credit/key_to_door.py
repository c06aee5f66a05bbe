"""Key-to-Door. Hung et al. 2019, https://arxiv.org/abs/1810.06721; with apples of high variance, Mesnard et al. 2021, section
4.2."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import types
from podracer.environment import JaxEnvironment
from podracer.envs import boards, drawing
from podracer.envs.boards import MOVES
from podracer.envs.credit.config import Config
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

CHANNELS = ("wall", "key", "apple", "door", "holding", "first_room", "second_room", "third_room")
_VIEW = 5


@dataclasses.dataclass(frozen=True)
class Layout:
    """Three rooms on boards of one size, drawn with `#` walls, `s` starts (in the first room one of them), `k` places of the
    key (one is drawn), `a` of apples (`num_apples` are drawn), `d` the door.

    frames: steps in each room.
    """

    rooms: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
    frames: tuple[int, int, int]
    num_apples: int

    def cells(self, symbol: str) -> np.ndarray:
        """Where `symbol` stands, `[3, H, W]` bool."""
        return np.array([[list(row) for row in room] for room in self.rooms]) == symbol


def _lattice(y: int) -> str:
    return "#" + "".join("a" if (x + y) % 2 == 0 else " " for x in range(9)) + "#"


PAPER = Layout(
    rooms=(
        (
            "  #######  ",
            "  #kkkkk#  ",
            "  #kkkkk#  ",
            "  ##   ##  ",
            "  #sssss#  ",
            "  #sssss#  ",
            "  #######  ",
        ),
        ("#" * 11, *(_lattice(y) for y in range(4)), "#a a s a a#", "#" * 11),
        (
            "           ",
            "   ##d##   ",
            "   #   #   ",
            "   # s #   ",
            "   #   #   ",
            "   #####   ",
            "           ",
        ),
    ),
    frames=(15, 90, 15),
    num_apples=10,
)
MINI = Layout(
    rooms=(
        (" ##### ", " #kkk# ", " #   # ", " #sss# ", " ##### ", "       ", "       "),
        ("#######", "#a a a#", "# a a #", "#a s a#", "# a a #", "#a a a#", "#######"),
        (" ##d## ", " #   # ", " # s # ", " #   # ", " ##### ", "       ", "       "),
    ),
    frames=(5, 20, 5),
    num_apples=4,
)


class DoorState(NamedTuple):
    """t: `[]` int32, steps so far. position, key: `[2]` int32, where the agent is, and where the key lies or lay.

    taken, opened: `[]` bool. grown: `[H, W]` int32, the step from which there is an apple, or a number beyond the episode.
    apple: `[]` float32, what one is worth.
    """

    t: Array
    position: Array
    key: Array
    taken: Array
    opened: Array
    grown: Array
    apple: Array


class KeyToDoor(JaxEnvironment):
    """Three rooms one after the other, each for a fixed number of steps: a key, apples, a door that opens for who took the key.

    Observation: `[5, 5, 8]` uint8, 0 or 255, the cells around the agent, a channel for each of CHANNELS. Whether the agent
    holds the key shows in the first room alone, as in the original; which room it is shows, as there by its shape. Actions: up,
    right, down, left. Rewards: apples 1, or with `variance=high` 1 or 10 by episode; the door `door_reward`, once. All episodes
    have the same length, and end by termination.
    aux: `phase` int32 (0 to 2; 2 at LAST), `key` and `door` bool, taken and opened so far, `apple` float32, what one is worth.
    """

    def __init__(self, task: str, layout: Layout, config: Config):
        self._layout, self._config = layout, config
        self._walls, self._door, starts = layout.cells("#"), layout.cells("d"), layout.cells("s")
        self._shape = self._door.shape[1:]
        # Where episodes start, the key lies and apples grow, `[n, 2]` each; where each room is entered, `[3, 2]`.
        self._starts, self._keys = np.argwhere(starts[0]), np.argwhere(layout.cells("k")[0])
        self._lattice = np.argwhere(layout.cells("a")[1])
        self._entries = np.array([np.argwhere(room)[0] for room in starts], np.int32)
        self._length, self._ends = sum(layout.frames), np.cumsum(layout.frames)
        self.spec = EnvironmentSpec(
            name=f"credit/{task}",
            observation=specs.BoundedArray((_VIEW, _VIEW, len(CHANNELS)), np.uint8, 0, 255, name="cells"),
            action=specs.DiscreteArray(len(MOVES), name="move"),
            aux={
                "phase": specs.BoundedArray((), np.int32, 0, 2, name="phase"),
                "key": specs.Array((), np.bool_, name="key"),
                "door": specs.Array((), np.bool_, name="door"),
                "apple": specs.Array((), np.float32, name="apple"),
            },
        )

    def reset(self, key: Key) -> tuple[DoorState, TimeStep]:
        *noise, coin, of_start, of_key = jax.random.uniform(key, (len(self._lattice) + 3,))
        apples = boards.pick(jnp.stack(noise), self._layout.num_apples)
        ripe = jnp.any(boards.at(self._shape, jnp.asarray(self._lattice)[apples]), axis=0)
        high = (self._config.variance == "high") & (coin < 0.5)
        state = DoorState(
            t=jnp.int32(0),
            position=_choose(of_start, self._starts),
            key=_choose(of_key, self._keys),
            taken=jnp.bool_(False),
            opened=jnp.bool_(False),
            grown=jnp.where(ripe, 0, self._length).astype(jnp.int32),
            apple=jnp.where(high, 10.0, 1.0).astype(jnp.float32),
        )
        return state, types.restart(self._observe(state), aux=self._labels(state))

    def step(self, state: DoorState, action: Array, key: Key) -> tuple[DoorState, TimeStep]:
        del key
        phase = self._phase(state.t)
        # Walls bound the rooms, but whoever passes the open door is stopped by the board's edge alone.
        target = jnp.clip(state.position + jnp.asarray(MOVES)[action], 0, jnp.asarray(self._shape) - 1)
        door = self._at(self._door, phase, target)
        blocked = self._at(self._walls, phase, target) | (door & ~state.taken)
        position = jnp.where(blocked, state.position, target)
        opens = door & state.taken & ~state.opened
        here = boards.at(self._shape, position)
        eats = (phase == 1) & jnp.any(here & (state.grown <= state.t))
        again = state.t + 1 + self._config.respawn if self._config.respawn else self._length
        t = state.t + 1
        new_phase = self._phase(t)
        state = state._replace(
            t=t,
            position=jnp.where(new_phase == phase, position, jnp.asarray(self._entries)[new_phase]),
            taken=state.taken | ((phase == 0) & jnp.all(position == state.key)),
            opened=state.opened | opens,
            grown=jnp.where(here & eats, again, state.grown),
        )
        reward = jnp.where(eats, state.apple, 0.0) + jnp.where(opens, self._config.door_reward, 0.0)
        over = t >= self._length
        return state, types.transition(reward, self._observe(state), terminated=over, aux=self._labels(state))

    def render(self, state: DoorState) -> Array:
        """The room, 16 pixels a cell: the agent red, key yellow, apples green, door brown."""
        layers = [*self._layers(state), boards.at(self._shape, state.position)]
        return drawing.paint(jnp.stack(layers, axis=-1), _COLOURS)

    def _phase(self, t: Array) -> Array:
        return jnp.minimum(jnp.sum(t >= jnp.asarray(self._ends)), 2).astype(jnp.int32)

    def _at(self, cells: np.ndarray, phase: Array, target: Array) -> Array:
        return jnp.asarray(cells)[phase, target[0], target[1]]

    def _layers(self, state: DoorState) -> list[Array]:
        phase, shape = self._phase(state.t), self._shape
        return [
            jnp.asarray(self._walls)[phase],
            boards.at(shape, state.key) & ~state.taken & (phase == 0),
            (state.grown <= state.t) & (phase == 1),
            jnp.asarray(self._door)[phase],
        ]

    def _observe(self, state: DoorState) -> Array:
        phase, margin = self._phase(state.t), _VIEW // 2
        board = jnp.stack(self._layers(state), axis=-1)
        padded = jnp.pad(board, ((margin, margin), (margin, margin), (0, 0)))
        seen = jax.lax.dynamic_slice(padded, (*state.position, 0), (_VIEW, _VIEW, board.shape[-1]))
        everywhere = jnp.concatenate([(state.taken & (phase == 0))[None], phase == jnp.arange(3)])
        planes = jnp.broadcast_to(everywhere, (_VIEW, _VIEW, len(everywhere)))
        return jnp.concatenate([seen, planes], axis=-1).astype(jnp.uint8) * 255

    def _labels(self, state: DoorState) -> dict[str, Array]:
        return {"phase": self._phase(state.t), "key": state.taken, "door": state.opened, "apple": state.apple}


def _choose(noise: Array, cells: np.ndarray) -> Array:
    """One of `cells` `[n, 2]`, as int32. noise: `[]` in [0, 1)."""
    return jnp.asarray(cells, jnp.int32)[boards.uniform_index(noise, len(cells))]


_COLOURS = np.array([[20, 20, 20], [120, 120, 120], [240, 220, 80], [92, 186, 92], [150, 100, 50], [220, 60, 60]])
