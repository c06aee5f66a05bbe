"""`podracer plan`: what a job would be on a pod or host that is not here, said before it is paid for."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from podracer.aot import compilers, topologies
from podracer.aot.topologies import Topology
from podracer.config import ConfigError, JobConfig, override
from podracer.launch import job as jobs
from podracer.launch.analyze import Analysis, Program, environment
from podracer.launch.words import quantity

_MOST_TRIES, _MOST_SECONDS = 6, 180.0  # compilations, and time, that the search for what fits may take


@dataclasses.dataclass(frozen=True)
class Price:
    """budget: frames of the environments, or the job's own. per_chip_hour: money. efficiency: share of the bound reached."""

    budget: int | None = None
    per_chip_hour: float | None = None
    efficiency: float = 1.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """analysis: of the job on the topology. notes: what was assumed, or could not be done.

    fits: whether it fits, where a compiler said so. too_large: where it does not, one line with what fits.
    """

    topology: Topology
    analysis: Analysis
    notes: tuple[str, ...]
    fits: bool | None
    too_large: str = ""


class CompilerCrashed(Exception):
    """The compiler took its process along. Its text says how."""


def plan(request: jobs.Request, topology_name: str | None, price: Price) -> Answer:
    """Plans a job. Takes no device, unless it is for those of this host.

    Raises:
      ConfigError, registry.NotFound: what is asked for is not there, or does not fit.
    """
    if topology_name and (request.devices is not None or request.hosts is not None):
        raise ConfigError("--topology says how many hosts and devices there are: leave --devices and --hosts out")
    topology = topologies.find(topology_name) if topology_name else None
    users_platform = os.environ.get("JAX_PLATFORMS")
    os.environ["JAX_PLATFORMS"] = "cpu"  # agents are imported, and JAX with them; it shall take nothing
    job, preset = jobs.new_job(request)
    notes: list[str] = []
    if topology:
        job, notes = _spread(job, request.settings, topology)
        notes += _about(topology)
    if job.runtime == "sebulba":
        notes.append("environments on the host, and transfers between host and devices, are not counted")
    asker = _Asker(topology, users_platform, preset, price.budget)
    analysis = asker.ask(job, notes)
    topology = _topology(analysis)
    refused = next((program for program in analysis.programs if program.refused), None)
    if refused is not None:
        return Answer(topology, analysis, tuple(notes), False, _too_large(job, analysis, refused, topology, asker))
    compiled = topology.compiles() and all(program.compiled for program in analysis.programs)
    return Answer(topology, analysis, tuple(notes), True if compiled else None)


def estimate(answer: Answer, price: Price) -> dict[str, float]:
    """Speed, time and cost at the bound times `price.efficiency`; empty where no peaks are known.

    steps_per_second: agent steps, slots of resets included, of one seed. seconds: of the budget. chip_hours, cost: of it all.
    """
    plan, seconds = answer.analysis.plan, update_seconds(answer.analysis)
    if not seconds:
        return {}
    seconds /= price.efficiency
    whole = plan["num_updates"] * seconds
    chip_hours = whole / 3600 * answer.topology.num_chips
    found = {
        "update_seconds": seconds,
        "steps_per_second": plan["steps_per_update"] / seconds,
        "frames_per_second": plan["steps_per_update"] * answer.analysis.frames_per_step / seconds,
        "seconds": whole,
        "chip_hours": chip_hours,
    }
    if price.per_chip_hour is not None:
        found["cost"] = chip_hours * price.per_chip_hour
    return found


def update_seconds(analysis: Analysis) -> float:
    """The least time from one update to the next, 0 where it is not known. Sebulba's actors have theirs beside the learner."""
    seconds = {program.name: max(program.bound.values()) for program in analysis.programs if program.bound}
    actors = analysis.plan["actors"]
    if actors and seconds:
        # One unroll of one actor of every host is an update; a host's actor devices work side by side.
        seconds["act"] *= analysis.plan["unroll_length"] / actors["num_devices"]
        if not actors["first_learner"]:
            return sum(seconds.values())  # one device does both
    return max(seconds.values(), default=0.0)


def as_json(answer: Answer, price: Price) -> str:
    """All of it, as one object."""
    from podracer.aot.roofline import ASSUMPTIONS

    analysis = dataclasses.asdict(answer.analysis)
    analysis["job"] = json.loads(analysis["job"])["job"]
    del analysis["outline"], analysis["error"]
    return json.dumps(
        {
            **analysis,
            "fits": answer.fits,
            "too_large": answer.too_large,
            "estimate": estimate(answer, price),
            "notes": answer.notes,
            "assumptions": ASSUMPTIONS,
        },
        default=str,
    )


class _Asker:
    """Has jobs analysed, each in a process of its own."""

    def __init__(self, topology: Topology | None, users_platform: str | None, preset: str, budget: int | None):
        self._topology, self._preset, self._budget = topology, preset, budget
        self._environ = dict(os.environ)
        if topology:
            self._environ |= environment(topology)
        elif users_platform is None:
            del self._environ["JAX_PLATFORMS"]
        else:
            self._environ["JAX_PLATFORMS"] = users_platform

    def ask(self, job: JobConfig, notes: list[str]) -> Analysis:
        """Raises ConfigError. A compiler that crashes is a note."""
        try:
            return self.once(job)
        except CompilerCrashed as crash:
            notes.append(f"the compiler crashed, so memory is of arrays alone: {crash}")
            return self.once(job, compiles=False)

    def once(self, job: JobConfig, compiles: bool = True) -> Analysis:
        """Raises ConfigError, CompilerCrashed."""
        question = {
            "job": jobs.job_as_json(job, self._preset),
            "topology": self._topology.name if self._topology else "",
            "budget": self._budget,
            "compiles": compiles,
        }
        command = [sys.executable, "-m", "podracer.launch.analyze"]
        done = subprocess.run(
            command, input=json.dumps(question), capture_output=True, text=True, env=self._environ, check=False
        )
        if done.returncode < 0:
            raise CompilerCrashed(signal.Signals(-done.returncode).name)
        if done.returncode:
            raise RuntimeError(f"the analysis failed:\n{done.stderr}")
        answer = json.loads(done.stdout)
        if answer["error"]:
            raise ConfigError(answer["error"])
        answer["programs"] = tuple(Program(**program) for program in answer["programs"])
        return Analysis(**answer)


def _spread(job: JobConfig, settings: Sequence[str], topology: Topology) -> tuple[JobConfig, list[str]]:
    """The job over all devices of a topology. What is not set by hand grows with them: presets are for one device."""
    from podracer.plan import learner_devices

    job = dataclasses.replace(job, num_hosts=topology.num_hosts, num_devices=topology.devices_per_host)
    said = {text.partition("=")[0].strip() for text in settings}
    times = topology.num_devices
    if job.runtime == "sebulba":
        job = dataclasses.replace(job, num_devices=1)
        times = topology.num_hosts * learner_devices(job.sebulba, topology.devices_per_host)
    growing = {"anakin.num_envs": job.anakin.num_envs}
    if getattr(job.agent, "replay_capacity", 0):
        growing["agent.replay_capacity"] = job.agent.replay_capacity
    grown = {key: times * value for key, value in growing.items() if key not in said}
    if times == 1 or not grown:
        return job, []
    text = ", ".join(f"{key}={value}" for key, value in grown.items())
    return override(job, grown), [f"{text}: {times} times what one device has by preset or default; --set says otherwise"]


def _about(topology: Topology) -> list[str]:
    """What there is to say of a topology."""
    notes, gpu = [], topology.chip.platform == "gpu"
    if not topology.compiles():
        platform = topology.chip.platform
        missing = f"{compilers.NAMES[platform]} is not installed, so nothing was compiled for it"
        notes.append(f"{missing}: podracer plan install {platform}")
        notes.append("memory is an estimate: temporaries are those of the same program compiled for the CPU")
    elif gpu:
        notes.append("nothing was autotuned, which takes a GPU; whether it fits is by the sum of what XLA lays out")
    if topology.chip.devices > 1:
        notes.append(
            f"libtpu lists {topology.chip.devices} devices for a {topology.chip.kind}, one a core, with a share of its memory; "
            "JAX on a real one makes it a single device"
        )
    return notes


def _topology(analysis: Analysis) -> Topology:
    """The one that was analysed: that of this host is known there alone."""
    told = dict(analysis.topology)
    return Topology(**{**told, "chip": topologies.Chip(**told["chip"])})


def _too_large(job: JobConfig, analysis: Analysis, refused: Program, topology: Topology, asker: _Asker) -> str:
    """One line: how much too large, and the nearest configuration that fits."""
    used, available = refused.refused or (0.0, 0.0)
    line = "out of memory"
    if used:
        line += f": a device needs {quantity(used, 'B')}, and has {quantity(available, 'B')}"
    search = _Search(job, asker, used / available if available else 2.0)
    found = search.nearest(_ladders(job, analysis, available or topology.chip.memory))
    if found is None:
        return f"{line}; nothing that was tried in {search.tries} compilations fits: a smaller network, or a larger chip, may"
    settings = " ".join(f"--set {key}={value}" for key, value in found.items())
    return f"{line}; {'the nearest halving that fits' if search.proven else 'this fits'}: {settings}"


class _Search:
    """For the least change that fits, of halvings of one setting after the other.

    excess: how many times too much it was. tries: compilations that it took. proven: whether nothing nearer fits.
    """

    def __init__(self, job: JobConfig, asker: _Asker, excess: float):
        self._job, self._asker, self._excess = job, asker, excess
        self.tries, self._started, self.proven = 0, time.monotonic(), False

    def nearest(self, ladders: Sequence[Sequence[Mapping[str, Any]]]) -> Mapping[str, Any] | None:
        """Of the first ladder on which anything fits; each is searched by bisection, from a guess by how much is too much."""
        for ladder in ladders:
            low, high = 0, len(ladder)  # what is known: below `low` nothing fits, and `high`, where there is one, does
            guess = math.ceil(math.log2(max(self._excess, 1.0))) - 1
            rung = min(max(guess, 0), high - 1)
            while low < high and self.tries < _MOST_TRIES and time.monotonic() - self._started < _MOST_SECONDS:
                if self._fits(ladder[rung]):
                    high = rung
                else:
                    low = rung + 1
                rung = (low + min(high, len(ladder) - 1)) // 2
            if high < len(ladder):
                self.proven = low == high
                return ladder[high]
        return None

    def _fits(self, change: Mapping[str, Any]) -> bool:
        self.tries += 1
        try:
            tried = self._asker.once(override(self._job, change))
        except (ConfigError, CompilerCrashed):
            return False  # it divides nothing, or nobody knows
        return all(program.refused is None for program in tried.programs)


def _ladders(job: JobConfig, analysis: Analysis, available: float) -> list[list[dict[str, Any]]]:
    """Settings halved once, twice, ...: of replay where that is most of it, of microbatches, of environments."""
    plan = analysis.plan
    batch = plan["batch_size"] // plan["num_devices"]
    ladders = []
    if analysis.arrays.get("replay", 0) > available / 2:
        ladders.append(_halvings("agent.replay_capacity", job.agent.replay_capacity, plan["num_envs"]))
    elif hasattr(job.agent, "microbatch"):
        ladders.append(_halvings("agent.microbatch", job.agent.microbatch or batch, 1))
    least = plan["num_devices"] * plan["minibatches"]
    ladders.append(_halvings("anakin.num_envs", plan["num_envs"], least))
    return ladders


def _halvings(key: str, value: int, least: int) -> list[dict[str, Any]]:
    rungs = []
    while value % 2 == 0 and value // 2 >= least:
        value //= 2
        rungs.append({key: value})
    return rungs
