"""The code of docs/write-an-agent.md and docs/write-an-environment.md, as it stands there, runs and learns."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from podracer import config, plan, registry
from podracer.contract import ContractError, check_stream
from podracer.runtimes.anakin import Anakin

pytestmark = pytest.mark.quick

DOCS = Path(__file__).parents[1] / "docs"


def _code(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)


CODE = _code("write-an-environment.md")


@pytest.fixture
def env_id(tmp_path, monkeypatch):
    (tmp_path / "my_envs.py").write_text(CODE[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return registry.env("my_envs:SUITE")


def test_the_environment_of_the_docs_keeps_the_contract(env_id):
    namespace: dict = {}
    exec(CODE[1], namespace)
    stream = namespace["Contract"](namespace["environment"], num_steps=64, max_steps=30).check(seed=1)
    with pytest.raises(ContractError, match="bounds"):
        check_stream(env_id.make().spec, stream.replace(observation=stream.observation + 1))


def test_impala_learns_the_environment_of_the_docs(env_id):
    agent_class = registry.agent_class("impala")
    job = config.JobConfig(agent_name="impala", env_name=env_id.name, agent=agent_class.Config(), env=env_id.suite.config())
    job = config.override(job, {"env.length": 5, "agent.learning_rate": 3e-3})
    environment = env_id.make(job.env)
    agent = agent_class(environment.spec, job.agent)
    runtime = Anakin(agent, environment, plan.make_plan(job, agent, 1))
    state, before = runtime.run(runtime.init(), 5)
    state, _ = runtime.run(state, 200)
    _, after = runtime.run(state, 20)
    assert before["episode_return"][0] < 0.6
    assert after["episode_return"][0] > 0.9
    assert dataclasses.asdict(job.env)["length"] == 5


@pytest.fixture
def agent_class(tmp_path, monkeypatch):
    (tmp_path / "my_agent.py").write_text(_code("write-an-agent.md")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return registry.agent_class("my_agent:ActorCritic")


def test_the_agent_of_the_docs_learns_catch(agent_class):
    env = registry.env("catch")
    job = config.JobConfig(
        agent_name="my_agent:ActorCritic", env_name="catch", agent=agent_class.Config(), env=env.suite.config(), num_devices=2
    )
    environment = env.make(job.env)
    agent = agent_class(environment.spec, job.agent)
    runtime = Anakin(agent, environment, plan.make_plan(job, agent, len(jax.devices())))
    state, before = runtime.run(runtime.init(), 50)
    state, _ = runtime.run(state, 400)
    _, after = runtime.run(state, 50)
    assert before["episode_return"][0] < 0.3
    assert after["episode_return"][0] > 0.9
