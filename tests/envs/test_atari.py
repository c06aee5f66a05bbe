"""The real ALE behind our time steps: contract, randomness, and what it refuses."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from podracer import config as config_lib
from podracer import types
from podracer.environment import Unsupported
from podracer.envs import atari

NOOP, FIRE = 0, 1


def rollout(venv, actions):
    """Steps all games through `actions` [T, B] in one scan; returns the FIRST time steps and those of the scan [T, B]."""
    keys = jax.random.split(jax.random.key(0), venv.num_envs)
    state, first = venv.reset(keys)
    _, timesteps = jax.jit(lambda s, a: jax.lax.scan(lambda s, a: venv.step(s, a, keys), s, a))(state, jnp.asarray(actions))
    return first, jax.tree.map(np.asarray, timesteps)


def make(game="pong", num_envs=2, seed=0, **options):
    return atari.Atari(game, atari.Config(**options)).vectorize(num_envs, seed)


def random_actions(num_steps, num_envs, seed=0):
    return np.random.default_rng(seed).integers(18, size=(num_steps, num_envs), dtype=np.int32)


def test_time_limit_truncates_with_its_own_observation_and_then_starts_afresh():
    limit, num_steps = 12, 30
    actions = random_actions(num_steps, 2)
    options = {"observation": "ram", "repeat_action_probability": 0.0, "frame_skip": 4}
    first, short = rollout(make(max_frames=4 * limit, **options), actions)
    _, long = rollout(make(**options), actions)
    assert (first.step_type == types.FIRST).all()
    assert (first.reward == 0).all()
    assert (first.discount == 1).all()
    expected = np.where((np.arange(num_steps) + 1) % (limit + 1) == limit, types.LAST, types.MID)
    expected[(np.arange(num_steps) + 1) % (limit + 1) == 0] = types.FIRST
    np.testing.assert_array_equal(short.step_type, np.broadcast_to(expected[:, None], (num_steps, 2)))
    assert (short.discount == 1).all()
    # An emulator without a time limit says what the last observation of the short episode must be.
    np.testing.assert_array_equal(short.observation[:limit], long.observation[:limit])
    np.testing.assert_array_equal(short.observation[limit], np.asarray(first.observation))


def test_game_over_is_a_termination():
    num_steps = 770
    _, timesteps = rollout(
        make(num_envs=1, observation="ram", repeat_action_probability=0.0), np.zeros((num_steps, 1), np.int32)
    )
    last = int(np.flatnonzero(timesteps.step_type[:, 0] == types.LAST)[0])
    assert timesteps.reward[: last + 1].sum() == -21
    assert timesteps.discount[last, 0] == 0
    assert (timesteps.discount[:last] == 1).all()
    assert timesteps.observation[last, 0, 13] == 21  # the computer's score: the terminal observation itself
    assert timesteps.step_type[last + 1, 0] == types.FIRST
    assert timesteps.reward[last + 1, 0] == 0
    assert timesteps.discount[last + 1, 0] == 1
    assert timesteps.observation[last + 1, 0, 13] == 0


def test_game_that_ends_at_the_time_limit_is_terminated_not_truncated():
    options = {"num_envs": 1, "observation": "ram", "repeat_action_probability": 0.0}
    _, free = rollout(make(**options), np.zeros((770, 1), np.int32))
    length = int(np.flatnonzero(free.step_type[:, 0] == types.LAST)[0]) + 1
    _, limited = rollout(make(max_frames=4 * length, **options), np.zeros((length + 1, 1), np.int32))
    np.testing.assert_array_equal(limited.step_type[-2:, 0], [types.LAST, types.FIRST])
    assert limited.discount[length - 1, 0] == 0


def test_episodic_life_ends_an_episode_but_not_the_game():
    actions = np.full((400, 1), NOOP, np.int32)
    actions[::8] = FIRE  # serves the next ball
    _, timesteps = rollout(make("breakout", num_envs=1, observation="ram", episodic_life=True), actions)
    lasts = np.flatnonzero(timesteps.step_type[:, 0] == types.LAST)
    assert len(lasts) >= 2
    assert (timesteps.discount[lasts, 0] == 0).all()
    np.testing.assert_array_equal(timesteps.step_type[lasts[:-1] + 1, 0], types.FIRST)
    lives = timesteps.observation[:, 0, 57]  # Breakout keeps its lives there
    assert lives[lasts[0] + 1] < lives[lasts[0] - 1]
    assert lives[lasts[0] + 1] > 0


def test_same_seed_same_stream_and_another_seed_another():
    actions = np.full((80, 4), 3, np.int32)
    actions[::2] = 4  # alternating, so that sticky actions show
    observations = [rollout(make(num_envs=4, seed=s, observation="ram"), actions)[1].observation for s in (7, 7, 8)]
    np.testing.assert_array_equal(observations[0], observations[1])
    assert (observations[0] != observations[2]).any()
    assert (observations[0][:, 0] != observations[0][:, 1]).any()  # the games of a pool differ as well


def test_reset_under_jit_is_the_same_reset():
    options = {"observation": "ram", "repeat_action_probability": 0.0}
    keys = jax.random.split(jax.random.key(0), 2)
    actions = random_actions(40, 2)

    @jax.jit
    def run(keys, actions, venv=make(**options)):  # noqa: B008 - one pool, for one trace
        state, first = venv.reset(keys)
        return first, jax.lax.scan(lambda s, a: venv.step(s, a, keys), state, actions)[1]

    jax.tree.map(np.testing.assert_array_equal, run(keys, jnp.asarray(actions)), rollout(make(**options), actions))


def test_runs_in_shard_map_with_a_dynamic_number_of_iterations():
    venv = make(observation="objects", max_frames=40, repeat_action_probability=0.0)
    keys = jax.random.split(jax.random.key(0), 2)
    state, timestep = venv.reset(keys)
    mesh = Mesh(np.array(jax.devices()[:1]), ("devices",))

    def run(state, timestep, num_steps):
        step = lambda _, carry: venv.step(carry[0], jnp.zeros(2, jnp.int32), keys)  # noqa: E731
        return jax.lax.fori_loop(0, num_steps, step, (state, timestep))

    split = PartitionSpec("devices")
    program = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=(split, split, PartitionSpec()), out_specs=split, check_vma=False),
        donate_argnums=0,
    )
    for num_steps, expected in ((9, types.MID), (1, types.LAST), (1, types.FIRST), (10, types.LAST)):
        state, timestep = program(state, timestep, num_steps)
        np.testing.assert_array_equal(timestep.step_type, expected)


@pytest.mark.parametrize(
    ("options", "shape", "dtype"),
    [
        ({}, (84, 84, 4), np.uint8),
        ({"stack": 2, "image_height": 42, "image_width": 50}, (42, 50, 2), np.uint8),
        ({"grey": False, "stack": 1}, (84, 84, 3), np.uint8),
        ({"observation": "ram"}, (128,), np.uint8),
        ({"observation": "objects"}, (9,), np.float32),
    ],
)
def test_observations_match_the_spec(options, shape, dtype):
    environment = atari.Atari("pong", atari.Config(**options))
    venv = environment.vectorize(1, 0)
    assert environment.spec.name == "atari/pong"
    assert environment.spec.observation.shape == shape
    _, timesteps = rollout(venv, np.zeros((2, 1), np.int32))
    assert timesteps.observation.shape == (2, 1, *shape)
    assert timesteps.observation.dtype == dtype == environment.spec.observation.dtype


def test_newest_image_is_last_and_picture_is_in_colour():
    venv = make(num_envs=1, repeat_action_probability=0.0)
    _, timesteps = rollout(venv, random_actions(60, 1))
    np.testing.assert_array_equal(timesteps.observation[-1, ..., :-1], timesteps.observation[-2, ..., 1:])
    assert (timesteps.observation[-1, ..., -1] != timesteps.observation[-2, ..., -1]).any()
    picture = venv.render(venv.reset(jax.random.split(jax.random.key(0), 1))[0])
    assert picture.shape == (210, 160, 3)
    assert (picture[..., 0] != picture[..., 2]).any()


def test_action_sets_and_frames_per_step():
    assert atari.Atari("pong", atari.Config()).spec.num_actions == 18
    assert atari.Atari("pong", atari.Config(full_action_space=False)).spec.num_actions == 6
    assert atari.Atari("ms_pacman", atari.Config(frame_skip=2)).spec.frames_per_step == 2


def test_refusals_are_one_line_that_says_what_to_do(monkeypatch):
    venv = make(observation="ram")
    keys = jax.random.split(jax.random.key(0), 2)
    state, _ = venv.reset(keys)
    with pytest.raises(Unsupported, match="one seed"):
        jax.vmap(lambda action: venv.step(state, action, keys))(jnp.zeros((3, 2), jnp.int32))
    with pytest.raises(Unsupported, match="one device"):
        venv.step(state, jnp.zeros(1, jnp.int32), keys[:1])
    with pytest.raises(Unsupported, match="only atari/pong"):
        atari.Atari("breakout", atari.Config(observation="objects"))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    with pytest.raises(Unsupported, match=r"atari_jax/pong.*Sebulba"):
        make()


@pytest.mark.parametrize("setting", ["frame_skip=0", "repeat_action_probability=1.5", "noop_max=-1", "max_frames=3"])
def test_bad_settings_are_refused(setting):
    with pytest.raises(config_lib.ConfigError):
        config_lib.override(atari.Config(), config_lib.parse_assignments([setting]))


def test_listing_games_imports_no_emulator():
    code = (
        "import sys; from podracer.envs import atari, atari_jax; tasks = atari.SUITE.tasks(); "
        "assert 'pong' in tasks and 'ms_pacman' in tasks and len(tasks) > 100; "
        "assert atari_jax.SUITE.tasks() == ('pong',); assert 'envpool' not in sys.modules and 'ale_py' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
