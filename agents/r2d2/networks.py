"""The network of R2D2: torso, previous action and reward, recurrent core, dueling head."""

import haiku as hk
import jax.numpy as jnp

from podracer.agents.r2d2.config import R2D2Config
from podracer.nets import policies, previous, recurrent, torso
from podracer.nets.heads import Head
from podracer.types import ActorState, Array, EnvironmentSpec, TimeStep


def make_network(spec: EnvironmentSpec, config: R2D2Config) -> hk.Transformed:
    """Action values of an unroll.

    Raises:
      TypeError: the actions are not discrete.

    Returns:
      `init` and `apply`, whose arguments are time steps `[T, B, ...]`, previous actions `[T, B]` int32 and the recurrent state
      before the first time step, leaves `[B, ...]`. `apply` returns values `[T, B, A]` float32, rescaled as `config.rescale`
      says and not masked, and the last recurrent state.
    """
    policy = policies.Categorical(spec.num_actions)

    def forward(timestep: TimeStep, action_tm1: Array, state: ActorState) -> tuple[Array, ActorState]:
        features = hk.BatchApply(torso.make_torso(spec, config.torso))(timestep.observation)
        before = previous.action_and_reward_input(policy, action_tm1, timestep)
        core = recurrent.make_core(config.core)
        features, state = recurrent.unroll(core, jnp.concatenate([features, before], axis=-1), timestep.first(), state)
        advantage = Head(config.head_hidden, policy.size, "advantage")(features)
        if not config.dueling:
            return advantage, state
        value = Head(config.head_hidden, 1, "value")(features)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True), state

    return hk.without_apply_rng(hk.transform(forward))
