"""Evaluation gives every environment its share, so that the mean is that of the episodes, not of the short ones."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import types
from podracer.environment import AutoReset, Environment, JaxEnvironment, Unsupported, VectorEnvironment
from podracer.evaluate import Evaluator, evaluate
from podracer.types import ActorOutput, EnvironmentSpec, Mode

pytestmark = pytest.mark.quick


class Coin(NamedTuple):
    long: Any
    t: Any


class CoinEnvironment(JaxEnvironment):
    """Half of the episodes take 1 step and return 1, half take 9 and return 9. The true mean is 5."""

    def __init__(self, endless: bool = False, picture: bool = True, game: bool = False):
        self.endless, self.picture, self.game = endless, picture, game
        self.spec = EnvironmentSpec(name="coin", observation=specs.Array((1,), np.float32), action=specs.DiscreteArray(2))

    def reset(self, key: Any) -> Any:
        return Coin(long=jax.random.bernoulli(key), t=jnp.int32(0)), types.restart(jnp.zeros((1,)))

    def step(self, state: Any, action: Any, key: Any) -> Any:
        state = state._replace(t=state.t + 1)
        ended = (state.t >= jnp.where(state.long, 9, 1)) & (not self.endless)
        return state, types.transition(1.0, jnp.ones((1,)), terminated=ended, discount=-1.0 if self.game else 1.0)

    def render(self, state: Any) -> Any:
        return jnp.full((4, 5, 3), state.t, jnp.uint8) if self.picture else None


class Idle:
    """An agent that always does nothing."""

    def initial_actor_state(self, batch_size: int) -> Any:
        return ()

    def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Mode) -> Any:
        action = jnp.zeros(timestep.reward.shape, jnp.int32)
        return ActorOutput(action=action, log_prob=jnp.zeros_like(timestep.reward)), actor_state


IDLE: Any = Idle()


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, 32), (7, 3), (6, 3), (40, 8)])
def test_exactly_n_episodes_with_matching_lengths(episodes: int, num_envs: int) -> None:
    stats = evaluate(IDLE, CoinEnvironment(), {}, episodes, num_envs=num_envs)
    assert stats.returns.shape == stats.lengths.shape == (episodes,)
    assert set(stats.returns) <= {1.0, 9.0}
    np.testing.assert_array_equal(stats.returns, stats.lengths)


def test_short_episodes_are_not_favoured() -> None:
    stats = evaluate(IDLE, CoinEnvironment(), {}, 600, num_envs=200)
    # The first 600 to end would have a mean near 2; the standard error of an honest one is 0.16.
    assert abs(stats.returns.mean() - 5.0) < 0.7


def test_seed_decides_everything() -> None:
    first, again, other = (evaluate(IDLE, CoinEnvironment(), {}, 30, seed=seed, num_envs=10) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)


def test_recording_does_not_change_what_is_played() -> None:
    plain = evaluate(IDLE, CoinEnvironment(), {}, 12, num_envs=4)
    filmed = evaluate(IDLE, CoinEnvironment(), {}, 12, num_envs=4, record=True)
    np.testing.assert_array_equal(plain.returns, filmed.returns)
    assert plain.frames is None
    assert filmed.frames is not None
    assert filmed.frames.shape == (int(filmed.lengths[0]) + 1, 4, 5, 3)
    np.testing.assert_array_equal(filmed.frames[:, 0, 0, 0], np.arange(len(filmed.frames)))


def test_a_film_shows_what_the_agent_makes_of_what_it_sees_and_of_its_labels() -> None:
    class Labelled(CoinEnvironment):
        def step(self, state: Any, action: Any, key: Any) -> Any:
            state, timestep = super().step(state, action, key)
            return state, timestep.replace(aux=state.t)

        def reset(self, key: Any) -> Any:
            state, timestep = super().reset(key)
            return state, timestep.replace(aux=state.t)

    class Drawing(Idle):
        def picture(self, params: Any, actor_state: Any, timestep: Any) -> Any:
            return jnp.broadcast_to(10 + timestep.aux[:, None, None, None], (len(timestep.aux), 2, 3, 3)).astype(jnp.uint8)

    drawing: Any = Drawing()
    frames = evaluate(drawing, Labelled(), {}, 1, record=True).frames
    assert frames is not None
    assert frames.shape[1:] == (4, 5 + 2 * 3, 3)  # the small one is enlarged to the height of the other
    np.testing.assert_array_equal(frames[:, :, 5:, 0] - frames[:, :1, :1, 0], 10)


def test_no_picture_no_frames() -> None:
    assert evaluate(IDLE, CoinEnvironment(picture=False), {}, 2, record=True).frames is None


def test_an_image_observation_is_the_picture_where_there_is_no_other() -> None:
    class Image(CoinEnvironment):
        def _see(self, timestep: Any) -> Any:
            return timestep.replace(observation={"image": jnp.arange(24, dtype=jnp.uint8).reshape(2, 3, 4)})

        def reset(self, key: Any) -> Any:
            state, timestep = super().reset(key)
            return state, self._see(timestep)

        def step(self, state: Any, action: Any, key: Any) -> Any:
            state, timestep = super().step(state, action, key)
            return state, self._see(timestep)

    frames = evaluate(IDLE, Image(picture=False), {}, 1, record=True).frames
    assert frames is not None
    np.testing.assert_array_equal(frames[0, ..., 0], [[3, 7, 11], [15, 19, 23]])  # the newest channel is the last


def test_return_of_the_first_player_alternates_in_a_game() -> None:
    stats = evaluate(IDLE, CoinEnvironment(game=True), {}, 20, num_envs=10)
    np.testing.assert_array_equal(stats.returns, np.ones(20))  # +1 -1 +1 ... over an odd number of plies


def test_an_episode_without_end_is_refused() -> None:
    evaluator = Evaluator(IDLE, CoinEnvironment(endless=True), 2, max_episode_steps=50)
    with pytest.raises(Unsupported, match="coin did not end within 50 steps"):
        evaluator.run({})


def test_compiled_once_for_many_parameters() -> None:
    traces = []

    class Counting(Idle):
        def act(self, *arguments: Any) -> Any:
            traces.append(1)
            return super().act(*arguments)

    counting: Any = Counting()
    evaluator = Evaluator(counting, CoinEnvironment(), 50, num_envs=2)
    evaluator.run({"w": jnp.zeros(2)})
    before = len(traces)
    evaluator.run({"w": jnp.ones(2)})
    assert len(traces) == before


@dataclasses.dataclass
class Outside(Environment):
    """A world outside XLA: `reset` must not be traced."""

    inner: CoinEnvironment

    def __post_init__(self) -> None:
        self.spec = self.inner.spec

    def vectorize(self, num_envs: int, seed: int) -> VectorEnvironment:
        class Vector(AutoReset):
            pure = False

            def reset(self, key: Any) -> Any:
                assert not isinstance(key, jax.core.Tracer)
                return super().reset(key)

        return Vector(self.inner)


def test_environments_outside_xla_are_reset_outside_jit() -> None:
    assert evaluate(IDLE, Outside(CoinEnvironment()), {}, 3).returns.shape == (3,)
