"""Pods and hosts by name, and what is published of their chips.

Figures of TPUs are those of https://docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e, of the H100 those of its data sheet
(SXM, without sparsity) and of the DGX H100's. They are peaks: nothing here was measured.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from podracer.aot import compilers
from podracer.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; all rates are a second.

    kind: for people. platform: `tpu`, `gpu` or `cpu`. peak_flops: of matrix products, by the type and precision of their
      operands as in `cost.Cost.matmul_flops`.
    memory: bytes of HBM, and memory_rate: bytes read or written.
    link_rate: bytes that it sends to its neighbours, all links of one direction together. network_rate: bytes that it sends
      beyond its slice or host; a v4 or v5p pod is one slice here, whatever its size.
    devices: that libtpu's topology lists for it. cores: that names count (`v4-8` are 8 cores).
    """

    kind: str
    platform: str
    peak_flops: Mapping[str, float]
    memory: int
    memory_rate: float
    link_rate: float
    network_rate: float = 0.0
    devices: int = 1
    cores: int = 1


def _tpu_flops(bfloat16: float) -> Mapping[str, float]:
    """float32 runs as bfloat16 in 1, 3 or 6 passes, by its precision (jax.lax.Precision)."""
    types = {"float32": 1, "float32:high": 3, "float32:highest": 6, "bfloat16": 1, "float16": 1}
    return {name: bfloat16 / passes for name, passes in types.items()}


CHIPS: Mapping[str, Chip] = {
    # v4: 2400 Gbit/s of links are six of 50 GB/s; JAX sees a chip as one device there, where libtpu's topology lists two.
    "v4": Chip("TPU v4", "tpu", _tpu_flops(275e12), 32 * GIB, 1200e9, 300e9, devices=2, cores=2),
    # 400 GB/s both ways over 4 ports; 6.4 Tbit/s of network for a pod of 256 chips.
    "v5e": Chip("TPU v5e", "tpu", _tpu_flops(197e12), 16 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256),
    # 4800 Gbit/s of links.
    "v5p": Chip("TPU v5p", "tpu", _tpu_flops(459e12), 95 * GIB, 2765e9, 600e9, cores=2),
    # 800 GB/s both ways over 4 ports; 25.6 Tbit/s of network for a pod of 256 chips.
    "v6e": Chip("TPU v6e", "tpu", _tpu_flops(918e12), 32 * GIB, 1638e9, 400e9, 25.6e12 / 8 / 256),
    # float32 runs as TF32 where no higher precision is asked for; NVLink 900 GB/s both ways; 400 Gbit/s of network a GPU.
    "h100": Chip(
        "H100 SXM",
        "gpu",
        {"bfloat16": 989e12, "float16": 989e12, "float32": 494e12, "float32:high": 494e12, "float32:highest": 67e12},
        80 * 10**9,
        3350e9,
        450e9,
        50e9,
    ),
}

# What JAX calls a chip that is here. It makes one device of each.
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v6 lite": "v6e",
    "NVIDIA H100 80GB HBM3": "h100",
}
HERE = "this host"

# What XLA wants to know of an H100 (SXM): compute capability 9.0, and the limits that CUDA's tables and its white paper give.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3350000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 80000000000
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

_POD = {"v5e": 256, "v6e": 256}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}
_HOST = {"v5e": (1, 4, 8), "v6e": (1, 4, 8), "h100": (8,)}


@dataclasses.dataclass(frozen=True)
class Topology:
    """chips of one kind, and how they hang together.

    name: as asked for. shape: of one slice, as libtpu has it; empty where there is none.
    num_chips: over all slices. num_slices: that the network joins; of GPUs, hosts. num_hosts: processes, one a host.
    """

    name: str
    chip: Chip
    shape: str
    num_chips: int
    num_slices: int
    num_hosts: int

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.devices

    @property
    def devices_per_host(self) -> int:
        return self.num_devices // self.num_hosts

    def compiles(self) -> bool:
        """Whether XLA can compile for it here: the chips are here, or their compiler is installed."""
        return self.name == HERE or compilers.installed(self.chip.platform)

    def devices(self) -> list[Any]:
        """Devices to trace and, where `compiles`, to compile for, host by host. Loads the compiler, but takes no device.

        Where it does not compile these are the devices that are here: simulate as many.

        Raises:
          ConfigError: the compiler knows no such topology.
        """
        import jax
        from jax.experimental import topologies

        if self.name == HERE or not self.compiles():
            return jax.devices()[: self.num_devices]
        try:
            if self.chip.platform == "gpu":
                shape = f"1x{self.num_hosts}x{self.devices_per_host}"
                found = topologies.get_topology_desc(platform="cuda", target_config=_H100, topology=shape)
            else:
                kind = self.name.partition("-")[0].partition(":")[0]
                found = topologies.get_topology_desc(platform="tpu", topology_name=f"{kind}:{self.shape}", **self._bounds())
        except Exception as error:  # refusals come as several types
            raise ConfigError(f"--topology {self.name}: the compiler refuses it: {str(error).splitlines()[0]}") from error
        return sorted(found.devices, key=lambda device: device.process_index)

    def _bounds(self) -> dict[str, Any]:
        """How libtpu is to cut the chips into hosts and slices, where its own way is another."""
        bounds: dict[str, Any] = {}
        if self.num_hosts == 1:
            sides = [int(side) for side in self.shape.split("x")]
            bounds["chips_per_host_bounds"] = [*sides, 1, 1][:3]
        if self.num_slices > 1:
            bounds["num_slices"] = self.num_slices
        return bounds


def here() -> Topology:
    """The devices of this process, which are those of one host."""
    import jax

    devices = jax.local_devices()
    first = devices[0]
    kind = _KINDS.get(first.device_kind, "")
    chip = CHIPS[kind] if kind else Chip(first.device_kind, first.platform, {}, 0, 0.0, 0.0)
    return Topology(HERE, dataclasses.replace(chip, devices=1), "", len(devices), 1, 1)


def find(name: str) -> Topology:
    """A topology by name: `v5e-256` and `v6e-256` count chips, `v4-8` and `v5p-8` cores, two a chip, as Google's names do;
    `v5p:4x4x4` gives the shape in chips; `h100-8` counts GPUs, in hosts of 8. More than a pod is several slices of one.

    Raises:
      ConfigError: there is none of this name; the line says what there is.
    """
    matched = re.fullmatch(r"(v4|v5e|v5p|v6e|h100)(?:-(\d+)|:(\d+(?:x\d+){1,2}))", name)
    if not matched or (matched[1] == "h100" and not matched[2]):
        raise ConfigError(
            f"--topology {name}: write v5e-N or v6e-N (chips), v4-N or v5p-N (cores, two a chip), h100-N (GPUs), "
            f"or a shape in chips such as v5p:4x4x4"
        )
    kind, chip = matched[1], CHIPS[matched[1]]
    if kind == "h100":
        return _gpus(name, chip, int(matched[2]))
    if matched[3]:
        shape, num_slices = matched[3], 1
        num_chips = math.prod(int(side) for side in shape.split("x"))
    else:
        num_chips, num_slices, shape = _slices(name, kind, chip, int(matched[2]))
    one_host = num_slices == 1 and num_chips in _HOST.get(kind, (4,))
    num_hosts = 1 if one_host else num_chips // 4
    return Topology(name, chip, shape, num_chips, num_slices, num_hosts)


def _gpus(name: str, chip: Chip, num: int) -> Topology:
    if num < 1 or (num > 8 and num % 8):
        raise ConfigError(f"--topology {name}: a host has 8 GPUs: try h100-{max(num // 8 * 8, 8)} or h100-{-(-num // 8) * 8}")
    num_hosts = -(-num // 8)
    return Topology(name, chip, "", num, num_hosts, num_hosts)


def _slices(name: str, kind: str, chip: Chip, number: int) -> tuple[int, int, str]:
    """Chips, slices and the shape of a slice."""
    num_chips, shapes = number // chip.cores, _FLAT if kind in _POD else _CUBES
    if num_chips * chip.cores == number and num_chips in shapes:
        return num_chips, 1, shapes[num_chips]
    pod = _POD.get(kind)
    if pod and number and number % pod == 0:
        return number, number // pod, shapes[pod]
    sizes = [size * chip.cores for size in shapes]
    near = min(sizes, key=lambda size: abs(size - number))
    more = f", or whole pods of {pod}" if pod else ""
    raise ConfigError(
        f"--topology {name}: there is no such slice: try {kind}-{near} (sizes: {', '.join(map(str, sizes))}{more})"
    )
