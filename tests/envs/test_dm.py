"""Any dm_env.Environment, named on the command line: its specs, its time steps, and what is refused."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import dm_env
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import dm, registry, types
from podracer.contract import check_stream
from podracer.environment import EnvironmentFailed, Unsupported
from podracer.envs.dm_control_worker import DmControlConfig
from podracer.envs.nav import camera, mazes, raycast
from podracer.processes import ProcessEnvironment

TIMEOUT = 120.0
MODULE = """
import dm_env, numpy as np
from dm_env import specs

class Env(dm_env.Environment):
    def __init__(self, seed=-1, action=specs.BoundedArray((), np.int64, 3, 4)):
        self.seed, self.spec = seed, action
    def observation_spec(self):
        inner, legal = (specs.Array((), np.int64), specs.BoundedArray((2, 2), np.uint8, 0, 255)), specs.Array((2,), bool)
        return {'x': specs.Array((1,), np.float64), 'inner': inner, 'legal': legal, 'k': specs.DiscreteArray(4)}
    def action_spec(self):
        return self.spec
    def reset(self):
        self.t = 0
        return dm_env.restart(self.observe(0))
    def step(self, action):
        assert action.dtype == self.spec.dtype
        self.spec.validate(action)
        self.t += 1
        end = dm_env.truncation if self.t == 3 else dm_env.transition
        end = dm_env.termination if action.max() > 3.5 and self.t == 2 else end
        return end(reward=0.5, observation=self.observe(float(np.sum(action))))
    def observe(self, action):
        inner = (self.seed, np.full((2, 2), self.t, np.uint8))
        return {'x': np.array([action]), 'inner': inner, 'legal': np.array([True, False]), 'k': self.t}

def continuous(seed):
    return Env(seed, specs.BoundedArray((2,), np.float64, 0.0, [2.0, 3.0]))

def unseeded():
    return Env()

def wordy(seed, size, *, colour):
    return Env()

def other():
    return 3

NOTHING = 7
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a user's module in the working directory."""
    name = f"users_dm_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def play(environment, actions, first_env=0):
    """Time steps, each `[B, ...]`, of `actions` `[T, B, ...]`."""
    host, dtype = environment.host(len(actions[0]), 0, first_env), environment.spec.action.dtype
    try:
        return [host.reset(TIMEOUT)] + [host.step(np.asarray(action, dtype), TIMEOUT) for action in actions]
    finally:
        host.close()


def rows(steps, get):
    return np.stack([get(step) for step in steps], axis=1).tolist()


def test_a_class_with_discrete_actions(module):
    environment = registry.env(f"{module}:Env").make(dm.DmConfig(num_workers=1))
    spec = environment.spec
    assert (spec.num_actions, spec.name) == (2, f"{module}:Env")
    assert spec.observation["x"].dtype == spec.observation["inner"][0].dtype == np.float32
    assert spec.observation["inner"][1].dtype == np.uint8
    assert (spec.observation["legal"].dtype, spec.observation["k"].shape) == (np.dtype(bool), (4,))
    steps = play(environment, [[0, 1]] * 6)
    F, M, L = types.FIRST, types.MID, types.LAST
    assert rows(steps, lambda s: s.step_type) == [[F, M, M, L, F, M, M], [F, M, L, F, M, L, F]]
    assert rows(steps, lambda s: s.discount) == [[1] * 7, [1, 1, 0, 1, 1, 0, 1]]
    assert rows(steps, lambda s: s.reward) == [[0, 0.5, 0.5, 0.5, 0, 0.5, 0.5], [0, 0.5, 0.5, 0, 0.5, 0.5, 0]]
    assert rows(steps, lambda s: s.observation["x"][:, 0]) == [[0, 3, 3, 3, 0, 3, 3], [0, 4, 4, 0, 4, 4, 0]]
    assert rows(steps, lambda s: s.observation["inner"][1][:, 1, 1]) == [[0, 1, 2, 3, 0, 1, 2], [0, 1, 2, 0, 1, 2, 0]]
    assert rows(steps, lambda s: s.observation["k"].argmax(1))[0] == [0, 1, 2, 3, 0, 1, 2]
    seeds = steps[0].observation["inner"][0]
    assert seeds[0] != seeds[1]
    assert (seeds >= 0).all()
    assert steps[0].observation["legal"].tolist() == [[True, False]] * 2


def test_a_function_with_continuous_actions_and_a_time_limit(module):
    environment = registry.env(f"{module}:continuous").make(dm.DmConfig(num_workers=2, max_steps=2))
    action = environment.spec.action
    assert (action.dtype, action.shape, np.broadcast_to(action.maximum, (2,)).tolist()) == (np.float32, (2,), [2.0, 3.0])
    steps = play(environment, [[[0.5, 0.25], [2.0, 3.0]]] * 3)
    assert rows(steps, lambda s: s.observation["x"][:, 0]) == [[0, 0.75, 0.75, 0], [0, 5, 5, 0]]
    assert rows(steps, lambda s: s.step_type == types.LAST) == [[False, False, True, False]] * 2
    assert rows(steps, lambda s: s.discount) == [[1] * 4] * 2
    assert rows(steps[:1], lambda s: s.observation["inner"][0]) != [[-1.0], [-1.0]]
    unseeded = ProcessEnvironment.from_dm_env("mine", __import__(module).unseeded, num_workers=1)
    steps = play(unseeded, [[0]])
    assert (unseeded.spec.name, steps[0].observation["inner"][0].tolist()) == ("mine", [-1])


def test_what_cannot_be_is_one_line(module):
    for attribute, error, words in (
        ("wordy", Unsupported, "wordy needs size, colour: only seed is given"),
        ("other", Unsupported, "other returned a int, which is no dm_env.Environment"),
        ("NOTHING", registry.NotFound, "neither a podracer.registry.Suite nor"),
        ("absent", registry.NotFound, "no attribute 'absent'"),
        ("Env/task", registry.NotFound, f"did you mean {module}:Env?"),
    ):
        with pytest.raises(error, match=re.escape(words)) as caught:
            registry.env(f"{module}:{attribute}").make()
        assert "\n" not in str(caught.value)
    Path("half.py").write_text("import no_such_library\n")
    Path("slip.py").write_text("x = 1\ndef f(:\n")
    for name, words in (
        ("nowhere:Env", "no module 'nowhere'; run from its folder"),
        ("half:Env", "half needs no_such_library, which is not installed"),
        ("slip:Env", "slip.py, line 2: invalid syntax"),
        (f"./folder/{module}.py:Env", f"write a module's name and what to take from it, folder.{module}:Env"),
        (f"{module}:", f"what to take from it, {module}:NAME"),
        (":Env", "what to take from it, package.module:Env"),
        ("gridworld", "name one, such as gridworld/empty (podracer envs gridworld lists all)"),
        ("catch/easy", "did you mean catch?"),
    ):
        with pytest.raises(registry.NotFound, match=re.escape(words)) as caught:
            registry.env(name)
        assert "\n" not in str(caught.value)
    with pytest.raises(Unsupported, match=f"podracer launch sebulba --env {module}:Env$"):
        registry.env(f"{module}:Env").make().vectorize(2, 0)
    for action in (specs.Array((2,), np.float32), specs.BoundedArray((2,), np.int32, 0, 3), {"a": specs.DiscreteArray(2)}):
        with pytest.raises(TypeError, match="not supported"):
            dm.action_spec(action)
    with pytest.raises(TypeError, match="not supported"):
        dm.observation_spec({"words": specs.StringArray(())})
    with pytest.raises(ValueError, match="max_steps"):
        dm.DmConfig(max_steps=-1)


def test_the_environment_of_the_docs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "write-an-environment.md").read_text()
    (tmp_path / "my_dm_env.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[3])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = registry.env("my_dm_env:Thermostat").make(dm.DmConfig(num_workers=1))
    noise = np.random.default_rng(0).uniform(-5, 5, (60, 4, 1))
    noise[:, 0] = 5.0  # that room does not freeze
    steps = play(environment, noise)
    stream = jax.tree.map(lambda *leaves: np.stack(leaves), *steps)
    check_stream(environment.spec, stream)
    last = stream.step_type == types.LAST
    assert np.flatnonzero(last[:, 0]).tolist() == [24, 49]
    assert (stream.discount[last[:, 0], 0] == 1).all()
    frozen = last & (stream.observation["degrees"][..., 0] < 0)
    assert frozen.any()
    assert (stream.discount[frozen] == 0).all()
    assert issubclass(__import__("my_dm_env").Thermostat, dm_env.Environment)


MAZE = """
import json, sys
import numpy as np
from podracer.envs import dm_control_maze
from podracer.envs.nav.config import NavConfig
from podracer.envs.nav.mazes import centre

env = dm_control_maze.make(0, 3, NavConfig(maze="mini", num_apples=0, num_strawberries=0, height=16, width=16).resolved())
assert "jax" not in sys.modules
print(env.env.action_spec().minimum.tolist(), env.env.action_spec().maximum.tolist(), file=sys.stderr)
told = []

def tell(observation, reward=0.0, *rest):
    tree = {"velocity": observation["velocity"], "seen": observation["rgb"].std(), "reward": reward, **env.aux()}
    told.append({name: np.asarray(value).tolist() for name, value in tree.items()})

def warp(square, heading):
    x, y = centre(square, env._num_columns, np)
    rows, columns = env._layout.walls.shape
    half = -heading / 2
    place = [2 * (x - columns / 2), 2 * (rows / 2 - y), 0.0]
    env._task._walker.set_pose(env.env.physics, place, [np.cos(half), 0, 0, np.sin(half)])
    env.env.physics.data.qvel[:] = 0
    env.env.physics.forward()
    env._journey.arrive(env._pose())

tell(env.reset())
free = [square for square in np.flatnonzero(~env._layout.walls.reshape(-1)) if square != env._task.goal]
corridor = next(s for s in free if s + 1 in free and s + 2 in free)
for _ in range(2):
    warp(corridor, 0.0)
    for _ in range(5):
        tell(*env.step(np.array([-1.0, 0.0])))
warp(corridor, 1.0)
tell(env._observe())
for _ in range(3):
    tell(*env.step(np.array([0.0, 1.0])))
warp(env._task.goal, 0.0)
tell(*env.step(np.array([0.0, 0.0])))
tell(*env.step(np.array([0.0, 0.0])))
told.append({"render": env.render().shape})
print(json.dumps(told))
"""


def test_the_maze_arena_sees_labels_and_pays_as_the_mazes_of_nav():
    environ = {"MUJOCO_GL": "egl", **os.environ}
    run = subprocess.run([sys.executable, "-c", MAZE], capture_output=True, text=True, timeout=TIMEOUT, env=environ)
    if run.returncode and "cannot render with MUJOCO_GL" in run.stderr:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr
    assert "[-1.0, -1.0] [1.0, 1.0]" in run.stderr
    *steps, picture = json.loads(run.stdout)
    layout = mazes.fixed("mini", 0, 0.1)
    goal = int(mazes.fixed_things(layout, 0, 0).goal)
    first, forward, again, turning, (found, after) = steps[0], steps[1:6], steps[6:11], steps[11:15], steps[15:]

    x, y, heading = first["pose"]
    assert (x % 1, y % 1) == pytest.approx((0.5, 0.5), abs=1e-3)
    assert first["position"] == int(y) * layout.walls.shape[1] + int(x) != goal
    assert not layout.walls[int(y), int(x)]
    grid, sphere = raycast.pack(layout.walls), mazes.centre(goal, layout.walls.shape[1], np)
    things = raycast.Things(position=jnp.asarray(sphere)[None], seen=jnp.ones(1, bool), kind=np.zeros(1, int))
    depth_at = jax.jit(lambda *pose: raycast.depth_at(grid, things, *pose, *camera.of_label(1.0)))
    for step in (first, forward[0], turning[0], found, after):
        x, y, heading = step["pose"]
        truth = depth_at(jnp.array([x, y]), jnp.float32(heading))
        error = np.abs(np.array(step["depth"]) * 8 - np.minimum(truth, 8))[2:]  # above, there is the sky and no ceiling
        assert np.mean(error < 0.1) > 0.85  # the others lie across an edge, or on the goal
        assert step["seen"] > 3

    assert [step["reward"] for step in steps] == [0] * 15 + [10, 0]
    assert forward[-1]["velocity"][1] > 0.05
    assert abs(forward[-1]["velocity"][0]) < 0.02
    assert forward[-1]["pose"][0] - forward[0]["pose"][0] == pytest.approx(sum(s["velocity"][1] for s in forward[1:]), abs=1e-3)
    np.testing.assert_allclose(again[-1]["velocity"], forward[-1]["velocity"], atol=2e-3)
    assert turning[-1]["velocity"][5] > 0.05
    turned = turning[0]["pose"][2] + sum(s["velocity"][5] for s in turning[1:]) - turning[-1]["pose"][2]
    assert math.cos(turned) == pytest.approx(1.0, abs=1e-3)
    assert found["position"] != goal
    assert [first["goals"], found["goals"], after["goals"]] == [0, 1, 1]
    assert found["velocity"] == [0] * 6
    assert math.dist(found["pose"][:2], after["pose"][:2]) < 0.05
    assert picture["render"][0] == 336


def test_the_maze_arena_on_the_host():
    found = registry.env("dm_control/maze_random_goal")
    environment = found.make(DmControlConfig(num_workers=1, max_steps=3, height=16, width=24, depth_input=True))
    try:
        actions = np.linspace(-1, 1, 24).reshape(6, 2, 2)
        steps, alone = play(environment, actions), play(environment, actions[:, 1:], first_env=1)
    except EnvironmentFailed as error:
        if "cannot render with MUJOCO_GL" not in str(error):
            raise
        pytest.skip(str(error))
    stream, again = (jax.tree.map(lambda *leaves: np.stack(leaves), *each) for each in (steps, alone))
    check_stream(environment.spec, stream, 3)
    assert stream.observation["depth"].shape == (7, 2, 16, 24, 1)
    assert (stream.step_type[3] == types.LAST).all()
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[:, 1:], y), stream, again)
    assert len(set(stream.aux["position"][[0, 4]].reshape(-1).tolist())) > 1
    with pytest.raises(Unsupported, match=r"leave env\.observation"):
        found.make(DmControlConfig(observation="pixels"))
