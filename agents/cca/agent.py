"""Counterfactual credit assignment as an Agent."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from podracer.agent import Agent, EnvironmentSpec, Mode
from podracer.agents.cca.config import HINDSIGHT, PRESETS, CcaConfig
from podracer.agents.cca.losses import PER_DECISION, cca_losses, classifier_inputs, classifier_loss
from podracer.agents.cca.networks import Networks
from podracer.nets import policies
from podracer.ops import geco, optimizers
from podracer.types import ActorOutput, ActorState, Array, Key, Metrics, Params, TimeStep, TrainState, Trajectory


class Cca(Agent[CcaConfig]):
    """Policy gradients whose baselines know the future, as far as it does not depend on the action; and their baselines.

    Mesnard et al. 2021, https://arxiv.org/abs/2011.09464. For discrete actions. Returns are Monte-Carlo: with unrolls of whole
    episodes (see `CcaConfig.unroll_length`) nothing is bootstrapped; otherwise `V(X)` stands for what lies beyond an unroll.
    """

    Config = CcaConfig
    presets = PRESETS

    def __init__(self, spec: EnvironmentSpec, config: CcaConfig):
        """Raises TypeError for continuous actions."""
        super().__init__(spec, config)
        self._policy = policies.Categorical(spec.num_actions)
        self._networks = Networks(spec, config, self._policy)
        self._constrained = config.estimator in HINDSIGHT and config.independence.bound > 0

    def init(self, key: Key) -> TrainState:
        of = self.config.independence
        extra: Any = geco.init_geco(of.weight * of.bound) if self._constrained else ()
        return self.train_state(self._networks.init(key), extra=extra)

    def initial_actor_state(self, batch_size: int) -> ActorState:
        return self._networks.memory(batch_size)

    def act(
        self, params: Params, actor_state: ActorState, timestep: TimeStep, key: Key, mode: Mode
    ) -> tuple[ActorOutput, ActorState]:
        before = actor_state.action if actor_state else jnp.zeros(timestep.reward.shape, jnp.int32)
        one = jax.tree.map(lambda x: x[None], timestep)
        _, logits, core = self._networks.act(params, one, before[None], actor_state)
        greedy = mode is Mode.EVALUATE and self.config.greedy_evaluation
        action, log_prob = self._policy.choose(logits[0], key, greedy)
        memory = actor_state.replace(core=core, action=action) if actor_state else ()
        return ActorOutput(action=action, log_prob=log_prob), memory

    def played(self, actor_state: ActorState, action: Array) -> ActorState:
        return actor_state.replace(action=action) if actor_state else ()

    def loss(self, params: Params, train_state: TrainState, trajectory: Trajectory, key: Key) -> tuple[Array, Metrics]:
        del key
        losses, metrics = cca_losses(params, self._networks, self._policy, self.config, train_state, trajectory)
        loss = sum(losses.values(), jnp.float32(0))
        return loss, {**metrics, "loss": loss}

    def actor_params(self, train_state: TrainState) -> Params:
        """Torso, core and policy head: nothing that looks back travels to actors."""
        return train_state.params["actor"]

    def update(self, train_state: TrainState, trajectory: Trajectory, key: Key, axis_name: str) -> tuple[TrainState, Metrics]:
        """The default update, after `classifier_steps` of the classifier alone; then means over decisions of all devices, and
        with them the dual step of the constraint.
        """
        if self.config.classifier_steps and self.config.estimator in HINDSIGHT:
            train_state = self._train_classifier(train_state, jax.lax.stop_gradient(trajectory), axis_name)
        train_state, metrics = super().update(train_state, trajectory, key, axis_name)
        metrics = dict(jax.lax.pmean(metrics, axis_name))
        decisions = jnp.maximum(metrics.pop("decisions"), 1e-6)
        metrics |= {name: metrics[name] / decisions for name in PER_DECISION if name in metrics}
        if self._constrained:
            of = self.config.independence
            violation = geco.relative_violation(metrics["independence"], of.bound)
            train_state = train_state.replace(extra=geco.dual_step(train_state.extra, violation, of.rate, of.decay))
            metrics["independence_weight"] = jnp.exp(train_state.extra.log_multiplier) / of.bound
        return train_state, metrics

    def _train_classifier(self, train_state: TrainState, trajectory: Trajectory, axis_name: str) -> TrainState:
        """Steps of the classifier's own Adam on the batch, with `X` and `Phi` as they are."""
        inputs = classifier_inputs(train_state.params, self._networks, trajectory)
        optimizer = optax.masked(_adam(self.config.classifier_learning_rate, self.config), _is_classifier)

        def step(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
            params, state = carry
            grads = jax.grad(classifier_loss)(params["classifier"], self._networks, self._policy, inputs, trajectory)
            others = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in params}
            updates, state = optimizer.update({**others, "classifier": jax.lax.pmean(grads, axis_name)}, state, params)
            return (optax.apply_updates(params, updates), state), None

        inner = train_state.opt_state.inner_states
        carry = (train_state.params, inner["classifier"])
        (params, state), _ = jax.lax.scan(step, carry, None, self.config.classifier_steps)
        opt_state = train_state.opt_state._replace(inner_states={**inner, "classifier": state})
        return train_state.replace(params=params, opt_state=opt_state)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam, and for the classifier one of its own: `Phi` is held to what the classifier knows, so it must keep ahead."""
        config = self.config
        return optax.multi_transform(
            {"classifier": _adam(config.classifier_learning_rate, config), "others": _adam(config.learning_rate, config)},
            lambda params: {name: "classifier" if own else "others" for name, own in _is_classifier(params).items()},
        )


def _adam(rate: float, config: CcaConfig) -> optax.GradientTransformation:
    return optimizers.clipped("adam", rate, 1e-8, config.max_gradient_norm)


def _is_classifier(params: Params) -> dict[str, bool]:
    return {name: name == "classifier" for name in params}
