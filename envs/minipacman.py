"""Minipacman: eat the pills of a maze before its ghosts eat you. Procedural mazes, all of them or a fixed few.

After the game of Weber et al. 2017 (I2A, https://arxiv.org/abs/1707.06203) and its procedural form in Hamrick et al. 2021
("On the role of planning in model-based deep reinforcement learning", https://arxiv.org/abs/2011.04021), written anew for XLA:
mazes, ghosts and rewards are our own, and returns are not comparable with those of the papers.

* `mini`: 7x9 cells, two ghosts, one power pill, 60 steps.
* `full`: 15x19 cells, four ghosts, four power pills, 300 steps.

To ask what carries over to unseen mazes, train with `num_mazes=8` and evaluate with `num_mazes=100 first_maze=8`.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import registry, types
from podracer.config import ConfigError, filled, require
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs import boards, drawing, spanning
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

MOVES = np.concatenate([np.zeros((1, 2), np.int32), boards.MOVES])  # stay, up, right, down, left
CHANNELS = ("wall", "pill", "power", "agent", "ghost", "edible", "trail")
PILL, POWER, GHOST = 1.0, 2.0, 5.0  # rewards
_DOORS, _CLEARINGS = 0.15, 0.3  # shares of the walls and pillars that are opened beyond what makes dead ends vanish
_TRIES = 64  # rounds of 256 mazes in which new ones are looked for; small mazes are few


@dataclasses.dataclass(frozen=True)
class MinipacmanConfig:
    """height, width: cells of the maze with its walls, odd; 0 for the task's own.

    num_ghosts, num_power_pills: -1 for the task's own.
    ghost_greed: probability that a move of a ghost is towards the agent (away from it while it is edible), not at random.
    power_steps: steps that a power pill keeps ghosts edible. death_reward: for being caught, beside what the step eats.
    num_mazes: 0 draws a new maze for every episode; N > 0 one of the mazes `first_maze .. first_maze + N - 1` of a list in
      which none has the walls of another, so that ranges that do not overlap share no maze. Where agent and ghosts start
      is drawn anew in every episode. first_maze: where in the list.
    max_steps: time limit, a truncation; 0 for the task's own.
    """

    height: int = 0
    width: int = 0
    num_ghosts: int = -1
    num_power_pills: int = -1
    ghost_greed: float = 0.5
    power_steps: int = 20
    death_reward: float = 0.0
    num_mazes: int = 0
    first_maze: int = 0
    max_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value and (value < 5 or value % 2 == 0):
                raise ConfigError(f"{name} must be 0 (the task's own) or odd and at least 5, not {value}")
        require(self, "num_ghosts", "num_power_pills", at_least=-1)
        require(self, "num_mazes", "first_maze", "max_steps", at_least=0)
        require(self, "ghost_greed", at_least=0, at_most=1)
        require(self, "power_steps", at_least=1, at_most=255)
        if self.num_mazes + self.first_maze > 10_000:
            raise ConfigError(f"a list of mazes has 10000 at most, not {self.num_mazes} after {self.first_maze}")


class PacmanState(NamedTuple):
    """One episode. `G` is the number of ghosts.

    walls, pills, power: `[H, W]` bool; a cell has a wall, a pill, a power pill or nothing.
    agent: `[2]` int32, row and column. ghosts, trail, home: `[G, 2]` int32, where each ghost is, was one step ago, and
    starts. edible: `[G]` int32, steps for which each can still be eaten.
    """

    walls: Array
    pills: Array
    power: Array
    agent: Array
    ghosts: Array
    trail: Array
    home: Array
    edible: Array


class Minipacman(JaxEnvironment):
    """Actions: stay, up, right, down, left. Agent and ghosts move at the same time; walls stop the agent.

    Observation: `[H, W, 7]` uint8, one plane for each of CHANNELS, 0 or 255. `ghost` shows the dangerous ghosts and `edible`
    the others, as bright as the time that is left (255 is all of `power_steps`); `trail` shows the cells that ghosts came
    from, and to which they will not return, so that the planes say all that there is to know about what comes next.

    Reward: 1 a pill, 2 a power pill, 5 a ghost, `death_reward` for being caught. A step eats the pill first, then the ghosts
    that are edible by now, and then the agent is caught if it shares its cell with a dangerous ghost or has passed through
    one. Eaten ghosts go on from where they started, dangerous. The episode terminates when the agent is caught, and when all
    pills and power pills are eaten: there is no next level, so a return is bounded and belongs to one maze.

    Ghosts never turn back, as in the arcade: the mazes have no dead ends. A greedy move goes to the cell that is nearest to
    the agent by rows and columns, walls disregarded.
    """

    def __init__(self, task: str, config: MinipacmanConfig):
        self.config, self._shape = config, (config.height, config.width)
        corridors = (config.height // 2) * (config.width // 2)
        if config.num_ghosts >= corridors or config.num_power_pills >= corridors:
            raise ConfigError(
                f"a maze of {config.height}x{config.width} has room for {corridors - 1} ghosts and as many power pills,"
                f" not {config.num_ghosts} and {config.num_power_pills}"
            )
        self._maze = _mazes(config.height, config.width, config.num_power_pills)
        self._fixed = self._maze.fixed(config.first_maze, config.num_mazes) if config.num_mazes else ()
        self.spec = EnvironmentSpec(
            name=f"minipacman/{task}",
            observation=specs.BoundedArray((*self._shape, len(CHANNELS)), np.uint8, 0, 255, name="cells"),
            action=specs.DiscreteArray(len(MOVES), name="move"),
        )

    def reset(self, key: Key) -> tuple[PacmanState, TimeStep]:
        config, (height, width) = self.config, self._shape
        num_cells = height * width
        noise = jax.random.uniform(
            key, (2 * num_cells + (1 if self._fixed else self._maze.num_noise),)
        )  # one draw: compile time
        of_agent, of_ghosts, of_maze = jnp.split(noise, (num_cells, 2 * num_cells))
        if self._fixed:
            number = boards.uniform_index(of_maze[0], config.num_mazes)
            walls, power = (jnp.asarray(table)[number] for table in self._fixed)
        else:
            walls, power = self._maze.draw(of_maze)
        allowed = ~walls & ~power
        (agent,) = self._cells(jnp.where(allowed.reshape(-1), of_agent, -1.0), 1)
        distance = jnp.abs(jnp.arange(height) - agent[0])[:, None] + jnp.abs(jnp.arange(width) - agent[1])
        # Far ones first, so that nobody starts next to a ghost where that can be helped.
        far = (distance >= (height + width) // 4).reshape(-1)
        ghosts = self._cells(jnp.where(walls.reshape(-1), -1.0, of_ghosts + far), config.num_ghosts)
        state = PacmanState(
            walls=walls,
            pills=allowed & ~boards.at(self._shape, agent),
            power=power,
            agent=agent,
            ghosts=ghosts,
            trail=ghosts,
            home=ghosts,
            edible=jnp.zeros((config.num_ghosts,), jnp.int32),
        )
        return state, types.restart(self._observe(state))

    def step(self, state: PacmanState, action: Array, key: Key) -> tuple[PacmanState, TimeStep]:
        target = state.agent + jnp.asarray(MOVES)[action]
        agent = jnp.where(state.walls[target[0], target[1]], state.agent, target)
        here = boards.at(self._shape, agent)
        pill, power = jnp.any(state.pills & here), jnp.any(state.power & here)
        edible = jnp.where(power, self.config.power_steps, state.edible)

        ghosts = self._move_ghosts(state, jax.random.uniform(key, (self.config.num_ghosts, len(boards.MOVES) + 1)))
        swapped = jnp.all(ghosts == state.agent, axis=-1) & jnp.all(state.ghosts == agent, axis=-1)
        met = jnp.all(ghosts == agent, axis=-1) | swapped
        eaten, caught = met & (edible > 0), jnp.any(met & (edible == 0))

        lasting = jnp.where(power, edible, jnp.maximum(edible - 1, 0))
        state = state._replace(
            pills=state.pills & ~here,
            power=state.power & ~here,
            agent=agent,
            ghosts=jnp.where(eaten[:, None], state.home, ghosts),
            trail=jnp.where(eaten[:, None], state.home, state.ghosts),
            edible=jnp.where(eaten, 0, lasting),
        )
        reward = PILL * pill + POWER * power + GHOST * jnp.sum(eaten) + self.config.death_reward * caught
        cleared = ~jnp.any(state.pills | state.power)
        return state, types.transition(reward, self._observe(state), terminated=caught | cleared)

    def render(self, state: PacmanState) -> Array:
        """16 pixels a cell: walls blue, pills brown, power pills white, agent yellow, ghosts red and, when edible, cyan."""
        order = [CHANNELS.index(name) for name in ("wall", "pill", "power", "agent", "edible", "ghost")]
        return drawing.paint(self._observe(state)[..., order] > 0, _COLOURS)

    def _cells(self, score: Array, count: int) -> Array:
        return jnp.stack(jnp.divmod(boards.pick(score, count), self._shape[1]), axis=-1)

    def _move_ghosts(self, state: PacmanState, noise: Array) -> Array:
        """Next cells `[G, 2]`. noise `[G, 5]` in [0, 1): a preference for each move, and whether to be greedy."""
        target = state.ghosts[:, None] + jnp.asarray(boards.MOVES)  # [G, 4, 2]
        back = jnp.all(target == state.trail[:, None], axis=-1)
        legal = ~state.walls[target[..., 0], target[..., 1]] & ~back
        distance = jnp.sum(jnp.abs(target - state.agent), axis=-1)
        wish = jnp.where(state.edible[:, None] > 0, distance, -distance)
        greedy = noise[:, 4:] < self.config.ghost_greed
        # Distances are whole numbers, so that noise below 1 decides between equal ones alone.
        score = jnp.where(greedy, wish, 0) + noise[:, :4]
        best = jnp.argmax(jnp.where(legal, score, -jnp.inf), axis=-1)
        return state.ghosts + jnp.asarray(boards.MOVES)[best]

    def _observe(self, state: PacmanState) -> Array:
        edible = state.edible * 255 // self.config.power_steps
        walked = jnp.any(state.trail != state.ghosts, axis=-1)
        # A ghost puts three values on the board. Masks of all cells for each would be most of the work of a step, and in a
        # reset, where they are constant, XLA would fold them for the better part of a minute.
        cells = jnp.concatenate([state.agent[None], state.ghosts, state.ghosts, state.trail])
        channels = np.repeat([3, 4, 5, 6], [1, *[self.config.num_ghosts] * 3])
        values = jnp.concatenate([jnp.array([255]), 255 * (edible == 0), edible, 255 * walked]).astype(jnp.uint8)
        planes = jnp.stack([state.walls, state.pills, state.power], axis=-1).astype(jnp.uint8) * 255
        planes = jnp.pad(planes, ((0, 0), (0, 0), (0, len(CHANNELS) - 3)))
        return planes.at[cells[:, 0], cells[:, 1], channels].max(values)


_COLOURS = np.array(
    [[0, 0, 0], [40, 60, 160], [90, 70, 50], [240, 240, 240], [250, 220, 60], [90, 220, 220], [220, 60, 60]],
)


class _Mazes:
    """Mazes of one size: rooms at odd rows and columns, walls between neighbours and pillars between walls.

    edges: `[E, 2]`, rooms on both sides of a wall. incident: `[rooms, 4]`, walls around each room, and E where there is none.
    cell_edge, cell_pillar: `[H, W]`, the wall or pillar of a cell, and E where there is none. around: `[P, 4]`, walls that
    meet in a pillar. num_noise: uniform numbers that a maze needs.
    """

    def __init__(self, height: int, width: int, num_power_pills: int):
        self._num_power_pills = num_power_pills
        self._size = height // 2, width // 2
        self.edges, self.cell_edge = spanning.plan(*self._size)
        num_edges = len(self.edges)
        self.incident = np.full((math.prod(self._size), 4), num_edges)
        for room, incident in enumerate(self.incident):
            touching = np.flatnonzero((self.edges == room).any(axis=1))
            incident[: len(touching)] = touching
        self.cell_pillar = np.full((height, width), num_edges)
        pillars = self.cell_pillar[2:-1:2, 2:-1:2]
        pillars[:] = np.arange(pillars.size).reshape(pillars.shape)
        edge = self.cell_edge
        sides = (edge[1:-2:2, 2:-1:2], edge[3::2, 2:-1:2], edge[2:-1:2, 1:-2:2], edge[2:-1:2, 3::2])
        self.around = np.stack(sides, axis=-1).reshape(-1, 4)
        self.num_noise = 4 * num_edges + height * width
        self._draw_round = jax.jit(self._round)

    def _round(self, number: Array) -> tuple[Array, Array]:
        """The next 256 mazes of the list, with repetitions."""
        noise = jax.random.uniform(jax.random.fold_in(jax.random.key(0), number), (256, self.num_noise))
        return jax.vmap(self.draw)(noise)

    def fixed(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Mazes `first .. first + count - 1` of the list of this size: walls and power pills, `[count, H, W]` bool each.

        Raises:
          ConfigError: there are not as many different mazes, or they are hard to find.
        """
        found: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            for number in range(_TRIES):
                for walls, power in zip(*jax.device_get(self._draw_round(number)), strict=True):
                    found.setdefault(walls.tobytes(), (walls, power))
                if len(found) >= first + count:
                    chosen = list(found.values())[first : first + count]
                    return np.stack([walls for walls, _ in chosen]), np.stack([power for _, power in chosen])
        raise ConfigError(
            f"found only {len(found)} different mazes of {self.cell_edge.shape[0]}x{self.cell_edge.shape[1]}, too few for"
            f" num_mazes={count} and first_maze={first}"
        )

    def draw(self, noise: Array) -> tuple[Array, Array]:
        """Walls and power pills, `[H, W]` bool each. All free cells are connected, and each has two free neighbours or more.

        A spanning tree, a door for every dead end, and a few walls and pillars less.

        Args:
          noise: `[num_noise]` in [0, 1).
        """
        num_edges, num_rooms = len(self.edges), len(self.incident)
        weight, of_dead_ends, of_doors, of_pillars, of_power = jnp.split(noise, np.arange(1, 5) * num_edges)
        opened = spanning.tree(weight, *self._size, jnp) | (of_doors < _DOORS)
        free = jnp.append(opened, False)[self.incident]
        dead_end = jnp.sum(free, axis=-1) < 2
        wish = jnp.where(free, -1.0, jnp.append(of_dead_ends, -1.0)[self.incident])
        door = jnp.take_along_axis(jnp.asarray(self.incident), jnp.argmax(wish, axis=-1).reshape(num_rooms, 1), axis=-1)[:, 0]
        opened = opened | boards.among(jnp.where(dead_end, door, num_edges), num_edges)
        cleared = (jnp.sum(opened[self.around], axis=-1) > 1) & (of_pillars[: len(self.around)] < _CLEARINGS)
        cleared = jnp.append(cleared, jnp.zeros((num_edges + 1 - len(self.around),), bool))
        room = np.zeros(self.cell_edge.shape, bool)
        room[1::2, 1::2] = True
        walls = ~(jnp.asarray(room) | jnp.append(opened, False)[self.cell_edge] | cleared[self.cell_pillar])
        power = boards.pick(jnp.where(walls.reshape(-1), -1.0, of_power), self._num_power_pills)
        return walls, boards.among(power, walls.size).reshape(walls.shape)


_mazes = functools.cache(_Mazes)  # environments to train and to test on share what is compiled


_TASKS = {
    "mini": {"height": 7, "width": 9, "num_ghosts": 2, "num_power_pills": 1, "max_steps": 60},
    "full": {"height": 15, "width": 19, "num_ghosts": 4, "num_power_pills": 4, "max_steps": 300},
}


def _make(task: str, config: MinipacmanConfig) -> JaxEnvironment:
    config = filled(config, _TASKS[task])
    return TimeLimit(Minipacman(task, config), config.max_steps)


SUITE = registry.Suite(
    make=_make,
    tasks=lambda: tuple(_TASKS),
    config=MinipacmanConfig,
    summary="pills and ghosts in procedural mazes, or in a fixed few to train or to test on",
    default_task="mini",
)
