"""Kills the processes of a job on many hosts, of each kind in turn, and says what came of it.

    python benchmarks/cluster_faults.py [--kills 6] [--seconds 5 20] [-- launch ...]

The default job is `launch sebulba --agent impala --env gymnasium/CartPole-v1 --hosts 2`: two learners, a Reverb server beside
each, and two processes of actors, all under a local Ray of two simulated hosts. Kinds: `learner`, `actor`, `server` (Reverb),
`agent` (the Ray actor that holds a host's processes) and `node` (the raylet, and so a whole simulated host). Between recovery
and the next SIGKILL a random time passes; what it hits is chosen at random among those of the kind whose turn it is. Prints one
JSON line: for each kill the seconds until its victim was replaced and learners made updates again (a replaced actor is told
of every 5 s), and the updates that must be made again; restarts with their reasons; processes that are left; exit code;
evaluation.
"""

import functools
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import psutil

from podracer.checkpoint import GENERATION_FILE, newest_generation
from podracer.launch.cluster import record
from podracer.metrics.log import read_rows

KINDS = ("learner", "actor", "server", "agent", "node")
_GANG = ("learner", "agent", "node")  # all learners start again
_NUM_HOSTS = 2
_JOB = ["launch", "sebulba", "--agent", "impala", "--env", "gymnasium/CartPole-v1"]
_JOB += ["--hosts", str(_NUM_HOSTS), "--set", "checkpoint_seconds=5"]
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


def resumed_after(run_dir: Path) -> int:
    """The update from which the newest generation went on, by what its first learner said."""
    text = (run_dir / "cluster" / "learner-0.log").read_text()
    said = re.findall(r"resumed after update ([\d,]+)|(no checkpoint was saved)", text)
    return int(said[-1][0].replace(",", "") or 0) if said else 0


def works(run_dir: Path, generation: int) -> bool:
    """Whether a generation younger than `generation` has made an update: its progress file is made anew by the first one."""
    begun, progress = run_dir / GENERATION_FILE, run_dir / "cluster" / "progress-0"
    if newest_generation(run_dir) <= generation or not progress.exists():
        return False
    return progress.stat().st_mtime > begun.stat().st_mtime


def strike(run_dir: Path, kind: str, victim: psutil.Process, launcher: subprocess.Popen[bytes]) -> dict[str, float] | None:
    """Kills a process, and waits until it is there again and learners go on; None where the job ended first."""
    generation, reached = newest_generation(run_dir), num_updates(run_dir)
    before = reached

    def back() -> bool:
        nonlocal reached
        if kind in _GANG:
            if newest_generation(run_dir) == generation:  # learners may go on for some time before anybody notices
                reached = max(reached, num_updates(run_dir))
            return works(run_dir, generation)
        now = {process.pid for process in victims(run_dir, kind)}
        return len(now) == _NUM_HOSTS and victim.pid not in now and num_updates(run_dir) > before

    print(f"--- kill: {kind} {victim.pid}, after {before:,} updates", file=sys.stderr, flush=True)
    victim.kill()
    seconds = wait(back, launcher, run_dir)
    if seconds is None:
        return None
    lost = max(reached - resumed_after(run_dir), 0) if kind in _GANG else 0
    return {"seconds": round(seconds, 1), "updates_lost": lost}


def wait(condition: Callable[[], object], launcher: subprocess.Popen[bytes], run_dir: Path) -> float | None:
    """Seconds until it holds; None where the job ended first."""
    start = time.monotonic()
    while not condition():
        if launcher.poll() is not None:
            return None
        if time.monotonic() - start > _PATIENCE_SECONDS:
            raise SystemExit(f"nothing went on for {_PATIENCE_SECONDS:.0f} s: see {run_dir}")
        time.sleep(0.2)
    return time.monotonic() - start


def left(run_dir: Path) -> int:
    """Processes that still belong to the run."""
    mark, count = str(run_dir), 0
    own = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            words = [*command, *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        if process.pid not in own and any(mark in word for word in words):
            count += 1
            print(f"left: {process.pid} {' '.join(command)[:200]}", file=sys.stderr)
    return count


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, nargs=2, default=(5.0, 20.0), help="between an update and the next kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("job", nargs="*", default=_JOB, help="after --, without --run-dir")
    options = common.parse(parser)
    run_dir = (options.run_dir or Path(tempfile.mkdtemp(prefix="podracer-faults-")) / "run").absolute()
    chance, start = random.Random(options.seed), time.monotonic()
    command = [sys.executable, "-m", "podracer.launch.cli", *options.job, "--run-dir", str(run_dir)]
    launcher = subprocess.Popen(command, stdout=sys.stderr)
    kills: dict[str, list[dict[str, float]]] = {kind: [] for kind in options.kinds}
    try:
        wait(lambda: works(run_dir, 0), launcher, run_dir)
        for turn in range(options.kills):
            kind = options.kinds[turn % len(options.kinds)]
            time.sleep(chance.uniform(*options.seconds))
            wait(functools.partial(victims, run_dir, kind), launcher, run_dir)
            if found := victims(run_dir, kind):
                came = strike(run_dir, kind, chance.choice(found), launcher)
                if came is not None:
                    kills[kind].append(came)
        code = launcher.wait()
    finally:
        launcher.kill()
    time.sleep(2.0)
    state: dict[str, Any] = record.read(run_dir) or {}
    summary = json.loads((run_dir / "summary.json").read_text()) if (run_dir / "summary.json").exists() else {}
    common.emit(
        "cluster_faults",
        job=options.job,
        kills=kills,
        generations=state.get("generation"),
        restarts=[entry["reason"][:80] for entry in state.get("restarts", [])],
        processes_left=left(run_dir),
        exit_code=code,
        eval_return_mean=summary.get("eval_return_mean"),
        num_agent_steps=summary.get("num_agent_steps"),
        seconds=round(time.monotonic() - start),
    )


if __name__ == "__main__":
    main()
