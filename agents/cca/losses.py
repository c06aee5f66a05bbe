"""Estimators of the policy gradient with hindsight, and the losses of all that they need.

Mesnard et al. 2021, "Counterfactual Credit Assignment in Model-Free Reinforcement Learning", https://arxiv.org/abs/2011.09464.
Every estimator is a vector of weights over actions: the gradient is `sum_a w_a grad log pi(a|X)`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer.agents.cca.config import ALL_ACTION, HINDSIGHT, CcaConfig, Estimator
from podracer.agents.cca.networks import Networks
from podracer.nets.policies import Policy
from podracer.ops import geco, optimizers
from podracer.ops.episodes import Transitions, masked_mean, transitions
from podracer.types import Array, Metrics, Params, TrainState, Trajectory

PER_DECISION = ("policy_gradient_square", "value_error", "hindsight_error", "classifier_loss", "independence", "entropy")
"""Metrics that the loss reports as sums over decisions divided by slots, as it does `decisions`, the share of real ones."""


def policy_weights(
    estimator: Estimator,
    log_policy: Array,
    action: Array,
    behaviour_log_prob: Array,
    returns: Array,
    value: Array | None = None,
    log_hindsight: Array | None = None,
) -> Array:
    """The weights `w` of every estimator but `hca_state`. Elementwise over `[...]`; no gradients flow.

    `cca`, `actor_critic`: `1[a = A] (G - v)`. `fc`: `1[a = A] (G - pi(A) / h(A) v)`.
    `hca_return`: `1[a = A] (1 - pi(A) / h(A)) G`.
    `cca_all_action`: `pi(a) q(a)`. `fc_all_action`: `h(a) q(a)`. Single-action weights are truncated as in
    `podracer.ops.policy_gradients.truncated_policy_gradient_loss`, where the action was drawn from another policy.

    Args:
      estimator: which.
      log_policy: `[..., A]`, log pi.
      action: `[...]` int32. behaviour_log_prob: `[...]`, log mu of it. returns: `[...]`.
      value: `[..., 1]`, `V(X, Phi)` or `V(X)`; for all-action forms `[..., A]`, `Q(X, Phi, .)`.
      log_hindsight: `[..., A]`, log h.

    Returns:
      `[..., A]`.
    """
    one_hot = jax.nn.one_hot(action, log_policy.shape[-1], dtype=log_policy.dtype)
    taken = lambda x: jnp.sum(jnp.where(one_hot > 0, x, 0), axis=-1)  # noqa: E731
    if estimator == "cca_all_action":
        assert value is not None
        return jax.lax.stop_gradient(jnp.exp(log_policy) * value)
    if estimator == "fc_all_action":
        assert value is not None
        assert log_hindsight is not None
        return jax.lax.stop_gradient(jnp.exp(log_hindsight) * value)
    baseline = returns if value is None else value[..., 0]
    if estimator in ("fc", "hca_return"):
        assert log_hindsight is not None
        baseline = jnp.exp(taken(log_policy - log_hindsight)) * baseline
    truncated = jnp.minimum(1.0, jnp.exp(taken(log_policy) - behaviour_log_prob))
    return jax.lax.stop_gradient(one_hot * (truncated * (returns - baseline))[..., None])


def policy_loss(log_policy: Array, weights: Array) -> Array:
    """`-sum_a w_a log pi(a)`, `[...]`. Gradients flow into `log_policy` `[..., A]` alone."""
    weights = jax.lax.stop_gradient(weights)
    return -jnp.sum(jnp.where(weights == 0, 0.0, weights * log_policy), axis=-1)


def returns_to_go(steps: Transitions, rewards: Array, v_t: Array) -> Array:
    """Monte-Carlo returns `[T, B]`, each to the end of its episode; no gradients flow.

    Of an episode that goes on after the unroll, or that was truncated, the rest is the value of the last state.

    Args:
      steps: of the unroll, `[T, B]`.
      rewards: `[T, B]`, of arrivals, as the agent learns from them.
      v_t: `[T+1, B]`, values of the states.

    Returns:
      At a pair LAST -> FIRST, the value of LAST.
    """
    import rlax  # costs more to import than jax itself

    # A pair passes the value of LAST on to the step before it, whose discount says whether it counts.
    rewards = jnp.where(steps.mask_tm1 == 1, rewards, v_t[:-1])
    returns = jax.vmap(rlax.discounted_returns, in_axes=1, out_axes=1)(rewards, steps.discount_t, v_t[1:])
    return jax.lax.stop_gradient(returns)


class Pairs(NamedTuple):
    """Pairs of a step t and a later state s of the unroll.

    discount: `[T, T+1, B]`, the product of the discounts from t to s; 0 unless t < s, in one episode.
    reward: `[T+1, B]`, what is earned in going on from s; where an episode is truncated or goes on after the unroll, the value
      of its last state.
    """

    discount: Array
    reward: Array


def later_states(steps: Transitions, rewards: Array, v_t: Array) -> Pairs:
    """All `Pairs` of an unroll. Arguments as of `returns_to_go`. No gradients flow."""
    length = steps.discount_t.shape[0]
    from_t = jnp.arange(length)[:, None] <= jnp.arange(length)[None, :]
    discount = jnp.cumprod(jnp.where(from_t[..., None], steps.discount_t, 1.0), axis=1)
    discount = jnp.pad(jnp.where(from_t[..., None], discount, 0.0), ((0, 0), (1, 0), (0, 0)))
    reward = jnp.concatenate([jnp.where(steps.mask_tm1 == 1, rewards, v_t[:-1]), v_t[-1:]])
    return jax.lax.stop_gradient(Pairs(discount, reward))


def state_hindsight_weights(log_policy: Array, log_hindsight: Array, reward: Array, pairs: Pairs) -> Array:
    """The weights of `hca_state`: `pi(a) r(X, a) + sum_s discount h(a|X, X_s) R_s`, `[T, B, A]`. No gradients flow.

    Harutyunyan et al. 2019, "Hindsight Credit Assignment", theorem 1 and section 4.1, https://arxiv.org/abs/1912.02503: their
    `q(x, a)` times pi(a).

    Args:
      log_policy: `[T, B, A]`. log_hindsight: `[T, T+1, B, A]`, log h(a|X_t, X_s). reward: `[T, B, A]`, mean rewards of actions.
    """
    later = jnp.einsum("tsba,tsb,sb->tba", jnp.exp(log_hindsight), pairs.discount, pairs.reward)
    return jax.lax.stop_gradient(jnp.exp(log_policy) * reward + later)


def cca_losses(
    params: Params, networks: Networks, policy: Policy, config: CcaConfig, train_state: TrainState, trajectory: Trajectory
) -> tuple[dict[str, Array], Metrics]:
    """The terms of the loss, weighted, `[]` float32 each, with the gradients that README.md lists; and metrics.

    Args:
      params: by group, see `Networks`.
      networks, policy, config: the agent's parts.
      train_state: `extra` is the `geco.GecoState` of a constraint; `num_updates` anneals the entropy cost.
      trajectory: time steps `[T+1, B, ...]`. Episodes that do not begin and end in it are learned from too: of them `Phi` sees
        what is in the unroll, and returns are those of `returns_to_go`.
    """
    timestep, action = trajectory.timestep, trajectory.actor_output.action
    steps = transitions(timestep, config.discount)
    rewards, mask = config.reward_scale * steps.r_t, steps.mask_tm1
    x, logits = networks.unroll(params["actor"], timestep, action, trajectory.actor_state)
    fixed = jax.lax.stop_gradient(x)
    x_of_critic = x if config.critic_trains_state else fixed
    log_policy, encoded = jax.nn.log_softmax(logits[:-1]), policy.encode(action)

    def log_h(of_params: Params, condition: Array) -> Array:
        return networks.classify(of_params, logits[:-1], fixed[:-1], condition)

    hindsight = config.estimator in HINDSIGHT
    v_t = networks.value(params["value"], fixed if hindsight else x_of_critic)
    returns = returns_to_go(steps, rewards, v_t)
    value: Array | None = v_t[:-1, :, None] if config.estimator == "actor_critic" else None
    condition, log_hindsight = returns[..., None], None
    losses = {"value": jnp.square(returns - v_t[:-1])}
    metrics = {"value_error": masked_mean(losses["value"], mask), "decisions": jnp.mean(mask)}

    if hindsight:
        phi = networks.hindsight(params["hindsight"], timestep, action, x)
        value = networks.hindsight_value(params["hindsight_value"], x_of_critic[:-1], phi)
        chosen = jnp.sum(encoded * value, axis=-1) if config.estimator in ALL_ACTION else value[..., 0]
        losses["hindsight"] = jnp.square(returns - chosen)
        condition = jax.lax.stop_gradient(phi)
        # A classifier that moved with Phi would fall for it: Phi's loss sees a frozen copy.
        frozen = log_h(jax.lax.stop_gradient(params["classifier"]), phi)
        losses["independence"] = policy.kl(jax.lax.stop_gradient(log_policy), frozen)
        metrics["hindsight_error"] = masked_mean(losses["hindsight"], mask)
        metrics["independence"] = masked_mean(losses["independence"], mask)
    if config.estimator == "hca_state":
        pairs = later_states(steps, rewards, v_t)
        weights, more = _state_hindsight(params, networks, logits[:-1], encoded, fixed, rewards, pairs)
        losses |= more
    else:
        if "classifier" in params:
            log_hindsight = log_h(params["classifier"], condition)
            losses["classifier"] = -jnp.sum(encoded * log_hindsight, axis=-1)
        behaviour = trajectory.actor_output.log_prob
        weights = policy_weights(config.estimator, log_policy, action, behaviour, returns, value, log_hindsight)
    losses["policy"] = policy_loss(log_policy, weights)
    losses["entropy"] = -policy.entropy(logits[:-1])

    of_logits = weights - jnp.exp(log_policy) * jnp.sum(weights, axis=-1, keepdims=True)
    metrics["policy_gradient_square"] = masked_mean(jnp.sum(jnp.square(of_logits), axis=-1), mask)
    means = {name: masked_mean(loss, mask) for name, loss in losses.items()}
    metrics["entropy"] = -means["entropy"]
    if "classifier" in means:
        metrics["classifier_loss"] = means["classifier"]
    if hindsight:
        means["independence"] = _independence_loss(config, train_state, means["independence"], metrics["decisions"])
    costs: dict[str, Array | float] = {
        "value": config.value_cost,
        "hindsight": config.value_cost,
        "entropy": config.entropy_cost * optimizers.remaining(train_state.num_updates, config.decay_updates),
    }
    return {name: costs.get(name, 1.0) * mean for name, mean in means.items()}, metrics


def classifier_inputs(params: Params, networks: Networks, trajectory: Trajectory) -> tuple[Array, Array, Array]:
    """Of a hindsight estimator: logits `[T, B, A]`, `X` and `Phi` `[T, B, ...]`, that its classifier learns from."""
    timestep, action = trajectory.timestep, trajectory.actor_output.action
    x, logits = networks.unroll(params["actor"], timestep, action, trajectory.actor_state)
    return logits[:-1], x[:-1], networks.hindsight(params["hindsight"], timestep, action, x)


def classifier_loss(
    params: Params, networks: Networks, policy: Policy, inputs: tuple[Array, Array, Array], trajectory: Trajectory
) -> Array:
    """`-log h(A|X, Phi)`, `[]` float32. params: of the group `classifier`. inputs: of `classifier_inputs`."""
    log_h = networks.classify(params, *inputs)
    likelihood = jnp.sum(policy.encode(trajectory.actor_output.action) * log_h, axis=-1)
    return masked_mean(-likelihood, transitions(trajectory.timestep, 1.0).mask_tm1)


def _independence_loss(config: CcaConfig, train_state: TrainState, divergence: Array, decisions: Array) -> Array:
    """Weight or penalty of the mean divergence over slots, of which `decisions` is the share of real ones."""
    of = config.independence
    if not of.bound:
        return of.weight * divergence
    share = jnp.maximum(decisions, 1e-6)
    violation = geco.relative_violation(divergence / share, of.bound)
    return share * geco.penalty(train_state.extra, violation, of.decay)


def _state_hindsight(
    params: Params, networks: Networks, logits: Array, encoded: Array, x: Array, rewards: Array, pairs: Pairs
) -> tuple[Array, dict[str, Array]]:
    """Weights of `hca_state`, and the losses `[T, B]` of its classifier, over all `Pairs`, and of its mean rewards.

    logits, encoded: `[T, B, A]`, of the policy, and actions. x: `[T+1, B, H]`, without gradient.
    """
    log_hindsight = networks.classify(params["classifier"], logits[:, None], x[:-1, None], x[None])
    likelihood = jnp.einsum("tsba,tba->tsb", log_hindsight, encoded)
    num_later = jnp.sum(pairs.discount, axis=1)
    classifier = -jnp.sum(pairs.discount * likelihood, axis=1) / jnp.maximum(num_later, 1e-6)
    reward = networks.reward(params["reward"], x[:-1])
    reward_loss = jnp.square(rewards - jnp.sum(encoded * reward, axis=-1))
    weights = state_hindsight_weights(jax.nn.log_softmax(logits), log_hindsight, reward, pairs)
    return weights, {"classifier": classifier, "reward": reward_loss}
