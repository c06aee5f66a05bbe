"""Q-learning on sequences that may hold several episodes: settings, n-step targets and exploration of R2D2.

"Recurrent Experience Replay in Distributed Reinforcement Learning", Kapturowski et al. 2019,
https://openreview.net/forum?id=r1lyTjAqYX.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from podracer.config import require
from podracer.nets import previous, torso
from podracer.ops.episodes import Transitions, transitions
from podracer.ops.priorities import sequence_priority
from podracer.types import Array, Key, Mode, TimeStep


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """burn_in: steps before the learned ones, at most an unroll, that only warm up the recurrent state.

    replay_share, replay_capacity, updates_per_unroll: see `podracer.agent.DataSpec`. priority_exponent: alpha, of
      replay by TD errors. priority_mix: eta, how much the largest error of a sequence counts in its priority beside the mean.
      importance_exponent: beta, of weights that are not normalised; 0 leaves them out, as the paper does.
    return_steps: `n`. rescale: values are `h` of returns; see `double_q_targets`. target_period: updates between copies to the
      target network.
    epsilon, epsilon_alpha: an episode's share of random actions is `epsilon^(1 + epsilon_alpha u)`, `u` uniform in [0, 1].
      evaluation_epsilon: the share in evaluation.
    """

    burn_in: int = 0
    replay_share: float = 0.75
    replay_capacity: int = 10_000
    updates_per_unroll: int = 1
    priority_exponent: float = 0.9
    priority_mix: float = 0.9
    importance_exponent: float = 0.0
    return_steps: int = 5
    rescale: bool = True
    target_period: int = 100
    epsilon: float = 0.4
    epsilon_alpha: float = 7.0
    evaluation_epsilon: float = 0.0

    def __post_init__(self) -> None:
        require(self, "burn_in", at_least=0)
        require(self, "return_steps", "target_period", at_least=1)
        require(self, "priority_mix", "epsilon", "evaluation_epsilon", at_least=0, at_most=1)


class QMemory(previous.Memory):
    """epsilon: `[B]` float32, the share of random actions in this episode."""

    epsilon: Any


class DoubleQ(NamedTuple):
    """error: `[T, B]` float32, TD errors, 0 at masked steps; gradients flow into the online values. target: `[T, B]`, of them.

    mask: `[T, B]` float32, 1 where there is a transition. priority: `[B]`. value: `[T, B]`, of the greedy action.
    """

    error: Array
    target: Array
    mask: Array
    priority: Array
    value: Array


def double_q(
    config: SequenceConfig,
    discount: float,
    q: Array,
    target_q: Array,
    timestep: TimeStep,
    action: Array,
    num_steps: int | None = None,
) -> DoubleQ:
    """Double Q-learning of the first `T` steps of sequences.

    Args:
      config: the agent's. discount: the agent's own.
      q: `[T'+1, B, A]` float32, of the online network. target_q: `[T'+1, B, A]`, of the target network.
      timestep: `[T'+1, B, ...]`. action: `[T', B]` int32.
      num_steps: `T`, at most `T'`, which it is where None; what lies beyond is only looked at by returns.
    """
    num_steps = len(action) if num_steps is None else num_steps
    steps, legal_q = transitions(timestep, discount), torso.mask_logits(q, timestep.observation)
    targets = jax.vmap(double_q_targets, in_axes=(1, 1, 1, None, None), out_axes=1)(
        steps, legal_q[1:], target_q[1:], config.return_steps, config.rescale
    )
    target, action, mask = (x[:num_steps] for x in (targets, action, steps.mask_tm1))
    error = td_errors(q[:num_steps], action, target, mask)
    priority = sequence_priority(error, mask, config.priority_mix)
    return DoubleQ(error, target, mask, priority, jnp.max(legal_q[:num_steps], axis=-1))


def double_q_targets(steps: Transitions, selector_q_t: Array, target_q_t: Array, num_steps: int, rescale: bool = True) -> Array:
    """n-step targets of double Q-learning, of one column: callers vmap.

    `Y_t = h(sum_{m < n} gamma^m r_{t+m+1} + gamma^n h^-1(q'(s_{t+n}, argmax_a q(s_{t+n}, a))))`, with `q` of the online and
    `q'` of the target network and `h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x` (Kapturowski et al. 2019, section 2.3). A
    return that meets the end of an episode bootstraps there, from the LAST observation after a truncation and from nothing
    after a termination; one that meets the end of the sequence bootstraps at the last of its `T+1` time steps.

    Args:
      steps: rewards, discounts, mask, `[T]`.
      selector_q_t: `[T, A]` float32, at the arrivals, time steps `1..T`: the greedy action is taken of these. Illegal actions
        are masked already (`torso.mask_logits`).
      target_q_t: `[T, A]` float32, at the same time steps: the value of that action.
      num_steps: `n`.
      rescale: whether the networks' values are `h` of returns; False takes them as they are.

    Returns:
      `[T]` float32, rescaled as the networks' values are, 0 at masked steps. No gradients flow.
    """
    import rlax  # costs more to import than jax itself

    pair = rlax.SIGNED_HYPERBOLIC_PAIR if rescale else rlax.IDENTITY_PAIR
    v_t = jnp.take_along_axis(target_q_t, jnp.argmax(selector_q_t, axis=-1)[:, None], axis=-1)[:, 0]
    # rlax.transformed_n_step_q_learning knows no mask: the discount of 0 between LAST and FIRST would keep returns within their
    # episode, but would also cut off the value at a truncation. A lambda of 0 where LAST arrives bootstraps right there.
    lambda_t = jnp.concatenate([steps.mask_tm1[1:], jnp.ones_like(steps.mask_tm1[:1])])
    targets = rlax.transformed_n_step_returns(pair, steps.r_t, steps.discount_t, v_t, num_steps, lambda_t)
    return jax.lax.stop_gradient(targets * steps.mask_tm1)


def td_errors(q_tm1: Array, action_tm1: Array, target_tm1: Array, mask_tm1: Array) -> Array:
    """`Y_t - q(s_t, a_t)`, exactly 0 at masked steps. Gradients flow into `q_tm1` alone.

    Args:
      q_tm1: `[..., A]` float32. action_tm1: `[...]` int32, taken there. target_tm1, mask_tm1: `[...]` float32.
    """
    taken = jnp.take_along_axis(q_tm1, action_tm1[..., None], axis=-1)[..., 0]
    return jax.lax.stop_gradient(mask_tm1) * (jax.lax.stop_gradient(target_tm1) - taken)


def episode_epsilon(epsilon_tm1: Array, first: Array, key: Key, base: float = 0.4, alpha: float = 7.0) -> Array:
    """The share of random actions, `base^(1 + alpha u)`, with `u` drawn uniformly from [0, 1] where an episode starts.

    Actor `i` of `N` in Ape-X has `u = i / (N - 1)` for good (Horgan et al. 2018, https://arxiv.org/abs/1803.00933). An
    environment here does not know its number, so every episode draws anew: the mixture over many episodes is the same.

    Args:
      epsilon_tm1: `[B]` float32, of the time step before. first: `[B]` bool, an episode starts.
      key: `[B]` PRNG keys.
      base, alpha: constants.

    Returns:
      `[B]` float32.
    """
    u = jax.vmap(jax.random.uniform)(key)
    return jnp.where(first, base ** (1.0 + alpha * u), epsilon_tm1)


def play(
    config: SequenceConfig, q: Array, timestep: TimeStep, epsilon_tm1: Array, key: Key, mode: Mode
) -> tuple[Array, Array, Array]:
    """Epsilon-greedy actions.

    Args:
      config: the agent's.
      q: `[B, A]` float32, of which illegal actions need not be masked. timestep: `[B, ...]`.
      epsilon_tm1: `[B]` float32, as in `QMemory`, of the time step before.
      key: `[B]` PRNG keys. mode: static.

    Returns:
      Actions `[B]` int32, their log-probabilities `[B]` float32, and epsilon `[B]`.
    """
    keys = jax.vmap(jax.random.split)(key)
    if mode is Mode.EVALUATE:
        epsilon = jnp.full_like(epsilon_tm1, config.evaluation_epsilon)
    else:
        epsilon = episode_epsilon(epsilon_tm1, timestep.first(), keys[:, 0], config.epsilon, config.epsilon_alpha)
    q = torso.mask_logits(q, timestep.observation)
    log_pi = epsilon_greedy(q, torso.legal_actions(timestep.observation), epsilon)
    action = jax.vmap(jax.random.categorical)(keys[:, 1], log_pi).astype(jnp.int32)
    return action, jnp.take_along_axis(log_pi, action[:, None], axis=-1)[:, 0], epsilon


def epsilon_greedy(q: Array, legal: Array | None, epsilon: Array) -> Array:
    """Log-probabilities `[..., A]` float32 of a random legal action with probability `epsilon`, else of the greedy one.

    Args:
      q: `[..., A]` float32; illegal actions are masked already.
      legal: `[..., A]` bool, or None where every action is legal.
      epsilon: `[...]` float32.
    """
    legal = jnp.ones(q.shape, jnp.bool) if legal is None else legal
    uniform = legal / jnp.maximum(jnp.sum(legal, axis=-1, keepdims=True), 1)
    greedy = jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[-1])
    return jnp.log(epsilon[..., None] * uniform + (1 - epsilon[..., None]) * greedy)
