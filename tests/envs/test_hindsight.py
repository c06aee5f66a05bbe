"""The tasks of hindsight: what decides the return, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config, registry
from podracer.contract import Contract
from podracer.envs import hindsight
from podracer.envs.hindsight import GREEN, RED, START, HindsightConfig, PortalChoice
from podracer.types import FIRST, LAST

pytestmark = pytest.mark.quick

UP, RIGHT, DOWN, LEFT = range(4)


def stream(environment, num_envs, num_steps, seed=0):
    """Time steps `[num_steps + 1, num_envs]` under random actions."""
    contract = Contract(environment, num_envs, num_steps)
    return contract.run(*contract._inputs(seed), seed)


def test_policy_evaluation_is_the_process_of_its_seed():
    environment = registry.env("hindsight/policy_evaluation").make(HindsightConfig(instance=3))
    steps = stream(environment, 64, 5)
    assert np.all(steps.step_type[::2] == FIRST)
    assert np.all(steps.step_type[1::2] == LAST)
    x, arrival = steps.observation[::2].reshape(-1, 32), steps.observation[1::2].reshape(-1, 32)
    process = hindsight.draw_process(3)
    signal = (x[:, 28:] @ process.signal_w + process.signal_b > 0).astype(np.float32)
    np.testing.assert_array_equal(arrival[:, 28:], signal)
    np.testing.assert_array_equal(steps.aux["signal"][1::2].reshape(-1), signal.sum(-1))
    np.testing.assert_array_equal(steps.aux["signal"][::2], steps.aux["signal"][1::2])
    reward = x[:, :28].sum(-1) * signal.sum(-1) / np.sqrt(32)
    np.testing.assert_allclose(steps.reward[1::2].reshape(-1), reward, rtol=1e-4, atol=1e-4)

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    hidden = sigmoid(x @ process.inner_w + process.inner_b)
    noise = arrival[:, :28] - sigmoid(hidden @ process.outer_w + process.outer_b)
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1


def test_instances_differ():
    one, two = hindsight.draw_process(0), hindsight.draw_process(1)
    assert not np.allclose(one.signal_w, two.signal_w)
    assert not np.array_equal(hindsight.portal_cells(5, 0), hindsight.portal_cells(5, 1))


@pytest.mark.parametrize("room", [5, 11])
def test_portals_lie_at_the_sides_half_of_them_for_each_room(room):
    cells = hindsight.portal_cells(room, 0).reshape(-1, 2)
    assert len({tuple(cell) for cell in cells.tolist()}) == len(cells) == 4 * (room - 2)
    at_side = (cells == 0) | (cells == room - 1)
    assert np.all(at_side.sum(axis=1) == 1)  # a corner lies at two


@pytest.fixture(scope="module")
def small():
    return PortalChoice(HindsightConfig())


def walk(environment, state, portal):
    """Steps through the start room onto `portal`, a row and a column, then to the goal. Yields states and time steps."""
    step = jax.jit(environment.step)
    middle = environment.config.room // 2
    row, column = portal[0] - middle, portal[1] - middle
    moves = [(UP if row < 0 else DOWN)] * abs(row), [(LEFT if column < 0 else RIGHT)] * abs(column)
    # The last move must be onto the side: on the way, along a side, the other portal could lie.
    moves = moves[1] + moves[0] if abs(row) == middle else moves[0] + moves[1]
    for action in moves + [RIGHT] * environment.config.corridor:
        state, timestep = step(state, jnp.int32(action), jax.random.key(0))
        yield state, timestep


@pytest.mark.parametrize("seed", range(6))
def test_the_colour_of_a_room_is_that_of_its_portals_place(small, seed):
    state, first = jax.jit(small.reset)(jax.random.key(seed))
    assert first.aux["room"] == START
    for colour in (GREEN, RED):
        portal = np.asarray(state.portals[colour - GREEN])
        assert portal.tolist() in small.cells[colour - GREEN].tolist()
        arrivals = list(walk(small, state, portal))
        inside = [timestep for after, timestep in arrivals if after.room != START]
        assert len(inside) == small.config.corridor + 1
        assert all(timestep.aux["room"] == colour for timestep in inside)
        assert all(not timestep.last() for timestep in inside[:-1])
        assert inside[-1].last()
        assert inside[-1].discount == 0
        assert inside[-1].reward == (2.0 if colour == state.pays else 0.0)
        assert sum(float(timestep.reward) for _, timestep in arrivals[:-1]) == 0


def test_what_is_seen(small):
    state, first = jax.jit(small.reset)(jax.random.key(0))
    assert first.observation.shape == (5, 9, 6)
    agent, portal, goal, green, red, lit = np.moveaxis(np.asarray(first.observation) // 255, -1, 0)
    assert agent[2, 2] == agent.sum() == 1
    assert portal.sum() == 2
    assert goal.sum() == green.sum() == red.sum() == 0
    np.testing.assert_array_equal(lit[:3, 6:], np.asarray(state.lit))
    assert lit.sum() == state.lit.sum() == first.aux["num_lit"]
    *_, (_, arrival) = list(walk(small, state, np.asarray(state.portals[1])))[:-3]
    agent, portal, goal, green, red, lit = np.moveaxis(np.asarray(arrival.observation) // 255, -1, 0)
    assert agent[2, 0] == agent.sum() == 1
    assert goal[2, 3] == goal.sum() == 1
    assert red[0, 0] == red.sum() == 1
    assert portal.sum() == green.sum() == lit.sum() == 0  # the context must be remembered


@pytest.mark.parametrize("rule", ["more", "parity"])
def test_the_context_alone_decides_what_pays_and_both_pay_equally_often(rule):
    environment = PortalChoice(HindsightConfig(rule=rule, patch=3, max_lit=5))
    keys = jax.random.split(jax.random.key(0), 4000)
    state, _ = jax.jit(jax.vmap(environment.reset))(keys)
    num_lit = np.asarray(state.lit).sum(axis=(1, 2))
    assert set(num_lit) == set(range(6))
    pays_green = num_lit % 2 == 1 if rule == "parity" else num_lit >= 3
    np.testing.assert_array_equal(state.pays == GREEN, pays_green)
    assert abs(pays_green.mean() - 0.5) < 0.04
    # No pixel is lit more often than another, and neither is a portal of one colour at one place.
    np.testing.assert_allclose(np.asarray(state.lit).mean(axis=0), 2.5 / 9, atol=0.04)
    green = np.unique(np.asarray(state.portals)[:, 0], axis=0, return_counts=True)[1]
    np.testing.assert_allclose(green / 4000, 1 / 6, atol=0.03)


def test_a_random_portal_brings_one_on_average(small):
    environment = registry.env("hindsight/portal_choice").make()
    steps = stream(environment, 256, 300)
    over = steps.step_type == LAST
    reached = over & (steps.discount == 0)
    assert reached.sum() > 500
    assert over.sum() > reached.sum()  # the time limit cuts some off
    assert abs(steps.reward[reached].mean() - 1) < 0.1
    assert set(np.unique(steps.reward)) == {0.0, 2.0}


@pytest.mark.parametrize(
    "setting", [{"room": 6}, {"max_lit": 4}, {"patch": 7}, {"corridor": 5}, {"signals": 0}, {"max_lit": 11}]
)
def test_configurations_that_cannot_be(setting):
    with pytest.raises(config.ConfigError):
        HindsightConfig(**setting)


def test_the_most_lit_pixels_are_odd():
    assert [HindsightConfig(patch=patch).most_lit for patch in (1, 2, 3, 4)] == [1, 3, 9, 15]


def test_the_large_one_has_hundreds_of_millions_of_beginnings():
    from math import comb

    settings = HindsightConfig(room=11, patch=5, max_lit=7)
    portals = hindsight.portal_cells(settings.room, 0).shape[1] ** 2
    assert 2e8 < portals * sum(comb(25, lit) for lit in range(8)) < 3e8
    keys = jax.random.split(jax.random.key(0), 8)
    state, timestep = jax.jit(jax.vmap(PortalChoice(settings).reset))(keys)
    assert timestep.observation.shape == (8, 11, 17, 6)
    assert np.all(np.asarray(state.lit).sum(axis=(1, 2)) <= 7)
