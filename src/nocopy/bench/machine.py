"""Says which machine a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from nocopy.device.protocol import DeviceInfo


def describe(device: DeviceInfo | None = None) -> dict[str, Any]:
    """The machine, and the device's own words about itself, for a result's `machine`."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device is not None:
        found |= {"device": device.product, "mode": device.mode.value, **device.details}
    return found


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@cache
def cpu_model() -> str:
    """The processor's own name."""
    if platform.system() == "Darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def simd() -> tuple[str, ...]:
    """The vector instruction sets that matter to the CPU player, widest last."""
    if platform.machine() in ("arm64", "aarch64"):
        return ("neon",)
    flags = _cpuinfo("flags").split()
    known = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX-512 BF16"}
    return tuple(name for flag, name in known.items() if flag in flags)


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return ""
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""
