"""Finds the commands of the documentation: in its code blocks, and in running text between backticks."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
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
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
    found = [path for path in found if path.exists()]
    return found + sorted(path for folder in ("docs", "agents", "envs") for path in (ROOT / folder).rglob("*.md"))


def commands() -> list[Command]:
    """All commands of all pages, those of sessions with answers (`$ podracer ...`) apart: see `sessions`."""
    return [command for page in pages() for command in _of_page(page)]


def sessions(page: Path) -> list[tuple[Command, str]]:
    """Commands behind a `$` with the lines that answer them."""
    found: list[tuple[Command, str]] = []
    for number, info, line in _code(page):
        if info not in SHELLS:
            continue
        if line.startswith("$ "):
            found.append((_command(line[2:], f"{page.name}:{number}"), ""))
        elif found and line.startswith("podracer: "):
            found[-1] = (found[-1][0], line)
    return found


def answers(page: Path) -> list[str]:
    """Lines of blocks of text that are answers of podracer."""
    return [line for _, info, line in _code(page) if info == "text" and line.startswith("podracer: ")]


def _of_page(page: Path) -> Iterator[Command]:
    name = str(page.relative_to(ROOT))
    held, answered = "", False
    for number, info, line in _code(page):
        text, held = held + line.strip(), ""
        where = f"{name}:{number}"
        answered = line.startswith("$ ") or (answered and line.startswith("podracer: "))
        if not text or answered:
            continue
        if text.endswith("\\"):
            held = text[:-1]
        elif (first := _first(text)) in PROGRAMS and (info or not line.startswith(" ")):
            yield from (_command(part, where) for part in _joined(text))
        elif info in SHELLS and first not in OTHERS and not text.startswith("#"):
            raise ValueError(f"{where}: what is {text!r}? Name the program in {__name__}.PROGRAMS or OTHERS")
    prose = re.sub(r"^```.*?^```", lambda match: "\n" * match.group(0).count("\n"), page.read_text(), flags=re.M | re.S)
    for match in re.finditer(r"`((?:podracer |python benchmarks/|make )[^`]+)`", prose):
        where = f"{name}:{prose[: match.start()].count(chr(10)) + 1}"
        yield _command(" ".join(match.group(1).split()), where)


def _code(page: Path) -> Iterator[tuple[int, str, str]]:
    """Number, kind of block and text of the lines of code. An indented block is of the kind ""."""
    fence, indented = None, False
    before = ""
    for number, line in enumerate(page.read_text().splitlines(), 1):
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


def _joined(text: str) -> list[str]:
    """`a && b` are two commands."""
    return [part for part in text.split(" && ") if _first(part) in PROGRAMS]


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
