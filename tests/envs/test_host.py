"""Every environment that runs on the host keeps the time-step contract there, whatever library is behind it."""

import dataclasses
import functools
import re
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import worker_environments

from podracer import registry, rng, types
from podracer.config import ConfigError, override
from podracer.contract import check_stream, choose_action
from podracer.environment import EnvironmentFailed, Unsupported, environment_keys
from podracer.envs import dm_control_worker, gymnasium_spaces
from podracer.processes import environment_seed

TIMEOUT = 120.0
NUM_ENVS, NUM_STEPS = 4, 40

CASES = {
    "atari/pong": {"env.observation": "ram", "env.max_frames": 28},
    "atari/breakout": {
        "env.backend": "ale",
        "env.max_frames": 28,
        "env.noop_max": 9,
        "env.image_height": 42,
        "env.image_width": 42,
    },
    "gymnasium/CartPole-v1": {"env.max_steps": 7},
    "gymnasium/Pendulum-v1": {"env.max_steps": 7, "env.num_workers": 1},
    "gymnasium/FrozenLake-v1": {"env.max_steps": 30, "env.num_workers": 1},
    "gymnasium/Blackjack-v1": {"env.num_workers": 1},
    "dm_control/cartpole_swingup": {"env.max_steps": 7, "env.action_repeat": 2},
    "dm_control/ball_in_cup_catch": {"env.max_steps": 7, "env.observation": "dict", "env.num_workers": 1},
    "envpool/CartPole-v1": {"env.max_steps": 7},
    "envpool/Pendulum-v1": {"env.max_steps": 7},
    "envpool/FrozenLake-v1": {},
    "envpool/MiniGrid-Empty-5x5-v0": {"env.max_steps": 7},
    "envpool/CheetahRun-v1": {"env.max_steps": 7, "env.batch_size": 2},
    "nav/vizdoom_maze": {"env.maze": "mini", "env.max_steps": 7, "env.height": 24, "env.width": 24, "env.num_workers": 1},
}


def test_no_suite_of_the_host_is_left_out():
    assert {name.partition("/")[0] for name in CASES} >= set(worker_environments.SUITES)


@dataclasses.dataclass(frozen=True)
class _Options:
    env: object


def make(name, options=None):
    env_id = registry.env(name)
    config = override(_Options(env_id.suite.config()), {key: str(value) for key, value in (options or {}).items()})
    return env_id.make(config.env)


@functools.cache
def _chooser(environment):
    return jax.jit(jax.vmap(functools.partial(choose_action, environment.spec)))


def noise_for(environment, seed, num_steps=NUM_STEPS, num_envs=NUM_ENVS):
    shape = (num_steps, num_envs, max(1, int(np.prod(environment.spec.action.shape))))
    return np.random.default_rng(seed).random(shape, np.float32)


def play(environment, host, noise, actions=None):
    """Time steps `[T + 1, B]`. `actions`: a list that gets those `[B, ...]` that were taken."""
    timesteps = [host.reset(TIMEOUT)]
    for noise_t in noise:
        action = np.asarray(_chooser(environment)(noise_t, timesteps[-1].observation))
        timesteps.append(host.step(action, TIMEOUT))
        if actions is not None:
            actions.append(action)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(timesteps))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *timesteps)


def stream(environment, noise, seed=0, first_env=0):
    host = environment.host(noise.shape[1], seed, first_env)
    try:
        assert (host.num_envs, host.spec) == (noise.shape[1], environment.spec)
        return play(environment, host, noise)
    finally:
        host.close()


def same(one, two):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_contract(name):
    if name == "nav/vizdoom_maze":
        pytest.importorskip("vizdoom", reason="ViZDoom is missing: pip install 'podracer-rl[vizdoom]'")
    environment = make(name, CASES[name])
    noise = np.repeat(noise_for(environment, seed=1, num_envs=1), NUM_ENVS, axis=1)
    seen = stream(environment, noise, seed=3)
    limit = CASES[name].get("env.max_steps", 7 if "env.max_frames" in CASES[name] else None)
    check_stream(environment.spec, seen, limit)
    assert (seen.step_type == types.LAST).any()

    # An environment is what it is by the seed and its global number, whichever pool it lives in; actions on LAST are ignored.
    ignored = np.where((seen.step_type[:-1] == types.LAST)[..., None], 1 - noise, noise)
    part = stream(environment, ignored[:, 2:], seed=3, first_env=2)
    assert same(part, jax.tree.map(lambda x: x[:, 2:], seen))

    # No two share their randomness: given the same actions, they still differ. (Of an empty room there is only one kind.)
    other = stream(environment, noise, seed=3, first_env=NUM_ENVS)
    columns = [jax.tree.map(lambda x, b=b: x[:, b], s) for s in (seen, other) for b in range(NUM_ENVS)]
    distinct = {b"".join(leaf.tobytes() for leaf in jax.tree.leaves(column)) for column in columns}
    assert len(distinct) == (1 if "Empty" in name else 2 * NUM_ENVS)


@pytest.mark.parametrize("name", ["gymnasium/CartPole-v1", "dm_control/cartpole_swingup", "envpool/CartPole-v1"])
def test_what_cannot_run_in_anakin_says_what_to_do(name):
    with pytest.raises(Unsupported, match=f"podracer launch sebulba --env {name}$"):
        make(name).vectorize(2, 0)


@pytest.mark.parametrize("name", ["catch", "credit/feedback_bandit"])  # the latter draws at every step
def test_pure_environments_do_on_the_host_what_they_do_in_anakin(name):
    """The keys are those of runtimes/anakin.py, for environments 2 to 5 of a larger job."""
    environment = make(name)
    noise, actions = noise_for(environment, seed=2), []
    host = environment.host(NUM_ENVS, seed=7, first_env=2)
    on_host = play(environment, host, noise, actions)
    reset_keys, step_keys = environment_keys(jax.random.key(7), 2 + jnp.arange(NUM_ENVS))
    vector = environment.vectorize(NUM_ENVS, 7)

    @jax.jit
    def run(actions):
        state, first = vector.reset(reset_keys)
        step = lambda state, inputs: vector.step(state, inputs[1], rng.at(step_keys, inputs[0]))  # noqa: E731
        _, rest = jax.lax.scan(step, state, (jnp.arange(len(actions)), actions))
        return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)

    in_anakin = run(jnp.stack(actions))
    assert (on_host.step_type == types.LAST).any()
    check_stream(environment.spec, on_host)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), on_host, in_anakin)


@pytest.mark.parametrize(
    ("game", "options"),
    [
        ("pong", {"max_frames": 60}),
        ("pong", {"observation": "objects", "max_frames": 60}),
        ("breakout", {"observation": "ram", "episodic_life": True}),
    ],
)
def test_the_ale_does_on_the_host_what_it_does_in_anakin(game, options):
    environment = make(f"atari/{game}", {f"env.{key}": value for key, value in options.items()})
    noise, actions = noise_for(environment, seed=2, num_steps=100, num_envs=2), []
    on_host = play(environment, environment.host(2, seed=7), noise, actions)
    vector = environment.vectorize(2, 7)
    keys = jax.random.split(jax.random.key(0), 2)
    state, first = vector.reset(keys)
    _, rest = jax.jit(lambda s, a: jax.lax.scan(lambda s, a: vector.step(s, a, keys), s, a))(state, jnp.stack(actions))
    in_anakin = jax.tree.map(lambda x, xs: np.concatenate([x[None], xs]), first, rest)
    assert (on_host.step_type == types.LAST).any()
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6), on_host, in_anakin)
    assert on_host.observation.dtype == environment.spec.observation.dtype


def test_gymnasium_terminal_observations_and_rewards_are_its_own():
    environment = make("gymnasium/CartPole-v1")
    seen = stream(environment, np.ones((30, 1, 1), np.float32) * 0.9, seed=11, first_env=5)
    bare = gymnasium.make("CartPole-v1")
    observation, _ = bare.reset(seed=environment_seed(11, 5))
    np.testing.assert_array_equal(seen.observation[0, 0], observation)
    end = int(np.flatnonzero(seen.step_type[:, 0] == types.LAST)[0])
    for t in range(1, end + 1):
        observation, reward, terminated, _, _ = bare.step(1)
        np.testing.assert_array_equal(seen.observation[t, 0], observation)
        assert (seen.reward[t, 0], seen.discount[t, 0]) == (reward, 0 if t == end else 1)
        assert terminated == (t == end)
    observation, _ = bare.reset()
    np.testing.assert_array_equal(seen.observation[end + 1, 0], observation)


@pytest.mark.parametrize("action_repeat", [1, 3])
def test_dm_control_ends_with_its_own_observation_and_discount_1(action_repeat):
    limit = 5
    options = {"env.max_steps": limit, "env.action_repeat": action_repeat}
    environment = make("dm_control/cartpole_swingup", options)
    seen = stream(environment, np.ones((limit + 1, 1, 1), np.float32), seed=2)
    assert environment.spec.frames_per_step == action_repeat
    bare = dm_control_worker.load("cartpole", "swingup", environment_seed(2, 0))
    flat = lambda ts: np.concatenate([np.ravel(x) for x in ts.observation.values()]).astype(np.float32)  # noqa: E731
    np.testing.assert_array_equal(seen.observation[0, 0], flat(bare.reset()))
    for t in range(1, limit + 1):
        steps = [bare.step(np.ones(1)) for _ in range(action_repeat)]
        np.testing.assert_array_equal(seen.observation[t, 0], flat(steps[-1]))
        np.testing.assert_allclose(seen.reward[t, 0], sum(step.reward for step in steps), rtol=1e-6)
    assert seen.step_type[:, 0].tolist() == [types.FIRST] + [types.MID] * (limit - 1) + [types.LAST, types.FIRST]
    assert (seen.discount == 1).all()


def test_dm_control_renders_pixels_and_depth():
    options = {"env.observation": "pixels", "env.depth_label": True, "env.height": 20, "env.width": 30, "env.max_steps": 3}
    environment = make("dm_control/reacher_easy", options | {"env.num_workers": 1})
    host = environment.host(2, 0)
    try:
        seen = play(environment, host, noise_for(environment, 0, 5, 2))
        picture = host.render()
    except EnvironmentFailed as error:
        if "cannot render with MUJOCO_GL" not in str(error):
            raise
        pytest.skip(str(error))
    finally:
        host.close()
    check_stream(environment.spec, seen, 3)
    assert seen.observation.shape == (6, 2, 20, 30, 3)
    assert len(np.unique(seen.observation)) > 10
    assert seen.aux["depth"].shape == (6, 2, 20, 30, 1)
    assert seen.aux["depth"].std() > 0
    assert picture.shape == (240, 320, 3)
    states = make("dm_control/reacher_easy", {"env.max_steps": 3, "env.num_workers": 1}).host(2, 0)
    states.reset(TIMEOUT)
    for noise_t in noise_for(environment, 0, 5, 2):
        states.step(noise_t * 2 - 1, TIMEOUT)
    assert np.abs(states.render().astype(int) - picture).mean() < 1  # a worker that need not render does so all the same
    states.close()


def test_an_envpool_time_limit_is_told_from_a_fall():
    environment = make("envpool/CartPole-v1", {"env.max_steps": 12})
    seen = stream(environment, np.broadcast_to(np.float32([0.1, 0.9]).reshape(1, 2, 1), (30, 2, 1)))
    ends = seen.step_type == types.LAST
    assert (seen.discount[ends] == 0).all()  # pushed to one side it falls within ten steps
    alternating = np.broadcast_to((np.arange(30) % 2).reshape(30, 1, 1) * np.float32(0.9), (30, 2, 1))
    seen = stream(environment, alternating)
    assert np.flatnonzero(seen.step_type[:, 0] == types.LAST).tolist() == [12, 25]
    assert (seen.discount == 1).all()


@pytest.mark.parametrize("name", ["atari/pong", "envpool/CartPole-v1"])
def test_envpool_sends_and_receives_by_number_in_any_order(name):
    options = {"env.max_frames": 40} if name.startswith("atari") else {}
    whole = make(name, options).host(4, 0)
    environment = make(name, options | {"env.batch_size": 2})
    halves = environment.host(4, 0)
    first, start = whole.reset(TIMEOUT), halves.reset(TIMEOUT)
    assert same(first, start)
    expected = [whole.step(np.arange(4) % 2, TIMEOUT) for _ in range(20)]
    halves.send(np.array([1, 0]), np.array([3, 0]))
    with pytest.raises(ValueError, match="middle of a step"):
        halves.send(np.array([1]), np.array([3]))
    halves.send(np.array([0, 1]), np.array([2, 1]))
    taken = np.zeros(4, int)
    while halves._busy.sum() >= 2:  # a batch: how far the environments are apart by then is up to the machine's load
        env_id, timestep = halves.recv(TIMEOUT)
        for row, number in enumerate(env_id):
            assert same(
                jax.tree.map(lambda x, r=row: x[r], timestep),
                jax.tree.map(lambda x, n=number: x[n], expected[taken[number]]),
            )
        taken[env_id] += 1
        again = env_id[taken[env_id] < 20][::-1]
        if again.size:
            halves.send(again % 2, again)
    assert (taken == 20).sum() >= 3  # the fourth may be left without a second to make a batch with
    with pytest.raises(ValueError, match="send more"):
        halves.recv(TIMEOUT)
    with pytest.raises(Unsupported, match="must divide"):
        environment.host(3, 0)
    whole.close()
    halves.close()
    halves.close()


def test_envpool_names_whom_it_waits_for():
    slow = {"env.num_threads": 1, "env.frame_skip": 1000}
    host = make("atari/pong", slow).host(2, 0, first_env=6)
    host.reset(TIMEOUT)
    host.send(np.zeros(2, np.int32), np.arange(2))
    with pytest.raises(TimeoutError, match="atari/pong: environments 6, 7 took longer than 0 s"):
        host.recv(0.0)
    env_id, timestep = host.recv(TIMEOUT)
    assert env_id.tolist() == [0, 1]
    assert timestep.observation.shape == (2, 84, 84, 4)
    assert host.render().shape == (210, 160, 3)
    host.close()


def test_spaces():
    spaces = gymnasium.spaces
    space = spaces.Dict(
        picture=spaces.Box(0, 255, (3, 8, 9), np.uint8),
        ram=spaces.Box(0, 255, (5,), np.uint8),
        numbers=spaces.Box(-1, 1, (2, 2), np.float64),
        count=spaces.Box(0, 9, (), np.int64),
        kind=spaces.Discrete(3, start=-1),
        bits=spaces.MultiBinary(4),
        two=spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.Discrete(2)]),
        words=spaces.Text(5),
    )
    encode, spec = gymnasium_spaces.encoder(space), gymnasium_spaces.observation_spec(space)
    value = space.sample()
    encoded = encode(value)
    assert encoded.keys() == spec.keys() == set(space) - {"words"}
    for leaf, leaf_spec in zip(jax.tree.leaves(encoded), jax.tree.leaves(spec), strict=True):
        leaf_spec.validate(leaf)
    assert spec["picture"].shape == (8, 9, 3)
    assert encoded["kind"].tolist() == [float(value["kind"] == k) for k in (-1, 0, 1)]
    assert encoded["two"][0].tolist() == [*np.eye(2)[value["two"][0][0]], *np.eye(3)[value["two"][0][1]]]
    many = {key: np.stack([value[key]] * 2) for key in ("picture", "ram", "numbers", "count", "kind", "bits")}
    batch = encode(many | {"two": value["two"]})
    assert batch["picture"].shape == (2, 8, 9, 3)
    assert batch["kind"].shape == (2, 3)
    assert gymnasium_spaces.decoder(spaces.Discrete(3, start=5))(1) == 6
    for bad in (spaces.MultiDiscrete([2, 2]), spaces.Box(0, 3, (2,), np.int32), space):
        with pytest.raises(TypeError, match="not supported"):
            gymnasium_spaces.action_spec(bad)
    with pytest.raises(TypeError, match="Graph"):
        gymnasium_spaces.observation_spec(spaces.Graph(spaces.Discrete(2), None))


def test_ids_of_a_users_own_module(tmp_path, monkeypatch):
    (tmp_path / "users_module.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gymnasium.register('Users-v0', entry_point=lambda **kwargs: CartPoleEnv(**kwargs), max_episode_steps=4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = make("gymnasium/users_module:Users-v0")
    seen = stream(environment, noise_for(environment, 0, 9, 1))
    assert np.flatnonzero(seen.step_type[:, 0] == types.LAST).tolist() == [4, 9]
    assert "Users-v0" in registry.suite("gymnasium").tasks()
    with pytest.raises(registry.NotFound, match="no_such_module"):
        make("gymnasium/no_such_module:X-v0")
    with pytest.raises(registry.NotFound, match="CartPole-v1"):
        registry.env("gymnasium/CartPole-v2")


def test_the_environment_of_the_docs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "write-an-environment.md").read_text()
    (tmp_path / "my_host_envs.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[2])
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = make("my_host_envs:SUITE")
    seen = stream(environment, noise_for(environment, 0))
    check_stream(environment.spec, seen)
    assert (seen.discount[seen.step_type == types.LAST] == 0).all()
    assert ((seen.observation[..., 0] > 10) & (seen.reward == 0)).any()
    assert (seen.reward > 0).any()


def test_settings_and_environments_that_cannot_be():
    for name, option in (("gymnasium/CartPole-v1", "max_steps"), ("dm_control/cartpole_swingup", "action_repeat")):
        with pytest.raises(ConfigError, match=option):
            make(name, {f"env.{option}": -1})
    with pytest.raises(ConfigError, match="batch_size"):
        make("envpool/CartPole-v1", {"env.batch_size": -1})
