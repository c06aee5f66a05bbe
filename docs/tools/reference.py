"""The references of commands, settings, presets and modules: Markdown made from the code, never written by hand."""

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from fields import describe

from podracer import registry
from podracer.config import AnakinConfig, JobConfig, SebulbaConfig, keys
from podracer.launch.cli import cli
from podracer.launch.job import NOT_SETTINGS

ROOT = Path(__file__).parents[2]

# Page of the API -> title and modules, `*` for all of a folder. Every module of podracer/ is on one page.
API: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "agent": ("Agents and their data", ("agent", "types", "config", "registry", "rng")),
    "environment": ("Environments", ("environment", "contract", "processes", "workers", "dm")),
    "ops": ("Losses and returns", ("ops.*",)),
    "nets": ("Networks", ("nets.*",)),
    "search": ("Search", ("search.*",)),
    "runtimes": ("Runtimes", ("runtimes.*", "plan", "hosts", "cache")),
    "stores": ("Stores", ("stores.*",)),
    "evaluate": ("Evaluation, checkpoints, metrics", ("evaluate", "match", "checkpoint", "metrics.*")),
    "aot": ("Plans for other hardware", ("aot.*",)),
}


def pages() -> dict[str, str]:
    """All generated pages, by path."""
    made = {"reference/commands.md": commands(), "reference/job.md": job()}
    made["reference/agents.md"], made["reference/environments.md"] = agents(), environments()
    return made | {f"reference/api/{name}.md": text for name, text in api().items()}


def commands() -> str:
    """Every command of `podracer`, with its options."""
    lines = ["# Commands", "", "Made from the command line itself. `podracer COMMAND --help` prints the same.", ""]
    for path, command in _walk("podracer", cli):
        context = click.Context(command, info_name=path)
        lines += [f"## {path}", "", *_help(command.help or ""), ""]
        if isinstance(command, click.Group):
            continue
        lines += ["```text", command.get_usage(context).removeprefix("Usage: "), "```", ""]
        options = [record for option in command.params if (record := option.get_help_record(context))]
        if options:
            lines += ["| option | meaning |", "|---|---|", *(f"| `{name}` | {_cell(text)} |" for name, text in options), ""]
    return "\n".join(lines)


def job() -> str:
    """Settings of a job and of the runtimes."""
    lines = [
        "# Settings of a job",
        "",
        "Any of them with `--set NAME=VALUE`. Options such as `--steps` are short forms of some. A preset may give",
        "`anakin.*` other values than these defaults. [Agents](agents.md) and [environments](environments.md) have their own.",
        "",
    ]
    for title, config, prefix in (
        ("Job", JobConfig, ""),
        ("Anakin", AnakinConfig, "anakin."),
        ("Sebulba", SebulbaConfig, "sebulba."),
    ):
        lines += [f"## {title}", "", *_table(config, prefix, inner=False), ""]
    return "\n".join(lines)


def agents() -> str:
    """Settings and presets of every registered agent."""
    lines = [
        "# Settings and presets of agents",
        "",
        "`--set agent.NAME=VALUE` changes a setting; `--preset NAME` takes a preset.",
        "",
    ]
    for name in registry.names(registry.AGENTS):
        found = registry.agent_class(name)
        summary = (sys.modules[found.__module__].__doc__ or "").strip().splitlines()[0]
        if (ROOT / "agents" / name / "README.md").exists():
            summary += f" See [its page](../agents/{name}.md)."
        lines += [f"## {name}", "", summary, "", *_table(found.Config, "agent."), ""]
        lines += [f"### Presets of {name}", ""]
        for preset_name, preset in sorted(found.presets.items()):
            values = [f"{key}={value}" for key, value in preset.overrides.items()]
            lines += [
                f"`{preset_name}`, {preset.num_steps:,} agent steps:",
                "",
                "```text",
                *(values or ["the defaults"]),
                "```",
                "",
            ]
    return "\n".join(lines)


def environments() -> str:
    """Settings and tasks of every registered suite."""
    lines = [
        "# Settings and tasks of environments",
        "",
        "`--set env.NAME=VALUE` changes a setting. [Environments](../environments/index.md)",
        "says what they are.",
        "",
    ]
    for name, suite in registry.suites().items():
        lines += [f"## {name}", "", f"{suite.summary[0].upper()}{suite.summary[1:]}.", ""]
        if suite.extra:
            lines += [f"Needs `pip install 'podracer-rl[{suite.extra}]'`.", ""]
        lines += [*_table(suite.config, "env."), ""]
        tasks = [f"`{name}/{task}`" for task in suite.tasks() if task] if suite.available() else []
        if tasks:
            more = f" and {len(tasks) - 40} more: `podracer envs {name}` lists all" if len(tasks) > 40 else ""
            lines += [f"Tasks: {', '.join(tasks[:40])}{more}.", ""]
    return "\n".join(lines)


def api() -> dict[str, str]:
    """A page of `:::` directives for each group of modules. Raises ValueError for a module that is on no page."""
    modules = sorted(
        ".".join(path.relative_to(ROOT / "podracer").with_suffix("").parts).removesuffix(".__init__")
        for path in _sources()
        if path.read_text().strip()
    )
    texts, seen = {}, {"podracer", "__init__"}
    for name, (title, patterns) in API.items():
        mine = [module for module in modules if any(fnmatch(module, p) or f"{module}.*" == p for p in patterns)]
        seen.update(mine)
        texts[name] = "\n".join([f"# {title}", "", *(f"::: podracer.{module}\n" for module in mine)])
    if missing := set(modules) - seen:
        raise ValueError(f"docs/tools/reference.py: no page of the API has {', '.join(sorted(missing))}")
    return texts


def _sources() -> Iterator[Path]:
    for path in (ROOT / "podracer").rglob("*.py"):
        parts = path.relative_to(ROOT / "podracer").parts
        if parts[0] not in ("agents", "envs", "launch") and not path.name.endswith("_script.py"):
            yield path


def _walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _walk(f"{path} {name}", inner)


def _help(text: str) -> Iterator[str]:
    """Paragraphs of a command's help; the indented lines of those that click keeps as they are become code."""
    for paragraph in (part for part in inspect.cleandoc(text).split("\n\n") if part.strip()):
        if not paragraph.startswith("\b"):
            yield from (paragraph, "")
            continue
        for code, lines in groupby(paragraph.removeprefix("\b").strip("\n").splitlines(), lambda line: line.startswith("  ")):
            block = [line.removeprefix("  ") for line in lines]
            yield from ("```sh", *block, "```", "") if code else (*block, "")


def _table(config: type, prefix: str, inner: bool = True) -> list[str]:
    rows = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {kind} | {default} | {text} |" for name, kind, default, text in _rows(config, prefix, inner)]
    return rows if len(rows) > 2 else ["It has no settings."]


def _rows(config: type, prefix: str, inner: bool) -> Iterator[tuple[str, str, str, str]]:
    fields = [field for field in dataclasses.fields(config) if field.init]
    texts: dict[str, str] = {}
    for base in reversed(config.__mro__):  # a field is explained where it is declared, or again by who inherits it
        texts |= describe(base.__doc__ or "", [field.name for field in fields])[1] if dataclasses.is_dataclass(base) else {}
    hints = typing.get_type_hints(config)
    for field in fields:
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        hint = hints[field.name]
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            if inner:
                yield from _inner(default, f"{prefix}{field.name}.")
            continue
        if default is dataclasses.MISSING or prefix + field.name in NOT_SETTINGS:  # what a command says in other words
            continue
        if not texts.get(field.name):
            raise SystemExit(f"{config.__module__}: the docstring of {config.__name__} does not say what {field.name} is")
        yield f"{prefix}{field.name}", _kind(hint), f"`{default!r}`", _cell(texts[field.name])


def _inner(value: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Rows of a group of settings, with the defaults that its owner gives."""
    defaults = keys(value, prefix)
    for name, kind, shown, text in _rows(type(value), prefix, inner=True):
        yield name, kind, f"`{defaults[name]!r}`" if name in defaults else shown, text


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    return f"`{hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace('typing.', '')}`"


def _cell(text: str) -> str:
    """One line, for a cell of a table, in which a bar ends the cell unless it is in code, and a bracket is no link."""
    parts = " ".join(str(text).split()).split("`")
    return "`".join(part if at % 2 else part.replace("|", "\\|").replace("[", "\\[") for at, part in enumerate(parts))
