"""`nav/ray_maze`: a first-person maze that is one program on whole batches. The tasks of Mirowski et al. 2017, section 4.

DeepMind Lab's mazes are games on the host; this is a world of the same kind, in JAX, whose point is speed.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import types
from podracer.environment import JaxEnvironment, TimeLimit
from podracer.envs.nav import camera, loop_closure, mazes, picture, raycast
from podracer.envs.nav.config import ACTIONS, APPLE, GOAL, PROTOCOLS, STRAWBERRY, TOUCH, NavConfig
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

RADIUS = 0.25
"""Squares: half the side of the agent's body, which is a box that does not turn."""
_GAP = 1e-3
"""Squares between a body and the wall that stops it, so that rounding puts it into none."""


class MazeState(NamedTuple):
    """One episode.

    grid: the walls. look: `[]` uint32, which textures they have. goal: `[]` int32, number of its square. fruit: `[N]` int32, of
    theirs. ripe: `[N]` bool, which are there. pose: `[3]` float32, x, y, heading in [-pi, pi). velocity: `[3]` float32, to the
    right, forward, to the right by angle, of the last frame. moved: `[3]` float32, the same of the last agent step. goals: `[]`
    int32, reached so far. history: where the agent has been since it last spawned. closed: `[]` bool, whether it has come back.
    """

    grid: raycast.Grid
    look: Array
    goal: Array
    fruit: Array
    ripe: Array
    pose: Array
    velocity: Array
    moved: Array
    goals: Array
    history: loop_closure.History
    closed: Array


class RayMaze(JaxEnvironment):
    """Actions: see ACTIONS; each is held for `action_repeat` frames. Walls stop the agent, which slides along them.

    Observation: `rgb` `[H, W, 3]` uint8, and `velocity` `[6]` float32, squares and radians that the agent has moved in the last
    step: to the right, forward, 0, 0, 0, turn to the right. With `depth_input` also `depth` `[H, W, 1]` float32.

    Reward: what is touched at the end of a step: 1 an apple, 2 a strawberry, 10 the goal, after which the agent stands still at
    a random place with a random heading, and all fruit is back (as at the start of an episode).

    aux: `depth` `[4, 16]` float32, squares along the axis of the view divided by `max_depth`, at most 1, of the middle of the
    view, all that is in it: walls, floor, ceiling, fruit, goal. `pose` `[3]` float32, x and y in squares, heading in radians.
    `position` int32, the number of its square. `loop_closure` bool. `goals` int32, reached so far in the episode.
    """

    def __init__(self, name: str, config: NavConfig):
        self.config = config = config.resolved()
        self._layout = mazes.fixed(config.maze, config.maze_seed, config.loops)
        self._shape = self._layout.walls.shape
        self._kinds = np.array([0] + [1] * config.num_apples + [2] * config.num_strawberries, np.int32)
        self._worth = np.array([APPLE] * config.num_apples + [STRAWBERRY] * config.num_strawberries, np.float32)
        self._things = mazes.fixed_things(self._layout, config.maze_seed, len(self._worth))
        picture_shape = (config.height, config.width)
        observation = {
            "rgb": specs.BoundedArray((*picture_shape, 3), np.uint8, 0, 255, name="rgb"),
            "velocity": specs.Array((6,), np.float32, name="velocity"),
        }
        if config.depth_input:
            observation["depth"] = specs.BoundedArray((*picture_shape, 1), np.float32, 0.0, 1.0, name="depth")
        self.spec = EnvironmentSpec(
            name=name,
            observation=observation,
            action=specs.DiscreteArray(len(ACTIONS), name="move"),
            aux={
                "depth": specs.BoundedArray(camera.DEPTH_SHAPE, np.float32, 0.0, 1.0, name="depth"),
                "pose": specs.Array((3,), np.float32, name="pose"),
                "position": specs.DiscreteArray(self._layout.walls.size, name="position"),
                "loop_closure": specs.Array((), np.bool_, name="loop_closure"),
                "goals": specs.Array((), np.int32, name="goals"),
            },
            frames_per_step=config.action_repeat,
        )

    def reset(self, key: Key) -> tuple[MazeState, TimeStep]:
        config, num_fruit = self.config, len(self._worth)
        layout, things, look = self._layout, self._things, jnp.uint32(config.maze_seed)
        of_start, of_things, of_maze = jax.random.split(key, 3)
        if config.new_maze:
            rows, columns = PROTOCOLS[config.maze].cells
            noise = jax.random.uniform(of_maze, (mazes.num_noise(rows, columns) + 1,))
            layout = mazes.drawn(noise[1:], rows, columns, config.loops, jnp)
            look = (noise[0] * 65536).astype(jnp.uint32)
        if config.goal == "random":
            things = mazes.place(layout, jax.random.uniform(of_things, (1 + num_fruit,)), num_fruit, jnp)
        pose = self._spawn(jnp.asarray(layout.starts), jnp.asarray(things.goal), of_start)
        history, _ = loop_closure.visit(loop_closure.empty(config.max_steps + 1, jnp), pose[:2], False, jnp)
        state = MazeState(
            grid=raycast.pack(jnp.asarray(layout.walls)),
            look=look,
            goal=jnp.asarray(things.goal, jnp.int32),
            fruit=jnp.asarray(things.fruit, jnp.int32),
            ripe=jnp.ones(num_fruit, bool),
            pose=pose,
            velocity=jnp.zeros(3),
            moved=jnp.zeros(3),
            goals=jnp.int32(0),
            history=history,
            closed=jnp.bool_(False),
        )
        return state, types.restart(self._observe(state), aux=self._labels(state))

    def step(self, state: MazeState, action: Array, key: Key) -> tuple[MazeState, TimeStep]:
        pose, velocity, moved = self._move(state, jnp.asarray(ACTIONS, jnp.float32)[action])
        away = self._centre(state.fruit) - pose[:2]
        eaten = state.ripe & (jnp.sum(away**2, axis=-1) < TOUCH**2)
        found = jnp.sum((self._centre(state.goal) - pose[:2]) ** 2) < TOUCH**2
        reward = jnp.sum(jnp.where(eaten, self._worth, 0.0)) + jnp.where(found, GOAL, 0.0)
        starts = raycast.free(state.grid) if self.config.new_maze else jnp.asarray(self._layout.starts)
        pose = jnp.where(found, self._spawn(starts, state.goal, key), pose)
        history, closed = loop_closure.visit(state.history, pose[:2], found, jnp)
        state = state._replace(
            ripe=(state.ripe & ~eaten) | found,
            pose=pose,
            velocity=jnp.where(found, 0.0, velocity),
            moved=jnp.where(found, 0.0, moved),
            goals=state.goals + found,
            history=history,
            closed=closed,
        )
        return state, types.transition(reward, self._observe(state), aux=self._labels(state))

    def render(self, state: MazeState) -> Array:
        """What the agent sees and its depth, beside a map with its path since it last spawned: see `picture.compose`."""
        labels = self._labels(state)
        return picture.compose(
            self._view(state)[0],
            labels["depth"],
            picture.Map(
                walls=~raycast.free(state.grid),
                goal=self._centre(state.goal),
                fruit=self._centre(state.fruit),
                ripe=state.ripe,
                worth=self._worth,
                pose=state.pose,
                history=state.history,
            ),
            state.closed,
            jnp,
        )

    def _spawn(self, starts: Array, goal: Array, key: Key) -> Array:
        """A pose in the middle of a free square that is not the goal's."""
        noise = jax.random.uniform(key, (2,))
        place = self._centre(mazes.choose(mazes.without(starts, goal, jnp), noise[0], jnp))
        return jnp.append(place, (2 * noise[1] - 1) * jnp.pi)

    def _centre(self, square: Array) -> Array:
        return mazes.centre(square, self._shape[1], jnp)

    def _move(self, state: MazeState, wish: Array) -> tuple[Array, Array, Array]:
        """Pose, velocity and what was moved, after the frames of a step in which the agent wants to move by `wish` `[3]`."""
        config = self.config
        fastest = jnp.array([config.speed, config.speed, math.radians(config.turn)], jnp.float32) * wish

        def frame(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            pose, velocity, moved = carry
            velocity = config.inertia * velocity + (1 - config.inertia) * fastest
            heading = pose[2] + velocity[2]
            forward, right = raycast.axes(heading)
            wanted = velocity[0] * right + velocity[1] * forward
            x = _slide(pose[0], wanted[0], pose[1], lambda column, row: raycast.is_wall(state.grid, column, row))
            y = _slide(pose[1], wanted[1], x, lambda row, column: raycast.is_wall(state.grid, column, row))
            done = jnp.stack([x - pose[0], y - pose[1]])
            velocity = jnp.stack([done @ right, done @ forward, velocity[2]])  # a wall takes the speed away too
            return jnp.stack([x, y, heading]), velocity, moved + velocity

        pose, velocity, moved = jax.lax.fori_loop(0, config.action_repeat, frame, (state.pose, state.velocity, jnp.zeros(3)))
        return pose.at[2].set((pose[2] + jnp.pi) % (2 * jnp.pi) - jnp.pi), velocity, moved

    def _scene(self, state: MazeState) -> raycast.Things:
        squares = jnp.append(state.fruit, state.goal)[np.roll(np.arange(len(self._kinds)), 1)]
        return raycast.Things(position=self._centre(squares), seen=jnp.append(True, state.ripe), kind=self._kinds)

    def _view(self, state: MazeState) -> tuple[Array, Array]:
        origin, heading, config = state.pose[:2], state.pose[2], self.config
        size = config.height, config.width
        return raycast.view(state.grid, self._scene(state), state.look, origin, heading, *size, config.extent)

    def _observe(self, state: MazeState) -> dict[str, Array]:
        rgb, depth = self._view(state)
        moved = state.moved
        observation = {"rgb": rgb, "velocity": jnp.concatenate([moved[:2], jnp.zeros(3), moved[2:]])}
        if self.config.depth_input:
            observation["depth"] = self._scaled(depth)[..., None]
        return observation

    def _labels(self, state: MazeState) -> dict[str, Array]:
        origin, heading = state.pose[:2], state.pose[2]
        depth = raycast.depth_at(state.grid, self._scene(state), origin, heading, *camera.of_label(self.config.extent))
        return {
            "depth": self._scaled(depth),
            "pose": state.pose,
            "position": mazes.square_at(origin, self._shape[1], jnp),
            "loop_closure": state.closed,
            "goals": state.goals,
        }

    def _scaled(self, depth: Array) -> Array:
        return jnp.minimum(depth / self.config.max_depth, 1.0)


def _slide(start: Array, step: Array, other: Array, is_wall: Callable[[Array, Array], Array]) -> Array:
    """Where a body that moves by `step` along one axis comes to, if it is at `other` on the other one."""
    reach = jnp.where(step > 0, RADIUS, -RADIUS)
    ahead = jnp.floor(start + step + reach).astype(jnp.int32)
    sides = [jnp.floor(other + side * (RADIUS - _GAP / 2)).astype(jnp.int32) for side in (-1, 1)]
    blocked = is_wall(ahead, sides[0]) | is_wall(ahead, sides[1])
    edge = jnp.where(step > 0, ahead - _GAP, ahead + 1 + _GAP)
    return jnp.where(blocked, edge - reach, start + step)


def make(name: str, config: NavConfig) -> JaxEnvironment:
    """The environment with its time limit, a truncation."""
    environment = RayMaze(name, config)
    return TimeLimit(environment, environment.config.max_steps)
