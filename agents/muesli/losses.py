"""The loss of Muesli and of the baselines that share its code."""

import functools

import jax
import jax.numpy as jnp

from podracer.agents.muesli.config import MuesliConfig
from podracer.agents.muesli.networks import Networks
from podracer.agents.muesli.policy import Policy, PolicyTarget
from podracer.agents.muesli.targets import Targets
from podracer.nets.dynamics import unroll_model
from podracer.nets.heads import Bins
from podracer.ops import policy_gradients, windows
from podracer.ops.episodes import masked_mean, transitions
from podracer.types import Array, Metrics, Params, Trajectory


def muesli_loss(
    params: Params, networks: Networks, policy: Policy, bins: Bins, config: MuesliConfig, trajectory: Trajectory
) -> tuple[Array, Metrics]:
    """Policy, model and value losses, `[]` float32. "Muesli", Hessel et al. 2021, eq. 9-13.

    Args:
      params: online parameters; gradients flow into these alone.
      networks, policy, bins, config: the agent's parts.
      trajectory: time steps `[T+1, B, ...]`, with `Targets`.
    """
    targets: Targets = trajectory.targets
    timestep = jax.tree.map(lambda x: x[:-1], trajectory.timestep)
    mask_tm1 = transitions(trajectory.timestep, config.discount).mask_tm1
    hidden = networks.unroll(params, timestep.observation, timestep.first(), trajectory.actor_state)
    prediction = networks.predict(params, hidden)
    parameters = policy.mask(prediction.policy, timestep.observation)

    policy_gradient, regularizer = policy_losses(parameters, policy, config, trajectory)
    value_error = bins.cross_entropy(prediction.value, targets.value[:-1])
    root_policy, root_regularizer = masked_mean(policy_gradient, mask_tm1), masked_mean(regularizer, mask_tm1)
    model_policy, model_value, reward = model_losses(params, networks, policy, bins, config, hidden, trajectory)
    # The value loss is a mean over the K + 1 predictions k = 0..K.
    value = (masked_mean(value_error, mask_tm1) + config.model_steps * model_value) / (config.model_steps + 1)
    loss = (
        root_policy
        + config.regularizer_weight * root_regularizer
        + config.model_policy_weight * model_policy
        + config.value_weight * value
        + config.reward_weight * reward
    )
    metrics = {
        "loss": loss,
        "policy_gradient_loss": root_policy,
        "regularizer_loss": root_regularizer,
        "model_policy_loss": model_policy,
        "value_loss": value,
        "reward_loss": reward,
        **targets.metrics,
    }
    return loss, metrics


def policy_losses(parameters: Array, policy: Policy, config: MuesliConfig, trajectory: Trajectory) -> tuple[Array, Array]:
    """The two terms of the policy loss at every time step.

    Args:
      parameters: `[T, B, P]` of the online policy; gradients flow here alone.

    Returns:
      A policy gradient loss and a regularizer (before its weight), `[T, B]` each; unmasked.
    """
    targets, taken = trajectory.targets, trajectory.actor_output
    log_prob = policy.log_prob(parameters, taken.action)
    zero = jnp.zeros_like(log_prob)
    cmpo = jax.tree.map(lambda x: x[:-1], targets.cmpo)
    kind = config.policy_loss
    if kind == "mpo":
        expected = -jnp.sum(jax.nn.softmax(parameters) * targets.q, axis=-1)
        return expected, policy.kl(parameters, targets.prior[:-1])
    if kind == "cmpo":
        return zero, policy.cross_entropy(parameters, cmpo) - cmpo.entropy
    if kind == "ppo":
        return policy_gradients.ppo_clip_loss(log_prob, taken.log_prob, targets.advantage, config.ppo_epsilon), zero
    if config.beta_loo:
        gradient = policy_gradients.beta_loo_loss(
            jax.nn.log_softmax(parameters), taken.action, taken.log_prob, targets.advantage, targets.q, config.beta_max
        )
    else:
        gradient = policy_gradients.truncated_policy_gradient_loss(log_prob, taken.log_prob, targets.advantage)
    if kind == "pg":
        return gradient, zero
    if kind == "trpo":
        return gradient, policy.kl(taken.logits, parameters)
    return gradient, policy.cross_entropy(parameters, cmpo) - cmpo.entropy


def model_losses(
    params: Params, networks: Networks, policy: Policy, bins: Bins, config: MuesliConfig, hidden: Array, trajectory: Trajectory
) -> tuple[Array, Array, Array]:
    """Policy, value and reward losses of `K` steps of the model from every one of `T` time steps.

    Each is a mean over the predictions whose time step lies in the unroll; what lies beyond an episode's end counts as 0.

    Args:
      hidden: `h` `[T, B, H]` of the online network, into which gradients flow too.

    Returns:
      Three scalars.
    """
    num_steps, targets = config.model_steps, trajectory.targets
    masks = windows.window_masks(trajectory.timestep, num_steps)
    rewards = transitions(trajectory.timestep, config.discount).r_t
    reward_target = masks.alive * windows.windows(rewards, num_steps)
    value_target = masks.alive * windows.windows(targets.value, num_steps, 1)
    policy_target: PolicyTarget = jax.tree.map(lambda x: windows.windows(x, num_steps, 1), targets.cmpo)
    actions = windows.windows(policy.encode(trajectory.actor_output.action), num_steps)

    step = functools.partial(networks.model_step, params)
    states = unroll_model(step, networks.root(params, hidden), actions, config.dynamics_gradient)
    prediction = networks.model_predict(params, states)
    num_predictions = jnp.mean(masks.in_unroll)

    def mean(values: Array, mask: Array) -> Array:
        return masked_mean(values, mask) / num_predictions

    policy_error = policy.cross_entropy(prediction.policy, policy_target) - policy_target.entropy
    return (
        mean(policy_error, masks.policy),
        mean(bins.cross_entropy(prediction.value, value_target), masks.value),
        mean(bins.cross_entropy(prediction.reward, reward_target), masks.value),
    )
