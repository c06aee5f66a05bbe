"""R2D2 as an Agent: recurrent Q-learning from prioritised sequences with stored states and burn-in.

"Recurrent Experience Replay in Distributed Reinforcement Learning", Kapturowski, Ostrovski, Quan, Munos and Dabney 2019,
https://openreview.net/forum?id=r1lyTjAqYX.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent, DataSpec
from podracer.agents.r2d2.config import PRESETS
from podracer.agents.r2d2.config import Config as R2D2Config
from podracer.agents.r2d2.networks import make_network
from podracer.config import Preset
from podracer.nets import previous, recurrent, torso
from podracer.ops import episodes, sequence_q
from podracer.types import (
    ActorOutput,
    ActorState,
    Array,
    EnvironmentSpec,
    Key,
    Metrics,
    Mode,
    Params,
    Struct,
    TimeStep,
    TrainState,
    Trajectory,
)


class R2D2ActorState(Struct):
    """core: state of the recurrent core. action: `[B]` int32, the last one. epsilon: `[B]` float32, of this episode."""

    core: Any
    action: Any
    epsilon: Any


class R2D2(Agent[R2D2Config]):
    """Recurrent replay distributed DQN."""

    Config = R2D2Config

    def __init__(self, spec: EnvironmentSpec, config: R2D2Config):
        super().__init__(spec, config)
        self._net = make_network(spec, config)

    @classmethod
    def presets(cls) -> Mapping[str, Preset]:
        return PRESETS

    def init(self, key: Key) -> TrainState:
        state = self.initial_actor_state(1)
        params = self._net.init(key, self.spec.example((1, 1)), state.action[None], state.core)
        # A copy: a runtime donates the whole state, and no buffer can be donated twice.
        return self.train_state(params, target_params=jax.tree.map(jnp.copy, params))

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return R2D2ActorState(
            core=recurrent.initial_state(self.config.core, batch_size),
            action=previous.initial_action(self.spec, batch_size),
            epsilon=jnp.zeros((batch_size,), jnp.float32),
        )

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        config, keys = self.config, jax.vmap(jax.random.split)(key)
        q, core = self._net.apply(params, jax.tree.map(lambda x: x[None], timestep), actor_state.action[None], actor_state.core)
        q = torso.mask_logits(q[0], timestep.observation)
        if mode is Mode.EVALUATE:
            epsilon = jnp.full_like(actor_state.epsilon, config.evaluation_epsilon)
        else:
            epsilon = sequence_q.episode_epsilon(
                actor_state.epsilon, timestep.first(), keys[:, 0], config.epsilon, config.epsilon_alpha
            )
        log_pi = sequence_q.epsilon_greedy(q, torso.legal_actions(timestep.observation), epsilon)
        action = jax.vmap(jax.random.categorical)(keys[:, 1], log_pi).astype(jnp.int32)
        log_prob = jnp.take_along_axis(log_pi, action[:, None], axis=-1)[:, 0]
        return ActorOutput(action=action, log_prob=log_prob), R2D2ActorState(core=core, action=action, epsilon=epsilon)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action)

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        config = self.config
        timestep, action = _after(config.burn_in, (trajectory.timestep, trajectory.actor_output.action))
        q = self._action_values(params, trajectory)
        target_q = self._action_values(train_state.target_params, trajectory)
        legal_q = torso.mask_logits(q, timestep.observation)
        steps = episodes.transitions(timestep, config.discount)
        targets = jax.vmap(sequence_q.double_q_targets, in_axes=(1, 1, 1, None, None), out_axes=1)(
            steps, legal_q[1:], target_q[1:], config.return_steps, config.rescale
        )
        error = sequence_q.td_errors(q[:-1], action, targets, steps.mask_tm1)
        loss = jnp.mean(self._weight(trajectory) * 0.5 * jnp.sum(jnp.square(error), axis=0))
        metrics = {
            "loss": loss,
            "td_error": jnp.mean(jnp.abs(error)),
            "value": episodes.masked_mean(jnp.max(legal_q[:-1], axis=-1), steps.mask_tm1),
        }
        if self.data_spec().priority_exponent:
            metrics["priority"] = sequence_q.sequence_priority(error, steps.mask_tm1, config.priority_mix)
        return loss, metrics

    def _action_values(self, params: Params, trajectory: Trajectory) -> Array:
        """Values `[T+1, B, A]` of the time steps after the burn-in, which warms up the stored state without a gradient."""
        state, burn_in = trajectory.actor_state, self.config.burn_in
        inputs = trajectory.timestep, previous.unroll(state.action, trajectory.actor_output.action)
        core = state.core
        if burn_in:
            core = self._net.apply(params, *jax.tree.map(lambda x: x[:burn_in], inputs), core)[1]
        return self._net.apply(params, *_after(burn_in, inputs), jax.lax.stop_gradient(core))[0]

    def _weight(self, trajectory: Trajectory) -> Array:
        """Of each sequence, `[B]`: Schaul et al. 2016, section 3.4, not normalised, so that at 1 the mean is unbiased."""
        if isinstance(trajectory.importance, tuple):
            return jnp.float32(1)
        return trajectory.importance**self.config.importance_exponent

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        return optax.periodic_update(params, target_params, num_updates, self.config.target_period)

    def data_spec(self) -> DataSpec:
        config = self.config
        return DataSpec(
            unroll_length=config.unroll_length,
            overlap=config.burn_in,
            replay_share=config.replay_share,
            replay_capacity=config.replay_capacity,
            priority_exponent=config.priority_exponent if config.replay_share else 0.0,
            updates_per_unroll=config.updates_per_unroll,
            microbatch=config.microbatch,
        )

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        rate = config.learning_rate
        schedule = optax.linear_schedule(rate, 0.0, config.decay_updates) if config.decay_updates else rate
        return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), optax.adam(schedule, eps=config.adam_epsilon))


def _after(burn_in: int, tree: Any) -> Any:
    return jax.tree.map(lambda x: x[burn_in:], tree)
