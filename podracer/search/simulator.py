"""The true environment as the model of a search: its state travels in the observation, out of the networks' sight.

For studies of what a perfect model is worth (Hamrick et al. 2021), and for games whose rules are known (AlphaZero).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from dm_env import specs

from podracer.environment import Environment, JaxEnvironment, Unsupported
from podracer.search.planner import Model, ModelStep
from podracer.types import Array, Key, Params, TimeStep

KEY = "simulator"


class WithSimulator(JaxEnvironment):
    """`environment`, whose observations become `{"observation": ..., "simulator": state}` (or gain that key, where they are
    dictionaries), and whose spec's `simulator` steps such a state: `(state, action, key) -> (state, TimeStep)`, unbatched.
    """

    def __init__(self, environment: Environment):
        """Raises Unsupported for an environment outside XLA, or one that keeps PRNG keys in its state."""
        if not isinstance(environment, JaxEnvironment):
            raise Unsupported(
                f"{environment.spec.name} lives outside XLA, so no search can step it: take the learned model there"
            )
        self.environment = environment
        state = jax.eval_shape(environment.reset, jax.random.key(0))[0]
        if any(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(state)):
            raise Unsupported(f"{environment.spec.name} keeps random keys in its state, which a search must not foresee")
        described = jax.tree.map(lambda x: specs.Array(x.shape, np.dtype(x.dtype), name=KEY), state)
        self.spec = environment.spec.replace(
            observation=_join(environment.spec.observation, described), simulator=self._simulate
        )

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = self.environment.reset(key)
        return state, timestep.replace(observation=_join(timestep.observation, state))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        return self._simulate(state, action, key)

    def render(self, state: Any) -> Array | None:
        return self.environment.render(state)

    def _simulate(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = self.environment.step(state, action, key)
        return state, timestep.replace(observation=_join(timestep.observation, state))


def simulator_model(
    simulate: Callable[..., Any], predict: Callable[[Params, Any], tuple[Array, Array]], discount: float
) -> Model:
    """A model that steps the environment.

    After a termination its discounts are 0, so whatever the environment does from there counts for nothing; a truncation it
    does not see: the search looks beyond it, as the value does.

    Args:
      simulate: `EnvironmentSpec.simulator`.
      predict: parameters and observations `[B, ...]` to policy parameters `[B, P]`, illegal actions masked, and values `[B]`.
      discount: the agent's own, which multiplies the environment's.
    """

    def model(params: Params, state: Any, action: Array, key: Key) -> ModelStep:
        state, timestep = jax.vmap(simulate)(state, action, key)
        policy, value = predict(params, timestep.observation)
        return ModelStep(timestep.reward, discount * timestep.discount, policy, value, state)

    return model


def _join(observation: Any, state: Any) -> dict[str, Any]:
    """An observation, or its specs, with the state beside it."""
    return {**(observation if isinstance(observation, dict) else {"observation": observation}), KEY: state}
