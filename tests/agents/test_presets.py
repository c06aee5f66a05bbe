"""Presets are settings that exist, for environments that exist, with shapes that divide."""

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
AGENTS = ("cca", "himo", "impala", "muesli", "muzero", "nav", "r2d2")
CASES = [(agent, name) for agent in AGENTS for name in sorted(registry.agent_class(agent).presets())]


@pytest.mark.parametrize(("agent", "name"), CASES)
def test_a_preset_makes_a_job(agent: str, name: str) -> None:
    if name.startswith("nav/vizdoom"):
        pytest.importorskip("vizdoom", reason="ViZDoom is missing: pip install 'podracer-rl[vizdoom]'")
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
