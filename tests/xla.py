"""How XLA compiles in tests: quickly, or, with PODRACER_TESTS_OPTIMIZED=1 in the environment, as in users' runs."""

import os
import platform

_QUICKLY = (
    "--xla_backend_optimization_level=1",  # at 0 MuZero's gradients had NaN where those of single operations had none
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_max_isa=AVX2",  # with AVX-512 and the above, LLVM "cannot select" an instruction, and aborts
)


def flags(num_devices: int = 1) -> str:
    """XLA_FLAGS of a process with so many devices."""
    quickly = not os.environ.get("PODRACER_TESTS_OPTIMIZED") and platform.machine() == "x86_64"  # tried on no other
    return " ".join((f"--xla_force_host_platform_device_count={num_devices}", *(_QUICKLY if quickly else ())))
