"""What Muesli learns towards, from the target network: returns, advantages, CMPO policies. No gradient flows here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer.agents.muesli.config import MuesliConfig
from podracer.agents.muesli.networks import Networks
from podracer.agents.muesli.policy import Policy, PolicyTarget
from podracer.nets.heads import Bins
from podracer.ops import episodes, moments, returns, windows
from podracer.types import Array, Key, Metrics, Params, Trajectory


class Targets(NamedTuple):
    """For T+1 time steps and T transitions.

    advantage: `[T, B]` float32, `(G - v_prior) / scale`. returns: `[T, B]`, in the same units: `G / scale`.
    cmpo: `PolicyTarget` with leading `[T+1, B]`.
    q: `[T, B, N]` float32, normalised advantages of the candidates (of all actions, where they are discrete), unclipped.
    value: `[T+1, B]` float32, targets of state values; 0 where an episode has terminated.
    prior: `[T+1, B, P]` float32, parameters of the target network's policy.
    metrics: of this computation.
    """

    advantage: Any
    cmpo: PolicyTarget
    q: Any
    value: Any
    prior: Any
    metrics: Metrics


def compute_targets(
    params: Params,
    networks: Networks,
    policy: Policy,
    bins: Bins,
    config: MuesliConfig,
    q_discount: float,
    second_moment: moments.SecondMoment,
    trajectory: Trajectory,
    key: Key,
    axis_name: str | None,
) -> tuple[Targets, moments.SecondMoment]:
    """Targets of a batch, and the second moment of advantages with this batch in it.

    Args:
      params: of the target network. networks, policy, bins, config: the agent's parts.
      q_discount: what the model's next value counts in `q = r + q_discount * v`; negative where players alternate.
      second_moment: before this batch.
      trajectory: time steps `[T+1, B, ...]`. key: `[B]`. axis_name: of the mesh, or None.
    """
    timestep, taken = trajectory.timestep, trajectory.actor_output
    steps = episodes.transitions(timestep, config.discount)
    hidden = networks.unroll(params, timestep.observation, timestep.first(), trajectory.actor_state)
    prediction = networks.predict(params, hidden)
    prior = policy.mask(prediction.policy, timestep.observation)
    v_prior = bins.scalar(prediction.value)
    # Nobody acted at the last time step: the target network's own policy stands in for the behaviour there.
    behaviour = jnp.concatenate([taken.logits, prior[-1:]])
    candidates = policy.candidates(prior, behaviour, timestep.observation, key)

    root = networks.root(params, hidden)

    def q_values(actions: Array) -> Array:
        """`[T', B, N, E]` or `[N, E]` to `[T', B, N]`: one step of the model for every state and action at once."""
        state = jax.tree.map(lambda x: jnp.expand_dims(x, -2), root)
        if actions.ndim == 2:
            actions = actions[None, None]
        reward, value = networks.model_q(params, networks.model_step(params, state, actions))
        return bins.scalar(reward) + q_discount * bins.scalar(value)

    action = windows.pad_last(taken.action)
    q_candidates = q_values(candidates.encoded)
    if isinstance(candidates.actions, tuple):  # all actions are candidates
        q_taken = jnp.sum(q_candidates * policy.encode(action), axis=-1)
    else:
        q_taken = q_values(policy.encode(action)[:, :, None])[..., 0]
    expected_q = jnp.sum(q_candidates * candidates.value_weights, axis=-1)
    prior_log_prob = policy.prior_log_prob(prior, behaviour, timestep.observation, action)
    rho = jnp.exp(prior_log_prob - windows.pad_last(taken.log_prob))

    # V-trace is the same estimator with state values in the place of the model's q.
    v_t, q_t = (v_prior, v_prior) if config.returns == "vtrace" else (expected_q, q_taken)
    lambda_ = 0.0 if config.returns == "model" else config.retrace_lambda
    returns_t = jax.vmap(lambda s, q, v, r: returns.retrace_returns(s, q, v, r, lambda_), in_axes=1, out_axes=1)(
        steps, q_t, v_t, rho
    )
    followed = returns_t
    if config.value_target == "corrected":
        followed = returns.corrected_state_value(v_t[:-1], q_t[:-1], returns_t, rho[:-1])
    policy_return = q_taken[:-1] if config.returns == "model" else returns_t
    error = policy_return - v_prior[:-1]
    second_moment = moments.update_second_moment(second_moment, error, steps.mask_tm1, config.variance_decay, axis_name)
    inverse_scale = moments.inverse_scale(second_moment, config.variance_epsilon) if config.normalize else jnp.float32(1)
    scale = config.advantage_scale * inverse_scale
    q_advantage = scale * (q_candidates - v_prior[..., None])
    metrics = {
        "advantage_rms": jnp.sqrt(moments.debiased(second_moment)),
        "model_q_error": episodes.masked_mean(jnp.abs(q_taken[:-1] - returns_t), steps.mask_tm1),
        "value_mean": jnp.mean(v_prior),
        "prior_ratio": episodes.masked_mean(jnp.minimum(rho[:-1], 1.0), steps.mask_tm1),
    }
    targets = Targets(
        advantage=scale * error,
        cmpo=policy.cmpo_target(candidates, q_advantage),
        q=q_advantage[:-1],
        value=returns.value_targets(timestep, v_t, followed),
        prior=prior,
        metrics=metrics,
    )
    return jax.lax.stop_gradient((targets, second_moment))
