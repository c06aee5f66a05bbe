"""Hosts through Ray: a placement group with one bundle a learner, and a Ray actor in each that holds the processes of its host.

A learner is a process of its own and not a Ray actor: when it aborts, as JAX does when it loses a peer, its Ray actor stays to
tell of it. Processes die with their Ray actor, and that with the launcher.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from podracer.config import ConfigError, one_line
from podracer.launch.cluster.local_ray import LocalRay
from podracer.launch.cluster.places import LocalSeat, NoRoom, Places, Seat, SeatLost
from podracer.launch.cluster.processes import Report

_CALL_SECONDS = 30.0
_PATIENCE_SECONDS = 15.0
_FORWARDED = ("PODRACER_", "XLA_", "JAX_", "LIBTPU_", "TPU_", "WANDB_")  # variables of the launcher that its processes get too


def authenticate(address: str | None) -> None:
    """Token authentication, unless the user's environment says otherwise; Ray reads that when it is imported.

    A cluster of our own on this machine (`address` None) gets a token of its own: nobody else here is to use it.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class OnRay(Places):
    """Seats on the hosts of a Ray cluster, or on a cluster of simulated hosts that it starts on this machine."""

    def __init__(self, address: str | None, num_hosts: int, resources: Mapping[str, float], folder: str, tpu: str = ""):
        """Connects, and starts the cluster where there is none.

        Args:
          address: of a cluster, as of `ray.init`; None starts one here, on loopback, which `close` ends.
          num_hosts: that the job wants.
          resources: that a host gives to its learner, for example `{"CPU": 8, "TPU": 4}`.
          folder: to start processes in.
          tpu: a slice to reserve whole, "v6e:4x4" (generation and topology); its hosts are then the job's.

        Raises:
          ConfigError: Ray is not installed, or nobody answers at `address`.
        """
        authenticate(address)
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--hosts needs Ray: pip install 'podracer-rl[ray]'") from error
        self._ray, self._resources, self._folder, self._tpu = ray, dict(resources), folder, tpu
        self._num_hosts = num_hosts
        self._group: Any = None
        self._slice: Any = None
        self._cluster: LocalRay | None = None
        if address is None:
            self._cluster = LocalRay(num_hosts, self._node())
            address = self._cluster.address
        try:
            ray.init(address=address, namespace="podracer", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            self.close()
            reason = one_line(error, 400)
            hint = "; RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN must hold the cluster's token" if "token" in reason.lower() else ""
            raise ConfigError(f"--ray-address {address}: {reason}{hint}") from error
        self._agent = ray.remote(_Agent)

    def seats(self, count: int) -> list[Seat]:
        """See `Places`."""
        self._replace_nodes()
        group = self._reserve(count)
        seats = [RaySeat(self._ray, self._make(group, index)) for index in range(count)]
        try:
            for seat in seats:
                seat.wait()
        except SeatLost:
            for seat in seats:
                seat.close()
            raise
        return list(seats)

    def spare(self) -> Seat:
        """See `Places`."""
        # Asked for until it is there: what waits in Ray is what makes a cluster grow.
        agent = self._agent.options(num_cpus=1, scheduling_strategy="SPREAD").remote(self._folder, self._loopback)
        return RaySeat(self._ray, agent)

    def close(self) -> None:
        """See `Places`."""
        with contextlib.suppress(Exception):
            if self._slice is not None:
                self._slice.shutdown()
            elif self._group is not None:
                self._ray.util.remove_placement_group(self._group)
        self._ray.shutdown()
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _make(self, group: Any, index: int) -> Any:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        where = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=index)
        wanted = dict(self._bundle())
        cpus, gpus = wanted.pop("CPU", 0), wanted.pop("GPU", 0)
        options = {"num_cpus": cpus, "num_gpus": gpus, "resources": wanted or None, "scheduling_strategy": where}
        return self._agent.options(**options).remote(self._folder, self._loopback)

    @property
    def _loopback(self) -> bool:
        return self._cluster is not None

    def _bundle(self) -> Mapping[str, float]:
        if self._slice is None:
            return self._resources
        bundle: Mapping[str, float] = self._slice.bundle_resources
        return bundle

    def _reserve(self, count: int) -> Any:
        """The placement group, once all of it is there; Ray itself moves bundles of hosts that died."""
        if self._tpu:
            self._reserve_slice(count)
        elif self._group is None:
            self._refuse_impossible(count)
            bundles = [self._resources] * count
            self._group = self._ray.util.placement_group(bundles, strategy="STRICT_SPREAD")
        if not self._group.wait(timeout_seconds=_PATIENCE_SECONDS):
            raise NoRoom(f"the cluster has no {count} hosts with {_words(self._bundle())}")
        return self._group

    def _reserve_slice(self, count: int) -> None:
        """A slice, and another one where hosts of the last are gone: Ray would wait for the same slice to come back."""
        from ray.util.tpu import SlicePlacementGroup

        if self._slice is not None and self._group.wait(timeout_seconds=_PATIENCE_SECONDS):
            return
        version, _, topology = self._tpu.partition(":")
        try:
            found = SlicePlacementGroup(topology, version, head_reservation_timeout_s=_PATIENCE_SECONDS)
        except ValueError as error:
            raise ConfigError(f"--tpu {self._tpu}: {one_line(error, 200)}") from error
        except (RuntimeError, TimeoutError) as error:
            raise NoRoom(f"the cluster has no free TPU slice {self._tpu}") from error
        if self._slice is not None:
            self._slice.shutdown()  # not before: its first host would be found again
        self._slice, self._group = found, found.placement_group
        if found.num_hosts != count:
            raise ConfigError(f"--tpu {self._tpu} has {found.num_hosts} hosts: say --hosts {found.num_hosts}")

    def _refuse_impossible(self, count: int) -> None:
        """A cluster that neither has such hosts nor scales would be waited for in vain; one that scales we cannot ask."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fit = sum(all(node.get(name, 0) >= wanted for name, wanted in self._resources.items()) for node in nodes)
        if fit < count and self._cluster is not None:
            raise ConfigError(f"{count} hosts with {_words(self._resources)}: this machine gives {fit}")

    # A cluster of our own on this machine.

    def _node(self) -> dict[str, Any]:
        """Of a simulated host: its CPUs are only numbers, all share this machine."""
        others = {name: amount for name, amount in self._resources.items() if name not in ("CPU", "GPU")}
        return {"num_cpus": self._resources.get("CPU", 1) + 64, "resources": others, "object_store_memory": 80 * 2**20}

    def _replace_nodes(self) -> None:
        """Adds simulated hosts for those that died."""
        if self._cluster is None:
            return
        alive = sum(node["Alive"] for node in self._ray.nodes()) - 1
        for _ in range(self._num_hosts - alive):
            self._cluster.add_host()


class RaySeat(Seat):
    """The seat that a Ray actor holds on its host."""

    def __init__(self, ray: Any, agent: Any):
        self._ray, self._agent, self.address, self.node = ray, agent, "", ""
        self._where = agent.where.remote()

    def ready(self) -> bool:
        if not self.node and self._ray.wait([self._where], timeout=0)[0]:
            self.wait()
        return bool(self.node)

    def wait(self) -> None:
        """Returns once the host is there. Raises SeatLost."""
        try:
            self.address, self.node = self._ray.get(self._where, timeout=_CALL_SECONDS)
        except self._ray.exceptions.RayError as error:
            self._ray.kill(self._agent)
            words = str(error).strip().splitlines()
            raise SeatLost(f"Ray gave no process on a host: {one_line(words[-1], 200) if words else repr(error)}") from error

    def free_port(self) -> int:
        return int(self._call("free_port"))

    def start(self, name: str, command: Sequence[str], environ: Mapping[str, str], progress: str = "") -> None:
        ours = {key: value for key, value in os.environ.items() if key.startswith(_FORWARDED)}
        self._call("start", name, list(command), {**ours, **environ}, progress)

    def report(self, name: str) -> Report:
        found: Report = self._call("report", name)
        return found

    def send(self, name: str, number: int) -> None:
        self._call("send", name, number)

    def kill(self, name: str) -> None:
        self._call("kill", name)

    def close(self) -> None:
        with contextlib.suppress(Exception):
            if self.node:
                self._ray.get(self._agent.close.remote(), timeout=5.0)
        with contextlib.suppress(Exception):
            self._ray.kill(self._agent)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return self._ray.get(getattr(self._agent, method).remote(*arguments), timeout=_CALL_SECONDS)
        except self._ray.exceptions.RayError as error:
            raise SeatLost(f"the Ray actor on {self.node} is lost ({type(error).__name__})") from error


class _Agent(LocalSeat):
    """The Ray actor of a host. All its methods run in one thread, its process's main one: `Processes` relies on it."""

    def __init__(self, folder: str, loopback: bool):
        """loopback: whether all hosts are this machine."""
        import ray

        # Of a submitted job each host has a copy of the working folder of its own.
        super().__init__(folder if os.path.isdir(folder) else os.getcwd())
        self.address = "127.0.0.1" if loopback else ray.util.get_node_ip_address()
        self.node = ray.get_runtime_context().get_node_id()[:8]

    def where(self) -> tuple[str, str]:
        return self.address, self.node


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
