"""IMPALA: an actor-critic with V-trace. The example for authors: networks, acting and the loss on one screen.

Espeholt et al. 2018 (https://arxiv.org/abs/1802.01561); also the agent of the figures of Hessel et al. 2021.
"""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent, EnvironmentSpec, Mode
from podracer.agents.impala.config import PRESETS, ImpalaConfig
from podracer.nets import policies, recurrent, torso
from podracer.ops import actor_critic, optimizers
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class Impala(Agent[ImpalaConfig]):
    """V-trace actor-critic, feed-forward or recurrent."""

    Config = ImpalaConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: ImpalaConfig):
        super().__init__(spec, config)
        self._policy = policies.make_policy(spec)
        self._net: hk.Transformed = hk.without_apply_rng(hk.transform(self._forward))
        if config.separate_value and config.core.kind != "none":
            raise ValueError(
                "separate_value is for feed-forward agents: set agent.core.kind=none, or agent.separate_value=false"
            )

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
        greedy = mode is Mode.EVALUATE and self.config.greedy_evaluation
        action, log_prob = self._policy.choose(policy[0], key, greedy)
        return ActorOutput(action=action, log_prob=log_prob), actor_state

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        config = self.config
        (policy, values), _ = self._net.apply(params, trajectory.timestep, trajectory.actor_state)
        found = actor_critic.vtrace(self._policy, policy, values, trajectory, config, config.discount)
        loss, metrics = found.total(config, optimizers.remaining(train_state.num_updates, config.decay_updates))
        return config.loss_scale * loss, metrics

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        return optimizers.clipped(
            config.optimizer, config.learning_rate, config.epsilon, config.max_gradient_norm, config.decay_updates
        )
