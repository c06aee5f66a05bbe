"""The least time that an update can take: what its arithmetic, its memory traffic or its messages need at published peaks."""

import dataclasses

from podracer.aot.cost import Cost
from podracer.aot.topologies import Topology

ASSUMPTIONS = (
    "peaks are the published ones; no chip was measured, and small operations in long loops reach a small part of them",
    "XLA fuses what it can: memory traffic is that of matrix products, convolutions, gathers, scatters, sorts and of loops' "
    "slices; what stays in a chip's own memory between operations would make it less",
    "matrix products and convolutions alone count as arithmetic; other arithmetic, random bits and latencies are left out",
    "an all-reduce is a ring over all links: a chip sends 2 (n - 1) / n of its bytes; compute and messages overlap wholly",
    "a branch that depends on data counts as its cheapest, a loop of unknown length once",
)


@dataclasses.dataclass(frozen=True)
class Bound:
    """Seconds of one update (or of whatever `Cost` is of) at the least; what they are of, by name.

    matmul: arithmetic. memory: HBM. links: messages within a slice or host. network: messages beyond it.
    """

    matmul: float
    memory: float
    links: float
    network: float

    @property
    def seconds(self) -> float:
        return max(dataclasses.astuple(self))

    @property
    def limit(self) -> str:
        """The name of what takes longest."""
        parts = dataclasses.asdict(self)
        return max(parts, key=lambda name: parts[name])


def bound(cost: Cost, topology: Topology, num_devices: int) -> Bound:
    """The roofline of a cost of one of `num_devices`. A device that is a part of its chip has a part of all of its rates.

    Raises:
      ValueError: nothing is known of this chip.
    """
    if not topology.chip.peak_flops:
        raise ValueError(f"no peaks are known of {topology.chip.kind}")
    chip, share = topology.chip, topology.chip.devices
    num_inside = max(num_devices // topology.num_slices, 1)
    sent = cost.collective_bytes
    links = share * _ring(num_inside) * sent / chip.link_rate if num_inside > 1 else 0.0
    # Within a slice the gradient is reduced first: of it a chip sends its share alone over the network.
    beyond = share * _ring(topology.num_slices) * sent / num_inside
    return Bound(
        matmul=share * sum(flops / _peak(topology, kind) for kind, flops in cost.matmul_flops.items()),
        memory=share * cost.num_bytes / chip.memory_rate,
        links=links,
        network=beyond / chip.network_rate if topology.num_slices > 1 else 0.0,
    )


def _ring(num: int) -> float:
    """Bytes that each of `num` sends to reduce one byte over all."""
    return 2 * (num - 1) / num


def _peak(topology: Topology, kind: str) -> float:
    """Of a type of operands; a type that is not published (float64, integers) as its float32."""
    peaks = topology.chip.peak_flops
    return peaks.get(kind, peaks["float32"])
