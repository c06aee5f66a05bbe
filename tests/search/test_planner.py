"""Searches against mctx itself, against exact values, and in games."""

import functools

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest

from podracer.nets.policies import Categorical, make_policy
from podracer.search import ModelStep, Planner, Root, SearchConfig, trees
from podracer.types import EnvironmentSpec

NUM_ACTIONS, WIDTH, BATCH = 3, 8, 5


def network(seed=0):
    shapes = {"state": (WIDTH + NUM_ACTIONS, WIDTH), "policy": (WIDTH, NUM_ACTIONS), "value": (WIDTH, 1), "reward": (WIDTH, 1)}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


def model(params, state, action, key):
    del key
    state = jnp.tanh(jnp.concatenate([state, jax.nn.one_hot(action, NUM_ACTIONS)], axis=-1) @ params["state"])

    def head(name):
        return (state @ params[name])[:, 0]

    return ModelStep(head("reward"), jnp.full(action.shape, 0.9), state @ params["policy"], head("value"), state)


def root(params, batch=BATCH, seed=1):
    state = jax.random.normal(jax.random.key(seed), (batch, WIDTH))
    return Root(state @ params["policy"], (state @ params["value"])[:, 0], state)


def recurrent(params, key, action, state):
    step = model(params, state, action, jax.random.split(key, action.shape[0]))
    output = mctx.RecurrentFnOutput(reward=step.reward, discount=step.discount, prior_logits=step.policy, value=step.value)
    return output, step.state


def start(params, **changes):
    found = root(params)._replace(**changes)
    return mctx.RootFnOutput(prior_logits=found.policy, value=found.value, embedding=found.state)


def outcome(config, *, explore=True, temperature=1.0, invalid=None, seed=2):
    params = network()
    begin = start(params)
    invalid = jnp.zeros(begin.prior_logits.shape, jnp.bool) if invalid is None else invalid
    run = jax.jit(functools.partial(trees.KINDS[config.kind], config, explore=explore), static_argnums=(3,))
    key, temperature = jax.random.key(seed), jnp.full((BATCH,), temperature)
    return params, run(params, key, begin, recurrent, invalid, temperature=temperature)


@pytest.mark.parametrize("uct_depth", [-1, 100])
def test_puct_is_mctx_to_the_bit_and_so_is_a_limit_too_deep_to_reach(uct_depth):
    params, found = outcome(SearchConfig(kind="puct", num_simulations=24, uct_depth=uct_depth))
    theirs = jax.jit(lambda key: mctx.muzero_policy(params, key, start(params), recurrent, 24))(jax.random.key(2))
    for name in ("children_visits", "node_values", "children_prior_logits"):
        np.testing.assert_array_equal(getattr(found.tree, name), getattr(theirs.search_tree, name))
    np.testing.assert_array_equal(found.choice, theirs.action)
    np.testing.assert_array_equal(found.weights, theirs.action_weights)


def test_gumbel_value_is_the_expectation_of_completed_q():
    _, found = outcome(SearchConfig(num_simulations=24))
    q = found.tree.qvalues(jnp.zeros(BATCH, jnp.int32))
    assert np.all(found.tree.children_visits[:, 0] > 0)  # so nothing needed completing
    np.testing.assert_allclose(found.value, jnp.sum(found.weights * q, axis=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gumbel", "puct", "bfs"])
def test_counts_weights_and_illegal_actions(kind):
    invalid = jnp.array([[True, False, False]] * BATCH)
    _, found = outcome(SearchConfig(kind=kind, num_simulations=15), invalid=invalid)
    np.testing.assert_array_equal(found.tree.node_visits[:, 0], 16)
    np.testing.assert_array_equal(jnp.sum(found.tree.children_visits[:, 0], axis=-1), 15)
    np.testing.assert_allclose(jnp.sum(found.weights, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found.weights[:, 0], 0)
    assert np.all(found.choice != 0)
    assert np.all(found.log_prob <= 0)


@pytest.mark.parametrize("kind", ["gumbel", "puct", "bfs"])
def test_depth_one_is_exact_one_step_look_ahead(kind):
    params, found = outcome(SearchConfig(kind=kind, num_simulations=12, max_depth=1))
    assert int(jnp.sum(found.tree.children_visits[:, 1:])) == 0
    for action in range(NUM_ACTIONS):
        step = model(params, root(params).state, jnp.full((BATCH,), action), None)
        visited = found.tree.children_visits[:, 0, action] > 0
        q = found.tree.qvalues(jnp.zeros(BATCH, jnp.int32))[:, action]
        np.testing.assert_allclose(np.where(visited, q, 0), np.where(visited, step.reward + 0.9 * step.value, 0), rtol=1e-4)


def test_rollouts_below_depth_0_follow_the_policy():
    """D_UCT = 0: every choice is a draw from the policy, at the root too."""
    params, simulations = network(), 400
    policy = jnp.tile(jnp.log(jnp.array([[0.6, 0.3, 0.1]])), (BATCH, 1))
    config = SearchConfig(kind="puct", num_simulations=simulations, uct_depth=0, max_depth=3, dirichlet_fraction=0.0)
    begin = start(params, policy=policy)
    invalid = jnp.zeros((BATCH, NUM_ACTIONS), jnp.bool)

    def search(config):
        run = jax.jit(lambda key: trees.puct(config, params, key, begin, recurrent, invalid, True, jnp.ones(BATCH)))
        return run(jax.random.key(0))

    found = search(config)
    visits, expected = np.asarray(found.tree.children_visits[:, 0]), simulations * np.array([0.6, 0.3, 0.1])
    chi_square = np.sum((visits - expected) ** 2 / expected)
    assert chi_square < 29.6  # the 0.1% quantile at 2 degrees of freedom for each of 5 roots
    # Negative control: PUCT itself does not.
    puct = search(SearchConfig(kind="puct", num_simulations=simulations, max_depth=3, dirichlet_fraction=0.0))
    assert np.sum((np.asarray(puct.tree.children_visits[:, 0]) - expected) ** 2 / expected) > 100


def test_breadth_first_is_even_and_backs_up_the_maximum():
    params, found = outcome(SearchConfig(kind="bfs", num_simulations=NUM_ACTIONS + NUM_ACTIONS**2))
    visits = np.asarray(found.tree.children_visits)
    np.testing.assert_array_equal(visits[:, 0], 1 + NUM_ACTIONS)
    state, best = root(params).state, []
    for a in range(NUM_ACTIONS):
        one = model(params, state, jnp.full((BATCH,), a), None)
        two = [model(params, one.state, jnp.full((BATCH,), b), None) for b in range(NUM_ACTIONS)]
        best.append(one.reward + 0.9 * jnp.max(jnp.stack([s.reward + 0.9 * s.value for s in two]), axis=0))
    np.testing.assert_allclose(found.value, jnp.max(jnp.stack(best), axis=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_results_do_not_depend_on_the_batch(kind):
    params, plan = network(), Planner(Categorical(NUM_ACTIONS), model, SearchConfig(kind=kind, num_simulations=8))
    keys = jax.random.split(jax.random.key(3), BATCH)
    run = jax.jit(lambda r, k: plan(params, r, None, k, explore=True, temperature=jnp.ones(k.shape)))
    whole = run(root(params), keys)
    part = run(jax.tree.map(lambda x: x[2:4], root(params)), keys[2:4])
    np.testing.assert_array_equal(whole.action[2:4], part.action)
    np.testing.assert_allclose(whole.weights[2:4], part.weights, rtol=1e-5)


def test_all_actions_sampled_is_the_search_over_all():
    """Sampled MuZero with K = A: the candidates are a permutation of the actions, and the search is the same one."""
    params, keys = network(), jax.random.split(jax.random.key(3), BATCH)
    config = SearchConfig(kind="puct", num_simulations=30, dirichlet_fraction=0.0)
    classical = Planner(Categorical(NUM_ACTIONS), model, config)
    sampled = Planner(Categorical(NUM_ACTIONS), model, SearchConfig(**{**vars(config), "num_sampled_actions": NUM_ACTIONS}))
    one, two = jax.jit(lambda k: [plan(params, root(params), None, k, explore=True) for plan in (classical, sampled)])(keys)
    assert not np.array_equal(two.actions, np.tile(np.arange(NUM_ACTIONS), (BATCH, 1)))
    np.testing.assert_allclose(one.weights, jax.vmap(lambda w, a: jnp.zeros(3).at[a].set(w))(two.weights, two.actions))
    np.testing.assert_allclose(one.value, two.value, rtol=1e-4)


def test_sampled_search_finds_good_continuous_actions():
    """Reward -(a - 0.5)^2 at once: the weighted mean action lies nearer to 0.5 than the policy's."""
    from dm_env import specs

    spec = EnvironmentSpec(
        name="line",
        observation=specs.Array((1,), np.float32),
        action=specs.BoundedArray((1,), np.float32, -1.0, 1.0, name="action"),
    )
    policy = make_policy(spec)

    def step(params, state, action, key):
        del params, key
        parameters, zero = jnp.zeros((action.shape[0], policy.size)), jnp.zeros(action.shape[0])
        return ModelStep(-((action[:, 0] - 0.5) ** 2), zero, parameters, zero, state)

    config = SearchConfig(num_simulations=32, num_sampled_actions=16, value_scale=1.0)
    begin = Root(jnp.zeros((64, policy.size)), jnp.zeros(64), jnp.zeros((64, 1)))
    planner = Planner(policy, step, config)
    found = jax.jit(lambda k: planner(None, begin, None, k, explore=True))(jax.random.split(jax.random.key(0), 64))
    assert found.actions.shape == (64, 16, 1)
    mean = jnp.mean(jnp.sum(found.weights * found.actions[..., 0], axis=-1))
    assert abs(mean - 0.5) < 0.1 < abs(jnp.mean(found.actions) - 0.5)
    np.testing.assert_array_equal(jnp.any(found.action[:, None] == found.actions, axis=1), True)


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="uct_depth is for a search of kind puct"):
        Planner(Categorical(3), model, SearchConfig(uct_depth=1))
    with pytest.raises(ValueError, match="more than the 3 actions"):
        Planner(Categorical(3), model, SearchConfig(num_sampled_actions=4))
    with pytest.raises(ValueError, match="num_simulations must be at least 1"):
        SearchConfig(num_simulations=0)
