"""The code of docs/write-an-environment.md, as it stands there, runs and can be learned."""

import dataclasses
import re
from pathlib import Path

import pytest

from podracer import config, plan, registry
from podracer.contract import ContractError, check_stream
from podracer.runtimes.anakin import Anakin

pytestmark = pytest.mark.quick

PAGE = (Path(__file__).parents[2] / "docs" / "write-an-environment.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


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
    runtime = Anakin(agent, environment, plan.make_plan(job, agent, environment.spec, 1))
    state, before = runtime.run(runtime.init(), 5)
    state, _ = runtime.run(state, 200)
    _, after = runtime.run(state, 20)
    assert before["episode_return"][0] < 0.6
    assert after["episode_return"][0] > 0.9
    assert dataclasses.asdict(job.env)["length"] == 5
