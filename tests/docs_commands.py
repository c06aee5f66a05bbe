"""Finds the commands of the documentation: in its code blocks, and in running text between backticks."""

import dataclasses
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs" / "tools"))
import reference  # noqa: E402

SHELLS = ("console", "sh", "bash", "shell")
PROGRAMS = ("podracer", "make", "python", "pip")
OTHERS = ("apt", "source", "eval", "git", "cd", "ray")
NEEDS = "# needs "
"""A command with this in its comment takes hardware, and is not run."""


@dataclasses.dataclass(frozen=True)
class Command:
    """words: of the shell, without settings of its environment. comment: behind it. where: file and line."""

    words: tuple[str, ...]
    comment: str
    where: str


def pages() -> list[Path]:
    """Every Markdown file that is documentation."""
    folders = ("docs", "agents", "envs", "benchmarks", "examples")
    inner = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.md"))
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *inner]


def commands() -> list[Command]:
    """All commands of all pages and of `--help`, those of sessions with answers (`$ podracer ...`) apart: see `sessions`."""
    found = [command for page in pages() for command in _of_text(page.read_text(), str(page.relative_to(ROOT)))]
    return found + list(_of_text(reference.commands(), "--help"))


def sessions(page: Path) -> list[tuple[Command, str]]:
    """Commands behind a `$` with the lines that answer them."""
    found: list[tuple[Command, str]] = []
    for number, info, line in _code(page.read_text()):
        if info not in SHELLS:
            continue
        if line.startswith("$ "):
            found.append((_command(line[2:], f"{page.name}:{number}"), ""))
        elif found and line.startswith("podracer: "):
            found[-1] = (found[-1][0], line)
    return found


def answers(page: Path) -> list[str]:
    """Lines of blocks of text that are answers of podracer."""
    return [line for _, info, line in _code(page.read_text()) if info == "text" and line.startswith("podracer: ")]


def _of_text(text: str, name: str) -> Iterator[Command]:
    lines: list[tuple[str, str, str]] = []  # where, kind of block, text: with what goes on in the next line
    for number, info, line in _code(text):
        goes_on = lines and (lines[-1][2].endswith("\\") or (info in SHELLS and line.startswith("  ")))
        if goes_on:
            where, _, before = lines.pop()
            lines.append((where, info, f"{before.removesuffix(chr(92)).rstrip()} {line.strip()}"))
        elif line.strip():
            lines.append((f"{name}:{number}", info, line))
    for where, info, line in lines:
        first = _first(line)
        if first in PROGRAMS and (info in SHELLS or not (info or line.startswith(" "))):
            yield from (_command(part, where) for part in re.split(" && |; ", line) if _first(part) in PROGRAMS)
        elif info in SHELLS and first not in (*OTHERS, "$", "podracer:") and not line.startswith("#"):
            raise ValueError(f"{where}: what is {line!r}? Name the program in {__name__}.PROGRAMS or OTHERS")
    prose = re.sub(r"^```.*?^```", lambda match: "\n" * match.group(0).count("\n"), text, flags=re.M | re.S)
    for match in re.finditer(r"`((?:podracer |python (?:benchmarks|examples)/|make )[^`]+)`", prose):
        where = f"{name}:{prose[: match.start()].count(chr(10)) + 1}"
        yield _command(" ".join(match.group(1).split()), where)


def _code(text: str) -> Iterator[tuple[int, str, str]]:
    """Number, kind of block and text of the lines of code. An indented block is of the kind ""."""
    fence, indented = None, False
    before = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].split(" ")[0]
        elif fence is not None:
            yield number, fence, line
        elif line.startswith("    ") and (indented or not before.strip()):
            indented = True
            yield number, "", line[4:]
        elif line.strip():
            indented = False
        before = line


def _first(text: str) -> str:
    words = [word for word in text.split() if not re.match(r"[A-Z_]+=\S", word)]
    return words[0].removeprefix(".venv/bin/") if words else ""


def _command(text: str, where: str) -> Command:
    """The words of one command: what stands behind two spaces or ` # ` explains it."""
    text, _, comment = re.sub(r"(\S)(\s{2,}#?|\s#)\s*", "\\1\0", text, count=1).partition("\0")
    comment = comment and f"# {comment}"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text!r}: {error}") from error
    while words and re.match(r"[A-Z_]+=", words[0]):
        words.pop(0)
    return Command((words[0].removeprefix(".venv/bin/"), *words[1:]), comment, where)
