"""The losses of an actor-critic that learns off-policy with V-trace. Espeholt et al. 2018, section 4,
https://arxiv.org/abs/1802.01561.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from podracer.config import require
from podracer.nets.policies import Policy
from podracer.ops import episodes
from podracer.types import Array, Trajectory


@dataclasses.dataclass(frozen=True)
class ActorCriticConfig:
    """trace_decay: lambda of V-trace. value_cost, entropy_cost: weights beside a policy loss of weight 1. max_abs_reward: what
    rewards are clipped to while learning. greedy_evaluation: evaluate with the most likely action.
    """

    trace_decay: float = 1.0
    value_cost: float = 0.5
    entropy_cost: float = 0.01
    max_abs_reward: float = float("inf")
    greedy_evaluation: bool = False

    def __post_init__(self) -> None:
        require(self, "trace_decay", at_least=0, at_most=1)
        require(self, "max_abs_reward", above=0)


class VTrace(NamedTuple):
    """policy_loss, value_loss (half the squared error), entropy: `[]`, means over `[T, B]` in which pairs LAST -> FIRST count
    as 0. target: `[T, B]`, of the values; no gradient flows into it.
    """

    policy_loss: Array
    value_loss: Array
    entropy: Array
    target: Array

    def total(self, config: ActorCriticConfig, entropy_left: Array) -> tuple[Array, dict[str, Array]]:
        """The weighted sum `[]`, and metrics. entropy_left: `[]`, what is left of the entropy cost, in [0, 1]."""
        entropy_cost = config.entropy_cost * entropy_left
        loss = self.policy_loss + config.value_cost * self.value_loss - entropy_cost * self.entropy
        named = {"policy_loss": self.policy_loss, "value_loss": self.value_loss, "entropy": self.entropy}
        return loss, {"loss": loss, **named}


def vtrace(
    policy: Policy, parameters: Array, values: Array, trajectory: Trajectory, config: ActorCriticConfig, discount: float
) -> VTrace:
    """V-trace of an unroll. Gradients flow into `parameters` and `values`.

    Args:
      policy: what `parameters` mean.
      parameters: `[T+1, B, P]`, illegal actions masked. values: `[T+1, B]`.
      trajectory: `[T+1, B, ...]`.
      config: of the agent. discount: the agent's own.
    """
    import rlax  # costs more to import than jax itself

    log_prob = policy.log_prob(parameters[:-1], trajectory.actor_output.action)
    step = episodes.transitions(trajectory.timestep, discount)
    rewards = jnp.clip(step.r_t, -config.max_abs_reward, config.max_abs_reward)
    # A ratio of 0 cuts every trace at LAST -> FIRST: see podracer/ops/episodes.py.
    ratio = jax.lax.stop_gradient(jnp.exp(log_prob - trajectory.actor_output.log_prob))
    rho = jnp.where(step.mask_tm1 == 1, ratio, 0.0)  # a product would make NaN of an infinite ratio
    found = jax.vmap(rlax.vtrace_td_error_and_advantage, in_axes=(1, 1, 1, 1, 1, None), out_axes=1)(
        values[:-1], jax.lax.stop_gradient(values[1:]), rewards, step.discount_t, rho, config.trace_decay
    )
    return VTrace(
        policy_loss=jnp.mean(-log_prob * jax.lax.stop_gradient(found.pg_advantage)),
        value_loss=0.5 * jnp.mean(jnp.square(found.errors)),
        entropy=episodes.masked_mean(policy.entropy(parameters[:-1]), step.mask_tm1),
        target=jax.lax.stop_gradient(found.errors + values[:-1]),
    )
