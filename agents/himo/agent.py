"""HiMo as an Agent: values and policies that learn from features of the future which a value in hindsight found useful."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent, DataSpec
from podracer.agents.himo.config import PRESETS
from podracer.agents.himo.config import Config as HiMoConfig
from podracer.agents.himo.losses import q_loss, vtrace_loss
from podracer.agents.himo.networks import Networks
from podracer.config import Preset
from podracer.nets import policies, previous, recurrent, torso
from podracer.ops import optimizers, sequence_q
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


class HiMoActorState(Struct):
    """core: state of the recurrent core. action: `[B, ...]`, the last one, or empty where the core does not see it. epsilon:
    `[B]` float32, of this episode, or empty in the actor-critic form.
    """

    core: Any
    action: Any
    epsilon: Any


class HiMo(Agent[HiMoConfig]):
    """Value-driven hindsight modelling, Guez et al. 2020 (https://arxiv.org/abs/2002.08329), in IMPALA or in R2D2."""

    Config = HiMoConfig

    def __init__(self, spec: EnvironmentSpec, config: HiMoConfig):
        super().__init__(spec, config)
        if config.base == "r2d2" and not spec.discrete:
            raise ValueError(f"base=r2d2 needs discrete actions, and {spec.name} has others: set agent.base=vtrace")
        self._policy = policies.make_policy(spec)
        self._networks = Networks(spec, config, self._policy)

    @classmethod
    def presets(cls) -> Mapping[str, Preset]:
        return PRESETS

    def init(self, key: Key) -> TrainState:
        core = recurrent.initial_state(self.config.core, 1)
        params = self._networks.init(key, previous.initial_action(self.spec, 1)[None], core)
        if self.config.base == "vtrace":
            return self.train_state(params)
        # A copy: a runtime donates the whole state, and no buffer can be donated twice.
        return self.train_state(params, target_params=jax.tree.map(jnp.copy, self._networks.acting(params)))

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return HiMoActorState(
            core=recurrent.initial_state(self.config.core, batch_size),
            action=previous.initial_action(self.spec, batch_size) if self.config.remember else (),
            epsilon=jnp.zeros((batch_size,), jnp.float32) if self.config.base == "r2d2" else (),
        )

    def actor_params(self, train_state: TrainState) -> Params:
        """Without `phi`, the hindsight value and, in the actor-critic form, the value: they stay with the learner."""
        return self._networks.acting(train_state.params)

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        config, networks = self.config, self._networks
        one_step, action_tm1 = jax.tree.map(lambda x: x[None], (timestep, actor_state.action))
        hidden, core = networks.unroll(params, one_step, action_tm1, actor_state.core)
        hidden = hidden[0]
        phi_hat = networks.phi_hat(params, hidden)
        if config.base == "vtrace":
            policy = self._policy.mask(networks.policy(params, hidden, phi_hat), timestep.observation)
            greedy = mode is Mode.EVALUATE and config.vtrace.greedy_evaluation
            action = self._policy.mode(policy) if greedy else jax.vmap(self._policy.sample)(policy, key)
            epsilon: Any = ()
        else:
            q = torso.mask_logits(networks.value(params, hidden, phi_hat), timestep.observation)
            keys = jax.vmap(jax.random.split)(key)
            if mode is Mode.EVALUATE:
                epsilon = jnp.full_like(actor_state.epsilon, config.q.evaluation_epsilon)
            else:
                epsilon = sequence_q.episode_epsilon(
                    actor_state.epsilon, timestep.first(), keys[:, 0], config.q.epsilon, config.q.epsilon_alpha
                )
            policy = sequence_q.epsilon_greedy(q, torso.legal_actions(timestep.observation), epsilon)
            action = jax.vmap(self._policy.sample)(policy, keys[:, 1])
        output = ActorOutput(action=action, log_prob=self._policy.log_prob(policy, action))
        return output, HiMoActorState(core=core, action=action if config.remember else (), epsilon=epsilon)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action) if self.config.remember else actor_state

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        config, networks = self.config, self._networks
        if config.base == "vtrace":
            hidden = self._hidden(params, trajectory)
            entropy_cost = config.vtrace.entropy_cost * optimizers.remaining(train_state.num_updates, config.decay_updates)
            return vtrace_loss(params, networks, self._policy, config, trajectory, hidden, entropy_cost)
        hidden, target_hidden = self._hidden(params, trajectory), self._hidden(train_state.target_params, trajectory)
        target_phi_hat = networks.phi_hat(train_state.target_params, target_hidden)
        target_q = networks.value(train_state.target_params, target_hidden, target_phi_hat)
        weight: Any = 1.0
        if not isinstance(trajectory.importance, tuple):  # Schaul et al. 2016, section 3.4, not normalised
            weight = trajectory.importance**config.q.importance_exponent
        return q_loss(params, networks, config, _after(config.q.burn_in, trajectory), hidden, target_q, weight)

    def _hidden(self, params: Params, trajectory: Trajectory) -> Array:
        """`h` of the time steps after the burn-in, which warms up the stored state without a gradient."""
        state, burn_in = trajectory.actor_state, self.config.q.burn_in if self.config.base == "r2d2" else 0
        action: Any = ()
        if self.config.remember:
            action = previous.unroll(state.action, trajectory.actor_output.action)
        inputs, core = (trajectory.timestep, action), state.core
        if burn_in:
            timestep, action_tm1 = jax.tree.map(lambda x: x[:burn_in], inputs)
            core = jax.lax.stop_gradient(self._networks.unroll(params, timestep, action_tm1, core)[1])
        timestep, action_tm1 = jax.tree.map(lambda x: x[burn_in:], inputs)
        return self._networks.unroll(params, timestep, action_tm1, core)[0]

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        if self.config.base == "vtrace":
            return target_params
        return optax.periodic_update(self._networks.acting(params), target_params, num_updates, self.config.q.target_period)

    def data_spec(self) -> DataSpec:
        config, q = self.config, self.config.q
        if config.base == "vtrace":
            return DataSpec(unroll_length=config.unroll_length, microbatch=config.microbatch)
        return DataSpec(
            unroll_length=config.unroll_length,
            overlap=q.burn_in + config.lookahead,  # each step is learned once: what is looked ahead at comes again
            replay_share=q.replay_share,
            replay_capacity=q.replay_capacity,
            priority_exponent=q.priority_exponent if q.replay_share else 0.0,
            updates_per_unroll=q.updates_per_unroll,
            microbatch=config.microbatch,
        )

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        return optimizers.clipped(
            "adam", config.learning_rate, config.adam_epsilon, config.max_gradient_norm, config.decay_updates
        )


def _after(burn_in: int, trajectory: Trajectory) -> Trajectory:
    """`trajectory` without its first `burn_in` steps, and without the state before them."""
    timestep, output = jax.tree.map(lambda x: x[burn_in:], (trajectory.timestep, trajectory.actor_output))
    return trajectory.replace(timestep=timestep, actor_output=output, actor_state=())
