"""The searches: how to choose in a tree, and what to read off it. Built from mctx; every function takes a batch of roots."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mctx

from podracer.search.config import SearchConfig
from podracer.types import Array, Key, Params

_TINY = float(jnp.finfo(jnp.float32).tiny)


class Outcome(NamedTuple):
    """choice: `[B]` int32, the action to take, among `N`. log_prob: `[B]`, of it. weights: `[B, N]`, what the policy should be.

    value: `[B]`, of the root. tree: the mctx tree.
    """

    choice: Array
    log_prob: Array
    weights: Array
    value: Array
    tree: Any


def gumbel(
    config: SearchConfig, params: Params, key: Key, root: Any, model: Any, invalid: Array, explore: bool, temperature: Array
) -> Outcome:
    """Gumbel MuZero. Exploration is the Gumbel noise, so there is no temperature but 0, which takes the noise away.

    The value is the expectation of completed `q` under the improved policy, not the mean over simulations, half of which
    sequential halving spends on actions that the policy will not take. log_prob is that of the improved policy.
    """
    del temperature
    qtransform = functools.partial(
        mctx.qtransform_completed_by_mix_value, value_scale=config.value_scale, rescale_values=config.rescale_values
    )
    output = mctx.gumbel_muzero_policy(
        params,
        key,
        root,
        model,
        config.num_simulations,
        invalid_actions=invalid,
        max_depth=config.max_depth or None,
        qtransform=qtransform,
        max_num_considered_actions=config.max_considered_actions,
        gumbel_scale=float(explore),
    )
    value = jnp.sum(output.action_weights * _completed_q(output.search_tree), axis=-1)
    log_prob = jnp.log(jnp.maximum(_pick(output.action_weights, output.action), _TINY))
    return Outcome(output.action, log_prob, output.action_weights, value, output.search_tree)


def puct(
    config: SearchConfig, params: Params, key: Key, root: Any, model: Any, invalid: Array, explore: bool, temperature: Array
) -> Outcome:
    """MuZero's search, `mctx.muzero_policy` to the bit where `uct_depth` sets no limit. Weights are shares of visits; the
    action is drawn from visits ** (1 / temperature), and is the most visited one at temperature 0.
    """
    key, noise_key, search_key = jax.random.split(key, 3)
    if explore and config.dirichlet_fraction:
        alpha = jnp.full(root.prior_logits.shape[-1:], config.dirichlet_alpha)
        noise = jax.random.dirichlet(noise_key, alpha, root.prior_logits.shape[:-1])
        probs = jax.nn.softmax(root.prior_logits)
        fraction = config.dirichlet_fraction
        root = root.replace(prior_logits=jnp.log(jnp.maximum((1 - fraction) * probs + fraction * noise, _TINY)))
    root = root.replace(prior_logits=jnp.where(invalid, -1e9, root.prior_logits))

    def choose(key: Key, tree: Any, node: Array, depth: Any) -> Array:
        best = mctx.muzero_action_selection(key, tree, node, depth, pb_c_init=config.pb_c_init, pb_c_base=config.pb_c_base)
        if config.uct_depth < 0:
            return best
        rollout = jax.random.categorical(key, tree.children_prior_logits[node]).astype(best.dtype)
        return jnp.where(depth < config.uct_depth, best, rollout)

    tree = _search(config, params, search_key, root, model, invalid, choose)
    summary = tree.summary()
    logits = jnp.log(jnp.maximum(summary.visit_probs, _TINY))
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(temperature, _TINY)[:, None]
    index = jax.random.categorical(key, logits).astype(jnp.int32)
    return Outcome(index, _pick(jax.nn.log_softmax(logits), index), summary.visit_probs, summary.value, tree)


def breadth_first(
    config: SearchConfig, params: Params, key: Key, root: Any, model: Any, invalid: Array, explore: bool, temperature: Array
) -> Outcome:
    """Expands all actions of a depth, likely ones first, before any of the next. The value of a node is the best that its
    evaluated children promise. Weights are Gumbel MuZero's improved policy from these values.
    """
    del explore
    key, search_key = jax.random.split(key)
    root = root.replace(prior_logits=jnp.where(invalid, -1e9, root.prior_logits))

    def choose(key: Key, tree: Any, node: Array, depth: Array) -> Array:
        del key
        # Equal counts differ by less than 1, by the policy.
        score = 0.5 * jax.nn.softmax(tree.children_prior_logits[node]) - tree.children_visits[node]
        return jnp.argmax(jnp.where((tree.root_invalid_actions > 0) & (depth == 0), -jnp.inf, score)).astype(jnp.int32)

    tree = _search(config, params, search_key, root, model, invalid, choose)
    values = jax.vmap(_max_values)(tree)
    children = jax.vmap(lambda v, index: v[index])(values, tree.children_index)
    tree = tree.replace(node_values=values, children_values=children)
    qvalues = jax.vmap(
        functools.partial(
            mctx.qtransform_completed_by_mix_value, value_scale=config.value_scale, rescale_values=config.rescale_values
        ),
        (0, None),
    )(tree, tree.ROOT_INDEX)
    logits = jnp.where(invalid, -jnp.inf, root.prior_logits + qvalues)
    weights = jax.nn.softmax(logits)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(temperature, _TINY)[:, None]
    index = jax.random.categorical(key, logits).astype(jnp.int32)
    return Outcome(index, _pick(jax.nn.log_softmax(logits), index), weights, values[:, 0], tree)


KINDS = {"gumbel": gumbel, "puct": puct, "bfs": breadth_first}


def _search(config: SearchConfig, params: Params, key: Key, root: Any, model: Any, invalid: Array, choose: Any) -> Any:
    return mctx.search(
        params,
        key,
        root=root,
        recurrent_fn=model,
        root_action_selection_fn=functools.partial(choose, depth=0),
        interior_action_selection_fn=choose,
        num_simulations=config.num_simulations,
        max_depth=config.max_depth or None,
        invalid_actions=invalid,
    )


def _completed_q(tree: Any) -> Array:
    """`q` of every root action `[B, N]`, those without a visit completed by the mixed value (Danihelka et al. 2022, eq. 33)."""
    transform = functools.partial(
        mctx.qtransform_completed_by_mix_value, value_scale=1.0, maxvisit_init=0.0, rescale_values=False
    )
    scaled: Array = jax.vmap(transform, (0, None))(tree, tree.ROOT_INDEX)
    visits = jnp.max(tree.children_visits[:, tree.ROOT_INDEX], axis=-1, keepdims=True)
    return scaled / jnp.maximum(visits, 1)


def _max_values(tree: Any) -> Array:
    """Values `[nodes]` of one tree: the maximum over evaluated children of `r + discount * value`; of a leaf, its own."""
    num_nodes = tree.raw_values.shape[0]

    def back(i: Array, values: Array) -> Array:
        node = num_nodes - 1 - i  # a child is always younger than its parent
        q = tree.children_rewards[node] + tree.children_discounts[node] * values[tree.children_index[node]]
        visited = tree.children_visits[node] > 0
        best = jnp.max(jnp.where(visited, q, -jnp.inf))
        return values.at[node].set(jnp.where(jnp.any(visited), best, values[node]))

    result: Array = jax.lax.fori_loop(0, num_nodes, back, tree.raw_values)
    return result


def _pick(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[:, None], axis=-1)[:, 0]
