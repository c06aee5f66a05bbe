"""The code of docs/write-an-agent.md, as it stands there, learns."""

import re
from pathlib import Path

import jax
import pytest

from podracer import config, plan, registry
from podracer.runtimes.anakin import Anakin

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def agent_class(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (DOCS / "write-an-agent.md").read_text(), re.DOTALL)
    (tmp_path / "my_agent.py").write_text(code.group(1))
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
    runtime = Anakin(agent, environment, plan.make_plan(job, agent, environment.spec, len(jax.devices())))
    state, before = runtime.run(runtime.init(), 50)
    state, _ = runtime.run(state, 400)
    _, after = runtime.run(state, 50)
    assert before["episode_return"][0] < 0.3
    assert after["episode_return"][0] > 0.9
