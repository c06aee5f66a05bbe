"""The suite `credit`: geometry, phases, rewards, what is observed, and what is the same in every run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from podracer import config, registry
from podracer.config import ConfigError
from podracer.envs.credit.key_to_door import CHANNELS, MINI, PAPER
from podracer.types import LAST, MID

pytestmark = pytest.mark.quick

UP, RIGHT, DOWN, LEFT = range(4)


@functools.cache
def make(task, **settings):
    suite = registry.suite("credit")
    environment = registry.env(f"credit/{task}").make(config.override(suite.config(), settings))
    return environment, jax.jit(environment.reset), jax.jit(environment.step)


def play(task, actions, seed=0, **settings):
    """States and time steps, the first included."""
    _, reset, step = make(task, **settings)
    state, timestep = reset(jax.random.key(seed))
    states, timesteps = [state], [timestep]
    for t, action in enumerate(actions):
        state, timestep = step(state, jnp.int32(action), jax.random.fold_in(jax.random.key(seed + 1000), t))
        states.append(state)
        timesteps.append(timestep)
    return states, timesteps


def many(task, num, **settings):
    """States and FIRST time steps of `num` episodes, on the host."""
    environment = make(task, **settings)[0]
    return jax.device_get(jax.jit(jax.vmap(environment.reset))(jax.random.split(jax.random.key(0), num)))


class TestBandit:
    def test_reward_and_feedback_are_those_of_the_definition(self):
        environment, reset, step = make("feedback_bandit", noise=10.0)
        state, first = reset(jax.random.key(0))
        keys = jax.random.split(jax.random.key(1), 4000)
        _, last = jax.device_get(jax.vmap(lambda k: step(state, jnp.int32(12), k))(keys))
        context = int(state.context)
        assert np.all(last.step_type == LAST)
        assert np.all(last.discount == 0)
        np.testing.assert_allclose(last.aux["mean_reward"], -((context - 12) ** 2))
        noise = last.reward - last.aux["mean_reward"]
        assert np.mean(noise) == pytest.approx(0, abs=1.0)
        assert np.std(noise) == pytest.approx(10, rel=0.1)
        feedback = last.observation[:, 21:]
        expected = environment._of_context[context] + environment._of_action[12] + noise[:, None] * environment._of_noise
        np.testing.assert_allclose(feedback, expected, atol=1e-3)
        np.testing.assert_array_equal(first.observation, np.eye(21)[context].tolist() + [0] * 64)
        np.testing.assert_array_equal(last.observation[:, :21], np.tile(np.eye(21)[context], (4000, 1)))

    def test_its_vectors_are_fixed_by_the_settings_alone(self):
        one, two = (registry.env("credit/feedback_bandit").make() for _ in range(2))
        np.testing.assert_array_equal(one._of_action, two._of_action)
        assert one._of_action.shape == (21, 64)
        other = make("feedback_bandit", seed=1)[0]
        assert np.all(one._of_noise != other._of_noise)

    def test_contexts_are_uniform_and_a_random_policy_earns_what_theory_says(self):
        states, _ = many("feedback_bandit", 5000)
        counts = np.bincount(states.context, minlength=21)
        assert counts.min() > 150
        assert counts.max() < 350
        grid = np.arange(21)
        assert np.mean(-((grid[:, None] - grid) ** 2)) == pytest.approx(-73.3, abs=0.1)


@pytest.mark.parametrize(("task", "layout"), [("key_to_door", PAPER), ("key_to_door_mini", MINI)])
class TestKeyToDoorLayouts:
    def test_places_are_drawn_from_the_right_cells(self, task, layout):
        states, first = many(task, 500)
        for cells, seen in ((layout.cells("s")[0], states.position), (layout.cells("k")[0], states.key)):
            assert {tuple(cell) for cell in seen} == {tuple(cell) for cell in np.argwhere(cells)}
        ripe = states.grown == 0
        assert np.all(ripe.sum(axis=(1, 2)) == layout.num_apples)
        np.testing.assert_array_equal(ripe.any(axis=0), layout.cells("a")[1])
        assert set(first.aux["apple"].tolist()) == {1.0, 10.0}
        assert np.mean(first.aux["apple"] == 10) == pytest.approx(0.5, abs=0.1)

    def test_an_episode_is_as_long_as_its_phases(self, task, layout):
        length = sum(layout.frames)
        _, timesteps = play(task, [LEFT] * length)
        assert [int(t.aux["phase"]) for t in timesteps[:-1]] == list(np.repeat([0, 1, 2], layout.frames))
        assert int(timesteps[-1].step_type) == LAST
        assert float(timesteps[-1].discount) == 0
        assert all(int(t.step_type) == MID for t in timesteps[1:-1])


def test_the_paper_sized_rooms_have_the_papers_numbers():
    assert PAPER.frames == (15, 90, 15)
    assert PAPER.cells("a").sum() == 22  # 5 + 4 + 5 + 4 + 4: the player starts between those of the last row
    assert [PAPER.cells(symbol).sum() for symbol in "ksd"] == [10, 12, 1]
    assert PAPER.cells("#").shape == (3, 7, 11)


class TestKeyToDoorMini:
    TO_DOOR = (DOWN, UP, UP)

    def to_key(self, state):
        """Five moves that end on the key."""
        up, across = state.position - state.key
        moves = [UP] * int(up) + [LEFT if across > 0 else RIGHT] * abs(int(across))
        return moves + [UP] * (5 - len(moves))

    def walk(self, takes_key, **settings):
        start = play("key_to_door_mini", [], **settings)[0][0]
        first = self.to_key(start) if takes_key else [DOWN] * 5
        return play("key_to_door_mini", [*first, *[UP, LEFT, DOWN, RIGHT] * 5, *self.TO_DOOR, UP, DOWN], **settings)

    def test_only_the_key_opens_the_door_and_once(self):
        _, with_key = self.walk(True)
        _, without = self.walk(False)
        late = lambda timesteps: [float(t.reward) for t in timesteps[-5:]]  # noqa: E731
        assert late(with_key) == [0, 0, 0, 1, 0]
        assert late(without) == [0] * 5
        assert bool(with_key[5].aux["key"])
        assert bool(with_key[-1].aux["door"])
        assert not bool(without[-1].aux["key"])
        assert not bool(without[-1].aux["door"])
        assert all(float(t.reward) == 0 for t in with_key[:6])  # the key itself is worth nothing

    def test_apples_are_worth_the_same_in_all_of_an_episode(self):
        worths = set()
        for seed in range(12):
            _, timesteps = self.walk(False, seed=seed)
            eaten = {float(t.reward) for t in timesteps[6:26]} - {0.0}
            assert eaten <= {float(timesteps[0].aux["apple"])}
            worths |= eaten
            _, low = self.walk(False, seed=seed, variance="low")
            assert {float(t.reward) for t in low[6:26]} <= {0.0, 1.0}
        assert worths == {1.0, 10.0}

    def test_apples_grow_again_if_asked(self):
        actions = [DOWN] * 5 + [UP, DOWN] * 10
        once = sum(float(t.reward) for t in play("key_to_door_mini", actions, variance="low")[1])
        again = sum(float(t.reward) for t in play("key_to_door_mini", actions, variance="low", respawn=2)[1])
        assert again >= once
        totals = [
            sum(float(t.reward) for t in play("key_to_door_mini", [DOWN] * 5 + [UP, LEFT, RIGHT, DOWN] * 5, seed, **more)[1])
            for more in ({"variance": "low"}, {"variance": "low", "respawn": 1})
            for seed in range(4)
        ]
        assert sum(totals[4:]) > sum(totals[:4])

    def test_the_agent_sees_five_by_five_cells_around_itself(self):
        states, timesteps = play("key_to_door_mini", [DOWN] * 5)
        board = {name: np.asarray(timesteps[0].observation)[..., i] for i, name in enumerate(CHANNELS)}
        row, column = np.asarray(states[0].position)
        walls = np.pad(MINI.cells("#")[0], 2)[row : row + 5, column : column + 5]
        np.testing.assert_array_equal(board["wall"] == 255, walls)
        key = np.argwhere(board["key"])
        np.testing.assert_array_equal(key, [np.asarray(states[0].key) - np.asarray(states[0].position) + 2])
        assert not board["apple"].any()
        assert board["first_room"].all()

    def test_whether_it_holds_the_key_shows_in_the_first_room_alone(self):
        _, timesteps = self.walk(True)
        holding = [bool(np.asarray(t.observation)[..., CHANNELS.index("holding")].any()) for t in timesteps]
        taken = [bool(t.aux["key"]) for t in timesteps]
        assert any(holding[:5])
        assert not any(holding[5:])
        assert holding[:5] == taken[:5]
        # In the other rooms nothing tells an episode with the key from one without.
        one, two = self.walk(True)[1], self.walk(False)[1]
        for a, b in zip(one[5:27], two[5:27], strict=True):
            np.testing.assert_array_equal(a.observation, b.observation)

    def test_render_shows_the_room(self):
        environment = make("key_to_door_mini")[0]
        frame = np.asarray(jax.jit(environment.render)(play("key_to_door_mini", [])[0][0]))
        assert frame.shape == (7 * 16, 7 * 16, 3)
        assert frame.dtype == np.uint8


@functools.cache
def rooms(num, **more):
    """Random play: the environment, and of every step state, time step, action and arrival, `[num, 20, ...]`."""
    environment = make("interleaving", **INTERLEAVING, **more)[0]

    def one(key):
        def step(carry, t):
            state, timestep = carry
            action = jax.random.randint(jax.random.fold_in(key, 2 * t), (), 0, 2)
            new = environment.step(state, action, jax.random.fold_in(key, 2 * t + 1))
            return new, (state, timestep, action, new[1])

        return jax.lax.scan(step, environment.reset(key), jnp.arange(20))[1]

    return environment, *jax.device_get(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), num)))


INTERLEAVING = {"task_rewards": (10.0, 1.0, 0.5), "num_parallel": 2, "num_objects": 2, "length": 20}


class TestInterleaving:
    def test_the_rules(self):
        environment, states, _, action, after = rooms(300)
        rewards = np.array(INTERLEAVING["task_rewards"])
        assert np.all(after.step_type[:, -1] == LAST)
        assert np.all(after.step_type[:, :-1] == MID)
        for episode in range(50):
            pending, right = set(), set()
            for t in range(20):
                state, arrival = jax.tree.map(lambda x, e=episode, t=t: x[e, t], (states, after))
                task = int(state.task)
                if state.answering:
                    assert task in pending
                    pending.discard(task)
                    right.discard(task)
                    assert arrival.aux["queried"] == -1
                else:
                    assert task not in pending
                    pending.add(task)
                    chosen = state.objects[action[episode, t]]
                    correct = chosen in environment._objects[task, 1]
                    assert (arrival.aux["queried"], arrival.aux["correct"]) == (task, correct)
                    assert np.sum(np.isin(state.objects, environment._objects[task, 1])) == 1
                    if correct:
                        right.add(task)
                assert len(pending) <= 2
                expected = rewards[arrival.aux["task"]] if arrival.aux["answer_room"] and arrival.aux["task"] in right else 0
                assert arrival.reward == pytest.approx(expected)
        assert np.any(after.reward > 0)

    def test_answers_come_at_the_rate_of_what_waits(self):
        _, states, _, _, after = rooms(300)
        waiting = np.where(
            states.answering[..., None], states.pending & (np.arange(3) != states.task[..., None]), states.pending
        )
        waiting = waiting | (~states.answering[..., None] & (np.arange(3) == states.task[..., None]))
        share = waiting.sum(axis=-1) / 2
        for value in (0.0, 0.5, 1.0):
            assert np.mean(after.aux["answer_room"][share == value]) == pytest.approx(value, abs=0.03)

    def test_what_waits_is_not_observed_unless_asked(self):
        _, states, before, _, _ = rooms(300)
        key = np.concatenate([states.task[..., None], states.answering[..., None], states.objects], axis=-1).reshape(-1, 4)
        observation, pending = before.observation.reshape(-1, 12), states.pending.reshape(-1, 3)
        # The same room looks the same, whatever waits.
        index = np.flatnonzero((key == key[0]).all(axis=1) & ~key[0, 1].astype(bool))
        assert len(np.unique(observation[index], axis=0)) == 1
        assert len(np.unique(pending[index], axis=0)) > 1
        _, states, before, _, _ = rooms(20, observe_pending=True)
        np.testing.assert_array_equal(before.observation[..., 12:15], states.pending)
        np.testing.assert_array_equal(before.observation[..., 15:], states.right)

    def test_right_objects_are_fixed_by_the_settings_alone(self):
        one, two = (make("interleaving", **INTERLEAVING, seed=seed)[0] for seed in (0, 1))
        again = registry.env("credit/interleaving").make(one._config)
        np.testing.assert_array_equal(one._objects, again._objects)
        assert np.any(one._objects != two._objects)
        assert all(sorted(objects.reshape(-1)) == [0, 1, 2, 3] for objects in one._objects)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="num_parallel=3 is more than the 2 tasks"):
        config.override(registry.suite("credit").config(), {"task_rewards": (1.0, 2.0)})
    with pytest.raises(ConfigError, match="noise must be at least 0"):
        make("feedback_bandit", noise=-1.0)
