"""Labels reach the loss and no policy: an agent that would act by them finds none, wherever it acts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dm_env import specs

from podracer import config, types
from podracer.agent import Agent
from podracer.environment import JaxEnvironment
from podracer.evaluate import Evaluator, evaluate
from podracer.match import AgentOpponent, play_match
from podracer.plan import make_plan
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba
from podracer.types import ActorOutput, EnvironmentSpec

pytestmark = pytest.mark.quick

LENGTH = 4


@dataclasses.dataclass(frozen=True)
class Config:
    unroll_length: int = LENGTH + 1  # an episode and its reset
    learning_rate: float = 0.0


class Answers(JaxEnvironment):
    """Every label is 1 and tells the action that pays; with two players they move in turn."""

    def __init__(self, num_players: int = 1):
        self.spec = EnvironmentSpec(
            name="answers",
            observation=specs.Array((1,), np.float32),
            action=specs.DiscreteArray(2),
            aux={"answer": specs.Array((), np.int32)},
            num_players=num_players,
        )

    def reset(self, key: Any) -> Any:
        return jnp.int32(0), types.restart(jnp.zeros(1), aux={"answer": jnp.int32(1)})

    def step(self, state: Any, action: Any, key: Any) -> Any:
        turn = 1.0 if self.spec.num_players == 1 else -1.0
        over = state + 1 == LENGTH
        aux = {"answer": jnp.int32(1)}
        return state + 1, types.transition(action == 1, jnp.zeros(1), terminated=over, discount=turn, aux=aux)


class Peeking(Agent[Config]):
    """Plays the label where there is one, else 0."""

    Config = Config

    def init(self, key: Any) -> Any:
        return self.train_state({"w": jnp.zeros(1)})

    def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Any) -> Any:
        action = timestep.aux["answer"] if timestep.aux else jnp.zeros(timestep.reward.shape, jnp.int32)
        return ActorOutput(action=action, log_prob=jnp.zeros_like(timestep.reward)), actor_state

    def loss(self, params: Any, train_state: Any, trajectory: Any, key: Any) -> Any:
        answer = trajectory.timestep.aux["answer"].astype(jnp.float32)
        return params["w"][0] * 0, {"label": jnp.mean(answer), "action": jnp.mean(trajectory.actor_output.action)}


def agent(num_players: int = 1) -> Peeking:
    return Peeking(Answers(num_players).spec, Config())


@pytest.mark.parametrize("runtime", [Anakin, Sebulba])
def test_actors_of_a_runtime_see_no_labels_and_the_loss_sees_them(runtime: Any) -> None:
    peeking, environment = agent(), Answers()
    job = config.JobConfig("peeking", "answers", Config(), (), runtime=runtime.__name__.lower())
    job = config.override(job, {"anakin.num_envs": 2, "sebulba.actor_devices": 1, "sebulba.learner_devices": 1})
    running = runtime(peeking, environment, make_plan(job, peeking, len(jax.devices())))
    try:
        _, metrics = running.run(running.init(), 2)
    finally:
        running.close()
    assert metrics["label"] == 1
    assert metrics["action"] == 0
    assert metrics["episode_return"] == 0


def test_evaluation_shows_no_labels() -> None:
    assert evaluate(agent(), Answers(), {}, 3).returns.tolist() == [0, 0, 0]


def test_an_actor_that_gets_labels_would_use_them() -> None:
    """The negative control of this file."""

    class Leaking(Peeking):
        def act(self, params: Any, actor_state: Any, timestep: Any, key: Any, mode: Any) -> Any:
            return super().act(params, actor_state, timestep.replace(aux={"answer": jnp.ones_like(key, int)}), key, mode)

    evaluator = Evaluator(Leaking(Answers().spec, Config()), Answers(), 3)
    assert evaluator.run({}).returns.tolist() == [LENGTH] * 3


def test_players_of_a_match_see_no_labels() -> None:
    peeking, environment = agent(2), Answers(2)
    stats = play_match(peeking, {}, AgentOpponent(peeking, {}), environment, 4)
    assert stats.returns.tolist() == [0] * 4

    class Opponent:
        """Plays the label where there is one, else 0, which pays nothing."""

        def initial_state(self, batch_size: int) -> Any:
            return ()

        def act(self, state: Any, timestep: Any, key: Any) -> Any:
            return peeking.act({}, (), timestep, key, None)[0].action, state

    assert play_match(peeking, {}, Opponent(), environment, 4).returns.tolist() == [0] * 4
