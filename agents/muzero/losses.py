"""The loss of MuZero."""

import functools

import jax
import jax.numpy as jnp

from podracer.agent import PRIORITY
from podracer.agents.muzero.config import MuZeroConfig
from podracer.agents.muzero.networks import Networks
from podracer.agents.muzero.targets import Targets
from podracer.nets.dynamics import unroll_model
from podracer.nets.heads import Bins
from podracer.nets.policies import Policy
from podracer.ops import priorities, windows
from podracer.ops.episodes import masked_mean, transitions
from podracer.types import Array, Metrics, Params, Trajectory


def muzero_loss(
    params: Params,
    networks: Networks,
    policy: Policy,
    bins: Bins,
    config: MuZeroConfig,
    observation: object,
    trajectory: Trajectory,
) -> tuple[Array, Metrics]:
    """Policy, value and reward losses of `K` steps of the model from every one of `T` time steps, `[]` float32.

    `l_0 + 1/K sum_{k=1..K} l_k`, `l = l_p + c_v l_v + c_r l_r` (Schrittwieser et al. 2020, eq. 1 and appendix G): each step of
    the model weighs 1/K, and lets half of the gradient through to the state before it. Where an episode has terminated the
    model learns an absorbing state, with rewards and values of 0 and no policy.

    Args:
      params: online parameters; gradients flow into these alone.
      networks, policy, bins, config: the agent's parts.
      observation: as the networks see it, `[T+1, B, ...]`.
      trajectory: time steps `[T+1, B, ...]`, with `Targets`. `importance` `[B]`, if any, weighs columns.
    """
    targets: Targets = trajectory.targets
    timestep, num_steps = trajectory.timestep, config.model_steps
    steps = transitions(timestep, config.discount)
    weight = priorities.importance_weight(trajectory, config.importance_exponent)

    state = networks.root(params, _flatten(jax.tree.map(lambda x: x[:-1], observation)))
    state = jax.tree.map(lambda x: x.reshape(*steps.r_t.shape, *x.shape[1:]), state)
    prediction = networks.predict(params, state)
    # Of an action that was illegal the policy need not know: its target weight is 0.
    root_policy = _cross_entropy(policy, prediction.policy, _at(targets.weights), _at(targets.actions))
    root_value = bins.cross_entropy(prediction.value, targets.value[:-1])

    masks = windows.window_masks(timestep, num_steps)

    def ahead(values: Array) -> Array:
        return windows.windows(values, num_steps, 1)

    actions = windows.windows(policy.encode(trajectory.actor_output.action), num_steps)
    states = unroll_model(functools.partial(networks.step, params), state, actions, config.dynamics_gradient)
    predicted = networks.predict(params, states)
    targets_k = jax.tree.map(ahead, targets._replace(metrics={}))
    policy_k = _cross_entropy(policy, predicted.policy, targets_k.weights, targets_k.actions)
    value_k = bins.cross_entropy(predicted.value, masks.alive * targets_k.value)
    reward_k = bins.cross_entropy(networks.reward(params, states), masks.alive * windows.windows(steps.r_t, num_steps))
    num_predictions = jnp.mean(masks.in_unroll)

    def model_mean(values: Array, mask: Array) -> Array:
        """Mean over predictions, whose 1/K it holds."""
        return masked_mean(weight * values, mask) / num_predictions

    metrics = {
        "policy_loss": masked_mean(weight * root_policy, steps.mask_tm1),
        "value_loss": masked_mean(weight * root_value, steps.mask_tm1),
        "model_policy_loss": model_mean(policy_k, masks.policy * targets_k.searched),
        # Beyond a termination the value is known to be 0, though nothing was searched there.
        "model_value_loss": model_mean(value_k, masks.value * jnp.where(masks.alive == 1, targets_k.known, 1.0)),
        "reward_loss": model_mean(reward_k, masks.value),
    }
    loss = (
        config.policy_weight * (metrics["policy_loss"] + metrics["model_policy_loss"])
        + config.value_weight * (metrics["value_loss"] + metrics["model_value_loss"])
        + config.reward_weight * metrics["reward_loss"]
    )
    # Mean of `|nu_t - z_t|` over the transitions of each unroll (Schrittwieser et al. 2020, appendix G).
    error = (targets.search_value - targets.value)[:-1]
    priority = priorities.sequence_priority(error, steps.mask_tm1, mix=0.0)
    metrics = {"loss": loss, **metrics, **targets.metrics, PRIORITY: priority}
    return loss, metrics


def _cross_entropy(policy: Policy, parameters: Array, weights: Array, actions: Array) -> Array:
    """`-sum_i weights_i log pi(actions_i)`: `[..., P]`, `[..., N]` and actions `[..., N, ...]`, or empty, to `[...]`."""
    if isinstance(actions, tuple):
        log_pi = jax.nn.log_softmax(parameters)
    else:
        log_pi = policy.log_prob(jnp.expand_dims(parameters, -2), actions)
    return -jnp.sum(weights * log_pi, axis=-1)


def _at(tree: Array) -> Array:
    """The entries of the first T of T+1 time steps."""
    return jax.tree.map(lambda x: x[:-1], tree)


def _flatten(tree: object) -> object:
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)
