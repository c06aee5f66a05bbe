"""What Nav predicts beside its policy and value: depth, loop closure, and, for the probe, its position.

Mirowski et al. 2017, section 3, https://arxiv.org/abs/1611.03673.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from podracer.types import Array

DEPTH_EDGES = (0.0, 0.05, 0.175, 0.3, 0.425, 0.55, 0.675, 0.8, 1.0)
"""Of the bands of depth to the power 10; a value on an edge belongs to the band above it, and 1 to the last."""
NUM_CLASSES = len(DEPTH_EDGES) - 1


def depth_bands(depth: Array) -> Array:
    """The band of `DEPTH_EDGES` in which a value in [0, 1] lies: `[...]` float32 to `[...]` int32 in 0 .. 7."""
    return jnp.searchsorted(jnp.array(DEPTH_EDGES[1:-1], jnp.float32), depth, side="right").astype(jnp.int32)


def depth_loss(prediction: Array, depth: Array, power: float) -> tuple[Array, dict[str, Array]]:
    """Loss and accuracy of predictions of `depth ** power`. Gradients flow into `prediction`.

    Args:
      prediction: `[..., H, W, 8]` logits of the bands (section 3.1: cross-entropy), or `[..., H, W]` (half the squared error).
      depth: `[..., H, W]` float32 in [0, 1].

    Returns:
      `[]`, the mean over everything, and metrics: `accuracy` of the bands, and `accuracy_0` .. `accuracy_7`, the share of the
      pixels of a band that were told rightly; 0 where there are none.
    """
    target = depth**power
    band = depth_bands(target)
    if prediction.ndim > depth.ndim:
        loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(prediction, band))
        told = jnp.argmax(prediction, axis=-1)
    else:
        loss = 0.5 * jnp.mean(jnp.square(prediction - target))
        told = depth_bands(prediction)
    right = told == band
    metrics = {"accuracy": jnp.mean(right)}
    for i in range(NUM_CLASSES):
        metrics[f"accuracy_{i}"] = jnp.sum(right & (band == i)) / jnp.maximum(jnp.sum(band == i), 1)
    return loss, metrics


def loop_loss(logit: Array, label: Array) -> tuple[Array, dict[str, Array]]:
    """Bernoulli loss of loop closure (section 3.2), and how well it is told.

    Args:
      logit: `[...]` float32, into which gradients flow. label: `[...]` bool.

    Returns:
      `[]`, a mean, and metrics: `accuracy`, and `f1`, 0 where there is neither a loop nor a prediction of one.
    """
    loss = jnp.mean(optax.sigmoid_binary_cross_entropy(logit, label.astype(jnp.float32)))
    told = logit > 0
    wrong, found = jnp.sum(told != label), jnp.sum(told & label)
    return loss, {"accuracy": jnp.mean(told == label), "f1": 2 * found / jnp.maximum(2 * found + wrong, 1)}


def position_loss(logits: Array, position: Array) -> tuple[Array, dict[str, Array]]:
    """Cross-entropy and accuracy of `position` `[...]` int32 told by `logits` `[..., N]`."""
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, position))
    return loss, {"accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == position)}


def auxiliary_losses(outputs: Any, labels: Any, power: float) -> tuple[dict[str, Array], dict[str, Array]]:
    """The losses of all heads that there are.

    Args:
      outputs: `networks.Outputs` `[T+1, B]`. labels: `TimeStep.aux` of the same time steps. The last one is the first of the
        next unroll, and is learned there.

    Returns:
      By name, `d1`, `d2`, `loop` and `position`: losses `[]`; and metrics named after them, `d1_accuracy` and so on.
    """
    found = {}
    outputs, labels = jax.tree.map(lambda x: x[:-1], (outputs, labels))
    for name in ("d1", "d2"):
        prediction = getattr(outputs, name)
        if not isinstance(prediction, tuple):
            found[name] = depth_loss(prediction, labels["depth"], power)
    if not isinstance(outputs.loop_closure, tuple):
        found["loop"] = loop_loss(outputs.loop_closure, labels["loop_closure"])
    if not isinstance(outputs.position, tuple):
        found["position"] = position_loss(outputs.position, labels["position"])
    losses = {name: loss for name, (loss, _) in found.items()}
    metrics = {f"{name}_loss": loss for name, loss in losses.items()}
    for name, (_, more) in found.items():
        metrics |= {f"{name}_{key}": value for key, value in more.items()}
    return losses, metrics
