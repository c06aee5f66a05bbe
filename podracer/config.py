"""Configuration: frozen dataclasses, `--set key=value` over them, and the presets that agents offer."""

import ast
import dataclasses
import difflib
import operator
import types as python_types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


class ConfigError(ValueError):
    """A configuration that cannot be. Its text is one line that says what to do."""


def one_line(text: object, most: int | None = None) -> str:
    """`text`, which may be an error of somebody else, without line breaks, and of no more than `most` characters."""
    return " ".join(str(text).split())[:most]


@dataclasses.dataclass(frozen=True)
class AnakinConfig:
    """Settings of the Anakin runtime.

    num_envs: environments over all devices, which is also the number of online sequences in a learning batch.
    minibatches: gradient steps of one update, each on its own share of the environments' unrolls: many environments without
      a larger learning batch (Hessel et al. 2021, section 3).
    updates_per_call: updates that one entry from Python runs; 0 picks about a second's worth, by measurement.
    """

    num_envs: int = 64
    minibatches: int = 1
    updates_per_call: int = 0


@dataclasses.dataclass(frozen=True)
class SebulbaConfig:
    """Settings of the Sebulba runtime. An actor has `anakin.num_envs` environments; an update learns from one of its unrolls.

    actor_devices, learner_devices: how many; the first ones act. 0 for both: on a single device both share it, of several a
      quarter act, and of the others as many learn as divide the environments.
    threads: actors on each actor device; one's environments step while another's device works. 0 leaves all acting to
      other processes (`podracer actor`).
    max_lag: updates that may lie between the parameters that acted and the update that learns from it.
    sync: acting and learning take turns, with one actor and no lag; the result does not depend on timing.
    env_timeout: seconds that a step of an actor's environments may take. max_restarts: of actors, and of `reverb`'s server,
      before the run gives up.
    patience: seconds that the learner waits for an unroll, before the run gives up.
    store: where unrolls and replay wait: `queue`, references within this process and replay on the learner's devices; or
      `reverb`, a server beside the learner, which actors of other processes can join.
    listen: HOST:PORT of that server, an IPv4 address; port 0 takes a free one. There is neither encryption nor a password.
    """

    actor_devices: int = 0
    learner_devices: int = 0
    threads: int = 2
    max_lag: int = 4
    sync: bool = False
    env_timeout: float = 60.0
    max_restarts: int = 10
    patience: float = 600.0
    store: Literal["queue", "reverb"] = "queue"
    listen: str = "127.0.0.1:0"


@dataclasses.dataclass(frozen=True)
class JobConfig:
    """Everything a user can choose about a run. Two runs with equal configs are the same run.

    agent_name, env_name: as in the registries; runtime: `anakin` or `sebulba`.
    num_steps: budget in agent steps, over all environments.
    seed: the seed from which all randomness derives; num_seeds: population of seeds `seed, seed + 1, ...`.
    num_devices: of each host; 0 means all that there are. num_hosts: processes that run the job together, one a host.
    eval_episodes: played after training, of each seed. checkpoint_seconds: between two checkpoints.
    wandb: `PROJECT` or `ENTITY/PROJECT` of Weights & Biases that gets the metrics too; empty: none.
    agent, env, anakin, sebulba: the settings of each part.
    """

    agent_name: str
    env_name: str
    agent: Any
    env: Any
    runtime: str = "anakin"
    num_steps: int = 1_000_000
    seed: int = 0
    num_seeds: int = 1
    num_devices: int = 1
    num_hosts: int = 1
    eval_episodes: int = 32
    checkpoint_seconds: float = 120.0
    wandb: str = ""
    anakin: AnakinConfig = AnakinConfig()
    sebulba: SebulbaConfig = SebulbaConfig()


@dataclasses.dataclass(frozen=True)
class Preset:
    """An agent author's choice for an environment: overrides of defaults, in the grammar of `--set`, and a budget.

    num_steps: agent steps. overrides: for example `{"agent.learning_rate": 1e-3, "anakin.num_envs": 128}`.
    """

    num_steps: int
    overrides: Mapping[str, Any]

    def also(self, overrides: Mapping[str, Any]) -> "Preset":
        """The same budget, with more overrides, which win."""
        return Preset(self.num_steps, {**self.overrides, **overrides})


def require(
    config: Any,
    *names: str,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> None:
    """Holds fields of `config` to a range, in the `__post_init__` of a dataclass; None, where a field may be that, passes.

    Raises:
      ConfigError: a field lies outside; one line, which names it and the range.
    """
    bounds = [
        (text, holds, bound)
        for text, holds, bound in (
            ("at least", operator.ge, at_least),
            ("above", operator.gt, above),
            ("at most", operator.le, at_most),
            ("below", operator.lt, below),
        )
        if bound is not None
    ]
    for name in names:
        value = getattr(config, name)
        if value is not None and not all(holds(value, bound) for _, holds, bound in bounds):
            allowed = " and ".join(f"{text} {bound:g}" for text, _, bound in bounds)
            raise ConfigError(f"{name} must be {allowed}, not {value:g}")


def filled(config: Any, own: Mapping[str, Any]) -> Any:
    """`config` with the values of `own` in the fields that still have their default, which stands for "the task's own"."""
    default = {field.name: field.default for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in own.items() if getattr(config, name) == default[name]})


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with dotted keys replaced.

    Args:
      config: a frozen dataclass, nested or not.
      values: dotted key to value. Text is parsed by the field's type; other values are checked against it.

    Raises:
      ConfigError: an unknown key (names the nearest), or a value that does not fit the field's type.
    """
    for key, value in values.items():
        config = _override_one(config, key.split("."), value, key)
    return config


def parse_assignments(assignments: Iterable[str]) -> dict[str, str]:
    """`["a.b=1"]` to `{"a.b": "1"}`. Raises ConfigError for text without `=`."""
    values = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write key=value, for example --set agent.learning_rate=3e-4")
        values[key.strip()] = value.strip()
    return values


def keys(config: Any, prefix: str = "") -> dict[str, Any]:
    """All dotted keys of a config with their values, in order."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        found.update(keys(value, name + ".") if _is_config(value) else {name: value})
    return found


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _override_one(config: Any, path: list[str], value: Any, key: str) -> Any:
    name, *rest = path
    fields = {field.name: field for field in dataclasses.fields(config)} if _is_config(config) else {}
    if name not in fields:
        parent = key.removesuffix(".".join(path))
        matches = difflib.get_close_matches(name, fields, n=1, cutoff=0.4)
        hint = f"did you mean {parent}{matches[0]}?" if matches else f"known here: {', '.join(fields) or 'none'}"
        raise ConfigError(f"unknown setting {key!r}: {hint}")
    current = getattr(config, name)
    if rest:
        return dataclasses.replace(config, **{name: _override_one(current, rest, value, key)})
    if _is_config(current):
        inner = next(iter(keys(current)), "...")
        raise ConfigError(f"{key!r} is a group of settings: set one of them, for example {key}.{inner}=...")
    value = _coerce(value, typing.get_type_hints(type(config)).get(name, Any), key)
    try:
        return dataclasses.replace(config, **{name: value})
    except ValueError as error:  # a dataclass that validates itself
        group, text = key.removesuffix(name), str(error)
        raise ConfigError(f"{group}{text}" if text.startswith(name) else f"{key}: {text}") from error


def _coerce(value: Any, hint: Any, key: str) -> Any:
    """`value`, which may be text from a command line, as the type `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _literal(value)
    if origin in (typing.Union, python_types.UnionType):
        if type(None) in arguments and value in (None, "None", "none"):
            return None
        for argument in arguments:
            if argument is not type(None):
                try:
                    return _coerce(value, argument, key)
                except ConfigError:
                    continue
        raise _mismatch(value, hint, key)
    if origin is typing.Literal:
        if value in arguments:
            return value
        parsed = _literal(value)
        if parsed in arguments:
            return parsed
        raise ConfigError(f"{key}={value}: choose one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        parsed = _literal(value)
        if not isinstance(parsed, (tuple, list)):
            parsed = (parsed,)
        inner = arguments[0] if arguments else Any
        return tuple(_coerce(item, inner, key) for item in parsed)
    if hint is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            return str(value).lower() in ("true", "1", "yes", "on")
        raise _mismatch(value, hint, key)
    if hint is str:
        return str(value)
    parsed = _literal(value)
    if hint is float and isinstance(parsed, str) and parsed.strip("+-").lower() in ("inf", "nan"):
        parsed = float(parsed)
    if hint is int and isinstance(parsed, float) and parsed.is_integer():
        parsed = int(parsed)  # 1e6 is a natural way to write a count
    if isinstance(parsed, bool) or not isinstance(parsed, (int, float) if hint is float else hint):
        raise _mismatch(value, hint, key)
    return float(parsed) if hint is float else parsed


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _mismatch(value: Any, hint: Any, key: str) -> ConfigError:
    return ConfigError(f"{key}={value}: expected {getattr(hint, '__name__', hint)}")
