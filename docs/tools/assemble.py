"""Puts the pages of the site together in a folder: docs/, the READMEs of agents and environments, and the references.

    python docs/tools/assemble.py FOLDER

`make docs` does, and lets zensical build the site of `mkdocs.yml` from it. Links between files of the repository become links
between pages; a link to a file that is no page becomes its name.
"""

import os
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
import reference

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(\[(?:[^\]\[]|\[[^\]]*\])*\])\(([^)\s]+)\)")
_LIST = re.compile(r"^((?![-*] |[\d|#>\s]).*)\n(?=(?:[*-]|1\.) )", re.MULTILINE)
_ALONE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "benchmarks/README.md": "benchmarks.md"}
_FENCE = re.compile(r"(^```.*?^```[^\S\n]*$)", re.MULTILINE | re.DOTALL)


def sources() -> dict[Path, str]:
    """Files of the repository that are pages, with their paths on the site."""
    found = {ROOT / "README.md": "index.md"}  # the site has a front page of its own, docs/index.md: for links alone
    for path, page in _ALONE.items():
        if (ROOT / path).exists():
            found[ROOT / path] = page
    found |= {path: str(path.relative_to(ROOT / "docs")) for path in sorted((ROOT / "docs").rglob("*.md"))}
    for path in sorted((ROOT / "agents").glob("*/README.md")):
        found[path] = f"agents/{path.parent.name}.md"
    for path in sorted((ROOT / "envs").rglob("README.md")):
        inner = path.parent.relative_to(ROOT / "envs")
        found[path] = f"environments/{inner if inner.parts else 'index'}.md"
    return found


def assemble(folder: Path) -> None:
    """Writes all pages and what they show into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = sources()
    for path, page in pages.items():
        if path != ROOT / "README.md":
            _write(folder / page, _linked(path, page, pages))
    for path in (ROOT / "docs").rglob("*"):  # pictures, tables, clusters' files
        if path.is_file() and path.suffix not in (".md", ".py", ".pyc"):
            target = folder / path.relative_to(ROOT / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    for page, text in reference.pages().items():
        _write(folder / page, text)


def _linked(path: Path, page: str, pages: dict[Path, str]) -> str:
    """The text of a file with its links turned into links of the site."""

    def moved(match: re.Match[str]) -> str:
        words, link = match.groups()
        target, _, anchor = link.partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match.group(0)
        file = (path.parent / target).resolve()
        if file.is_dir() and (file / "README.md").exists():
            file /= "README.md"
        if file in pages:
            to = pages[file]
        elif file.is_relative_to(ROOT / "docs"):
            to = str(Path(os.path.relpath(file, ROOT / "docs")))
        else:
            return words[1:-1]
        return f"{words}({os.path.relpath(to, Path(page).parent)}{'#' + anchor if anchor else ''})"

    parts = _FENCE.split(path.read_text())
    # A list may follow a line of text at once; the site's Markdown, unlike others, wants an empty line between them.
    return "".join(part if part.startswith("```") else _LIST.sub(r"\1\n\n", LINK.sub(moved, part)) for part in parts)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip() + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/tools/assemble.py FOLDER")
    assemble(Path(sys.argv[1]).resolve())
