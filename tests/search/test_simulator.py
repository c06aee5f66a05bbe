"""A search in the true environment: exact values in a small one, and tactics in tic-tac-toe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import registry
from podracer.environment import Unsupported
from podracer.nets.policies import Categorical
from podracer.search import Planner, Root, SearchConfig
from podracer.search.simulator import KEY, WithSimulator, simulator_model

KEYS = jax.random.split(jax.random.key(0), 4)


def planner(environment, config, discount):
    """With a network that knows nothing: a uniform policy and values of 0."""

    def predict(params, observation):
        del params
        leaf = jax.tree.leaves(observation[KEY])[0]
        logits = jnp.zeros((leaf.shape[0], environment.spec.num_actions))
        legal = observation.get("legal_actions")
        return logits if legal is None else jnp.where(legal, logits, -1e9), jnp.zeros(leaf.shape[0])

    model = simulator_model(environment.spec.simulator, predict, discount)
    plan = Planner(Categorical(environment.spec.num_actions), model, config)

    def run(timestep, keys):
        policy, value = predict(None, timestep.observation)
        root = Root(policy, value, timestep.observation[KEY])
        return plan(None, root, timestep.observation.get("legal_actions"), keys, explore=False)

    return jax.jit(run)


def test_breadth_first_to_the_end_gives_the_exact_value():
    """Catch on three rows: two moves, all of which a full tree holds."""
    env = registry.env("catch")
    environment = WithSimulator(env.make(env.suite.config(rows=3, columns=3)))
    state, timestep = jax.vmap(environment.reset)(KEYS)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool(np.all(x == y)), timestep.observation[KEY], state))
    found = planner(environment, SearchConfig(kind="bfs", num_simulations=3 + 9), 0.9)(timestep, KEYS)
    np.testing.assert_allclose(found.value, 0.9, rtol=1e-5)  # every ball can be caught, with the second move
    shallow = planner(environment, SearchConfig(kind="bfs", num_simulations=3 + 9, max_depth=1), 0.9)(timestep, KEYS)
    np.testing.assert_array_equal(shallow.value, 0)


@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_wins_and_blocks_in_tic_tac_toe(kind):
    if not registry.suite("pgx").available():
        pytest.skip("pgx is missing: pip install 'podracer-rl[pgx]'")
    environment = WithSimulator(registry.env("pgx/tic_tac_toe").make())
    step = jax.jit(jax.vmap(environment.step))
    search = planner(environment, SearchConfig(kind=kind, num_simulations=64, max_considered_actions=9), 1.0)

    def after(*moves):
        state, timestep = jax.vmap(environment.reset)(KEYS)
        for move in moves:
            state, timestep = step(state, jnp.full(len(KEYS), move), KEYS)
        return search(timestep, KEYS)

    wins = after(0, 3, 1, 4)  # X X . / O O . / . . .: X to move wins at 2
    np.testing.assert_array_equal(wins.action, 2)
    assert np.all(wins.value > 0.3)
    blocks = after(0, 4, 1)  # X X . / . O . / . . .: O must block at 2
    np.testing.assert_array_equal(blocks.action, 2)


def test_an_environment_outside_xla_has_no_simulator():
    with pytest.raises(Unsupported, match="lives outside XLA"):
        WithSimulator(registry.env("gymnasium/CartPole-v1").make())
