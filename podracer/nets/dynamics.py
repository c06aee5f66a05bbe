"""Dynamics models: from a latent state and an action to the next latent state."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp

from podracer.types import Array


@dataclasses.dataclass(frozen=True)
class DynamicsConfig:
    """kind: `mlp` (residual, cheapest), `gru` or `lstm` (of the paper). size: width of the latent state."""

    kind: Literal["mlp", "gru", "lstm"] = "mlp"
    size: int = 128


class Dynamics(hk.Module):
    """A latent model that starts from features of the agent's state. Its state is a pytree with leaves `[..., size]`."""

    def __init__(self, config: DynamicsConfig, name: str = "dynamics"):
        super().__init__(name=name)
        self.config = config

    @hk.transparent
    def root(self, features: Array) -> Any:
        """Features `[..., F]` of a real state to the latent state `[..., size]` in which the model starts."""
        hidden = jnp.tanh(hk.Linear(self.config.size, name="root")(features))
        if self.config.kind == "lstm":
            return hk.LSTMState(hidden=hidden, cell=jnp.tanh(hk.Linear(self.config.size, name="root_cell")(features)))
        return hidden

    def __call__(self, state: Any, action: Array) -> Any:
        """One step. Leading dimensions of the state and of the encoded action `[..., A]` broadcast.

        `[N, 1, size]` and `[1, A, A]` give `[N, A, size]`: every action from every state in one matrix product.
        """
        if self.config.kind == "mlp":
            hidden = jax.nn.relu(
                hk.Linear(self.config.size, name="from_state")(state)
                + hk.Linear(self.config.size, with_bias=False, name="from_action")(action)
            )
            out = state + hk.Linear(self.config.size, name="residual")(hidden)
            return hk.LayerNorm(-1, create_scale=True, create_offset=True, name="norm")(out)
        core = {"gru": hk.GRU, "lstm": hk.LSTM}[self.config.kind](self.config.size)
        leading = jnp.broadcast_shapes(jax.tree.leaves(state)[0].shape[:-1], action.shape[:-1])

        def flat(x: Array) -> Array:
            return jnp.broadcast_to(x, (*leading, x.shape[-1])).reshape(-1, x.shape[-1])

        _, state = core(flat(action), jax.tree.map(flat, state))
        return jax.tree.map(lambda x: x.reshape(*leading, -1), state)

    def features(self, state: Any) -> Array:
        """What heads read of a latent state, `[..., size]`."""
        return state.hidden if self.config.kind == "lstm" else state


def unroll_model(step: Callable[[Any, Array], Any], state: Any, actions: Array, gradient: float) -> Any:
    """Steps a model along given actions, as a loss does.

    Args:
      step: `(state, encoded action) -> state`.
      state: leaves `[...]`, where the model starts.
      actions: encoded, `[K, ..., E]`.
      gradient: what each step lets through of the gradient to the state before it (MuZero's 1/2: Schrittwieser et al. 2020,
        appendix G).

    Returns:
      The states after 1..K steps, leaves `[K, ...]`.
    """

    def one(state: Any, action: Array) -> tuple[Any, Any]:
        state = step(jax.tree.map(lambda x: gradient * x + (1 - gradient) * jax.lax.stop_gradient(x), state), action)
        return state, state

    return jax.lax.scan(one, state, actions)[1]
