"""The command line says in one line what is wrong, and imports nothing heavy to help."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import TINY

from podracer.launch import job as jobs

LAUNCH = ("launch", "anakin")
RUN = (*LAUNCH, *TINY)


@pytest.mark.quick
@pytest.mark.parametrize(
    "arguments", ["--help", "launch --help", "launch anakin --help", "plan anakin --help", "evaluate --help"]
)
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = (
        "import sys; from podracer.launch import cli; sys.argv = ['podracer', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit as error: assert not error.code\n"
        "heavy = {'jax', 'numpy', 'rich', 'haiku', 'rlax', 'orbax', 'matplotlib', 'envpool'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout or arguments == "launch --help"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LAUNCH], "--agent is missing"),
        ([*LAUNCH, "--agent", "impala"], "--env is missing"),
        ([*LAUNCH, "--agent", "impalla", "--env", "catch"], "did you mean impala?"),
        ([*LAUNCH, "--agent", "impala", "--env", "cach"], "did you mean catch?"),
        ([*LAUNCH, "--agent", "nowhere:Agent", "--env", "catch"], "no module 'nowhere'"),
        ([*LAUNCH, "--agent", "tiny_parts:MISSING", "--env", "catch"], "no subclass of podracer.agent.Agent"),
        ([*LAUNCH, "--agent", "podracer.agent:Agent", "--env", "catch"], "no subclass of podracer.agent.Agent"),
        ([*RUN, "--env", "tiny_parts:MISSING"], "pip install 'podracer-rl[nothing]'"),
        ([*RUN, "--env", "tiny_parts:SUITE/task"], "unknown environment"),
        ([*RUN, "--stepz", "5"], "No such option '--stepz'"),
        ([*RUN, "--steps", "0"], "0 is less than 1"),
        ([*RUN, "--steps", "1.5"], "'1.5' is no whole number"),
        ([*RUN, "--seed", "3000000000"], "--seed must lie between"),
        ([*RUN, "--set", "agent.learning_rat=1"], "did you mean agent.learning_rate?"),
        ([*RUN, "--set", "agent.learning_rate=fast"], "expected float"),
        ([*RUN, "--set", "agent.learning_rate"], "write key=value"),
        ([*RUN, "--set", "env_name=catch"], "use --env"),
        ([*RUN, "--set", "agent.unroll_length=101"], "too long for the tiny agent"),
        ([*RUN, "--set", "agent.replay_share=0.4"], "no whole number of replayed sequences"),
        ([*RUN, "--set", "anakin.num_envs=15", "--devices", "2"], "does not divide over 2 devices: try 14 or 16"),
        ([*RUN, "--devices", "9"], "XLA_FLAGS"),
        ([*RUN, "--set", "agent.replay_capacity=10_000_000_000_000"], "most of it for replay"),
        ([*RUN, "--preset", "shorr"], "did you mean short?"),
        ([*RUN, "--resume"], "--resume needs --run-dir"),
        ([*RUN, "--resume", "--run-dir", "no-such-folder"], "holds no run"),
        ([*RUN, "--run-dir", "/dev/null/x"], "--run-dir"),
        (["launch", "sebulbo"], "No such command 'sebulbo'"),
        (["evaluate", "no-such-folder"], "holds no run"),
        (["evaluate", "no-such-folder", "--video", "/dev/null/film.mp4"], "--video /dev/null/film.mp4"),
        (["evaluate"], "Missing argument 'RUN_DIR' (podracer evaluate --help)"),
        (["actor", "--connect", "nowhere"], "write HOST:PORT"),
        (["logs", "no-such-folder"], "holds no run on several hosts"),
        (["reverb", "serve", "--tables", "a=queue:many"], "sizes and settings are numbers"),
        (["envs", "nowhere"], "unknown environment 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line(podracer: Callable[..., Any], arguments: list[str], message: str) -> None:
    result = podracer(*arguments)
    assert result.code == 2
    assert message in result.err
    assert result.err.startswith("podracer: ")
    assert result.err.count("\n") == 1
    assert result.out == ""


def test_a_bug_keeps_its_traceback(podracer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(request: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(jobs, "new_job", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        podracer(*RUN)


def test_dry_run_prints_and_writes_nothing(podracer: Callable[..., Any], tmp_path: Path) -> None:
    result = podracer(*RUN, "--dry-run", "--run-dir", tmp_path / "run", "--steps", "2e6")
    assert result.code == 0
    assert "num_steps = 2000000" in result.out
    assert "steps_per_update = 64" in result.out
    assert "  replay = " in result.out
    assert not (tmp_path / "run").exists()


def test_a_refused_run_leaves_no_folder(podracer: Callable[..., Any], tmp_path: Path) -> None:
    result = podracer(*RUN, "--env", "tiny_parts:OUTSIDE", "--seeds", "2", "--run-dir", tmp_path / "run")
    assert (result.code, result.err.count("\n")) == (2, 1), result
    assert "--seeds 1" in result.err
    assert not (tmp_path / "run").exists()


def test_flags_win_over_set_which_wins_over_presets() -> None:
    request = jobs.Request(
        "anakin", TINY[1], TINY[3], preset="short", steps=99, settings=("anakin.num_envs=32", "num_steps=5", "seed=3")
    )
    job, preset = jobs.new_job(request)
    assert preset == "short"
    assert (job.agent.unroll_length, job.anakin.num_envs, job.num_steps, job.seed) == (2, 32, 99, 3)


def test_the_preset_of_the_environment_is_the_default() -> None:
    job, preset = jobs.new_job(jobs.Request("anakin", "impala", "catch"))
    assert preset == "catch"
    assert job.num_steps != jobs.new_job(jobs.Request("anakin", TINY[1], TINY[3]))[0].num_steps == 1_000_000


@pytest.mark.parametrize("agent", ["impala", "muesli", TINY[1]])
def test_config_json_makes_the_same_job(agent: str, tmp_path: Path) -> None:
    job, preset = jobs.new_job(jobs.Request("anakin", agent, "catch", settings=("checkpoint_seconds=0.1",)))
    jobs.save_job(tmp_path, job, preset)
    assert jobs.load_job(tmp_path) == (job, preset)
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)  # Infinity is not JSON


def test_completion_of_agents_and_environments(start: Callable[..., Any]) -> None:
    import click
    from click.shell_completion import ShellComplete

    from podracer.launch import cli

    complete = ShellComplete(cli.cli, {}, "podracer", "_PODRACER_COMPLETE")

    def words(arguments: list[str], incomplete: str) -> set[str]:
        return {item.value for item in complete.get_completions(arguments, incomplete)}

    assert isinstance(cli.cli, click.Group)
    assert words(["launch", "anakin", "--agent"], "imp") == {"impala"}
    assert words(["launch", "anakin", "--env"], "cat") == {"catch"}
    assert "gymnax/CartPole-v1" in words(["launch", "anakin", "--env"], "gymnax/Cart")
    assert words(["launch", "anakin", "--env"], "nonsense/") == set()


def test_agents_and_envs_list_what_there_is(podracer: Callable[..., Any]) -> None:
    assert "impala" in podracer("agents").out
    assert "catch" in podracer("envs").out
    assert "gymnax/CartPole-v1" in podracer("envs", "gymnax").out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore, after a read that failed
def test_a_used_folder_and_another_config_are_refused(podracer: Callable[..., Any], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert podracer(*RUN, "--steps", 200, "--run-dir", run_dir).code == 0
    for arguments, message in [
        ([*RUN], "already holds a run"),
        (["--resume", "--set", "agent.learning_rate=1"], "--resume with another agent.learning_rate"),
        (["--resume", "--seed", 1], "--resume with another seed"),
        (["--resume", "--agent", "impala"], "--resume with another agent"),
        (["--resume", "--steps", 100], "it may only grow"),
        (["--resume", "--preset", "short"], "--resume with another"),
    ]:
        command = arguments if arguments[0] == "launch" else [*LAUNCH, *arguments]
        result = podracer(*command, "--run-dir", run_dir)
        assert (result.code, result.err.count("\n")) == (2, 1), result
        assert message in result.err
    _foreign_and_damaged(podracer, run_dir)


def _foreign_and_damaged(podracer: Callable[..., Any], run_dir: Path) -> None:
    other = run_dir.parent / "other"
    assert podracer(*RUN, "--steps", 200, "--run-dir", other, "--set", "agent.unroll_length=2").code == 0
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run_dir / "checkpoints", other / "checkpoints")
    for path in (run_dir / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(b"x" * 10)
    for folder, message in ((other, "belongs to another run: agent.unroll_length"), (run_dir, "is damaged")):
        for command in ((*LAUNCH, "--resume", "--run-dir", folder), ("evaluate", folder)):
            result = podracer(*command)
            assert (result.code, result.err.count("\n")) == (2, 1), result
            assert message in result.err
    (run_dir / "config.json").write_text("{")
    assert "config.json is damaged" in podracer("evaluate", run_dir).err
