"""IMPALA: an actor-critic with V-trace. The example for authors: networks, acting and the loss on one screen.

Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561); also the agent of the figures of Hessel et al. 2021.
"""

from collections.abc import Mapping

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent
from podracer.agents.impala.config import Config as ImpalaConfig
from podracer.agents.impala.config import presets
from podracer.config import Preset
from podracer.nets import policies, recurrent, torso
from podracer.ops import episodes
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


class Impala(Agent[ImpalaConfig]):
    """V-trace actor-critic, feed-forward or recurrent."""

    Config = ImpalaConfig

    def __init__(self, spec: EnvironmentSpec, config: ImpalaConfig):
        super().__init__(spec, config)
        self._policy = policies.make_policy(spec)
        self._net: hk.Transformed = hk.without_apply_rng(hk.transform(self._forward))
        if config.separate_value and config.core.kind != "none":
            raise ValueError(
                "separate_value is for feed-forward agents: set agent.core.kind=none, or agent.separate_value=false"
            )

    @classmethod
    def presets(cls) -> Mapping[str, Preset]:
        return presets()

    def _forward(self, timestep: TimeStep, state: ActorState) -> tuple[tuple[Array, Array], ActorState]:
        """Policy parameters `[T, B, P]` and values `[T, B]` for time steps `[T, B, ...]`, and the last recurrent state."""
        embed = hk.BatchApply(torso.make_torso(self.spec, self.config.torso))
        core = recurrent.make_core(self.config.core)
        features, state = recurrent.unroll(core, embed(timestep.observation), timestep.first(), state)
        policy = self._policy.mask(hk.Linear(self._policy.size, name="policy")(features), timestep.observation)
        if self.config.separate_value:
            features = hk.BatchApply(torso.make_torso(self.spec, self.config.torso))(timestep.observation)
        return (policy, jnp.squeeze(hk.Linear(1, name="value")(features), -1)), state

    def init(self, key: Key) -> TrainState:
        return self.train_state(self._net.init(key, self.spec.example((1, 1)), self.initial_actor_state(1)))

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return recurrent.initial_state(self.config.core, batch_size)

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        (policy, _), actor_state = self._net.apply(params, jax.tree.map(lambda x: x[None], timestep), actor_state)
        policy = policy[0]
        greedy = mode is Mode.EVALUATE and self.config.greedy_evaluation
        action = self._policy.mode(policy) if greedy else jax.vmap(self._policy.sample)(policy, key)
        return ActorOutput(action=action, log_prob=self._policy.log_prob(policy, action)), actor_state

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        import rlax  # costs more to import than jax itself

        config = self.config
        (policy, values), _ = self._net.apply(params, trajectory.timestep, trajectory.actor_state)
        log_prob = self._policy.log_prob(policy[:-1], trajectory.actor_output.action)
        step = episodes.transitions(trajectory.timestep, config.discount)
        rewards = jnp.clip(step.r_t, -config.max_abs_reward, config.max_abs_reward)
        # A ratio of 0 cuts every trace at LAST -> FIRST: see podracer/ops/episodes.py.
        ratio = jax.lax.stop_gradient(jnp.exp(log_prob - trajectory.actor_output.log_prob))
        rho = jnp.where(step.mask_tm1 == 1, ratio, 0.0)  # a product would make NaN of an infinite ratio
        vtrace = jax.vmap(rlax.vtrace_td_error_and_advantage, in_axes=(1, 1, 1, 1, 1, None), out_axes=1)(
            values[:-1], jax.lax.stop_gradient(values[1:]), rewards, step.discount_t, rho, config.trace_decay
        )
        policy_loss = jnp.mean(-log_prob * jax.lax.stop_gradient(vtrace.pg_advantage))
        value_loss = 0.5 * jnp.mean(jnp.square(vtrace.errors))
        entropy = episodes.masked_mean(self._policy.entropy(policy[:-1]), step.mask_tm1)
        entropy_cost = config.entropy_cost * self._anneal(train_state.num_updates)
        loss = policy_loss + config.value_cost * value_loss - entropy_cost * entropy
        metrics = {"loss": loss, "policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
        return config.loss_scale * loss, metrics

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        scale = {
            "adam": optax.scale_by_adam(eps=config.epsilon),
            "rmsprop": optax.scale_by_rms(decay=0.99, eps=config.epsilon),
        }[config.optimizer]
        rate = optax.scale_by_learning_rate(lambda count: config.learning_rate * self._anneal(count))
        return optax.chain(optax.clip_by_global_norm(config.max_gradient_norm), scale, rate)

    def _anneal(self, num_updates: Array) -> Array:
        """What is left of the learning rate and of the entropy cost: from 1 linearly to 0, or 1 for ever."""
        if not self.config.decay_updates:
            return jnp.float32(1)
        return jnp.clip(1.0 - num_updates / self.config.decay_updates, 0.0, 1.0)
