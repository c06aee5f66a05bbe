"""Bandit with feedback. Mesnard et al. 2021, section 4.1."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from dm_env import specs

from podracer import types
from podracer.environment import JaxEnvironment
from podracer.envs.credit.config import Config
from podracer.types import Array, EnvironmentSpec, Key, TimeStep


class BanditState(NamedTuple):
    """context: `[]` int32, 0 to 2N."""

    context: Array


class FeedbackBandit(JaxEnvironment):
    """Episodes of one action: the context at FIRST; at LAST the reward `-(C - A)^2 + e` and the feedback `U[C] + V[A] + W e`.

    `C` and `A` are -N to N, uniform the one, chosen the other; `e` is normal with standard deviation `noise`. `U`, `V` and `W`
    are standard normal, drawn once from `seed`. The best mean reward is 0.

    Observation: `[2N + 1 + K]` float32, the context one-hot (also at LAST) and the feedback (0 at FIRST). Action: `A + N`.
    aux: `mean_reward` `[]` float32, the reward of the action without its noise; 0 at FIRST.
    """

    def __init__(self, config: Config):
        self._config, self._num_arms = config, 2 * config.largest + 1
        rng = np.random.default_rng(config.seed)
        shape = (self._num_arms, config.num_feedback)
        self._of_context, self._of_action = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
        self._of_noise = rng.standard_normal(config.num_feedback).astype(np.float32)
        self.spec = EnvironmentSpec(
            name="credit/feedback_bandit",
            observation=specs.Array((self._num_arms + config.num_feedback,), np.float32, name="context_and_feedback"),
            action=specs.DiscreteArray(self._num_arms, name="arm"),
            aux={"mean_reward": specs.Array((), np.float32, name="mean_reward")},
        )

    def reset(self, key: Key) -> tuple[BanditState, TimeStep]:
        state = BanditState(jax.random.randint(key, (), 0, self._num_arms))
        observation = self._observe(state, jnp.zeros((self._config.num_feedback,), jnp.float32))
        return state, types.restart(observation, aux={"mean_reward": jnp.float32(0)})

    def step(self, state: BanditState, action: Array, key: Key) -> tuple[BanditState, TimeStep]:
        noise = self._config.noise * jax.random.normal(key)
        mean_reward = -jnp.square((state.context - action).astype(jnp.float32))
        feedback = jnp.asarray(self._of_context)[state.context] + jnp.asarray(self._of_action)[action] + self._of_noise * noise
        observation, aux = self._observe(state, feedback), {"mean_reward": mean_reward}
        return state, types.transition(mean_reward + noise, observation, terminated=True, aux=aux)

    def _observe(self, state: BanditState, feedback: Array) -> Array:
        return jnp.concatenate([jax.nn.one_hot(state.context, self._num_arms), feedback])
