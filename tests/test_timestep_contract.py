"""Every registered environment is held to the time-step contract; a new one is tested by being registered."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worker_environments import SUITES as HOST

from podracer import registry, types
from podracer.contract import Contract, ContractError
from podracer.environment import AutoReset, Environment, JaxEnvironment, TimeLimit, VectorEnvironment
from podracer.types import Array, EnvironmentSpec, Key, TimeStep

MAX_STEPS = 7
SUITES = [name for name in registry.names(registry.ENVS) if name not in HOST]
MORE = (
    "credit/feedback_bandit",
    "credit/interleaving",
    "credit/key_to_door",
    "gridworld/four_rooms",
    "gridworld/key_door",
    "gridworld/tmaze",
    "gymnax/Pendulum-v1",
    "gymnax/Breakout-MinAtar",
    "gymnax/FrozenLake-misc",
    "gymnax/UmbrellaChain-bsuite",
    "hindsight/policy_evaluation",
    "pgx/tic_tac_toe",
    "pgx/connect_four",
    "pgx/minatar-breakout",
    "jumanji/Tetris-v0",
)
SLOW = ("brax", "craftax", "playground")  # a minute and more to compile


def _cases() -> list[Any]:
    defaults = [(name, None) for name in SUITES]
    marks = {name: [pytest.mark.slow] for name in SLOW}
    params = [pytest.param(name, task, marks=marks.get(name, []), id=name) for name, task in defaults]
    return params + [pytest.param(*name.split("/"), id=name) for name in MORE]


def _make(suite_name: str, task: str | None) -> tuple[Environment, int | None]:
    """The environment with short episodes where its suite can limit them, and that limit."""
    suite = registry.suite(suite_name)
    if not suite.available():
        pytest.skip(f"{suite.package} is missing: pip install 'podracer-rl[{suite.extra}]'")
    task = suite.default_task if task is None else task
    limited = "max_steps" in {field.name for field in dataclasses.fields(suite.config)}
    config = suite.config(max_steps=MAX_STEPS) if limited else suite.config()
    environment = registry.env(f"{suite_name}/{task}" if task else suite_name).make(config)
    return environment, MAX_STEPS if limited else None


@functools.cache
def _contract(suite_name: str, task: str | None) -> Contract:
    environment, max_steps = _make(suite_name, task)
    return Contract(environment, num_envs=4, num_steps=32, max_steps=max_steps)


@pytest.mark.parametrize(("suite_name", "task"), _cases())
def test_contract(suite_name: str, task: str | None) -> None:
    contract = _contract(suite_name, task)
    examples = 5 if contract.environment.vectorize(1, 0).pure else 1  # others start a new process or thread pool each time

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**31 - 1))
    def check(seed: int) -> None:
        stream = contract.check(seed)
        if contract.max_steps:
            assert (stream.step_type == types.LAST).any()

    check()
    assert contract.spec.frames_per_step >= 1
    assert contract.spec.num_players in (1, 2)
    assert contract.spec.name == (f"{suite_name}/{task or registry.suite(suite_name).default_task}").strip("/")


def test_no_registered_environment_is_left_out() -> None:
    tested = {case.values[0] for case in _cases()}
    assert tested | set(HOST) == set(registry.suites())
    for name, suite in registry.suites().items():
        assert suite.default_task in suite.tasks(), name
        assert suite.summary, name
        assert bool(suite.extra) <= bool(suite.package), name


def test_the_table_of_environments_names_every_suite_where_it_runs_and_its_extra() -> None:
    lines = (Path(registry.__file__).parents[1] / "envs" / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in lines if line.startswith("| `")]
    extras: dict[str, set[str]] = {}
    for name, where, extra in rows:
        suite_name = name.strip("`").partition("/")[0]
        extras.setdefault(suite_name, set()).add(extra.strip("`-"))
        assert ("Anakin" in where or where == "both") == (suite_name not in HOST and "vizdoom" not in name), name
    expected = {name: {suite.extra} for name, suite in registry.suites().items()}
    assert extras == expected | {"nav": {"", "vizdoom"}}


@pytest.mark.parametrize("suite_name", [name for name in SUITES if name not in SLOW])
def test_a_step_gives_the_types_of_a_reset(suite_name: str) -> None:
    """Shapes, dtypes and weak types: otherwise a loop over steps compiles twice, or not at all."""
    environment, _ = _make(suite_name, None)
    vector = environment.vectorize(2, 0)
    if not vector.pure:
        pytest.skip("only pure environments promise this of their state")
    keys = jax.random.split(jax.random.key(0), 2)
    reset = jax.eval_shape(vector.reset, keys)
    action = jnp.zeros((2, *environment.spec.action.shape), environment.spec.action.dtype)
    step = jax.eval_shape(vector.step, reset[0], action, keys)
    signature = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)  # noqa: E731
    assert signature(step) == signature(reset)


@pytest.mark.parametrize("name", ["catch", "gridworld/tmaze", "gymnax/CartPole-v1"])
def test_one_environment_alone_does_what_it_does_in_a_batch(name: str) -> None:
    environment = registry.env(name).make()
    four, one = Contract(environment, 4, 12), Contract(environment, 1, 12)
    keys, noise = four._inputs(3)
    together = four.run(keys, noise, 3)
    for column in range(4):
        alone = one.run(keys[column : column + 1], noise[:, column : column + 1], 3)
        np.testing.assert_array_equal(alone.step_type[:, 0], together.step_type[:, column])
        np.testing.assert_allclose(alone.observation[:, 0], together.observation[:, column], rtol=1e-5, atol=1e-6)


# Negative controls: each of these environments is wrong in one way, as public ones have been, and must be caught.


class _CountState(NamedTuple):
    count: Array
    start: Array


class _Count(JaxEnvironment):
    """Counts from a random start; terminates at 3 with action 1, so that episodes have many lengths."""

    spec = EnvironmentSpec(
        name="count",
        observation=specs.Array((2,), np.float32, name="count"),
        action=specs.DiscreteArray(2, name="action"),
    )

    def reset(self, key: Key) -> tuple[_CountState, TimeStep]:
        state = _CountState(count=jnp.int32(0), start=jax.random.uniform(key))
        return state, types.restart(self._observe(state))

    def step(self, state: _CountState, action: Array, key: Key) -> tuple[_CountState, TimeStep]:
        state = state._replace(count=state.count + 1)
        done = (state.count >= 3) & (action == 1)
        return state, types.transition(1.0, self._observe(state), terminated=done)

    def _observe(self, state: _CountState) -> Array:
        return jnp.stack([state.count.astype(jnp.float32), state.start])


class _Broken(TimeLimit):
    """A sound environment with a faulty vectorization."""

    vector: type[AutoReset]

    def vectorize(self, num_envs: int, seed: int = 0) -> VectorEnvironment:
        return self.vector(self)


class _DropsTerminalObservation(AutoReset):
    """What many libraries do: LAST comes with the first observation of the next episode."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        _, fresh = jax.vmap(self.environment.reset)(key)
        observation = jnp.where(timestep.last()[:, None], fresh.observation, timestep.observation)
        return state, timestep.replace(observation=observation)


class _GivesNextFirst(_DropsTerminalObservation):
    """The same fault in an environment that cannot be played without its autoreset."""

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        return super().reset(jax.vmap(lambda _: jax.random.key(0))(key))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        return super().step(state, action, jax.vmap(lambda _: jax.random.key(0))(key))


class _SkipsFirst(AutoReset):
    """Same-step autoreset: MID follows LAST."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(step_type=jnp.where(timestep.first(), types.MID, timestep.step_type))


class _RewardsFirst(AutoReset):
    """The reward of the end of an episode is given once more with FIRST."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(reward=jnp.where(timestep.first(), 1.0, timestep.reward))


class _TruncationIsTermination(AutoReset):
    """`done` for everything: a time limit gives discount 0."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(discount=jnp.where(timestep.last(), 0.0, timestep.discount))


class _TerminationIsTruncation(AutoReset):
    """The end of an episode keeps discount 1, so that agents bootstrap beyond it."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(discount=jnp.ones_like(timestep.discount))


class _ZeroDiscountGoesOn(AutoReset):
    """Discount 0 with MID."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(discount=jnp.where(timestep.mid(), 0.0, timestep.discount))


class _ActsOnLast(AutoReset):
    """The action that was taken on LAST reaches the next episode."""

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        leak = jnp.where(timestep.first(), action, 0).astype(jnp.float32)
        return state, timestep.replace(observation=timestep.observation + leak[:, None])


class _SharesRandomness(AutoReset):
    """All environments start from the key of the first one."""

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        return super().reset(jnp.broadcast_to(key[:1], key.shape))


class _WrongDtype(AutoReset):
    """The observation is not what the spec says."""

    def reset(self, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().reset(key)
        return state, timestep.replace(observation=timestep.observation.astype(jnp.float16))

    def step(self, state: Any, action: Array, key: Key) -> tuple[Any, TimeStep]:
        state, timestep = super().step(state, action, key)
        return state, timestep.replace(observation=timestep.observation.astype(jnp.float16))


@pytest.mark.parametrize(
    ("vector", "complaint"),
    [
        (_DropsTerminalObservation, "without autoreset"),
        (_GivesNextFirst, "first observation of the next episode"),
        (_SkipsFirst, "FIRST must follow LAST"),
        (_RewardsFirst, "reward on FIRST"),
        (_TruncationIsTermination, "discount 0 at the time limit"),
        (_TerminationIsTruncation, "truncated, not terminated"),
        (_ZeroDiscountGoesOn, "discount 0 on MID"),
        (_ActsOnLast, "action on LAST"),
        (_SharesRandomness, "depend on each other"),
        (_WrongDtype, "float16"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_broken_environments_are_caught(vector: type[AutoReset], complaint: str) -> None:
    broken = _Broken(_Count(), 4)
    broken.vector = vector
    with pytest.raises(ContractError, match=complaint):
        Contract(broken, num_steps=24, max_steps=4).check()


def test_the_sound_environment_of_the_controls_passes() -> None:
    stream = Contract(TimeLimit(_Count(), 4), num_steps=24, max_steps=4).check()
    ends = stream.step_type == types.LAST
    assert (stream.discount[ends] == 0).any()
    assert (stream.discount[ends] == 1).any()
