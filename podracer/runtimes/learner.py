"""What both runtimes do with a batch of unrolls: mix in replay, and take the gradient steps of one update.

Environments are numbered globally, and a device holds the columns of its own: `env_index` says which. Keys derive from
those numbers, so the same unrolls give the same update on any number of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.agent import Agent
from podracer.ops import columns
from podracer.plan import Plan
from podracer.stores import ring
from podracer.types import Array, Key, TrainState, Trajectory

AXIS = "devices"
"""The axis of the mesh over which gradients are averaged."""


class Learner:
    """Pure functions, called under `shard_map` over `AXIS`; `B` is what one device holds of `num_envs`."""

    def __init__(self, agent: Agent, plan: Plan, num_devices: int):
        self.agent, self.plan = agent, plan
        self.envs_per_device = plan.num_envs // num_devices

    def init_replay(self, trajectory: Trajectory) -> Any:
        """An empty ring for unrolls like `trajectory` (arrays or shapes), or nothing for an agent without replay."""
        if not self.plan.replay_per_env:
            return ()
        example = jax.eval_shape(columns.batch_major, trajectory)
        return ring.init(example, self.plan.replay_length)

    def update(
        self, train_state: TrainState, replay: Any, trajectory: Trajectory, env_index: Array, key: Key
    ) -> tuple[TrainState, Any, dict[str, Array]]:
        """One update.

        Args:
          train_state: before it. replay: this device's ring, or empty.
          trajectory: online unrolls `[T+1, B, ...]`. env_index: `[B]` int32.
          key: `[]`, of this update.

        Returns:
          Train state, replay, and scalar metrics of this device.
        """
        learn_key = rng.columns(rng.stream(key, "learn"), env_index)
        if self.plan.replay_per_env:
            draw = rng.columns(rng.stream(key, "replay"), env_index)
            replay, trajectory, learn_key = self.mix(replay, trajectory, draw, learn_key)
        train_state, metrics = self._learn(train_state, trajectory, learn_key)
        return train_state, replay, {name: jnp.mean(jnp.asarray(value, jnp.float32)) for name, value in metrics.items()}

    def mix(self, replay: ring.Ring, online: Trajectory, draw: Key, key: Key) -> tuple[ring.Ring, Trajectory, Key]:
        """Stores the online unrolls and appends replayed ones to them as further columns of the batch.

        Args:
          draw: `[B]`, which unrolls to take. key: `[B]`, of the online columns.

        Returns:
          The ring, `B (1 + replay_per_env)` columns, and their keys.
        """
        num = self.plan.replay_per_env
        replay = ring.insert(replay, columns.batch_major(online))
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), ring.sample(replay, draw, num))
        trajectory = columns.concatenate(online, columns.batch_major(flat))
        more = jax.vmap(lambda k: rng.columns(k, 1 + jnp.arange(num)))(key).reshape(-1)
        return replay, trajectory, jnp.concatenate([key, more])

    def _learn(self, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[TrainState, Any]:
        """The gradient steps of one update. Metrics are means over them."""
        num = self.plan.minibatches
        if num == 1:
            return self.agent.update(train_state, trajectory, key, AXIS)
        # Environment e and what is replayed with it belong to minibatch e mod num, on however many devices.
        num_envs, per_env = self.envs_per_device, self.plan.replay_per_env
        online = np.arange(num_envs).reshape(-1, num).T
        replayed = num_envs + online[..., None] * per_env + np.arange(per_env)
        order = np.concatenate([online, replayed.reshape(num, num_envs // num * per_env)], axis=1)

        def step(train_state: TrainState, batch: tuple[Trajectory, Key]) -> tuple[TrainState, Any]:
            return self.agent.update(train_state, *batch, AXIS)

        train_state, metrics = jax.lax.scan(step, train_state, (columns.take(trajectory, order), key[order]))
        return train_state, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)


def is_finite(params: Any) -> Array:
    """`[]` bool: whether all floating-point parameters are finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in _floats(params)]))


def drift(params: Any) -> Array:
    """`[]` bool: whether the devices' finite parameters differ in a bit."""
    differ = jnp.any(jnp.stack([jnp.any(jax.lax.pmax(x, AXIS) != jax.lax.pmin(x, AXIS)) for x in _floats(params)]))
    return differ & is_finite(params)


def _floats(params: Any) -> list[Array]:
    return [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)]


class ReplicaDrift(RuntimeError):
    """Devices hold different parameters: an `Agent.update` did not average its gradients over `axis_name`."""

    def __init__(self) -> None:
        super().__init__("the devices' parameters differ: Agent.update must average gradients over axis_name (lax.pmean)")
