"""Task interleaving. Mesnard et al. 2021, section 4.3; rooms and their order as in Meulemans et al. 2023 (COCOA),
https://arxiv.org/abs/2306.16803.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import types
from podracer.environment import JaxEnvironment
from podracer.envs import boards
from podracer.envs.credit.config import Config
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

LEFT, RIGHT = 0, 1


class RoomState(NamedTuple):
    """t: `[]` int32, steps so far. task: `[]` int32, of this room. answering: `[]` bool, an answer room.

    objects: `[2]` int32, left and right, in a query room. pending, right: `[C]` bool, tasks that wait, and those chosen right.
    """

    t: Array
    task: Array
    answering: Array
    objects: Array
    pending: Array
    right: Array


class Interleaving(JaxEnvironment):
    """Every room belongs to a task. In its query room the agent picks one of two objects, of which one is right for this task;
    in its answer room, some rooms later, it is rewarded if it had picked that one, whatever it does there.

    With probability `pending / num_parallel` the next room is an answer room, of one of the tasks that wait; otherwise the
    query room of one that does not. Which half of a task's `2 num_objects` objects are right is drawn once from `seed`.

    Observation: float32, one-hot or 0: task `[C]`, whether this is an answer room, left and right object `[2 num_objects]`
    each; with `observe_pending` also which tasks wait and which were chosen right, `[C]` each. All episodes have `length`
    steps, and end by termination.
    aux: `task` int32 and `answer_room` bool, of the room; `queried` int32, the task whose question was answered on the way
    here, -1 for none, and `correct` bool, whether it was answered right.
    """

    def __init__(self, config: Config):
        self._config = config
        self._num_tasks, self._num_objects = len(config.task_rewards), 2 * config.num_objects
        rng = np.random.default_rng(config.seed)
        # [C, 2, num_objects]: wrong objects, then right ones.
        shuffled = np.stack([rng.permutation(self._num_objects) for _ in range(self._num_tasks)])
        self._objects = shuffled.reshape(self._num_tasks, 2, config.num_objects)
        size = self._num_tasks * (3 if config.observe_pending else 1) + 1 + 2 * self._num_objects
        self.spec = EnvironmentSpec(
            name="credit/interleaving",
            observation=specs.BoundedArray((size,), np.float32, 0.0, 1.0, name="room"),
            action=specs.DiscreteArray(2, name="side"),
            aux={
                "task": specs.BoundedArray((), np.int32, 0, self._num_tasks - 1, name="task"),
                "answer_room": specs.Array((), np.bool_, name="answer_room"),
                "queried": specs.BoundedArray((), np.int32, -1, self._num_tasks - 1, name="queried"),
                "correct": specs.Array((), np.bool_, name="correct"),
            },
        )

    def reset(self, key: Key) -> tuple[RoomState, TimeStep]:
        none = jnp.zeros((self._num_tasks,), bool)
        state, _ = self._enter(key, jnp.int32(0), none, none)
        return state, types.restart(self._observe(state), aux=self._labels(state, jnp.int32(-1), jnp.bool_(False)))

    def step(self, state: RoomState, action: Array, key: Key) -> tuple[RoomState, TimeStep]:
        here = jnp.arange(self._num_tasks) == state.task
        asked = ~state.answering
        good = jnp.asarray(self._objects)[state.task, 1]
        correct = asked & jnp.any(state.objects[action] == good)
        pending = jnp.where(here, asked, state.pending)
        right = jnp.where(here, correct, state.right)
        state, reward = self._enter(key, state.t + 1, pending, right)
        queried = jnp.where(asked, jnp.argmax(here), -1).astype(jnp.int32)
        over = state.t >= self._config.length
        labels = self._labels(state, queried, correct)
        return state, types.transition(reward, self._observe(state), terminated=over, aux=labels)

    def _enter(self, key: Key, t: Array, pending: Array, right: Array) -> tuple[RoomState, Array]:
        """The next room, and the reward of entering it."""
        noise = jax.random.uniform(key, (self._num_tasks + 4,))
        num_pending = jnp.sum(pending)
        answering = noise[-1] * self._config.num_parallel < num_pending
        task = jnp.argmax(jnp.where(pending == answering, noise[: self._num_tasks], -1.0)).astype(jnp.int32)
        drawn = boards.uniform_index(noise[-4:-2], self._config.num_objects)
        wrong_and_right = jnp.asarray(self._objects, jnp.int32)[task, jnp.arange(2), drawn]
        objects = jnp.where(noise[-2] < 0.5, wrong_and_right, wrong_and_right[::-1])
        state = RoomState(t, task, answering, objects, pending, right)
        reward = jnp.where(answering & right[task], jnp.asarray(self._config.task_rewards, jnp.float32)[task], 0.0)
        return state, reward

    def _observe(self, state: RoomState) -> Array:
        of_objects = jax.nn.one_hot(state.objects, self._num_objects) * ~state.answering
        parts = [jax.nn.one_hot(state.task, self._num_tasks), state.answering[None], of_objects.reshape(-1)]
        if self._config.observe_pending:
            parts += [state.pending, state.right]
        return jnp.concatenate([jnp.asarray(part, jnp.float32) for part in parts])

    def _labels(self, state: RoomState, queried: Array, correct: Array) -> dict[str, Array]:
        return {"task": state.task, "answer_room": state.answering, "queried": queried, "correct": correct}
