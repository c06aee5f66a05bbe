"""The layers hold: nothing below imports what stands above it, and the page that draws them names files that are there."""

import ast
import collections
import graphlib
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
CORE = [path for path in sorted((ROOT / "podracer").rglob("*.py")) if not path.is_symlink()]
CORE = [path for path in CORE if path.relative_to(ROOT / "podracer").parts[0] not in ("agents", "envs", "launch")]
ABOVE = {
    "core": ("podracer.agents", "podracer.envs", "podracer.launch"),
    "agents": ("podracer.envs", "podracer.launch", "podracer.runtimes", "podracer.stores"),
    "envs": ("podracer.agents", "podracer.launch", "podracer.runtimes", "podracer.stores"),
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", sorted(ABOVE))
def test_no_layer_imports_what_stands_above_it(layer):
    files = CORE if layer == "core" else sorted((ROOT / layer).rglob("*.py"))
    assert len(files) > 10
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in imports(path)
        if any(name == above or name.startswith(f"{above}.") for above in ABOVE[layer])
    ]
    assert not wrong


def test_no_agent_imports_another():
    """What two of them need belongs in `podracer/`."""
    for agent in sorted(path for path in (ROOT / "agents").iterdir() if path.is_dir() and path.name != "__pycache__"):
        others = {
            name.split(".")[2]
            for path in agent.rglob("*.py")
            for name in imports(path)
            if name.startswith("podracer.agents.") and name.split(".")[2] != agent.name
        }
        assert not others, f"{agent.name} imports {others}"


def test_no_circle_of_imports():
    """Wherever in a module they stand. A package's own `__init__` may name its parts, which do not import it."""
    files = {path: path.relative_to(ROOT) for path in CORE}
    for layer in ("agents", "envs", "launch"):
        files |= {path: "podracer" / path.relative_to(ROOT) for path in (ROOT / layer).rglob("*.py")}
    modules = {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for path, name in files.items()}
    graph = {
        name: {found for found in imports(path) if found in modules and not f"{name}.".startswith(f"{found}.")}
        for name, path in modules.items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules) > 150


def test_a_bare_name_is_one_module():
    """Scripts and tests are found by their bare names, those of each other too where a test runs a benchmark."""
    folders = ("benchmarks", "docs/tools", "examples", "tests")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if path.name != "conftest.py"]
    assert len(paths) > 100
    twice = [name for name, count in collections.Counter(path.name for path in paths).items() if count > 1]
    assert not twice
    assert not [path for path in paths if "conftest" in set(imports(path))]  # there are several of those


def test_the_page_names_what_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"\b(?:podracer|launch|tests)/[\w/]+(?:\.py|/)", text))
    assert len(named) > 25
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
