"""The report on all that is measured here: runs benchmarks, and makes docs/report of what they print.

    make report                                  all sections, three quarters of an hour on two idle cores
    make report ARGS="--only curves speed"       some of them, again; the page keeps what it has of the others
    make report ARGS="--list"                    what there is, with the seconds that each took
    make report ARGS="--render"                  the page anew, from the data that is there

A section is some commands of benchmarks. Their JSON lines go to docs/report/data/SECTION.json, with date, commit, and of each
command its seconds and how it ended; docs/report/index.md and its pictures are made from these files alone. A command that
fails stops no other one; the page says which, and the exit code is 1.

`--peers PYTHON` is the interpreter of an environment that has Sample Factory, `--purejaxrl DIR PYTHON` the folder `purejaxrl`
of a checkout of PureJaxRL and an interpreter that can run it. What is not given is said in one line.
"""

import argparse
import dataclasses
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import report_page

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "report"
_LIMIT_SECONDS = 1500.0


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page. commands: words after `python benchmarks/`, each run in turn. needs: what of the options it takes;
    without, `hint` is said.
    """

    title: str
    commands: tuple[str, ...]
    needs: str = ""
    hint: str = ""


SECTIONS = {
    "curves_muesli": Section("Learning: Muesli on Catch", ("learning.py muesli_catch",)),
    "curves_impala": Section("Learning: IMPALA on CartPole, in turns and with a lag", ("learning.py impala_cartpole",)),
    "curves_reverb": Section("Learning: Muesli on CartPole, through Reverb and without", ("learning.py muesli_cartpole",)),
    "curves_muzero": Section("Learning: MuZero on a key and a door", ("learning.py muzero_key_door",)),
    "curves_r2d2": Section("Learning: R2D2 on a T-maze", ("learning.py r2d2_tmaze",)),
    "curves_cca": Section(
        "Learning: counterfactual credit assignment",
        (
            "cca.py bandit --arms 'CCA, noise 100' 'actor-critic, noise 100' --seeds 5",
            "cca.py door --arms 'high: CCA, attention' 'high: actor-critic' --seeds 3 --steps 1000000",
        ),
    ),
    "curves_himo": Section("Learning: hindsight modelling", ("himo.py values --processes 4 --updates 8000",)),
    "curves_nav": Section(
        "Learning: Nav in a maze", ("nav.py random --arms LSTM Nav Nav+D2 untrained --seeds 2 --steps 600000",)
    ),
    "speed_anakin": Section(
        "Speed of Anakin against its bare parts",
        ("anakin.py --set agent.unroll_length=16 --set agent.torso.activation=tanh --set agent.separate_value=true",),
    ),
    "speed_sebulba": Section("Speed of Sebulba against its bare parts", ("sebulba.py threads pixels --seconds 2 --rounds 3",)),
    "speed_search": Section("Speed of search against bare mctx", ("search.py --seconds 0.5",)),
    "speed_environments": Section(
        "Speed of environments",
        (
            "host_environments.py atari/pong 'atari/pong env.backend=ale' gymnasium/CartPole-v1 --rounds 5 --seconds 1",
            "nav_render.py speed --num-envs 32 --rounds 5 --seconds 0.7",
        ),
    ),
    "peers_anakin": Section(
        "Anakin against PureJaxRL",
        ("anakin.py peer --rounds 5 --purejaxrl {purejaxrl} --peer-python {python}",),
        "purejaxrl",
        "It has no package: `git clone https://github.com/luchris429/purejaxrl`, and `--purejaxrl DIR/purejaxrl PYTHON`.",
    ),
    "peers_sebulba": Section(
        "Sebulba against Sample Factory",
        ("sebulba.py peer --peer {peers} --peer-seconds 30 --rounds 3",),
        "peers",
        "Sample Factory is not installed: `pip install sample-factory==2.1.1` somewhere else, then `--peers PYTHON`.",
    ),
    "reverb": Section("Reverb's client against the official one", ("reverb.py --seconds 0.6",)),
    "scaling": Section("Weak scaling, simulated", ("scaling.py devices processes --seconds 0.5 --rounds 3",)),
    "pods": Section("Plans for pods, compiled ahead of time", ("scaling.py chips --kinds v5e",)),
    "faults": Section("Faults", ("soak.py --seconds 120 --every 4", "cluster_faults.py --kills 5 --seconds 2 8 --seed 1")),
}


def run_section(name: str, given: dict[str, str]) -> bool:
    """Runs the commands of a section and writes its data file. Returns whether all ended well."""
    section, runs = SECTIONS[name], []
    path = FOLDER / "data" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    for words in section.commands:
        shown = words.format(**{key: Path(value).name if "/" in value else value for key, value in given.items()})
        runs.append(run_command(words.format(**given), shown))
        facts = {
            "section": name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            "commit": commit(),
            "seconds": round(sum(run["seconds"] for run in runs), 1),
            "machine": common.machine(),
            "runs": runs,
        }
        path.write_text(json.dumps(facts) + "\n")  # after each: who stops it in between keeps what there is
    return all(run["exit_code"] == 0 for run in runs)


def run_command(words: str, shown: str) -> dict[str, Any]:
    """Runs one benchmark; what it says beside its lines goes to the terminal."""
    print(f"--- python benchmarks/{shown}", file=sys.stderr, flush=True)
    start, output, code, error = time.monotonic(), "", 1, ""
    load = os.getloadavg()[0]  # of the last minute: what else the machine does
    command = [sys.executable, *shlex.split(words)]
    command[1] = str(ROOT / "benchmarks" / command[1])
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False)
        output, code, error = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as late:
        output, error = _text(late.stdout), f"it took more than {_LIMIT_SECONDS:.0f} s"
    lines = [line for line in common.rows_of(output) if "benchmark" in line]
    stamps = {key: lines[-1][key] for key in ("versions", "machine")} if lines else {}
    for line in lines:
        for key in ("versions", "machine", "command"):
            line.pop(key, None)
    last = error.strip().splitlines()[-1:] if code else []
    return {
        "command": f"python benchmarks/{shown}",
        "seconds": round(time.monotonic() - start, 1),
        "load": round(load, 1),
        "exit_code": code,
        **({"error": last[0][:300]} if last else {}),
        **stamps,
        "lines": lines,
    }


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def commit() -> str:
    """Of the checkout, with a `+` where files other than the report's differ from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/report")
    return (git("rev-parse", "--short=10", "HEAD") or "no checkout") + ("+" if changed else "")


def listing(names: Sequence[str]) -> str:
    """A line a section: what it runs and how long that took."""
    lines = []
    for name in names:
        data = report_page.load(FOLDER, name)
        took = f"{data['seconds']:6.0f} s" if data else "  not run"
        lines.append(f"{name:20} {took}  {'; '.join(SECTIONS[name].commands)}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), metavar="SECTION", help="run these alone")
    parser.add_argument("--list", action="store_true", help="say what sections there are, and run none")
    parser.add_argument("--render", action="store_true", help="make the page of the data that is there, and run nothing")
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--purejaxrl", nargs=2, metavar=("DIR", "PYTHON"))
    options = parser.parse_args()
    names = options.only or list(SECTIONS)
    if options.list:
        print(listing(names))
        return 0
    given = {"peers": options.peers or ""}
    given |= dict(zip(("purejaxrl", "python"), options.purejaxrl or ("", ""), strict=True))
    failed = []
    for name in [] if options.render else names:
        section = SECTIONS[name]
        if section.needs and not given[section.needs]:
            print(f"{name}: {section.hint}", file=sys.stderr)
        elif not run_section(name, given):
            failed.append(name)
    report_page.render(FOLDER, {name: (section.title, section.hint) for name, section in SECTIONS.items()})
    print(FOLDER / "index.md")
    if failed:
        print(f"failed: {', '.join(failed)}; docs/report/index.md says how", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and the benchmark that runs ends too
    sys.exit(main())
