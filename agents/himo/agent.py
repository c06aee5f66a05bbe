"""HiMo as an Agent: values and policies that learn from features of the future which a value in hindsight found useful."""

import functools

import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent, DataSpec, EnvironmentSpec, Mode
from podracer.agents.himo.config import PRESETS, HiMoConfig
from podracer.agents.himo.losses import q_loss, vtrace_loss
from podracer.agents.himo.networks import make_networks
from podracer.nets import policies, previous, recurrent
from podracer.ops import optimizers, overlap, priorities, sequence_q
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class HiMo(Agent[HiMoConfig]):
    """Value-driven hindsight modelling, Guez et al. 2020 (https://arxiv.org/abs/2002.08329), in IMPALA or in R2D2."""

    Config = HiMoConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: HiMoConfig):
        super().__init__(spec, config)
        if config.base == "r2d2" and not spec.discrete:
            raise ValueError(f"base=r2d2 needs discrete actions, and {spec.name} has others: set agent.base=vtrace")
        self._policy = policies.make_policy(spec)
        self._networks = make_networks(spec, config, self._policy)

    def init(self, key: Key) -> TrainState:
        core = recurrent.initial_state(self.config.core, 1)
        params = self._networks.init(key, previous.initial_action(self.spec, 1)[None], core)
        if self.config.base == "vtrace":
            return self.train_state(params)
        return self.train_state(params, target_params=self._networks.acting(params))

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return sequence_q.QMemory(
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
        hidden, epsilon = hidden[0], actor_state.epsilon
        phi_hat = networks.phi_hat(params, hidden)
        if config.base == "vtrace":
            policy = self._policy.mask(networks.policy(params, hidden, phi_hat), timestep.observation)
            greedy = mode is Mode.EVALUATE and config.vtrace.greedy_evaluation
            action, log_prob = self._policy.choose(policy, key, greedy)
        else:
            q = networks.value(params, hidden, phi_hat)
            action, log_prob, epsilon = sequence_q.play(config.q, q, timestep, epsilon, key, mode)
        remembered = action if config.remember else ()
        return ActorOutput(action=action, log_prob=log_prob), actor_state.replace(core=core, action=remembered, epsilon=epsilon)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action) if self.config.remember else actor_state

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        config, networks = self.config, self._networks
        if config.base == "vtrace":
            hidden = self._hidden(params, trajectory)
            left = optimizers.remaining(train_state.num_updates, config.decay_updates)
            return vtrace_loss(params, networks, self._policy, config, trajectory, hidden, left)
        hidden, target_hidden = self._hidden(params, trajectory), self._hidden(train_state.target_params, trajectory)
        target_phi_hat = networks.phi_hat(train_state.target_params, target_hidden)
        target_q = networks.value(train_state.target_params, target_hidden, target_phi_hat)
        weight = priorities.importance_weight(trajectory, config.q.importance_exponent)
        return q_loss(params, networks, config, overlap.drop(trajectory, config.q.burn_in), hidden, target_q, weight)

    def _hidden(self, params: Params, trajectory: Trajectory) -> Array:
        """`h` of the time steps after the burn-in."""
        state, remember = trajectory.actor_state, self.config.remember
        inputs = trajectory.timestep, previous.unroll(state.action, trajectory.actor_output.action) if remember else ()
        burn_in = self.config.q.burn_in if self.config.base == "r2d2" else 0
        return recurrent.unroll_after(burn_in, functools.partial(self._networks.unroll, params), inputs, state.core)

    def update_target(self, params: Params, target_params: Params, num_updates: Array) -> Params:
        if self.config.base == "vtrace":
            return target_params
        return optax.periodic_update(self._networks.acting(params), target_params, num_updates, self.config.q.target_period)

    def data_spec(self) -> DataSpec:
        config = self.config
        if config.base == "vtrace":
            return DataSpec.of(config)
        # Each step is learned once: what is looked ahead at comes again.
        return DataSpec.of(config, config.q, overlap=config.q.burn_in + config.lookahead)

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        return optimizers.clipped(
            "adam", config.learning_rate, config.adam_epsilon, config.max_gradient_norm, config.decay_updates
        )
