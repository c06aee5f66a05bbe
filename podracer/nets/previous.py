"""The previous action and the previous reward as inputs of a recurrent core.

An agent that remembers its action keeps it in its actor state: `initial_action` before life, the action it chose after each
`act`, and, in `Agent.played`, the one that was played instead. Acting and a loss then build the same inputs: while acting the
previous action is that of the actor state, of an unroll it is what `unroll` says. At FIRST there is neither action nor reward,
and both inputs are zeros.
"""

from typing import Any

import jax.numpy as jnp

from podracer.nets.policies import Policy
from podracer.types import Array, EnvironmentSpec, Struct, TimeStep


class Memory(Struct):
    """Actor state of an agent that remembers. core: state of its recurrent core. action: `[B, *action_shape]`, the last one."""

    core: Any
    action: Any


def initial_action(spec: EnvironmentSpec, batch_size: int) -> Array:
    """An action `[B, *action_shape]` for the actor state at the start of life, which is never read: what comes is FIRST."""
    return jnp.zeros((batch_size, *spec.action.shape), spec.action.dtype)


def unroll(action_tm1: Array, actions: Array) -> Array:
    """The previous action of every time step of an unroll.

    Args:
      action_tm1: `[B, *action_shape]`, of the actor state before the first time step.
      actions: `[T, B, *action_shape]`, of the actor's outputs.

    Returns:
      `[T+1, B, *action_shape]`.
    """
    return jnp.concatenate([action_tm1[None], actions])


def action_input(policy: Policy, action_tm1: Array, timestep: TimeStep) -> Array:
    """Previous actions `[..., *action_shape]` as networks take them, `[..., E]` float32, and zeros at FIRST."""
    return jnp.where(timestep.first()[..., None], 0.0, policy.encode(action_tm1))


def reward_input(timestep: TimeStep) -> Array:
    """Previous rewards `[..., 1]` float32, and zeros at FIRST."""
    return jnp.where(timestep.first(), 0.0, timestep.reward)[..., None]


def action_and_reward_input(policy: Policy, action_tm1: Array, timestep: TimeStep) -> Array:
    """Both, `[..., E + 1]` float32. Rewards go through tanh: those of any scale leave the other inputs to be seen."""
    reward = jnp.tanh(reward_input(timestep))
    return jnp.concatenate([action_input(policy, action_tm1, timestep), reward], axis=-1)
