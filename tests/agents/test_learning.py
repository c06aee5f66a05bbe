"""Agents learn, through the real runtime, what their negative controls cannot."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import registry, types
from podracer.environment import JaxEnvironment
from podracer.launch import job as jobs
from podracer.runtimes.anakin import Anakin
from podracer.types import EnvironmentSpec, Mode

SMALL = {
    "muesli": (
        "agent.torso.hidden=(32,)",
        "agent.head_hidden=(32,)",
        "agent.dynamics.size=32",
        "agent.bins.num_bins=41",
        "agent.bins.limit=3.0",
        "agent.model_steps=2",
        "agent.num_kl_samples=0",
        "agent.num_q_samples=0",
        "agent.unroll_length=10",
        "agent.replay_share=0.5",
        "agent.replay_capacity=1600",
        "agent.learning_rate=3e-3",
        "anakin.num_envs=16",
    ),
    "muzero": (
        "agent.torso.hidden=(64,)",
        "agent.dynamics.size=64",
        "agent.bins.num_bins=41",
        "agent.bins.limit=3.0",
        "agent.model_steps=3",
        "agent.search.num_simulations=16",
        "agent.unroll_length=9",
        "agent.replay_capacity=3200",
        "agent.updates_per_unroll=4",
        "agent.learning_rate=3e-3",
        "anakin.num_envs=32",
    ),
    "impala": (
        "agent.torso.hidden=(32,)",
        "agent.unroll_length=10",
        "agent.learning_rate=3e-3",
        "anakin.num_envs=32",
    ),
    "himo": (
        "agent.torso.hidden=(32,)",
        "agent.core.size=32",
        "agent.remember=true",
        "agent.lookahead=3",
        "agent.unroll_length=9",
        "agent.q.replay_capacity=3200",
        "agent.q.updates_per_unroll=4",
        "agent.learning_rate=3e-3",
        "anakin.num_envs=16",
    ),
}
"""Over the presets; the other agents are taken as those have them."""


@dataclasses.dataclass(frozen=True)
class Nothing:
    """No options."""


class Cue(JaxEnvironment):
    """A cue at the first step, then `delay` steps of nothing; the reward of the last action is 1 if it is the cue, else -1.

    Without memory the best return is 0.
    """

    delay = 3
    spec = EnvironmentSpec(
        name="cue", observation=specs.BoundedArray((4,), np.float32, 0.0, 1.0), action=specs.DiscreteArray(2)
    )

    def reset(self, key):
        cue = jax.random.bernoulli(key).astype(jnp.int32)
        return (cue, jnp.int32(0)), types.restart(jnp.zeros(4).at[cue].set(1.0))

    def step(self, state, action, key):
        cue, count = state
        over = count == self.delay
        reward = jnp.where(over, jnp.where(action == cue, 1.0, -1.0), 0.0)
        observation = jnp.zeros(4).at[2].set(1.0).at[3].set(count + 1 == self.delay)
        return (cue, count + 1), types.transition(reward, observation, terminated=over)


class Reach(JaxEnvironment):
    """A point on a line is pushed by up to 0.5 a step; the reward is minus its distance from a target, five times."""

    spec = EnvironmentSpec(
        name="reach",
        observation=specs.BoundedArray((2,), np.float32, -1.0, 1.0),
        action=specs.BoundedArray((1,), np.float32, -1.0, 1.0),
    )

    def reset(self, key):
        position, target = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)
        return (position, target, jnp.int32(0)), types.restart(jnp.stack([position, target]))

    def step(self, state, action, key):
        position, target, count = state
        position = jnp.clip(position + 0.5 * action[0], -1.0, 1.0)
        over = count == 4
        timestep = types.transition(-jnp.abs(position - target), jnp.stack([position, target]), terminated=over)
        return (position, target, count + 1), timestep


CUE, REACH = (
    registry.Suite(make=lambda task, config, made=made: made(), tasks=lambda: ("",), config=Nothing, summary="for tests")
    for made in (Cue, Reach)
)


class Trained(NamedTuple):
    """actor_params: at the end. before, after: mean returns of training episodes in the first and the last tenth.

    These are played by what actors act with, without any exploration but the policy's own.
    """

    agent: Any
    actor_params: Any
    before: float
    after: float


def train(agent, env, num_updates, *settings):
    """Runs `num_updates` updates of the job that the command line would make of these names and settings."""
    request = jobs.Request(runtime="anakin", agent=agent, env=env, devices=1, settings=(*SMALL.get(agent, ()), *settings))
    parts = jobs.build(jobs.new_job(request)[0])
    runtime, part = Anakin(parts.agent, parts.environment, parts.plan), num_updates // 10
    state, first = runtime.run(runtime.init(), part)
    state, _ = runtime.run(state, num_updates - 2 * part)
    state, last = runtime.run(state, part)
    assert last["finite"].all()
    before, after = (float(metrics["episode_return"][0]) for metrics in (first, last))
    return Trained(agent=parts.agent, actor_params=runtime.actor_params(state), before=before, after=after)


@pytest.mark.parametrize(("agent", "num_updates"), [("muesli", 400), ("impala", 600)])
def test_catch(agent, num_updates):
    learned = train(agent, "catch", num_updates).after
    assert train(agent, "catch", num_updates, "agent.learning_rate=0").after < -0.3
    assert learned > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gumbel", "puct"])
def test_muzero_learns_catch(kind):
    learned = train("muzero", "catch", 340, f"agent.search.kind={kind}").after
    assert train("muzero", "catch", 100, f"agent.search.kind={kind}", "agent.learning_rate=0").after < 0.0
    assert learned > 0.8


@pytest.mark.slow
def test_r2d2_learns_catch():
    learned = train("r2d2", "catch", 200).after
    assert train("r2d2", "catch", 50, "agent.learning_rate=0").after < -0.2
    assert learned > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("base", "num_updates", "good"), [("vtrace", 1200, 0.8), ("r2d2", 600, 0.5)])
def test_both_forms_of_himo_learn_catch(base, num_updates, good):
    learned = train("himo", "catch", num_updates, f"agent.base={base}").after
    assert train("himo", "catch", num_updates // 4, f"agent.base={base}", "agent.learning_rate=0").after < -0.3
    assert learned > good


@pytest.mark.slow
def test_nav_learns_its_way_through_a_maze():
    """As its preset has it, for a few percent of the budget; the control goes round at random."""
    learned = train("nav", "nav/ray_maze", 400).after
    assert learned > 2 * train("nav", "nav/ray_maze", 100, "agent.learning_rate=0").after > 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "num_updates"), [("pg", 600), ("cmpo", 1500), ("mpo", 1500), ("ppo", 600), ("trpo", 600)])
def test_every_policy_loss_learns_catch(kind, num_updates):
    # Those that learn from the model's q alone wait for the model. An idle agent is in the test above.
    assert train("muesli", "catch", num_updates, f"agent.policy_loss={kind}").after > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "num_updates"), [("muesli", 400), ("impala", 800)])
def test_memory_is_what_a_recurrent_core_adds(agent, num_updates):
    recurrent = train(agent, f"{__name__}:CUE", num_updates, "agent.core.kind=lstm", "agent.core.size=16").after
    assert abs(train(agent, f"{__name__}:CUE", num_updates).after) < 0.2
    assert recurrent > 0.8


@pytest.mark.slow
def test_r2d2_solves_the_t_maze_with_its_memory():
    assert train("r2d2", "gridworld/tmaze", 1000).after > 0.8
    assert train("r2d2", "gridworld/tmaze", 1000, "agent.core.kind=none", "agent.burn_in=0").after < 0.1


@pytest.mark.slow
def test_muesli_reaches_with_continuous_actions():
    settings = ("agent.num_kl_samples=8", "agent.num_q_samples=8", "agent.discount=0.9")
    trained = train("muesli", f"{__name__}:REACH", 400, *settings)
    assert trained.after > -0.8
    assert trained.before < -1.2  # the control: what the policy does before it has learned much


@pytest.mark.slow
def test_muzero_reaches_with_sampled_actions():
    settings = ("agent.search.num_sampled_actions=8", "agent.discount=0.9", "agent.unroll_length=10")
    learned = train("muzero", f"{__name__}:REACH", 400, *settings).after
    assert train("muzero", f"{__name__}:REACH", 100, *settings, "agent.learning_rate=0").after < -2.0
    assert learned > -1.0


def test_impala_reaches_with_continuous_actions():
    settings = ("agent.discount=0.9", "agent.entropy_cost=0.001")
    learned = train("impala", f"{__name__}:REACH", 400, *settings).after
    assert train("impala", f"{__name__}:REACH", 400, *settings, "agent.learning_rate=0").after < -2.0
    assert learned > -1.0


def score_against_random(agent, environment, params, num_games):
    """The mean of 1, 0 and -1 for games won, drawn and lost; the agent begins every other game."""
    keys = jax.random.split(jax.random.key(0), num_games)
    begins = jnp.arange(num_games) % 2 == 0

    def ply(carry, t):
        state, timestep, done, score = carry
        key = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
        own = agent.act(params, agent.initial_actor_state(num_games), timestep, key, Mode.EVALUATE)[0].action
        legal = timestep.observation["legal_actions"]
        other = jax.vmap(jax.random.categorical)(key, jnp.where(legal, 0.0, -jnp.inf))
        mine = (t % 2 == 0) == begins
        state, timestep = jax.vmap(environment.step)(state, jnp.where(mine, own, other), key)
        score = score + jnp.where(done, 0.0, jnp.where(mine, 1.0, -1.0) * timestep.reward)
        return (state, timestep, done | timestep.last(), score), None

    start = (*jax.vmap(environment.reset)(keys), jnp.zeros(num_games, jnp.bool), jnp.zeros(num_games))
    return jnp.mean(jax.lax.scan(ply, start, jnp.arange(9))[0][-1])


@pytest.mark.slow
def test_muesli_learns_a_game_for_two_from_itself():
    if not registry.suite("pgx").available():
        pytest.skip("pgx is missing: pip install 'podracer-rl[pgx]'")
    settings = ("agent.torso.kind=mlp", "agent.torso.hidden=(64,)", "agent.evaluation=greedy", "anakin.num_envs=32")
    trained = train("muesli", "pgx/tic_tac_toe", 1000, *settings)
    environment = registry.env("pgx/tic_tac_toe").make()
    score = jax.jit(lambda params: score_against_random(trained.agent, environment, params, 512))
    learned, fresh = score(trained.actor_params), score(trained.agent.init(jax.random.key(0)).params)
    assert learned > 0.5
    assert fresh < 0.2
