"""R2D2 as an Agent: recurrent Q-learning from prioritised sequences with stored states and burn-in.

"Recurrent Experience Replay in Distributed Reinforcement Learning", Kapturowski, Ostrovski, Quan, Munos and Dabney 2019,
https://openreview.net/forum?id=r1lyTjAqYX.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from podracer.agent import PRIORITY, Agent, DataSpec, EnvironmentSpec, Mode
from podracer.agents.r2d2.config import PRESETS, R2D2Config
from podracer.agents.r2d2.networks import make_network
from podracer.nets import previous, recurrent
from podracer.ops import episodes, optimizers, overlap, priorities, sequence_q
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class R2D2(Agent[R2D2Config]):
    """Recurrent replay distributed DQN."""

    Config = R2D2Config
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: R2D2Config):
        super().__init__(spec, config)
        self._net = make_network(spec, config)

    def init(self, key: Key) -> TrainState:
        state = self.initial_actor_state(1)
        params = self._net.init(key, self.spec.example((1, 1)), state.action[None], state.core)
        return self.train_state(params, target_params=params)

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return sequence_q.QMemory(
            core=recurrent.initial_state(self.config.core, batch_size),
            action=previous.initial_action(self.spec, batch_size),
            epsilon=jnp.zeros((batch_size,), jnp.float32),
        )

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        one_step, action_tm1 = jax.tree.map(lambda x: x[None], (timestep, actor_state.action))
        q, core = self._net.apply(params, one_step, action_tm1, actor_state.core)
        action, log_prob, epsilon = sequence_q.play(self.config, q[0], timestep, actor_state.epsilon, key, mode)
        return ActorOutput(action=action, log_prob=log_prob), actor_state.replace(core=core, action=action, epsilon=epsilon)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action)

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        config = self.config
        q, target_q = (self._action_values(p, trajectory) for p in (params, train_state.target_params))
        learned = overlap.drop(trajectory, config.burn_in)
        found = sequence_q.double_q(config, config.discount, q, target_q, learned.timestep, learned.actor_output.action)
        weight = priorities.importance_weight(trajectory, config.importance_exponent)
        loss = jnp.mean(weight * 0.5 * jnp.sum(jnp.square(found.error), axis=0))
        metrics = {
            "loss": loss,
            "td_error": jnp.mean(jnp.abs(found.error)),
            "value": episodes.masked_mean(found.value, found.mask),
            PRIORITY: found.priority,
        }
        return loss, metrics

    def _action_values(self, params: Params, trajectory: Trajectory) -> Array:
        """Values `[T+1, B, A]` of the time steps after the burn-in."""
        state = trajectory.actor_state
        inputs = trajectory.timestep, previous.unroll(state.action, trajectory.actor_output.action)
        return recurrent.unroll_after(self.config.burn_in, functools.partial(self._net.apply, params), inputs, state.core)

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        return optax.periodic_update(params, target_params, num_updates, self.config.target_period)

    def data_spec(self) -> DataSpec:
        return DataSpec.of(self.config, overlap=self.config.burn_in)

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        return optimizers.clipped(
            "adam", config.learning_rate, config.adam_epsilon, config.max_gradient_norm, config.decay_updates
        )
