"""Nav as an Agent: an actor-critic that also predicts what helps it to find its way.

"Learning to Navigate in Complex Environments", Mirowski et al. 2017, https://arxiv.org/abs/1611.03673.
"""

import jax
import optax

from podracer.agent import Agent, EnvironmentSpec, Mode
from podracer.agents.nav.config import PRESETS, NavConfig
from podracer.agents.nav.losses import auxiliary_losses
from podracer.agents.nav.networks import PROBE, Outputs, initial_core, make_network
from podracer.agents.nav.picture import draw
from podracer.nets import policies, previous
from podracer.ops import actor_critic, optimizers
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class Nav(Agent[NavConfig]):
    """FF, LSTM, Nav, +D1, +D2 and +L of the paper, with V-trace. Labels come in `TimeStep.aux`, which only the loss reads."""

    Config = NavConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: NavConfig):
        super().__init__(spec, config)
        self._policy = policies.make_policy(spec)
        self._net = make_network(spec, config, self._policy)

    def init(self, key: Key) -> TrainState:
        state = self.initial_actor_state(1)
        return self.train_state(self._net.init(key, self.spec.example((1, 1)), state.action[None], state.core))

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return previous.Memory(
            core=initial_core(self.config, batch_size), action=previous.initial_action(self.spec, batch_size)
        )

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        outputs, core = self._look(params, actor_state, timestep)
        greedy = mode is Mode.EVALUATE and self.config.greedy_evaluation
        action, log_prob = self._policy.choose(outputs.policy, key, greedy)
        return ActorOutput(action=action, log_prob=log_prob), actor_state.replace(core=core, action=action)

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action)

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        config, state = self.config, trajectory.actor_state
        action_tm1 = previous.unroll(state.action, trajectory.actor_output.action)
        outputs, _ = self._net.apply(params, trajectory.timestep, action_tm1, state.core)
        found = actor_critic.vtrace(self._policy, outputs.policy, outputs.value, trajectory, config, config.discount)
        loss, metrics = found.total(config, optimizers.remaining(train_state.num_updates, config.decay_updates))
        losses, more = auxiliary_losses(outputs, trajectory.timestep.aux, config.depth_power)
        for name, beta in (("d1", config.beta_d1), ("d2", config.beta_d2), ("loop", config.beta_l)):
            if name in losses:
                loss += beta * losses[name]
        return config.loss_scale * loss + losses.get("position", 0.0), {**metrics, **more, "loss": loss}

    def picture(self, params: Params, actor_state: ActorState, timestep: TimeStep) -> Array | None:
        outputs, _ = self._look(params, actor_state, timestep.unlabelled())
        return draw(outputs, timestep.aux, self.config.depth_power)

    def optimizer(self) -> optax.GradientTransformation:
        """Of the agent, and of the probe apart: were both clipped as one, the probe would shorten the agent's steps."""
        config = self.config
        own = optimizers.clipped(
            config.optimizer, config.learning_rate, config.epsilon, config.max_gradient_norm, config.decay_updates
        )
        return optax.multi_transform({"agent": own, "probe": optax.adam(config.probe_learning_rate)}, _owners)

    def _look(self, params: Params, actor_state: ActorState, timestep: TimeStep) -> tuple[Outputs, ActorState]:
        """`Outputs` `[B, ...]` at one time step `[B]`, and the memory after it."""
        one_step, action_tm1 = jax.tree.map(lambda x: x[None], (timestep, actor_state.action))
        outputs, core = self._net.apply(params, one_step, action_tm1, actor_state.core)
        return jax.tree.map(lambda x: x[0], outputs), core


def _owners(params: Params) -> dict[str, str]:
    return {name: "probe" if name.split("/")[0] == PROBE else "agent" for name in params}
