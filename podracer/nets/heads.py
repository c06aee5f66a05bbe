"""Heads: small networks from features to what is predicted of them, and scalars as distributions over bins."""

import dataclasses

import haiku as hk
import jax

from podracer.types import Array


@dataclasses.dataclass(frozen=True)
class BinsConfig:
    """Scalars as two-hot distributions over bins of `h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x` (MuZero).

    num_bins: bins. limit: the outermost bins lie at `h = -limit` and `limit`; `h` of 100 is about 9.1.
    """

    num_bins: int = 601
    limit: float = 300.0


class Bins:
    """Between scalars and distributions over bins, in float32."""

    def __init__(self, config: BinsConfig):
        import rlax  # costs more to import than jax itself

        if config.num_bins < 2 or config.limit <= 0:
            raise ValueError(f"bins need num_bins >= 2 and limit > 0, not {config.num_bins} and {config.limit}")
        self.num_bins = config.num_bins
        self._pair = rlax.muzero_pair(-config.limit, config.limit, config.num_bins, rlax.SIGNED_HYPERBOLIC_PAIR)

    def probabilities(self, scalar: Array) -> Array:
        """`[...]` to two-hot `[..., num_bins]`. Scalars beyond the outermost bins count as those."""
        return self._pair.apply(scalar)

    def scalar(self, logits: Array) -> Array:
        """Logits `[..., num_bins]` to the scalar `[...]` whose transform is their mean bin."""
        return self._pair.apply_inv(jax.nn.softmax(logits, axis=-1))

    def cross_entropy(self, logits: Array, target: Array) -> Array:
        """`[..., num_bins]` and scalars `[...]` to `[...]`. Gradients flow into `logits` alone."""
        probabilities = jax.lax.stop_gradient(self.probabilities(target))
        return -(probabilities * jax.nn.log_softmax(logits, axis=-1)).sum(axis=-1)


class Head(hk.Module):
    """An MLP from features `[..., F]` to `[..., output_size]`, whose last layer starts near 0."""

    def __init__(self, hidden: tuple[int, ...], output_size: int, name: str):
        super().__init__(name=name)
        self.hidden, self.output_size = hidden, output_size

    def __call__(self, features: Array) -> Array:
        if self.hidden:
            features = hk.nets.MLP(self.hidden, activate_final=True)(features)
        # A first policy near uniform and first values near 0: targets of the first updates come from these heads.
        return hk.Linear(self.output_size, w_init=hk.initializers.VarianceScaling(0.01))(features)
