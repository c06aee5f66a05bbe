"""`make report`: sections run one by one, the page is made of what is there, and what fails is said."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def report(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as for a script
    spec = importlib.util.spec_from_file_location("report_under_test", BENCHMARKS / "report.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    (tmp_path / "goals.toml").write_text((module.FOLDER / "goals.toml").read_text())
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    sections = {
        "good": module.Section("Good", ("common.py",)),  # does nothing, well
        "bad": module.Section("Bad", ("there_is_no_such.py",)),
        "peer": module.Section("Peer", ("common.py {peers}",), "peers", "The peer is not installed: pip install it."),
    }
    monkeypatch.setattr(module, "SECTIONS", sections)
    return module


def test_a_section_that_fails_stops_no_other_and_is_said(report, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["report.py"])
    monkeypatch.setattr(report, "SECTIONS", dict(reversed(report.SECTIONS.items())))  # the bad one before the good one
    assert report.main() == 1
    data = {name: json.loads((tmp_path / "data" / f"{name}.json").read_text()) for name in ("good", "bad")}
    assert [data[name]["runs"][0]["exit_code"] for name in data] == [0, 2]
    assert "cores" in data["good"]["machine"]
    page = (tmp_path / "index.md").read_text()
    assert "The peer is not installed: pip install it." in page
    (failure,) = [line for line in page.splitlines() if line.startswith("**Failed**")]
    assert "python benchmarks/there_is_no_such.py" in failure


def test_only_what_is_asked_for_is_run(report, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["report.py", "--only", "good"])
    assert report.main() == 0
    assert [path.stem for path in (tmp_path / "data").iterdir()] == ["good"]


def test_a_curve_has_its_picture_and_a_goal_its_figure(report, monkeypatch, tmp_path):
    import common

    curve = common._plain(common.curve(np.arange(500), np.ones((500, 3))))
    assert len(curve["at"]) <= 100
    assert curve["at"][-1] == 499
    line = {"benchmark": "learning", "case": "a", "title": "A", "arm": "x", "control": False, "curve": curve}
    run = {"command": "python benchmarks/learning.py a", "seconds": 1.0, "exit_code": 0, "lines": [{**line, "share": 0.25}]}
    facts = {"date": "2000-01-01", "commit": "0", "seconds": 1.0, "machine": common.machine(), "runs": [run]}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "good.json").write_text(json.dumps(facts))
    goal = 'section = "good"\nwhere = { arm = "x" }\nfields = ["share", "curve.values.0.1"]\nform = "{0}, {1}"\n'
    (tmp_path / "goals.toml").write_text(f'[[goal]]\ngoal = "g"\nreason = "r"\n{goal}')
    monkeypatch.setattr(sys, "argv", ["report.py", "--render"])
    assert report.main() == 0
    page = (tmp_path / "index.md").read_text()
    assert "| g | 0.25, 1 | `python benchmarks/learning.py a` | r |" in page
    assert "](good_learning.png)" in page
    assert (tmp_path / "good_learning.png").stat().st_size > 1000


def test_every_section_of_the_report_names_benchmarks_that_are_there(report):
    spec = importlib.util.spec_from_file_location("report_as_it_is", BENCHMARKS / "report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for section in module.SECTIONS.values():
        assert all((BENCHMARKS / words.split()[0]).exists() for words in section.commands)
        assert bool(section.needs) == any("{" in words for words in section.commands)
