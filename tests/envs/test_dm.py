"""Any dm_env.Environment, named on the command line: its specs, its time steps, and what is refused."""

import re
from pathlib import Path

import dm_env
import jax
import numpy as np
import pytest
from dm_env import specs

from podracer import dm, registry, types
from podracer.contract import check_stream
from podracer.environment import Unsupported
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


def play(environment, actions, seed=0):
    """Time steps, each `[B, ...]`, of `actions` `[T, B, ...]`."""
    host, dtype = environment.host(len(actions[0]), seed), environment.spec.action.dtype
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
