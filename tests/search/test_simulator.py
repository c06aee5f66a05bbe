"""A search in the true environment: exact values in a small one, and tactics in tic-tac-toe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import registry, types
from podracer.environment import JaxEnvironment, Unsupported
from podracer.nets.policies import Categorical
from podracer.search import Planner, Root, SearchConfig
from podracer.search.simulator import KEY, WithSimulator, simulator_model
from podracer.types import EnvironmentSpec

KEYS = jax.random.split(jax.random.key(0), 4)


def planner(environment, config, discount, value_of=lambda state: jnp.zeros(len(jax.tree.leaves(state)[0]))):
    """With a network that knows nothing: a uniform policy and values of 0, or what `value_of` says of states."""

    def predict(params, observation):
        del params
        value = value_of(observation[KEY])
        logits = jnp.zeros((len(value), environment.spec.num_actions))
        legal = observation.get("legal_actions")
        return logits if legal is None else jnp.where(legal, logits, -1e9), value

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


class Mdp(JaxEnvironment):
    """Random transitions and rewards among cells, for `HORIZON` steps. State: cell and time, `[]` int32 each."""

    CELLS, ACTIONS, HORIZON, DISCOUNT = 6, 2, 4, 0.9
    NEXT = np.random.default_rng(0).integers(CELLS, size=(CELLS, ACTIONS)).astype(np.int32)
    REWARD = np.random.default_rng(1).uniform(size=(CELLS, ACTIONS)).astype(np.float32)

    def __init__(self):
        observation, action = specs.Array((self.CELLS,), np.float32), specs.DiscreteArray(self.ACTIONS)
        self.spec = EnvironmentSpec(name="mdp", observation=observation, action=action)

    def reset(self, key):
        cell = jax.random.randint(key, (), 0, self.CELLS)
        return (cell, jnp.int32(0)), types.restart(jax.nn.one_hot(cell, self.CELLS))

    def step(self, state, action, key):
        del key
        cell, time = jnp.asarray(self.NEXT)[state[0], action], state[1] + 1
        reward = jnp.asarray(self.REWARD)[state[0], action]
        return (cell, time), types.transition(reward, jax.nn.one_hot(cell, self.CELLS), terminated=time == self.HORIZON)

    def values(self, best):
        """By value iteration, `[HORIZON + 1, CELLS]` by the steps that are left: of the optimal policy, or the uniform one."""
        values = [np.zeros(self.CELLS, np.float32)]
        for _ in range(self.HORIZON):
            q = self.REWARD + self.DISCOUNT * values[-1][self.NEXT]
            values.append(q.max(axis=1) if best else q.mean(axis=1))
        return np.stack(values)


def searched(num_simulations, kind, **changes):
    """Cells, and what a search finds from each: the network knows the uniform policy, and its values."""
    mdp, num_actions = Mdp(), Mdp.ACTIONS
    uniform = jnp.asarray(mdp.values(best=False))
    environment = WithSimulator(mdp)
    state, timestep = jax.vmap(environment.reset)(KEYS)
    config = SearchConfig(kind=kind, num_simulations=num_simulations, max_considered_actions=num_actions, **changes)
    # What comes after the end is worth nothing, whatever the network says: a value of 5 there must not show.
    value_of = lambda s: jnp.where(s[1] < Mdp.HORIZON, uniform[Mdp.HORIZON - s[1], s[0]], 5.0)  # noqa: E731
    return np.asarray(state[0]), planner(environment, config, Mdp.DISCOUNT, value_of)(timestep, KEYS)


@pytest.mark.parametrize(("kind", "num_simulations"), [("gumbel", 500), ("puct", 2000), ("bfs", 2 + 4 + 8 + 16)])
def test_many_simulations_find_the_optimal_value(kind, num_simulations):
    cell, found = searched(num_simulations, kind)
    optimum = Mdp().values(best=True)[-1, cell]
    np.testing.assert_allclose(found.value, optimum, rtol=1e-5 if kind == "bfs" else 0.02)
    best = np.argmax(Mdp.REWARD + Mdp.DISCOUNT * Mdp().values(best=True)[-2][Mdp.NEXT], axis=1)
    np.testing.assert_array_equal(found.action, best[cell])
    # Negative control: few do not.
    assert np.max(np.abs(searched(4, kind)[1].value / optimum - 1)) > 0.1


@pytest.mark.parametrize("kind", ["gumbel", "puct", "bfs"])
def test_depth_one_is_reward_and_discounted_value(kind):
    num_simulations = 8
    cell, found = searched(num_simulations, kind, max_depth=1)
    uniform = Mdp().values(best=False)
    q = (Mdp.REWARD + Mdp.DISCOUNT * uniform[-2][Mdp.NEXT])[cell]
    expected = {
        "gumbel": np.sum(found.weights * q, axis=-1),
        "puct": (uniform[-1, cell] + num_simulations * np.sum(found.weights * q, axis=-1)) / (num_simulations + 1),
        "bfs": np.max(q, axis=-1),
    }
    np.testing.assert_allclose(found.value, expected[kind], rtol=1e-6)
    np.testing.assert_array_equal(found.action, np.argmax(q, axis=-1))
