"""Presets are settings that exist, for environments that exist, with shapes that divide; READMEs have one form."""

import re
from pathlib import Path

import pytest

from podracer import registry
from podracer.launch import job as jobs

pytestmark = pytest.mark.quick

ENVIRONMENTS = {
    "paper": "nav/ray_maze",
    "paper_atari": "atari/pong",
    "paper_reanalyse": "atari/pong",
    "paper_board": "pgx/go_9x9",
    "r2d2_pong": "atari/pong",
    "r2d2_portal_choice": "hindsight/portal_choice",
}
ROOT = Path(__file__).parents[2]
CASES = [(agent, name) for agent in registry.names(registry.AGENTS) for name in sorted(registry.agent_class(agent).presets)]


@pytest.mark.parametrize(("agent", "name"), CASES)
def test_a_preset_makes_a_job(agent: str, name: str) -> None:
    if name.startswith("nav/vizdoom"):
        pytest.importorskip("vizdoom", reason="ViZDoom is missing: pip install 'podracer-rl[vizdoom]'")
    suite = registry.suite(ENVIRONMENTS.get(name, name).partition("/")[0])
    if not suite.available():
        pytest.skip(f"{suite.package} is missing: {suite.how_to_get}")
    job, taken = jobs.new_job(jobs.Request("anakin", agent, ENVIRONMENTS.get(name, name), preset=name))
    assert taken == name
    parts = jobs.build(job)
    assert parts.plan.num_updates > 10
    # Where the learning rate falls to 0, it does so about when the budget ends, and not before.
    if job.agent.decay_updates and getattr(job.agent, "decay", "linear") == "linear":
        steps = parts.plan.num_updates * parts.plan.updates_per_unroll * parts.plan.minibatches
        if name == "credit/feedback_bandit":  # every other slot is a reset, which the budget does not count
            steps *= 2
        assert steps / job.agent.decay_updates == pytest.approx(1, abs=0.01)


HEADINGS = ["From the paper to the code", "Where it differs from the paper", "Presets", "Reproductions"]


@pytest.mark.parametrize("agent", sorted(path.parent.name for path in (ROOT / "agents").glob("*/agent.py")))
def test_a_readme_has_the_form_of_the_others_and_names_what_is_there(agent: str) -> None:
    folder = ROOT / "agents" / agent
    text = (folder / "README.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert re.search(r"^    podracer launch \w+ --agent " + agent, text, re.MULTILINE)
    code = text[text.index(HEADINGS[0]) : text.index(HEADINGS[1])]
    assert "| paper | code |" in code
    files = [
        name for name in re.findall(r"`([\w/]+\.py)`", text) if not (ROOT / name).exists() and not (folder / name).exists()
    ]
    # A file is named once, the next ones of its folder by their own names.
    assert not [name for name in files if not list((ROOT / "podracer").glob(f"*/{name}"))]
