"""Muesli as an Agent: acts with its target network, computes targets in `relabel`, learns in `loss`."""

from typing import Any

import jax.numpy as jnp
import optax

from podracer.agent import Agent, EnvironmentSpec, Mode
from podracer.agents.muesli.config import PRESETS, MuesliConfig
from podracer.agents.muesli.losses import muesli_loss
from podracer.agents.muesli.networks import make_networks
from podracer.agents.muesli.policy import make_policy
from podracer.agents.muesli.targets import compute_targets
from podracer.nets import recurrent, torso
from podracer.nets.heads import Bins
from podracer.ops import moments, optimizers
from podracer.search import ModelStep, Planner, Root
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class Muesli(Agent[MuesliConfig]):
    """Policy optimisation with a learned model and without search. Hessel et al. 2021, https://arxiv.org/abs/2104.06159."""

    Config = MuesliConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: MuesliConfig):
        super().__init__(spec, config)
        self._policy = make_policy(spec, config)
        self._bins = Bins(config.bins)
        self._networks = make_networks(spec, config, self._policy)
        # Values belong to the player to move: where players alternate, the next value is the opponent's.
        self._q_discount = -config.discount if spec.num_players == 2 else config.discount
        searches = config.evaluation == "search"
        self._planner = Planner(self._policy, self._model_step, config.search) if searches else None

    def init(self, key: Key) -> TrainState:
        params = self._networks.init(key)
        return self.train_state(params, target_params=params, extra=moments.init_second_moment())

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return recurrent.initial_state(self.config.core, batch_size)

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        hidden, actor_state = self._networks.step(params, timestep.observation, timestep.first(), actor_state)
        prediction = self._networks.predict(params, hidden)
        parameters = self._policy.mask(prediction.policy, timestep.observation)
        if mode is Mode.EVALUATE and self._planner is not None:
            root = Root(parameters, self._bins.scalar(prediction.value), self._networks.root(params, hidden))
            legal = torso.legal_actions(timestep.observation)
            action = self._planner(params, root, legal, key, explore=False).action
            log_prob = self._policy.log_prob(parameters, action)
        else:
            greedy = mode is Mode.EVALUATE and self.config.evaluation == "greedy"
            action, log_prob = self._policy.choose(parameters, key, greedy)
        return ActorOutput(action=action, log_prob=log_prob, logits=parameters), actor_state

    def _model_step(self, params: Params, state: Any, action: Array, key: Key) -> ModelStep:
        """See `podracer.search.planner.Model`."""
        del key
        state = self._networks.model_step(params, state, self._policy.encode(action))
        prediction = self._networks.model_predict(params, state)
        reward, value = self._bins.scalar(prediction.reward), self._bins.scalar(prediction.value)
        return ModelStep(reward, jnp.full(value.shape, self._q_discount), prediction.policy, value, state)

    def relabel(
        self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str
    ) -> tuple[TrainState, Trajectory]:
        targets, second_moment = compute_targets(
            train_state.target_params,
            self._networks,
            self._policy,
            self._bins,
            self.config,
            self._q_discount,
            train_state.extra,
            trajectory,
            key,
            axis_name,
        )
        return train_state.replace(extra=second_moment), trajectory.replace(targets=targets)

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del train_state, key
        return muesli_loss(params, self._networks, self._policy, self._bins, self.config, trajectory)

    def actor_params(self, train_state: TrainState) -> Params:
        return train_state.target_params

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        del num_updates
        return optax.incremental_update(params, target_params, self.config.target_rate)

    def optimizer(self) -> optax.GradientTransformation:
        """AdamW whose update is clipped coordinate by coordinate before it is scaled (Hessel et al. 2021, appendix F)."""
        config = self.config
        return optax.chain(
            optax.scale_by_adam(),
            optax.clip(config.max_update),
            optax.add_decayed_weights(config.weight_decay),
            optax.scale_by_learning_rate(optimizers.falling(config.learning_rate, config.decay_updates)),
        )
