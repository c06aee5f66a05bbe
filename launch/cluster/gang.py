"""One job on many hosts: all learners begin together, and when one fails all begin again from the last checkpoint.

Learners run in lockstep: what one of them has lost, the others wait for. So they are one gang. Any that ends with an error,
vanishes with its host, or goes on no longer ends them all; the next generation starts after a pause that doubles. Actors of
Sebulba that are processes of their own come and go alone.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from podracer.config import one_line
from podracer.launch.cluster.places import NoRoom, Places, Seat, SeatLost
from podracer.launch.cluster.processes import Report
from podracer.launch.cluster.record import Record
from podracer.launch.signals import Stopped, StopRequests

_POLL_SECONDS = 0.2
_TELL_SECONDS = 5.0
_LAST_WORDS_SECONDS = 3.0
_SCALE_SECONDS = 15.0
_FIRST_NUMBER = 2**16  # of actors in processes of their own; learners' own ones count from 0
LISTENING = "actors may join"
"""What a learner's line says once it takes unrolls from other processes."""
USERS_MISTAKE = 2
"""Exit code of a worker whose job cannot be; starting it again would not help."""


@dataclasses.dataclass(frozen=True)
class Policy:
    """num_hosts: learners, one a host. least_actors, most_actors: processes of actors; between the two as they are needed.

    start_seconds: that a generation may take to its first update. stuck_seconds: without an update after which it is given up.
    stop_seconds: that learners get to save before they are killed. max_failures: generations one after the other that fail and
    save no checkpoint, before the job does. pause_seconds: before the second generation; doubles with each of those.
    """

    num_hosts: int
    least_actors: int = 0
    most_actors: int = 0
    start_seconds: float = 1800.0
    stuck_seconds: float = 300.0
    stop_seconds: float = 60.0
    max_failures: int = 5
    pause_seconds: float = 1.0


class GaveUp(Exception):
    """The job failed for good. Its text is one line."""


@dataclasses.dataclass
class _Actor:
    """A process of actors.

    running: whether it was started in its seat, which may still be waited for. starts: how often it was started. due: the time
    of its next start where it has no seat.
    """

    number: int
    seat: Seat | None = None
    running: bool = False
    starts: int = 0
    due: float = 0.0
    since: float = 0.0

    @property
    def name(self) -> str:
        return f"actor-{self.number}"


class Gang:
    """Runs a job to its end."""

    def __init__(
        self,
        places: Places,
        policy: Policy,
        run_dir: Path,
        command: Callable[[str], Sequence[str]],
        actor_command: Callable[[str, int], Sequence[str]] | None,
        requests: StopRequests,
        waits: Callable[[], float | None] = lambda: None,
        say: Callable[[str], None] = lambda text: print(text, flush=True),
    ):
        """Args:
        places: for processes. policy: how. run_dir: absolute, and the same on all hosts.
        command: of a learner, from "HOST:PORT" to listen at.
        actor_command: of actors, from the address of a learner to join and a number; None where the job has none.
        requests: to stop.
        waits: the share of time that learners waited for unrolls of late, None where that is unknown; for the number of actors.
        say: shows a line to people.
        """
        self._places, self._policy, self._run_dir = places, policy, run_dir
        self._command, self._actor_command = command, actor_command
        self._requests, self._waits, self._say = requests, waits, say
        self._record = Record(run_dir)
        self._seats: list[Seat] = []
        self._actors: list[_Actor] = []
        self._joining: list[str] = []
        self._listening: set[int] = set()
        self._reports: dict[str, Report] = {}
        self._told = self._scaled = -math.inf

    def run(self) -> int:
        """Returns the exit code: 0 once the job is done, USERS_MISTAKE for a job that cannot be.

        Raises:
          Stopped: asked to, and saved. GaveUp: it failed too often.
        """
        failures, end = 0, "failed"
        try:
            while True:
                saved = self._newest_checkpoint()
                self._record.tell("starting" if not failures else "restarting", {})
                try:
                    self._seats = self._wait_for_seats()
                    code = self._generation()
                    end = "failed" if code else "done"
                    return code
                except _Failed as failed:
                    reason = str(failed)
                finally:
                    self._end_all()
                self._check_stop()
                failures = 1 if self._newest_checkpoint() != saved else failures + 1
                if failures > self._policy.max_failures:
                    raise GaveUp(f"{failures} generations failed one after the other and saved nothing; the last one: {reason}")
                pause = self._policy.pause_seconds * 2 ** (failures - 1)
                self._record.restarted("all", reason)
                self._say(f"podracer: {reason}: all start again from the last checkpoint in {pause:.0f} s")
                self._sleep(pause)
        except Stopped:
            end = "stopped"
            raise
        finally:
            self._record.tell(end, {})
            self._record.close()

    def _wait_for_seats(self) -> list[Seat]:
        """A seat on each host, however long that takes: hosts that were preempted may be hours away."""
        said = ""
        while True:
            try:
                return self._places.seats(self._policy.num_hosts)
            except NoRoom as missing:
                if str(missing) != said:
                    said = str(missing)
                    self._say(f"podracer: waiting for hosts: {said}")
            except SeatLost as lost:
                raise _Failed(str(lost)) from lost
            self._record.tell("starting", {})
            self._sleep(self._policy.pause_seconds)

    def _generation(self) -> int:
        """One generation from start to end. Raises _Failed, Stopped."""
        number = self._record.next_generation()
        try:
            coordinator = f"{self._seats[0].address}:{self._seats[0].free_port()}"
            self._joining = []
            for index, seat in enumerate(self._seats):
                self._joining.append(f"{seat.address}:{seat.free_port()}")
                progress = str(self._record.folder / f"progress-{index}")
                environ = {
                    "PODRACER_HOSTS": str(self._policy.num_hosts),
                    "PODRACER_HOST": str(index),
                    "PODRACER_COORDINATOR": coordinator,
                    "PODRACER_GENERATION": str(number),
                    "PODRACER_PROGRESS": progress,
                }
                seat.start(_learner(index), self._command(self._joining[-1]), environ, progress)
        except SeatLost as lost:
            raise _Failed(str(lost)) from lost
        return self._watch()

    def _watch(self) -> int:
        started, stop_by = time.monotonic(), math.inf
        while True:
            codes = self._look(started)
            if all(code == 0 for code in codes):
                if stop_by < math.inf:
                    raise self._stopped()
                if not (self._run_dir / "summary.json").exists():
                    raise _Failed("a host was told to end (preemption), and all have saved")
                return 0
            if any(code is not None and code != 0 for code in codes):
                code, reason = self._why()
                if code == USERS_MISTAKE:
                    print(reason, file=sys.stderr, flush=True)
                    return code
                raise _Failed(reason)
            now = time.monotonic()
            if self._stop_asked() and stop_by == math.inf:
                stop_by = now + self._policy.stop_seconds
                self._record.tell("stopping")
                for index, seat in enumerate(self._seats):
                    with contextlib.suppress(SeatLost):  # the next look finds it out
                        seat.send(_learner(index), signal.SIGTERM)
            if now > stop_by:
                self._say(f"podracer: not all had saved after {self._policy.stop_seconds:.0f} s: killed")
                raise self._stopped()
            if stop_by == math.inf:
                self._keep_actors()
            if now - self._told > _TELL_SECONDS:
                self._told = now
                self._record.tell("running" if stop_by == math.inf else "stopping", self._facts())
            time.sleep(_POLL_SECONDS)

    def _look(self, started: float) -> list[int | None]:
        """Exit codes of learners. Raises _Failed for one that is lost or stuck."""
        codes = []
        for index, seat in enumerate(self._seats):
            report = self._report(_learner(index), seat)
            codes.append(report.code)
            if report.code is not None:
                continue
            if report.idle is None and time.monotonic() - started > self._policy.start_seconds:
                raise _Failed(f"learner {index} made no update in {self._policy.start_seconds:.0f} s")
            if report.idle is not None and report.idle > self._policy.stuck_seconds:
                raise _Failed(f"learner {index} is stuck: no update for {report.idle:.0f} s")
        return codes

    def _report(self, name: str, seat: Seat) -> Report:
        try:
            report = seat.report(name)
        except SeatLost as lost:
            raise _Failed(f"{name} is gone: {lost}") from lost
        self._reports[name] = report
        self._record.log(name, report.lines)
        if name == _learner(0):
            for line in report.lines:
                self._say(line)
        return report

    def _why(self) -> tuple[int, str]:
        """Exit code and reason of the learner that failed first: others may have failed because it did."""
        deadline = time.monotonic() + _LAST_WORDS_SECONDS
        while time.monotonic() < deadline:
            reports = [self._report(_learner(index), seat) for index, seat in enumerate(self._seats)]
            if all(report.code is not None for report in reports):
                break
            time.sleep(_POLL_SECONDS)
        failed = [(index, report) for index, report in enumerate(reports) if report.code]
        index, report = min(failed, key=lambda pair: _lateness(pair[1]))
        assert report.code is not None
        if report.code == USERS_MISTAKE:
            return report.code, next((line for line in reversed(report.tail) if line.startswith("podracer: ")), report.tail[-1])
        how = signal.Signals(-report.code).name if report.code < 0 else f"exit code {report.code}"
        words = "" if report.code == -signal.SIGKILL else _last_words(report.tail)
        return report.code, f"learner {index} ended ({how}){words}"

    # Actors.

    def _keep_actors(self) -> None:
        """Starts actors that are missing, while the learners work."""
        if self._actor_command is None or not self._learners_listen() or self._learned():
            return
        self._scale()
        for actor in self._actors:
            try:
                reason = self._look_at(actor)
            except (SeatLost, _Failed) as lost:
                reason = str(lost)
            if reason is not None:
                self._lose_actor(actor, reason)

    def _look_at(self, actor: _Actor) -> str | None:
        """Starts an actor that does not run, as soon as it is due and has a seat. Why it ended, if it did."""
        assert self._actor_command is not None
        if actor.seat is None:
            if time.monotonic() >= actor.due:
                actor.seat = self._places.spare()
            return None
        if not actor.running:
            if actor.seat.ready():
                joining = self._joining[actor.number % len(self._joining)]
                actor.seat.start(actor.name, self._actor_command(joining, actor.number), {})
                actor.running, actor.starts, actor.since = True, actor.starts + 1, time.monotonic()
            return None
        report = self._report(actor.name, actor.seat)
        return None if report.code is None else f"ended ({report.code}){_last_words(report.tail)}"

    def _learned(self) -> bool:
        """Whether a learner has made its last update, and so sends actors away."""
        reports = [self._reports[_learner(index)] for index in range(len(self._seats))]
        return any(report.code == 0 or (report.idle is not None and report.idle < 0) for report in reports)

    def _learners_listen(self) -> bool:
        """Whether all learners' servers are there: by what they said, once."""
        for index in range(len(self._seats)):
            if any(LISTENING in line for line in self._reports[_learner(index)].tail):
                self._listening.add(index)
        return len(self._listening) == len(self._seats)

    def _lose_actor(self, actor: _Actor, reason: str) -> None:
        if time.monotonic() - actor.since > 60.0:
            actor.starts = 0
        actor.due = time.monotonic() + min(self._policy.pause_seconds * 2 ** max(actor.starts - 1, 0), 60.0)
        self._record.restarted(actor.name, reason)
        self._record.log(actor.name, [f"podracer: {actor.name} {reason}: starts again"])
        if actor.seat is not None:
            actor.seat.close()
            actor.seat, actor.running = None, False

    def _scale(self) -> None:
        """As many actors as there must be, and one more or less now and then as learners wait for unrolls or do not."""
        policy = self._policy
        while len(self._actors) < policy.least_actors:
            self._actors.append(_Actor(len(self._actors)))
        if policy.most_actors <= policy.least_actors or time.monotonic() - self._scaled < _SCALE_SECONDS:
            return
        self._scaled = time.monotonic()
        waited = self._waits()
        if waited is None:
            return
        if waited > 0.2 and len(self._actors) < policy.most_actors:
            self._actors.append(_Actor(len(self._actors)))
        elif waited < 0.02 and len(self._actors) > policy.least_actors:
            actor = self._actors.pop()
            if actor.seat is not None:
                if actor.running:
                    with contextlib.suppress(SeatLost):
                        actor.seat.send(actor.name, signal.SIGTERM)
                actor.seat.close()

    # The end.

    def _end_all(self) -> None:
        """Kills whatever runs."""
        for actor in self._actors:
            if actor.seat is not None:
                actor.seat.close()
        for seat in self._seats:
            seat.close()
        self._seats, self._actors, self._reports = [], [], {}
        self._listening.clear()

    def _stop_asked(self) -> bool:
        return self._requests.pending or self._record.stop_requested

    def _check_stop(self) -> None:
        if self._stop_asked():
            raise self._stopped()

    def _stopped(self) -> Stopped:
        return self._requests.stop() if self._requests.pending else Stopped("podracer stop", 0)

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_stop()
            time.sleep(_POLL_SECONDS)

    def _facts(self) -> dict[str, dict[str, object]]:
        """Node and process of each that runs."""
        running = [(_learner(index), seat) for index, seat in enumerate(self._seats)]
        running += [(actor.name, actor.seat) for actor in self._actors if actor.seat is not None and actor.running]
        return {name: {"node": seat.node, "pid": self._reports[name].pid} for name, seat in running if name in self._reports}

    def _newest_checkpoint(self) -> int:
        folder = self._run_dir / "checkpoints"
        return max((int(path.name) for path in folder.glob("*") if path.name.isdecimal()), default=-1)


class _Failed(Exception):
    """A generation is to be replaced; the text says why."""


def _learner(index: int) -> str:
    return f"learner-{index}"


def _lateness(report: Report) -> int:
    """Sorts learners that failed: a user's mistake says most, then a signal, then an error of its own, then one of a peer's."""
    if report.code == USERS_MISTAKE:
        return 0
    if report.code is not None and report.code < 0 and report.code != -signal.SIGABRT:
        return 1
    of_peers = ("Gloo", "closed by peer", "distributed service", "coordination", "heartbeat")
    return 3 if any(word in line for line in report.tail for word in of_peers) else 2


def _last_words(tail: Sequence[str]) -> str:
    """The last line that says something, `: text`, or nothing."""
    said = [line for line in tail if line.strip() and not line.startswith((" ", "[Gloo]"))]
    return f": {one_line(said[-1], 300)}" if said else ""


def learner_command(runtime: str, run_dir: Path, listen: bool) -> Callable[[str], list[str]]:
    """The command of a learner, see `Gang`. listen: whether it takes unrolls from other processes."""

    def command(address: str) -> list[str]:
        more = ["--listen", address] if listen else []
        return [sys.executable, "-m", "podracer.launch.cli", "launch", runtime, "--resume", "--run-dir", str(run_dir), *more]

    return command


def actor_command(threads: int) -> Callable[[str, int], list[str]]:
    """The command of actors, see `Gang`."""

    def command(address: str, number: int) -> list[str]:
        options = ["--connect", address, "--threads", str(threads), "--number", str(_FIRST_NUMBER + number * threads)]
        return [sys.executable, "-m", "podracer.launch.cli", "actor", *options]

    return command
