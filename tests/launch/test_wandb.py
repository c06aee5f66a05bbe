"""Weights & Biases gets what metrics.jsonl gets, and a resumed run goes on there. Offline: nothing leaves this machine."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_parts import TINY

from podracer.launch.cluster import sweep
from podracer.metrics.log import read_rows

HERE = Path(__file__).parent

RUN = ("launch", "anakin", *TINY)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("wandb", reason="wandb is missing: pip install 'podracer-rl[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return package


def _records(path: Path) -> list[Any]:
    """What a finished offline run would send. A process of wandb writes the file, and its end after `finish` returned."""
    deadline = time.monotonic() + 60
    while not (records := _read(path)) or records[-1].WhichOneof("record_type") != "exit":
        assert time.monotonic() < deadline, f"{path} has no end after a minute: {len(records)} records"
        time.sleep(0.1)
    return records


def _read(path: Path) -> list[Any]:
    """Protocol buffers in a log of LevelDB's form, behind a head of 7 bytes, as far as they are written."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no head of a record crosses blocks of 32 KiB
            at += 2**15 - at % 2**15
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        if at + 7 + length > len(data):
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def _history(records: list[Any]) -> list[dict[str, float]]:
    rows = [record.history.item for record in records if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]


def test_it_gets_rows_settings_and_the_end_and_a_resumed_run_goes_on(
    wandb: Any, podracer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    monkeypatch.setenv("WANDB_RUN_GROUP", "the-group")
    result = podracer(*RUN, "--steps", 2000, "--seeds", 2, "--run-dir", run_dir, "--wandb", "someone/things")
    assert (result.code, result.err) == (0, "")
    (offline,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert f"Weights & Biases: {offline.parent}" in result.out
    records = _records(offline)
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.entity, run.project, run.run_group, run.display_name) == ("someone", "things", "the-group", "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["num_seeds"] == 2
    assert config["agent.learning_rate"] == 0.05
    rows, history = read_rows(run_dir), _history(records)
    assert [row["num_agent_steps"] for row in history] == [row["num_agent_steps"] for row in rows]
    last = rows[-1]["episode_return"]
    assert history[-1]["episode_return"] == pytest.approx(sum(last) / 2)  # of two seeds the median is the mean
    summary = {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
    assert summary["eval_return_mean"] == json.loads((run_dir / "summary.json").read_text())["eval_return_mean"]
    assert {"curve", "evaluation"} <= set(summary)

    assert podracer("launch", "anakin", "--resume", "--steps", 3000, "--run-dir", run_dir).code == 0
    later = [path for path in run_dir.glob("wandb/offline-run-*/*.wandb") if path != offline]
    assert [path.name for path in later] == [offline.name]  # the same id, although the command did not name wandb
    assert min(row["num_updates"] for row in _history(_records(later[0]))) > rows[-1]["num_updates"]


@pytest.mark.usefixtures("wandb")
def test_nobody_logged_in_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "podracer.launch.cli", *RUN, "--run-dir", str(tmp_path / "run"), "--wandb", "things"]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environ |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}  # and so neither ~/.netrc nor a server
    done = subprocess.run(command, cwd=HERE, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert "wandb login" in done.stderr


def test_without_the_package_nothing_is_begun(
    podracer: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # type: ignore[arg-type]
    result = podracer(*RUN, "--run-dir", tmp_path / "run", "--wandb", "things")
    assert (result.code, result.err) == (2, "podracer: --wandb needs the package wandb: pip install 'podracer-rl[wandb]'\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("said", "group"), [(None, "rates"), ("mine", "mine")])
def test_runs_of_a_sweep_are_a_group(said: str | None, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    if said:
        monkeypatch.setenv("WANDB_RUN_GROUP", said)
    assert sweep.environment(tmp_path / "rates")["WANDB_RUN_GROUP"] == group
