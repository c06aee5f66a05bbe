"""The losses of HiMo. Guez et al. 2020, sections 3 and 4, https://arxiv.org/abs/2002.08329."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer.agent import PRIORITY
from podracer.agents.himo.config import HiMoConfig
from podracer.agents.himo.networks import Networks
from podracer.nets import policies
from podracer.ops import actor_critic, episodes, sequence_q
from podracer.types import Array, Metrics, Params, TimeStep, Trajectory


class Ahead(NamedTuple):
    """step: `[T+1, B]` int32, the time step from which each one is seen in hindsight. mask: `[T+1, B]` float32, 1 where it is
    in the unroll.
    """

    step: Array
    mask: Array


def look_ahead(timestep: TimeStep, num_steps: int) -> Ahead:
    """`t + k`, or the LAST step of the episode if that comes before; nothing beyond the unroll, and nothing from LAST itself.

    Args:
      timestep: step types `[T+1, B]`.
      num_steps: `k`.
    """
    last = timestep.last()
    final = last.shape[0] - 1
    time = jnp.arange(final + 1)[:, None]
    # Where no episode ends any more, an index that lies beyond the unroll from every step.
    end = jax.lax.cummin(jnp.where(last, time, final + num_steps + 1), axis=0, reverse=True)
    index = jnp.minimum(time + num_steps, end)
    return Ahead(step=jnp.minimum(index, final), mask=((index <= final) & ~last).astype(jnp.float32))


class Hindsight(NamedTuple):
    """Of `T` time steps. value_loss, model_loss: `[T, B]`, 0 where there is no future to look at. phi: `[T, B, d]`."""

    value_loss: Array
    model_loss: Array
    phi: Array


def hindsight_losses(
    params: Params,
    networks: Networks,
    config: HiMoConfig,
    timestep: TimeStep,
    hidden: Array,
    phi_hat: Array,
    target: Array,
    action: Array | None,
) -> Hindsight:
    """`L_v+` and `L_model` of the first `T` of `T' + 1` time steps.

    Gradients of the first flow into `phi` and the hindsight value alone, those of the second into the model `phi_hat` and,
    through `hidden`, into what made it (but see `HiMoConfig.stop_phi` and `stop_state`).

    Args:
      params, networks, config: the agent's.
      timestep, hidden: `[T'+1, B, ...]`, `T' >= T`; what lies beyond `T` is only looked at.
      phi_hat: `[T, B, d]`. target: `[T, B]`, of the value that acts. action: `[T, B]` int32 for action values, or None.
    """
    num_steps = target.shape[0]
    ahead = look_ahead(timestep, config.lookahead)
    state = jax.lax.stop_gradient(hidden) if config.stop_state else hidden
    future = networks.future_input(jax.lax.stop_gradient(hidden), timestep.observation)
    phi = networks.phi(params, jnp.take_along_axis(future, ahead.step[:num_steps, :, None], axis=0))
    value = select(networks.hindsight(params, state[:num_steps], phi), action)
    mask = ahead.mask[:num_steps]
    goal = jax.lax.stop_gradient(phi) if config.stop_phi else phi
    return Hindsight(
        value_loss=0.5 * mask * jnp.square(jax.lax.stop_gradient(target) - value),
        model_loss=mask * jnp.mean(jnp.square(goal - phi_hat), axis=-1),
        phi=phi,
    )


def select(values: Array, action: Array | None) -> Array:
    """`[..., V]` to `[...]`: the value of `action` `[...]`, or of the state where `V` is 1."""
    return values[..., 0] if action is None else jnp.take_along_axis(values, action[..., None], axis=-1)[..., 0]


def known_features(config: HiMoConfig, phi_hat: Array) -> Array:
    """`phi_hat` as value and policy read it: they learn from it, and it does not learn from them, but in the baseline."""
    return phi_hat if config.model_free else jax.lax.stop_gradient(phi_hat)


def total(
    config: HiMoConfig, base_loss: Array, found: Hindsight, weight: Array | float = 1.0
) -> tuple[Array, dict[str, Array]]:
    """`base_loss + alpha L_v+ + beta L_model`, and metrics. weight: `[B]`, of columns."""
    hindsight_loss, model_loss = jnp.mean(weight * found.value_loss), jnp.mean(weight * found.model_loss)
    metrics = {
        "hindsight_loss": hindsight_loss,
        "model_loss": model_loss,
        "phi_std": jnp.mean(jnp.std(found.phi, axis=(0, 1))),
    }
    if config.model_free:
        return base_loss, metrics
    return base_loss + config.hindsight_cost * hindsight_loss + config.model_cost * model_loss, metrics


def vtrace_loss(
    params: Params,
    networks: Networks,
    policy: policies.Policy,
    config: HiMoConfig,
    trajectory: Trajectory,
    hidden: Array,
    entropy_left: Array,
) -> tuple[Array, Metrics]:
    """The actor-critic form: V-trace targets for `vm` and `v+`, advantages from `vm` (Espeholt et al. 2018, section 4).

    Args:
      params, networks, policy, config: the agent's.
      trajectory: `[T+1, B, ...]`. hidden: `[T+1, B, H]`. entropy_left: `[]`, as in
        `VTrace.total`.
    """
    timestep = trajectory.timestep
    phi_hat = networks.phi_hat(params, hidden)
    known = known_features(config, phi_hat)
    values = select(networks.value(params, hidden, known), None)
    parameters = policy.mask(networks.policy(params, hidden, known), timestep.observation)
    base = actor_critic.vtrace(policy, parameters, values, trajectory, config.vtrace, config.discount)
    base_loss, metrics = base.total(config.vtrace, entropy_left)
    found = hindsight_losses(params, networks, config, timestep, hidden, phi_hat[:-1], base.target, None)
    loss, more = total(config, base_loss, found)
    return loss, {**metrics, **more, "loss": loss}


def q_loss(
    params: Params,
    networks: Networks,
    config: HiMoConfig,
    trajectory: Trajectory,
    hidden: Array,
    target_q: Array,
    weight: Array | float,
) -> tuple[Array, Metrics]:
    """The form with action values: n-step double-Q targets for `qm` and `q+` (Kapturowski et al. 2019, section 2.3).

    Args:
      params, networks, config: the agent's.
      trajectory: time steps `[T+k+1, B, ...]` after the burn-in, of which the first `T` are learned: those behind them are only
        looked at. hidden: `[T+k+1, B, H]`.
      target_q: `[T+k+1, B, A]`, of the target network. weight: `[B]`, of columns, or 1.
    """
    timestep, num_steps = trajectory.timestep, config.unroll_length
    action = trajectory.actor_output.action
    phi_hat = networks.phi_hat(params, hidden)
    q = networks.value(params, hidden, known_features(config, phi_hat))
    base = sequence_q.double_q(config.q, config.discount, q, target_q, timestep, action, num_steps)
    value_loss = 0.5 * jnp.mean(weight * jnp.square(base.error))
    found = hindsight_losses(params, networks, config, timestep, hidden, phi_hat[:num_steps], base.target, action[:num_steps])
    loss, more = total(config, value_loss, found, weight)
    metrics = {
        "loss": loss,
        "value_loss": value_loss,
        "value": episodes.masked_mean(base.value, base.mask),
        **more,
        PRIORITY: base.priority,
    }
    return loss, metrics
