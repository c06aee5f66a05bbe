"""Tasks in which the future explains a return that is hard to see ahead (Guez et al. 2020, https://arxiv.org/abs/2002.08329).

* `policy_evaluation`: one transition of a random Markov reward process; what matters of the arrival is four bits of it.
* `portal_choice`: choose one of two portals. Where a portal lies decides the colour of the room that it leads to, whatever else
  is seen; the number of lit pixels decides the colour that pays.
"""

import dataclasses
from typing import Literal, NamedTuple

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

START, GREEN, RED = range(3)
"""Rooms of `portal_choice`."""
CHANNELS = ("agent", "portal", "goal", "green", "red", "lit")


@dataclasses.dataclass(frozen=True)
class HindsightConfig:
    """instance: seed of what is random but fixed: the reward process, or which cells' portals lead to which room.

    Of `policy_evaluation`: distractors, signals: numbers of features.

    Of `portal_choice`: room: side of the start room, odd. corridor: steps from a portal to the goal. patch: side of the square
    in which pixels are lit. max_lit: their number is drawn from 0 to this, odd, so that both colours pay equally often; 0 is
    the most that the patch can hold. rule: green pays where `more` than half of `max_lit` are lit, or an odd number (`parity`).
    max_steps: time limit, a truncation; 0 means 10 times `room`.
    """

    instance: int = 0
    distractors: int = 28
    signals: int = 4
    room: int = 5
    corridor: int = 3
    patch: int = 3
    max_lit: int = 0
    rule: Literal["more", "parity"] = "more"
    max_steps: int = 0

    def __post_init__(self) -> None:
        require(self, "instance", "max_steps", at_least=0)
        require(self, "distractors", "signals", at_least=1)
        require(self, "room", at_least=5)
        if self.room % 2 == 0:
            raise ConfigError(f"room must be odd, not {self.room}")
        require(self, "corridor", at_least=1, below=self.room)
        require(self, "patch", at_least=1, at_most=self.room)
        if not 1 <= self.most_lit <= self.patch**2 or self.most_lit % 2 == 0:
            raise ConfigError(f"max_lit must be odd and at most patch ** 2, {self.patch**2}, not {self.most_lit}")

    @property
    def most_lit(self) -> int:
        """The largest number of lit pixels."""
        return self.max_lit or self.patch**2 - (self.patch + 1) % 2


class Process(NamedTuple):
    """What is random in one instance of `policy_evaluation`, float32, unit normal; `D = distractors + signals`.

    signal_w, signal_b: `[signals, signals]`, `[signals]`. inner_w, inner_b: `[D, D]`, `[D]`. outer_w, outer_b:
    `[D, distractors]`, `[distractors]`.
    """

    signal_w: Array | np.ndarray
    signal_b: Array | np.ndarray
    inner_w: Array | np.ndarray
    inner_b: Array | np.ndarray
    outer_w: Array | np.ndarray
    outer_b: Array | np.ndarray


def draw_process(instance: int, distractors: int = 28, signals: int = 4) -> Process:
    """The process of a seed."""
    rng, size = np.random.default_rng(instance), distractors + signals
    shapes = ((signals, signals), (signals,), (size, size), (size,), (size, distractors), (distractors,))
    return Process(*(rng.standard_normal(shape).astype(np.float32) for shape in shapes))


def arrive(process: Process, x: Array, noise: Array) -> tuple[Array, Array]:
    """The transition from `x` `[D]`: `x'` `[D]` and the reward `[]`, which `x` alone decides (Guez et al. 2020, section 3.2).

    `x2' = heaviside(x2 W + b)`, `x1' = sigmoid(sigmoid(x W' + b') W'' + b'') + noise`, `r = sum(x1) sum(x2') / sqrt(D)`, with
    `x = (x1, x2)`. noise: `[distractors]`, unit normal.
    """
    distractors = noise.shape[0]
    signal = (x[distractors:] @ process.signal_w + process.signal_b > 0).astype(jnp.float32)
    hidden = jax.nn.sigmoid(x @ process.inner_w + process.inner_b)
    distraction = jax.nn.sigmoid(hidden @ process.outer_w + process.outer_b) + noise
    reward = jnp.sum(x[:distractors]) * jnp.sum(signal) / np.sqrt(x.shape[0]).astype(np.float32)
    return jnp.concatenate([distraction, signal]), reward


class PolicyEvaluation(JaxEnvironment):
    """`x` at FIRST, `x'` at LAST with the reward; the one action does nothing.

    Observation: `[D]` float32, distractors first. aux: `signal` `[]` float32, the sum of the signals of `x'`.
    """

    def __init__(self, config: HindsightConfig):
        self.config, self.process = config, draw_process(config.instance, config.distractors, config.signals)
        self.spec = EnvironmentSpec(
            name="hindsight/policy_evaluation",
            observation=specs.Array((config.distractors + config.signals,), np.float32, name="x"),
            action=specs.DiscreteArray(1, name="nothing"),
            aux={"signal": specs.Array((), np.float32, name="signal")},
        )

    def reset(self, key: Key) -> tuple[Array, TimeStep]:
        x = jax.random.normal(key, self.spec.observation.shape)
        arrival, _ = arrive(self.process, x, jnp.zeros(self.config.distractors))
        return x, types.restart(x, self._aux(arrival))

    def step(self, state: Array, action: Array, key: Key) -> tuple[Array, TimeStep]:
        del action
        arrival, reward = arrive(self.process, state, jax.random.normal(key, (self.config.distractors,)))
        return arrival, types.transition(reward, arrival, terminated=True, aux=self._aux(arrival))

    def _aux(self, arrival: Array) -> dict[str, Array]:
        return {"signal": jnp.sum(arrival[self.config.distractors :])}


class PortalState(NamedTuple):
    """room: `[]` int32, START, GREEN or RED. position: `[2]` int32, row and column. portals: `[2, 2]` int32, where the portals
    to the green and to the red room lie. lit: `[patch, patch]` bool. pays: `[]` int32, GREEN or RED.
    """

    room: Array
    position: Array
    portals: Array
    lit: Array
    pays: Array


class PortalChoice(JaxEnvironment):
    """Moves up, right, down, left; a portal leads into the corridor of a coloured room, whose end is the goal.

    Every episode draws a portal to the green room and one to the red room, each among its half of the cells at the sides of the
    start room, and the lit pixels. The reward is 2 at the goal of the colour that pays and 0 at that of the other; it ends the
    episode. A random portal brings 1 on average, the right one 2.

    Observation: `[room, room + 1 + patch, 6]` uint8, 0 or 255, one channel for each of CHANNELS: the room with the agent, and
    at its right the patch, which is dark in the coloured rooms, whose colour is one pixel in the corner.
    aux: `room` and `pays` as in `PortalState`, `num_lit` `[]` int32.
    """

    def __init__(self, config: HindsightConfig):
        self.config = config
        self.cells = portal_cells(config.room, config.instance)
        shape = (config.room, config.room + 1 + config.patch, len(CHANNELS))
        self.spec = EnvironmentSpec(
            name="hindsight/portal_choice",
            observation=specs.BoundedArray(shape, np.uint8, 0, 255, name="cells"),
            action=specs.DiscreteArray(len(MOVES), name="move"),
            aux={name: specs.Array((), np.int32, name=name) for name in ("room", "pays", "num_lit")},
        )

    def reset(self, key: Key) -> tuple[PortalState, TimeStep]:
        config, half = self.config, self.cells.shape[1]
        noise = jax.random.uniform(key, (3 + config.patch**2,))
        chosen = boards.uniform_index(noise[:2], half)
        num_lit = boards.uniform_index(noise[2], config.most_lit + 1)
        rank = jnp.sum(noise[3:] < noise[3:, None], axis=1)  # a random order of the pixels, of which the first are lit
        lit = (rank < num_lit).reshape(config.patch, config.patch)
        green = num_lit % 2 == 1 if config.rule == "parity" else 2 * num_lit > config.most_lit
        state = PortalState(
            room=jnp.int32(START),
            position=jnp.full(2, config.room // 2, jnp.int32),
            portals=jnp.asarray(self.cells)[jnp.arange(2), chosen],
            lit=lit,
            pays=jnp.where(green, GREEN, RED).astype(jnp.int32),
        )
        return state, types.restart(self._observe(state), self._aux(state))

    def step(self, state: PortalState, action: Array, key: Key) -> tuple[PortalState, TimeStep]:
        del key
        config, starting = self.config, state.room == START
        middle = config.room // 2
        # The start room is a square, the others are a corridor in their middle row.
        low = jnp.where(starting, 0, jnp.array([middle, 0]))
        high = jnp.where(starting, config.room - 1, jnp.array([middle, config.corridor]))
        position = jnp.clip(state.position + jnp.asarray(MOVES)[action], low, high)
        entered = starting & jnp.all(position == state.portals, axis=1)
        inside = jnp.any(entered)
        room = jnp.where(inside, GREEN + jnp.argmax(entered), state.room).astype(jnp.int32)
        position = jnp.where(inside, jnp.array([middle, 0]), position).astype(jnp.int32)
        arrived = ~starting & (position[1] == config.corridor)
        state = state._replace(room=room, position=position)
        reward = jnp.where(arrived & (room == state.pays), 2.0, 0.0)
        return state, types.transition(reward, self._observe(state), terminated=arrived, aux=self._aux(state))

    def render(self, state: PortalState) -> Array:
        """16 pixels a cell: the agent white, portals cyan, the goal blue, pixels of the patch yellow."""
        return drawing.paint(self._layers(state)[..., ::-1], _COLOURS)

    def _layers(self, state: PortalState) -> Array:
        config, starting = self.config, state.room == START
        shape = self.spec.observation.shape[:2]
        corner, goal = jnp.array([0, 0]), jnp.array([config.room // 2, config.corridor])
        patch = jnp.pad(state.lit, ((0, config.room - config.patch), (config.room + 1, 0)))
        layers = (
            boards.at(shape, state.position),
            starting & jnp.any(boards.at(shape, state.portals), axis=0),
            ~starting & boards.at(shape, goal),
            (state.room == GREEN) & boards.at(shape, corner),
            (state.room == RED) & boards.at(shape, corner),
            starting & patch,
        )
        return jnp.stack(layers, axis=-1)

    def _observe(self, state: PortalState) -> Array:
        return self._layers(state).astype(jnp.uint8) * 255

    def _aux(self, state: PortalState) -> dict[str, Array]:
        return {"room": state.room, "pays": state.pays, "num_lit": jnp.sum(state.lit).astype(jnp.int32)}


_COLOURS = np.array(  # the floor, then CHANNELS from the last to the first
    [[20, 20, 20], [240, 220, 80], [220, 60, 60], [92, 186, 92], [70, 100, 240], [90, 220, 220], [236, 236, 236]]
)


def portal_cells(room: int, instance: int) -> np.ndarray:
    """Where portals to the green and to the red room can lie, `[2, 2 (room - 2), 2]` int32, rows and columns.

    The cells at the sides of the start room but for its corners, split in halves by chance.
    """
    along, far = np.arange(1, room - 1), room - 1
    sides = [np.stack(np.broadcast_arrays(*cell), axis=-1) for cell in ((0, along), (far, along), (along, 0), (along, far))]
    cells = np.concatenate(sides).astype(np.int32)
    return np.random.default_rng(instance).permutation(cells).reshape(2, -1, 2)


def _make(task: str, config: HindsightConfig) -> JaxEnvironment:
    if task == "policy_evaluation":
        return PolicyEvaluation(config)
    return TimeLimit(PortalChoice(config), config.max_steps or 10 * config.room)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: ("policy_evaluation", "portal_choice"),
    config=HindsightConfig,
    summary="policy evaluation and a choice of portals, where the future explains the return",
    default_task="portal_choice",
)
