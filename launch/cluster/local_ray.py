"""A Ray cluster of simulated hosts on this machine, in a process of its own that ends with whoever started it, in whatever way.

A process that has JAX's threads must not fork, and Ray forks; and what Ray starts would outlive a launcher that is killed.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from podracer.config import ConfigError


class LocalRay:
    """The launcher's end. address: of the cluster."""

    def __init__(self, num_hosts: int, node: Mapping[str, Any]):
        """Starts it; takes some seconds.

        Args:
          num_hosts: besides the head, which has no CPUs.
          node: of a host, as of `ray.cluster_utils.Cluster.add_node`.

        Raises:
          ConfigError: it does not start.
        """
        command = [sys.executable, "-m", "podracer.launch.cluster.local_ray", str(num_hosts), json.dumps(dict(node))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.address = self._answer()

    def add_host(self) -> None:
        """Adds a host."""
        assert self._process.stdin is not None
        self._process.stdin.write("add\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        """Ends the cluster and all its processes."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            word, _, rest = line.strip().partition(" ")
            if word == "podracer-ray":
                return rest
        words = self._process.communicate()[1].strip().splitlines()
        raise ConfigError(f"Ray does not start on this machine: {words[-1] if words else 'it says nothing'}")


def main(num_hosts: int, node: Mapping[str, Any]) -> None:
    """The cluster's end: hosts are added on request, and all ends with the standard input."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(num_hosts):
            cluster.add_node(**node)
        cluster.wait_for_nodes()
        print(f"podracer-ray {cluster.address}", flush=True)
        for _ in sys.stdin:
            cluster.add_node(**node)
            print("podracer-ray added", flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
