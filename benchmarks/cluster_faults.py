"""Kills the processes of a job on many hosts, of each kind in turn, and says what came of it.

    python benchmarks/cluster_faults.py [--kills 6] [--seconds 5 20] [-- launch ...]

The default job is `launch sebulba --agent impala --env gymnasium/CartPole-v1 --hosts 2`: two learners, a Reverb server beside
each, and two processes of actors, all under a local Ray of two simulated hosts. Kinds: `learner`, `actor`, `server` (Reverb),
`agent` (the Ray actor that holds a host's processes) and `node` (the raylet, and so a whole simulated host). After every start a
random time passes before the next SIGKILL; what it hits is chosen at random among those of the kind whose turn it is. Prints one
JSON line: kills by kind, generations, actors that were started again, seconds from a kill to the next update, updates that were
lost with each, processes that are left at the end, exit code, and the evaluation.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from podracer.launch.cluster import record
from podracer.metrics.log import read_rows

KINDS = ("learner", "actor", "server", "agent", "node")
_JOB = "launch sebulba --agent impala --env gymnasium/CartPole-v1 --hosts 2 --set checkpoint_seconds=5".split()
_PATIENCE_SECONDS = 240.0


def victims(run_dir: Path, kind: str) -> list[psutil.Process]:
    """The processes of a kind that run now."""
    found = []
    for name, facts in ((record.read(run_dir) or {}).get("processes") or {}).items():
        try:
            process = psutil.Process(facts["pid"])
            if kind == "actor" and name.startswith("actor-"):
                found.append(process)
            elif name.startswith("learner-") and kind != "actor":
                found += _around(process, kind)
        except psutil.NoSuchProcess:
            continue
    return found


def _around(learner: psutil.Process, kind: str) -> Iterator[psutil.Process]:
    if kind == "learner":
        yield learner
    elif kind == "server":
        yield from (child for child in learner.children() if any("server_script" in word for word in child.cmdline()))
    elif (agent := learner.parent()) is not None:
        node = agent.parent()
        if kind == "agent":
            yield agent
        elif node is not None and "raylet" in node.name():
            yield node


def num_updates(run_dir: Path) -> int:
    rows = read_rows(run_dir)
    return int(rows[-1]["num_updates"]) if rows else 0


def wait_for_update(run_dir: Path, launcher: subprocess.Popen[bytes], after: float) -> float | None:
    """Seconds until metrics have a row that is younger than `after`; None where the job ended first."""
    start = time.monotonic()
    while launcher.poll() is None:
        path = run_dir / "metrics.jsonl"
        if path.exists() and path.stat().st_mtime > after and read_rows(run_dir):
            return time.monotonic() - start
        if time.monotonic() - start > _PATIENCE_SECONDS:
            raise SystemExit(f"no update for {_PATIENCE_SECONDS:.0f} s: see {run_dir}")
        time.sleep(0.2)
    return None


def left(run_dir: Path) -> int:
    """Processes that still belong to the run."""
    mark, count = str(run_dir), 0
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        count += process.pid not in own and any(mark in word for word in words)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, nargs=2, default=(5.0, 20.0), help="between an update and the next kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("job", nargs="*", default=_JOB, help="after --, without --run-dir")
    options = parser.parse_args()
    run_dir = (options.run_dir or Path(tempfile.mkdtemp(prefix="podracer-faults-")) / "run").absolute()
    chance, start = random.Random(options.seed), time.monotonic()
    command = [sys.executable, "-m", "podracer.launch.cli", *options.job, "--run-dir", str(run_dir)]
    launcher = subprocess.Popen(command, stdout=sys.stderr)
    kills: dict[str, int] = dict.fromkeys(options.kinds, 0)
    recovery: list[float] = []
    lost: list[int] = []
    mark = time.time()
    for turn in range(options.kills):
        kind = options.kinds[turn % len(options.kinds)]
        if wait_for_update(run_dir, launcher, mark) is None:
            break
        time.sleep(chance.uniform(*options.seconds))
        deadline = time.monotonic() + 60
        while not (found := victims(run_dir, kind)) and time.monotonic() < deadline and launcher.poll() is None:
            time.sleep(0.2)
        if not found or launcher.poll() is not None:
            print(f"no {kind} was there to kill", file=sys.stderr)
            continue
        before = num_updates(run_dir)
        victim = chance.choice(found)
        print(f"--- kill {turn + 1}: {kind} {victim.pid}, after {before:,} updates", file=sys.stderr)
        mark = time.time()
        victim.kill()
        kills[kind] += 1
        seconds = wait_for_update(run_dir, launcher, mark + 1.5)  # rows that were under way do not count
        if seconds is not None:
            recovery.append(seconds)
            lost.append(max(before - num_updates(run_dir), 0))
    code = launcher.wait()
    time.sleep(2.0)
    state: dict[str, Any] = record.read(run_dir) or {}
    summary = json.loads((run_dir / "summary.json").read_text()) if (run_dir / "summary.json").exists() else {}
    restarts = state.get("restarts", [])
    print(
        json.dumps(
            {
                "benchmark": "cluster_faults",
                "job": options.job,
                "kills": kills,
                "generations": state.get("generation"),
                "actors_restarted": sum(entry["what"] != "all" for entry in restarts),
                "recovery_seconds_median": round(statistics.median(recovery), 1) if recovery else None,
                "recovery_seconds_max": round(max(recovery), 1) if recovery else None,
                "updates_lost": lost,
                "processes_left": left(run_dir),
                "exit_code": code,
                "eval_return_mean": summary.get("eval_return_mean"),
                "num_agent_steps": summary.get("num_agent_steps"),
                "seconds": round(time.monotonic() - start),
            }
        )
    )


if __name__ == "__main__":
    main()
