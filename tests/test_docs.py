"""The documentation is true: its commands are real, its links lead somewhere, its errors are what people get, its site builds.

Every command of every page, and of `--help`, is checked. Training is `--dry-run`, which makes the agent, the environment and
the runtime and shows every name, flag, preset and shape to be right; `evaluate`, `agents`, `envs` and `doctor` really run, on
runs of a few steps. Plans are made up to the compiler. Of benchmarks, and of commands that need a server, a cluster or the
network, words and options are parsed; `# needs ...` beside a command says that it takes what a test does not have.
"""

import argparse
import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import click
import pytest
from docs_commands import NEEDS, ROOT, Command, answers, commands, pages, sessions

from podracer import __version__, registry
from podracer.config import keys
from podracer.launch import cli
from podracer.launch import job as jobs
from podracer.launch import plan as plans
from podracer.runtimes.anakin import Anakin
from podracer.runtimes.sebulba.runtime import Sebulba

ERRORS = ROOT / "docs" / "errors.md"
COMMANDS = list({command.words: command for command in reversed(commands())}.values())
# What stands for something in a synopsis, and what it may be.
PLACEHOLDERS = {
    "COMMAND": "evaluate",
    "DIR": "sweeps/one",
    "HOST:PORT": "127.0.0.1:8000",
    "KEY=A,B": "agent.learning_rate=1e-3,3e-4",
    "N": "1",
    "RUN": "runs/first",
    "RUN_DIR": "runs/first",
    "SUITE": "gymnax",
    "PROJECT": "my-project",
    "URL": "http://127.0.0.1:8265",
    "[SUITE]": "gymnax",
}
RUNTIMES = {"anakin": Anakin, "sebulba": Sebulba}
JOB = {"anakin": ("--agent", "impala", "--env", "catch"), "sebulba": ("--agent", "impala", "--env", "gymnasium/CartPole-v1")}
TINY = ("--set", "eval_episodes=1", "--steps", "64")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pages' own modules, and runs of a few steps under the names that pages use."""
    folder = tmp_path_factory.mktemp("docs")
    for page, name, number in (("write-an-agent", "my_agent", 0), ("write-an-environment", "my_envs", 0)):
        code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
        (folder / f"{name}.py").write_text(code[number])
    names = {"first": "catch", "tic-tac-toe": "pgx/tic_tac_toe"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        for name, env in names.items():
            if registry.suite(env.partition("/")[0]).available():
                few = ("--set", "anakin.num_envs=2")
                words = ["launch", "anakin", "--agent", "impala", "--env", env, "--run-dir", f"runs/{name}", *TINY, *few]
                assert _run(monkeypatch, words) == 0
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.where} {' '.join(command.words)}"[:110])
def test_a_command_of_the_docs_is_a_real_one(command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    monkeypatch.syspath_prepend(str(runs))
    program, *words = command.words
    check: Callable[..., None] = {"podracer": _podracer, "make": _make, "python": _benchmark, "pip": _pip}[program]
    check(words, monkeypatch)


def test_commands_are_found_everywhere() -> None:
    found = {command.where.partition(":")[0] for command in commands()}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "docs/tour.md",
        "docs/cluster.md",
        "agents/r2d2/README.md",
        "envs/README.md",
    } <= found
    marked = [command for command in commands() if NEEDS in command.comment]
    assert 0 < len(marked) < 10, "marks are for hardware alone"


def _podracer(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, *others = " ".join(words).split(" | ")
    if others:  # `reverb install | serve`: several that differ in a word
        for text in others:
            _parsed([*first.split()[:-1], *text.split()])
        words = first.split()
    words = _filled(words)
    name, inner = words[0], words[1:]
    if name in ("agents", "envs", "doctor") or "--help" in words:
        assert _run(monkeypatch, words) == 0
    elif name == "launch" and len(inner) > 1 and inner[0] in JOB:
        assert _dry_run(words, monkeypatch) == 0
    elif name == "plan" and len(inner) > 1 and inner[0] in JOB:
        _planned(words, monkeypatch)
    elif name == "evaluate" and inner:
        _evaluated(inner, monkeypatch)
    else:
        _parsed(words)
    if "--" in words:  # a sweep's or a cluster's
        launched = words[words.index("--") + 1 :]
        assert _dry_run(launched if launched[0] == "launch" else ["launch", *launched], monkeypatch) == 0


def _filled(words: list[str]) -> list[str]:
    """Words with something real in the place of what stands for it; `...` is an agent, an environment, or a whole launch."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if "..." not in words:
        return words
    runtime = next((word for word in words if word in JOB), "")
    at = words.index("...")
    missing = [*(() if runtime else ("anakin",)), *(() if "--agent" in words else JOB[runtime or "anakin"])]
    return [*words[:at], *missing, *words[at + 1 :]]


TRACED: set[tuple[str, ...]] = set()
"""Launches whose shapes were traced. What differs from one of them in settings alone is not traced again, to save time."""


def _dry_run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command as a dry run in the folder of `runs`; what it goes on with is a run of there. Returns the exit code."""
    if "--run-dir" in words:
        at = words.index("--run-dir")
        words = [*words[:at], *(("--run-dir", "runs/first") if "--resume" in words else ()), *words[at + 2 :]]
    if "--agent" not in words and "--resume" not in words:  # the text around it says of which agent it speaks
        words = [*words, *JOB[words[1]]]
    if "sebulba" in words and "--actor-devices" not in words:  # a page speaks of one device, where here are eight
        words = [*words, "--actor-devices", "1", "--learner-devices", "1"]
    parts = (words[1], *(words[at + 1] for at, word in enumerate(words) if word in ("--agent", "--env", "--preset")))
    if parts in TRACED:
        monkeypatch.setattr(RUNTIMES[words[1]], "memory", lambda runtime: {})
    TRACED.add(parts)
    return _run(monkeypatch, [*words, *(() if "--dry-run" in words else ("--dry-run",))])


def _planned(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans up to where a process of its own would compile; there agent, environment and the plan of batches are made."""

    class Asked(Exception):
        pass

    def ask(asker: Any, job: Any, notes: list[str]) -> None:
        del notes
        topology = asker._topology
        jobs.build(job, topology.devices_per_host if topology else None)
        raise Asked

    monkeypatch.setattr(plans._Asker, "ask", ask)
    with pytest.raises(Asked):
        _run(monkeypatch, [*words, *(() if "--agent" in words else JOB[words[1]])])


def _evaluated(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Plays two episodes of a run of ours. What is set and IMPALA does not have, another agent has."""
    _parsed(["evaluate", *words])
    settings = [words[at + 1].partition("=")[0] for at, word in enumerate(words) if word == "--set"]
    for key in settings:
        if key.startswith("agent.") and key not in keys(registry.agent_class("impala").Config(), "agent."):
            found = [registry.agent_class(name) for name in registry.names(registry.AGENTS)]
            assert any(key in keys(agent.Config(), "agent.") for agent in found), f"no agent has {key}"
            return
    ours = "runs/first"
    if "--opponent" in words:
        if not registry.suite("pgx").available():
            pytest.skip("pgx is not installed")
        ours = "runs/tic-tac-toe"
    words = [ours if word.startswith("runs/") and "." not in word else word for word in words]
    assert _run(monkeypatch, ["evaluate", *words, "--episodes", "2"]) == 0  # the later word holds


def _parsed(words: list[str]) -> None:
    """Raises where click knows no such command or option, or a value does not fit its option."""
    group: click.Command = cli.cli
    rest = list(words)
    while isinstance(group, click.Group):
        if not rest:
            return  # the name of a group
        assert rest[0] in group.commands, f"podracer has no command {' '.join(words)}"
        group = group.commands[rest.pop(0)]
    if rest:  # else it is spoken of, not run
        group.make_context(words[0], rest)


def _run(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> int:
    """`podracer WORDS` in this process. Returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["podracer", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _make(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    for word in words:
        if "=" not in word:
            assert re.search(rf"^{re.escape(word)}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {word}"


def _pip(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    del monkeypatch
    assert words[0] in ("install", "wheel")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        ours = word.startswith((".", "podracer-rl", "dist/podracer_rl"))
        if match := re.search(r"\[(.*)\]$", word):
            known = project["optional-dependencies"] if ours else ("cuda12", "tpu")
            assert set(match.group(1).split(",")) <= set(known)
        if word.startswith("dist/"):
            assert re.match(rf"dist/podracer_rl-{re.escape(__version__)}-py3-none-any\.whl", word)


def _benchmark(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A benchmark's own parser takes the words; it goes no further."""

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        _, unknown = parse(parser, *args, **kwargs)
        assert not unknown
        raise Parsed

    script, *arguments = words
    script = script.replace("NAME", "muesli")
    assert (ROOT / script).exists(), script
    if script.startswith("examples/"):
        return  # they take no words, and have a test of their own
    arguments = [word for word in (word.strip("[]") for word in arguments) if word != "CASE"]  # what may be left out
    left_out = [word == "..." or (word[:2] == "--" and then == "...") for word, then in zip_longest(arguments, arguments[1:])]
    kept = [PLACEHOLDERS.get(word, word) for word, out in zip(arguments, left_out, strict=True) if not out]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(sys, "argv", [script, *kept])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = dict(os.environ)
    try:
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(("command", "answer"), sessions(ERRORS), ids=lambda value: getattr(value, "where", ""))
def test_an_error_of_the_docs_is_what_one_gets(
    command: Command, answer: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)
    assert command.words[0] == "podracer"
    assert _run(monkeypatch, list(command.words[1:])) == 2
    assert capfd.readouterr().err == answer + "\n"


@pytest.fixture(scope="module")
def clauses() -> dict[re.Pattern[str], int]:
    """What the code says between colons and semicolons, with whatever stands for values, and how many letters that fixes."""
    found: set[str] = set()
    for folder in ("podracer", "launch", "envs", "agents"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                    found.update(re.split("[:;] ", "".join(map(str, parts))))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.update(re.split("[:;] ", node.value))
    texts = [text for text in found if len(text.replace("\0", "")) > 5]
    return {re.compile(re.escape(text).replace("\0", ".+")): len(text.replace("\0", "")) for text in texts}


def _said(line: str, clauses: dict[re.Pattern[str], int]) -> bool:
    """Whether the code can say this line: every clause of several words is one of the code's, and a fifth of it is no value."""
    for clause in re.split("[:;] ", line.removeprefix("podracer: ")):
        letters = max((letters for pattern, letters in clauses.items() if pattern.fullmatch(clause)), default=0)
        if " " in clause and letters < len(clause) / 5:
            return False
    return True


@pytest.mark.parametrize("line", [line for page in pages() for line in answers(page)], ids=lambda line: line[10:60])
def test_an_error_that_takes_more_is_in_the_code(line: str, clauses: dict[re.Pattern[str], int]) -> None:
    assert _said(line, clauses)


@pytest.mark.parametrize(
    "line",
    [
        "podracer: runs/first holds what another run has left: go on with --resume, or choose another --run-dir",
        "podracer: out of memory: take fewer environments",
    ],
)
def test_an_error_that_nobody_says_is_found_out(line: str, clauses: dict[re.Pattern[str], int]) -> None:
    assert not _said(line, clauses)


def _links() -> Iterator[tuple[Path, str]]:
    for page in pages():
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:", link):
                yield page, link


def _anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


GENERATED = ("reference/commands.md", "reference/job.md", "reference/agents.md", "reference/environments.md")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for source, link in _links():
        if source != page:
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if file.is_relative_to(ROOT / "docs") and str(file.relative_to(ROOT / "docs")) in GENERATED:
            continue  # the test of the site follows them
        assert file.exists(), f"{link}: no such file"
        assert not anchor or anchor in _anchors(file), f"{link}: no such heading"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does. Any warning, a link or an anchor that leads nowhere too, ends it."""
    pytest.importorskip("zensical", reason="pip install -e '.[docs]' brings what builds the site")
    folder = tmp_path_factory.mktemp("site")
    made = [sys.executable, str(ROOT / "docs" / "tools" / "assemble.py"), str(folder / "build" / "docs")]
    subprocess.run(made, check=True, cwd=ROOT)
    shutil.copyfile(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    for name in ("podracer", "docs", "agents", "envs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    text = (site / "mkdocs.yml").read_text()
    listed = set(re.findall(r"^ *- (?:[^:\n]+: )?([\w/-]+\.md)$", text, re.MULTILINE))
    built = {str(path.relative_to(site / "build" / "docs")) for path in (site / "build" / "docs").rglob("*.md")}
    assert listed == built


def test_the_site_takes_nothing_from_elsewhere(site: Path) -> None:
    fetched = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=[\"']?https?://[^>]*>")
    pages_of_site = list((site / "site").rglob("*.html"))
    assert len(pages_of_site) > 20
    for page in pages_of_site:
        assert not [tag for tag in fetched.findall(page.read_text()) if "canonical" not in tag], page


def test_references_have_all_there_is(site: Path) -> None:
    reference = site / "build" / "docs" / "reference"
    text = (reference / "commands.md").read_text()
    assert all(f"## podracer {name}\n" in text for name in cli.cli.commands)
    agents = (reference / "agents.md").read_text()
    for name in registry.names(registry.AGENTS):
        assert f"\n## {name}\n" in agents
        assert all(f"`{preset}`" in agents for preset in registry.agent_class(name).presets)
    environments = (reference / "environments.md").read_text()
    assert all(f"\n## {name}\n" in environments for name in registry.names(registry.ENVS))
    html = (site / "site" / "reference" / "api" / "agent" / "index.html").read_text()
    assert "A learning agent for environments of one signature." in html
