"""Hosts to start processes on."""

import abc
from collections.abc import Mapping, Sequence

from podracer.launch.cluster.processes import Processes, Report, free_port


class SeatLost(Exception):
    """A host, or the way to it, is gone, and with it all processes that were started there."""


class NoRoom(SeatLost):
    """There are not as many hosts as it takes, yet: they were asked for, and whoever asks again may get them."""


class Seat(abc.ABC):
    """A place on one host. All methods raise SeatLost.

    address: under which other hosts of the job reach it. node: its name, for people.
    """

    address: str
    node: str

    def ready(self) -> bool:
        """Whether the host is there; until then all methods but this and `close` wait for it."""
        return True

    @abc.abstractmethod
    def free_port(self) -> int:
        """A port that nobody listens on now."""

    @abc.abstractmethod
    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str], progress: str = "") -> None:
        """See `Processes.start`."""

    @abc.abstractmethod
    def report(self, name: str) -> Report:
        """See `Processes.report`."""

    @abc.abstractmethod
    def send(self, name: str, number: int) -> None:
        """See `Processes.send`."""

    @abc.abstractmethod
    def kill(self, name: str) -> None:
        """See `Processes.kill`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Ends all its processes and gives the place back; raises nothing."""


class Places(abc.ABC):
    """Where a job may have seats."""

    @abc.abstractmethod
    def seats(self, count: int) -> list[Seat]:
        """Seats for the learners of a generation, each on a host of its own; waits some seconds for them where it must.

        Raises:
          NoRoom: there are not so many hosts now. ConfigError: there will never be. SeatLost: one of them failed.
        """

    @abc.abstractmethod
    def spare(self) -> Seat:
        """One more seat, for actors, on whatever host has room, or will have: see `Seat.ready`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives everything back."""


class LocalSeat(Seat):
    """A seat on this machine; processes start in `folder`."""

    address = "127.0.0.1"
    node = "this machine"

    def __init__(self, folder: str):
        self._folder, self._processes = folder, Processes()

    def free_port(self) -> int:
        return free_port(self.address)

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str], progress: str = "") -> None:
        self._processes.start(name, command, environ, self._folder, progress)

    def report(self, name: str) -> Report:
        return self._processes.report(name)

    def send(self, name: str, number: int) -> None:
        self._processes.send(name, number)

    def kill(self, name: str) -> None:
        self._processes.kill(name)

    def close(self) -> None:
        self._processes.kill_all()
