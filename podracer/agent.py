"""Agent: the class that authors subclass, and the whole of what a runtime knows of one.

An agent is an immutable object with pure methods. It never sees devices, threads, meshes, Ray or Reverb: a runtime decides
where each method runs. A simple agent gives `Config`, `init`, `act` and `loss`; agents/impala/agent.py is the example. Its
author imports from here what the class is told and says of itself, and from `podracer.types` the data that it works on.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import optax

from podracer.config import Preset
from podracer.ops import columns
from podracer.types import (
    ActorOutput,
    ActorState,
    Array,
    EnvironmentSpec,
    Key,
    Metrics,
    Mode,
    Params,
    TimeStep,
    TrainState,
    Trajectory,
)

__all__ = ["PRIORITY", "Agent", "DataSpec", "EnvironmentSpec", "Mode", "Preset"]

ConfigT = TypeVar("ConfigT")

PRIORITY = "priority"
"""The metric of a loss that is no scalar: `[B]`, see `DataSpec.priority_exponent`."""


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What an agent learns from. The runtime owns the store that provides it.

    unroll_length: `T`, agent steps of one unroll.
    overlap: `O`, agent steps of the unroll before, at most `T`, that come along as its start: a trajectory has `O + T` steps
      then, `actor_state` is from before the first of them, and the next one begins `T` steps later. At the start of life they
      are LAST time steps of zeros, which are masked everywhere. For burn-in (Kapturowski et al. 2019), and targets that look
      ahead at what an unroll's end would cut off.
    replay_share: share of a learning batch that comes from replay, in [0, 1). The online rest is never dropped.
    replay_capacity: unrolls that replay holds, over all environments.
    priority_exponent: unrolls are drawn from replay with probability ~ priority ** exponent (Schaul et al. 2016, eq. 1); 0 is
      uniform. Above 0 the loss reports a metric `priority` `[B]` float32, at least 0, for every column of its batch, and finds
      `Trajectory.importance` filled in. Without replay there are no priorities, and the metric is dropped.
    updates_per_unroll: updates that learn from each online unroll, each with other unrolls from replay.
    microbatch: columns for which a device computes a gradient at a time, 0 for all of its batch. The gradient is the same up
      to rounding; smaller ones need less memory, and on a CPU one that fits its caches is faster.
    """

    unroll_length: int
    replay_share: float = 0.0
    replay_capacity: int = 0
    priority_exponent: float = 0.0
    updates_per_unroll: int = 1
    microbatch: int = 0
    overlap: int = 0

    @classmethod
    def of(cls, *configs: Any, overlap: int = 0) -> Self:
        """What configs say of the data: their fields of these names, `unroll_length` at least; the rest are defaults."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "overlap"]
        return cls(**{name: getattr(c, name) for c in configs for name in names if hasattr(c, name)}, overlap=overlap)


class Agent(abc.ABC, Generic[ConfigT]):
    """A learning agent for environments of one signature.

    Every method is pure and works on a batch `[B]`. Wherever a method takes `key`, it is `[B]`, one PRNG key per column of
    the batch, so that results do not depend on how a batch is laid out over devices: `jax.vmap` your sampling over it.
    """

    Config: ClassVar[type]
    """A frozen dataclass with a default for every field."""
    presets: ClassVar[Mapping[str, Preset]] = {}
    """The author's choices, by environment name (`suite/task`) and by names of their own (`paper_atari`)."""

    def __init__(self, spec: EnvironmentSpec, config: ConfigT):
        """Builds networks; touches no device. Raises TypeError or ValueError, in one line, for what it cannot do."""
        self.spec = spec
        self.config = config

    @classmethod
    def preset(cls, env_name: str) -> Preset | None:
        """The preset that a bare command takes for an environment, or None."""
        return cls.presets.get(env_name)

    @classmethod
    def needs_simulator(cls, config: Any) -> bool:
        """Whether an agent of this config searches in the true environment: it then finds `spec.simulator`, and the state that
        it steps in every observation under the key `simulator`.
        """
        del config
        return False

    @abc.abstractmethod
    def init(self, key: Key) -> TrainState:
        """A fresh TrainState from ONE key; usually `self.train_state(params)`."""

    def initial_actor_state(self, batch_size: int) -> ActorState:
        """Recurrent state `[B, ...]` at the start of life. `act` and `loss` reset it themselves wherever a FIRST arrives."""
        del batch_size
        return ()

    @abc.abstractmethod
    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        """Chooses actions.

        Args:
          params: what `actor_params` returned.
          actor_state: recurrent state, leaves `[B, ...]`.
          timestep: leaves `[B, ...]`; `aux` is empty, whatever labels the environment has.
          key: `[B]` PRNG keys.
          mode: static.

        Returns:
          `ActorOutput` with leaves `[B, ...]`, and the next recurrent state.
        """

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        """The state after `act` where another's action `[B, ...]` was played instead of its own, as in a match of two.

        For agents that remember their actions; the default is for those that do not.
        """
        del action
        return actor_state

    def picture(self, params: Params, actor_state: ActorState, timestep: TimeStep) -> Array | None:
        """What the agent makes of time steps, to be shown beside them in a film: `[B, H, W, 3]` uint8, or None.

        Args: as of `act`, but the labels `aux` are there, to be shown too.
        """
        del params, actor_state, timestep
        return None

    @abc.abstractmethod
    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        """The loss to minimise, a MEAN over the batch, and metrics.

        Args:
          params: online parameters; gradients are taken with respect to these alone.
          train_state: for target networks and moving averages; its own `params` carry no gradient.
          trajectory: time steps `[T+1, B, ...]`, actor outputs `[T, B, ...]`.
          key: `[B]` PRNG keys.

        Returns:
          `[]` float32, and a dictionary of scalars (and of `priority` `[B]`, see `DataSpec`).
        """

    def relabel(
        self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str
    ) -> tuple[TrainState, Trajectory]:
        """Computes `trajectory.targets` from the whole TrainState before the gradient step; no gradient flows here.

        The place for target networks, reanalyse, and moving averages (average them over `axis_name` with `jax.lax.pmean`).
        """
        del key, axis_name
        return train_state, trajectory

    def actor_params(self, train_state: TrainState) -> Params:
        """What actors need of a TrainState, and no more: it is what travels to them."""
        return train_state.params

    def data_spec(self) -> DataSpec:
        """What to learn from. The default is `DataSpec.of` the config."""
        return DataSpec.of(self.config)

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer of the default `update`."""
        return optax.adam(self.config.learning_rate)  # type: ignore[attr-defined]

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        """The target network after update number `num_updates` `[]`, counted from 1. The default keeps what is there, which
        suits agents that have none.
        """
        del params, num_updates
        return target_params

    def train_state(self, params: Params, target_params: Params = (), extra: Any = ()) -> TrainState:
        """The TrainState before the first update. `target_params` may be `params` themselves, or a part of them."""
        return TrainState(
            params=params,
            opt_state=self.optimizer().init(params),
            # A copy: a runtime donates the whole state, and no buffer can be donated twice.
            target_params=jax.tree.map(jnp.copy, target_params),
            extra=extra,
            num_updates=jnp.int32(0),
        )

    def update(self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str) -> tuple[TrainState, Metrics]:
        """One learning step on this device's share of the batch.

        Relabels, takes the gradient of `loss`, averages it over `axis_name`, applies `optimizer` and `update_target`.
        Whoever overrides this must average gradients over `axis_name`, or replicas drift apart (the runtime checks).
        """
        train_state, trajectory = self.relabel(train_state, trajectory, key, axis_name)
        trajectory = jax.lax.stop_gradient(trajectory)
        grads, metrics = self.gradients(train_state, trajectory, key)
        grads = jax.lax.pmean(grads, axis_name)
        updates, opt_state = self.optimizer().update(grads, train_state.opt_state, train_state.params)
        params, num_updates = optax.apply_updates(train_state.params, updates), train_state.num_updates + 1
        train_state = train_state.replace(
            params=params,
            opt_state=opt_state,
            target_params=self.update_target(params, train_state.target_params, num_updates),
            num_updates=num_updates,
        )
        return train_state, {**metrics, "gradient_norm": optax.global_norm(grads)}

    def gradients(self, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Params, Metrics]:
        """Gradient of `loss` and metrics, means over this device's batch, a microbatch at a time."""
        grad = jax.grad(self.loss, has_aux=True)
        num = key.shape[0] // (self.data_spec().microbatch or key.shape[0])
        if num == 1:
            return grad(train_state.params, train_state, trajectory, key)

        @functools.partial(jax.jit, inline=True)  # traced once, though its shapes are asked for first
        def one(part: tuple[Trajectory, Key]) -> tuple[Any, Metrics]:
            """What is summed, and what is of single columns."""
            grads, metrics = grad(train_state.params, train_state, *part)
            of_columns = {name: value for name, value in metrics.items() if name == PRIORITY}
            return (grads, {name: value for name, value in metrics.items() if name not in of_columns}), of_columns

        def accumulate(total: Any, part: tuple[Trajectory, Key]) -> tuple[Any, Metrics]:
            result, of_columns = one(part)
            return jax.tree.map(jnp.add, total, result), of_columns

        parts = (columns.split(trajectory, num), key.reshape(num, -1))
        shapes, _ = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, of_columns = jax.lax.scan(accumulate, zeros, parts)
        grads, metrics = jax.tree.map(lambda x: x / num, total)
        return grads, {**metrics, **{name: value.reshape(-1) for name, value in of_columns.items()}}
