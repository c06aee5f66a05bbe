"""`--set`: typed, nested, and refused by name."""

import dataclasses
import re
from typing import Literal

import pytest

from podracer import config

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 8
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        config.require(self, "width", at_least=1, below=100)
        if self.width == 13:
            raise ValueError("thirteen is not for us")


@dataclasses.dataclass(frozen=True)
class Outer:
    rate: float = 1e-3
    steps: int = 10
    flag: bool = False
    name: str = "x"
    sizes: tuple[int, ...] = (64,)
    limit: int | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("rate", "3e-4", 3e-4),
        ("rate", "1", 1.0),
        ("rate", "inf", float("inf")),
        ("steps", "1e6", 1_000_000),
        ("flag", "true", True),
        ("flag", "0", False),
        ("name", "3", "3"),
        ("sizes", "(32, 16)", (32, 16)),
        ("sizes", "32,16", (32, 16)),
        ("sizes", "32", (32,)),
        ("limit", "5", 5),
        ("limit", "none", None),
        ("inner.width", "4", 4),
        ("inner.kind", "b", "b"),
    ],
)
def test_text_becomes_the_type_of_the_field(key, text, value):
    changed = config.override(Outer(), config.parse_assignments([f"{key}={text}"]))
    assert config.keys(changed)[key] == value
    assert type(config.keys(changed)[key]) is type(value)
    others = {k: v for k, v in config.keys(Outer()).items() if k != key}
    assert others.items() <= config.keys(changed).items()


@pytest.mark.parametrize(
    ("assignment", "line"),
    [
        ("rates=1", "unknown setting 'rates': did you mean rate?"),
        ("inner.widht=1", "unknown setting 'inner.widht': did you mean inner.width?"),
        ("inner.width.more=1", "unknown setting"),
        ("zzz=1", "known here: rate, steps"),
        ("rate=fast", "rate=fast: expected float"),
        ("steps=1.5", "steps=1.5: expected int"),
        ("steps=true", "expected int"),
        ("flag=maybe", "expected bool"),
        ("inner.kind=c", "choose one of a, b"),
        ("inner=3", "'inner' is a group of settings: set one of them, for example inner.width=..."),
        ("sizes=a,b", "expected int"),
        ("inner.width=0", "inner.width must be at least 1 and below 100, not 0"),
        ("inner.width=13", "inner.width: thirteen is not for us"),
        ("rate", "write key=value"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(assignment, line):
    with pytest.raises(config.ConfigError) as error:
        config.override(Outer(), config.parse_assignments([assignment]))
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Bounded:
    count: int = 1
    share: float = 0.5
    clip: float | None = None

    def __post_init__(self) -> None:
        config.require(self, "count", at_least=1)
        config.require(self, "share", at_least=0, below=1)
        config.require(self, "clip", above=0)


def test_fields_are_held_to_their_range_in_one_line():
    assert Bounded(share=0.0, clip=float("inf")).count == 1
    for changes, line in (
        ({"count": 0}, "count must be at least 1, not 0"),
        ({"share": 1.0}, "share must be at least 0 and below 1, not 1"),
        ({"share": float("nan")}, "share must be at least 0 and below 1, not nan"),
        ({"clip": 0.0}, "clip must be above 0, not 0"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
            Bounded(**changes)


def test_a_preset_takes_more_overrides_and_keeps_its_own():
    preset = config.Preset(100, {"a": 1, "b": 2})
    assert preset.also({"b": 3, "c": 4}) == config.Preset(100, {"a": 1, "b": 3, "c": 4})
    assert preset.overrides == {"a": 1, "b": 2}


def test_own_values_fill_what_was_left_to_its_default():
    assert config.filled(Outer(steps=3), {"steps": 5, "rate": 0.5}) == Outer(steps=3, rate=0.5)
    with pytest.raises(config.ConfigError, match="width must be at least 1"):
        config.filled(Inner(), {"width": 0})
