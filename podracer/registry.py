"""Registries of agents and environments. Built-in and third-party ones are found through the same entry points.

A package offers an agent class under the entry-point group `podracer.agents`, and a `Suite` of environments under
`podracer.envs`. `my_package.my_module:Name` works wherever a name does, without any entry point. Of an environment it may also
name a class, or a function, that makes a `dm_env.Environment`.
"""

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

AGENTS, ENVS = "podracer.agents", "podracer.envs"


class NotFound(LookupError):
    """Nothing of that name. Its text is one line that says what there is, or how to install it."""


@dataclasses.dataclass(frozen=True)
class Suite:
    """A family of environments, `suite/task`.

    make: `(task, config) -> podracer.environment.Environment`; imports what it needs only when called.
    tasks: names of the tasks, without building any; `("",)` where the suite is its own only task (`catch`).
    config: frozen dataclass of options, all with defaults.
    summary: one line.
    package: import name of the library behind the suite, or empty. extra: the pip extra that brings it.
    default_task: the task that contract tests take.
    opponents: `(task) -> {name: maker}`, fixed opponents for a game for two; `maker()` gives a `podracer.match.Opponent`, or a
      function for `match.as_opponent`, and imports what it needs only when called. `random` needs no mention.
    """

    make: Callable[[str, Any], Any]
    tasks: Callable[[], Sequence[str]]
    config: type
    summary: str
    package: str = ""
    extra: str = ""
    default_task: str = ""
    opponents: Callable[[str], Mapping[str, Callable[[], Any]]] = lambda task: {}

    def available(self) -> bool:
        """Whether the library behind the suite is installed. Imports nothing."""
        return not self.package or importlib.util.find_spec(self.package) is not None

    @property
    def how_to_get(self) -> str:
        """What brings the library behind the suite, for people."""
        if self.extra:
            return f"pip install 'podracer-rl[{self.extra}]'"
        return f"pip install {self.package}; where that fails, this Python has no package of it, and 3.11 has"


@dataclasses.dataclass(frozen=True)
class EnvId:
    """A resolved environment name."""

    name: str
    suite: Suite
    task: str

    def make(self, config: Any = None) -> Any:
        """The environment. Raises NotFound for an unknown task, `environment.Unsupported` for what it cannot do."""
        return self.suite.make(self.task, self.suite.config() if config is None else config)

    def opponents(self) -> Mapping[str, Callable[[], Any]]:
        """Makers of the opponents that the suite offers for this task, by name."""
        return self.suite.opponents(self.task)


def names(group: str) -> list[str]:
    """Registered names of a group, sorted. Imports none of them."""
    return sorted(_entry_points(group))


def agent_class(name: str) -> Any:
    """The Agent subclass called `name`. Raises NotFound."""
    from podracer.agent import Agent

    found = _load(AGENTS, name)
    if not (isinstance(found, type) and issubclass(found, Agent) and found is not Agent):
        raise NotFound(f"agent {name!r} is {found!r}, which is no subclass of podracer.agent.Agent")
    return found


def env(name: str) -> EnvId:
    """The environment called `suite/task`, `suite`, or `package.module:NAME/task`. Raises NotFound."""
    suite_name, _, task = name.partition("/") if ".py:" not in name else (name, "", "")  # that path is refused as a whole
    found = suite(suite_name)
    if not found.available():
        raise NotFound(f"{suite_name} needs {found.package}: {found.how_to_get}")
    tasks = found.tasks()
    if task not in tasks:
        if not task:
            example = f", such as {suite_name}/{found.default_task}" if found.default_task else ""
            raise NotFound(f"{suite_name} has many environments: name one{example} (podracer envs {suite_name} lists all)")
        raise NotFound(unknown("environment", name, [f"{suite_name}/{t}" if t else suite_name for t in tasks]))
    return EnvId(name=name, suite=found, task=task)


def suite(name: str) -> Suite:
    """The suite called `name`, whether its library is installed or not. Raises NotFound."""
    found = _load(ENVS, name)
    if callable(found) and not isinstance(found, Suite):
        return _dm_env_suite(name, found)
    if not isinstance(found, Suite):
        raise NotFound(
            f"environment {name!r} is {found!r}, neither a podracer.registry.Suite nor a maker of dm_env environments"
        )
    return found


def _dm_env_suite(name: str, factory: Callable[..., Any]) -> Suite:
    from podracer.dm import DmConfig

    def make(task: str, config: DmConfig) -> Any:
        from podracer.processes import ProcessEnvironment

        del task
        return ProcessEnvironment.from_dm_env(name, factory, config.max_steps, config.num_workers)

    return Suite(make=make, tasks=lambda: ("",), config=DmConfig, summary="a dm_env environment, in processes on the host")


def suites() -> dict[str, Suite]:
    """All registered suites by name, whether their libraries are installed or not."""
    return {name: suite(name) for name in names(ENVS)}


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """One line for a name that is not there: the nearest match, or a few that exist."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"unknown {kind} {name!r}: " + (f"did you mean {matches[0]}?" if matches else f"there are {some}")


def imported(kind: str, name: str) -> Any:
    """What `package.module:NAME` names. `kind` says what it should be, for errors. Raises NotFound."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py") or not (module_name and attribute):
        module = module_name.removesuffix(".py").lstrip("./").replace("/", ".") or "package.module"
        raise NotFound(f"{kind} {name!r}: write a module's name and what to take from it, {module}:{attribute or 'NAME'}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does: an author's file lies in the working directory
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise NotFound(f"{kind} {name!r}: no module {error.name!r}; run from its folder or install its package") from error
        raise NotFound(f"{kind} {name!r}: {module_name} needs {error.name}, which is not installed") from error
    except SyntaxError as error:
        raise NotFound(f"{kind} {name!r}: {error.filename}, line {error.lineno}: {error.msg}") from error
    except AttributeError as error:
        raise NotFound(f"{kind} {name!r}: {error}") from error


@functools.cache
def _entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=group)}


def _load(group: str, name: str) -> Any:
    kind = "agent" if group == AGENTS else "environment"
    if ":" in name:
        return imported(kind, name)
    points = _entry_points(group)
    if name not in points:
        raise NotFound(unknown(kind, name, names(group)) + f" (podracer {'agents' if group == AGENTS else 'envs'} lists all)")
    return points[name].load()
