"""How fast a GPU reads its own memory: a kernel that sums 4 GiB and does nothing else."""

from __future__ import annotations

import struct
from time import perf_counter
from typing import Any

from nocopy.device.cuda_compile import load_nvrtc
from nocopy.device.cuda_driver import Driver
from nocopy.errors import DeviceError

NBYTES = 1 << 32
THREADS = 512
BLOCKS_PER_MULTIPROCESSOR = (2, 4, 8)
"""All are tried; the fastest counts."""
LAUNCHES, TURNS = 8, 5
SOURCE = """
struct Read { const float4 *x; unsigned long long count; float *sum; };

extern "C" __global__ void read_memory(const __grid_constant__ Read r) {
  const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
  unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x;
  float sum = 0;
  for (; i + 7 * step < r.count; i += 8 * step) {
    float4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = __ldcs(r.x + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; j++) sum += v[j].x + v[j].y + v[j].z + v[j].w;
  }
  for (; i < r.count; i += step) sum += r.x[i].x + r.x[i].y + r.x[i].z + r.x[i].w;
  if (sum != 0) *r.sum = sum;  // the memory is zero; without a use of the sum nothing would be read
}
"""


def read_bandwidth(driver: Driver) -> float:
    """Bytes per second at which kernels read device memory: the median of `TURNS`.

    Raises:
        DeviceError: 4 GiB are not free, or the kernel does not compile.
    """
    with driver.current():
        memory, total = driver.allocate(NBYTES), driver.allocate(4)
        try:
            function = driver.function(driver.load(code(driver.capability)), "read_memory")
            argument = struct.pack("QQQ", memory, NBYTES // 16, total)
            return max(
                _rate(
                    driver, driver.launcher(function, blocks * driver.multiprocessors, (THREADS, 1), argument)
                )
                for blocks in BLOCKS_PER_MULTIPROCESSOR
            )
        finally:
            driver.free(memory)
            driver.free(total)


def _rate(driver: Driver, start: Any) -> float:
    def launches() -> float:
        began = perf_counter()
        for _ in range(LAUNCHES):
            driver.check(start(), "cuLaunchKernelEx")
        driver.wait(None)
        return perf_counter() - began

    launches()
    taken = sorted(launches() for _ in range(TURNS))
    return LAUNCHES * NBYTES / taken[TURNS // 2]


def code(capability: tuple[int, int]) -> bytes:
    """The kernel as PTX.

    Raises:
        DeviceUnavailableError: NVRTC is not installed.
        DeviceError: NVRTC refuses it.
    """
    nvrtc = load_nvrtc()
    _, program = nvrtc.nvrtcCreateProgram(SOURCE.encode(), b"read_memory.cu", 0, [], [])
    options = [f"--gpu-architecture=compute_{capability[0]}{capability[1]}".encode(), b"--std=c++17"]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        if int(status):
            raise DeviceError(f"compiling the kernel that reads memory failed: {status.name}")
        _, size = nvrtc.nvrtcGetPTXSize(program)
        text = bytearray(size)
        nvrtc.nvrtcGetPTX(program, text)
        return bytes(text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
