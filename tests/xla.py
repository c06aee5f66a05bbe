"""How XLA compiles in tests: quickly, or, with PODRACER_TESTS_OPTIMIZED=1 in the environment, as in users' runs."""

import os

_QUICKLY = (
    "--xla_backend_optimization_level=1",  # at 0 MuZero's gradients had NaN where those of single operations had none
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def flags(num_devices: int = 1) -> str:
    """XLA_FLAGS of a process with so many devices."""
    devices = f"--xla_force_host_platform_device_count={num_devices}"
    return " ".join((devices, *(() if os.environ.get("PODRACER_TESTS_OPTIMIZED") else _QUICKLY)))
