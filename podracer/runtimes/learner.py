"""What both runtimes do with a batch of unrolls: mix in replay, and take the gradient steps of one update.

Environments are numbered globally, and a device holds the columns of its own: `env_index` says which. Keys derive from
those numbers, so the same unrolls give the same update on any number of devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from podracer import rng
from podracer.agent import PRIORITY, Agent
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
        return ring.init(example, self.plan.replay_length, self.plan.priority_exponent > 0)

    def update(
        self,
        train_state: TrainState,
        replay: Any,
        trajectory: Trajectory,
        env_index: Array,
        key: Key,
        replayed: Trajectory | None = None,
    ) -> tuple[TrainState, Any, dict[str, Array], Any]:
        """One update, or `plan.updates_per_unroll` of them.

        Args:
          train_state: before it. replay: this device's ring, or empty.
          trajectory: online unrolls `[T+1, B, ...]`. env_index: `[B]` int32.
          key: `[]`, of this update.
          replayed: drawn by a replay outside, `[updates_per_unroll, B replay_per_env, T+1, ...]`; takes the ring's place.

        Returns:
          Train state, replay, scalar metrics of this device (means over updates), and priorities where there are any: those of
          online columns, `[updates_per_unroll, B]`, and of replayed ones, `[updates_per_unroll, B replay_per_env]`.
        """
        slot: Any = None
        if self.plan.priority_exponent:
            trajectory = trajectory.replace(importance=jnp.ones(env_index.shape))
        if self.plan.replay_per_env and replayed is None:
            replay, slot = ring.insert(replay, columns.batch_major(trajectory.replace(importance=())))

        def one(carry: tuple[TrainState, Any], data: tuple[Key, Any]) -> tuple[tuple[TrainState, Any], Any]:
            (train_state, replay), (key, replayed) = carry, data
            learn_key = rng.columns(rng.stream(key, "learn"), env_index)
            batch, index = trajectory, None
            if self.plan.replay_per_env:
                if replayed is None:
                    replayed, index = self.draw(replay, rng.columns(rng.stream(key, "replay"), env_index))
                batch, learn_key = self.mix(batch, replayed, learn_key)
            train_state, metrics = self._learn(train_state, batch, learn_key)
            priority = metrics.pop(PRIORITY, None)
            metrics = {name: jnp.mean(jnp.asarray(value, jnp.float32)) for name, value in metrics.items()}
            if not self.plan.priority_exponent:
                return (train_state, replay), (metrics, ())
            if priority is None:
                raise TypeError(
                    f"{type(self.agent).__name__}.data_spec has a priority_exponent, so its loss must report {PRIORITY!r}"
                )
            online, drawn = priority[: len(env_index)], priority[len(env_index) :]
            if index is not None:
                both = jnp.concatenate([jnp.broadcast_to(slot, (len(env_index), 1)), index], axis=1)
                replay = ring.prioritize(replay, both, jnp.concatenate([online[:, None], drawn.reshape(index.shape)], axis=1))
            return (train_state, replay), (metrics, (online, drawn))

        num, carry = self.plan.updates_per_unroll, (train_state, replay)
        if num == 1:
            carry, (metrics, priorities) = one(carry, (key, jax.tree.map(lambda x: x[0], replayed)))
            priorities = jax.tree.map(lambda x: x[None], priorities)
        else:
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(num))
            carry, (metrics, priorities) = jax.lax.scan(one, carry, (keys, replayed))
            metrics = jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)
        return *carry, metrics, priorities

    def mix(self, online: Trajectory, replayed: Trajectory, key: Key) -> tuple[Trajectory, Key]:
        """Appends replayed unrolls to online ones as further columns of the batch.

        Args:
          online: `[T+1, B, ...]`. replayed: `[B replay_per_env, T+1, ...]`. key: `[B]`, of the online columns.

        Returns:
          `B (1 + replay_per_env)` columns, and their keys.
        """
        more = jax.vmap(lambda k: rng.columns(k, 1 + jnp.arange(self.plan.replay_per_env)))(key).reshape(-1)
        return columns.concatenate(online, columns.batch_major(replayed)), jnp.concatenate([key, more])

    def draw(self, replay: ring.Ring, key: Key) -> tuple[Trajectory, Array]:
        """Unrolls of the ring, `[B replay_per_env, T+1, ...]`, and their indices `[B, replay_per_env]`. key: `[B]`."""
        drawn, index, importance = ring.sample(replay, key, self.plan.replay_per_env, self.plan.priority_exponent)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn)
        return flat.replace(importance=importance.reshape(-1)) if self.plan.priority_exponent else flat, index

    def _learn(self, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[TrainState, dict[str, Array]]:
        """The gradient steps of one update. Metrics are means over them, but for priorities, `[B]`."""
        num = self.plan.minibatches
        if num == 1:
            train_state, metrics = self.agent.update(train_state, trajectory, key, AXIS)
            return train_state, dict(metrics)
        # Environment e and what is replayed with it belong to minibatch e mod num, on however many devices.
        num_envs, per_env = self.envs_per_device, self.plan.replay_per_env
        online = np.arange(num_envs).reshape(-1, num).T
        replayed = num_envs + online[..., None] * per_env + np.arange(per_env)
        order = np.concatenate([online, replayed.reshape(num, num_envs // num * per_env)], axis=1)

        def step(train_state: TrainState, batch: tuple[Trajectory, Key]) -> tuple[TrainState, Any]:
            return self.agent.update(train_state, *batch, AXIS)

        train_state, metrics = jax.lax.scan(step, train_state, (columns.take(trajectory, order), key[order]))
        priority = {
            name: value.reshape(-1)[np.argsort(order, axis=None)] for name, value in metrics.items() if name == PRIORITY
        }
        means = {name: jnp.mean(value, axis=0) for name, value in metrics.items() if name != PRIORITY}
        return train_state, {**means, **priority}


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
