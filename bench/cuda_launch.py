"""How long a play takes on a CUDA device, what the ways to launch and to wait cost, and what kernels reach.

python bench/cuda_launch.py [FILE]    print a table; write FILE as JSON

Wall-clock medians from Python. The work of the launch rows is the same everywhere: 256 f32 are negated in
host pages.
"""

# ruff: noqa: E501 (a table of cases)
# pyright: reportPrivateUsage=false

from __future__ import annotations

import ctypes
import json
import mmap
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from cuda_decode import open_gpu

from nocopy.device import cuda, cuda_launch
from nocopy.device.cuda_compile import kernel_sources
from nocopy.device.cuda_driver import NOT_READY
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder, Tensor

KERNEL = rb"""
extern "C" __global__ void negate(float* x) { x[threadIdx.x] = -x[threadIdx.x]; }
extern "C" __global__ void negate_and_tell(float* x, volatile int* flag) {
    x[threadIdx.x] = -x[threadIdx.x];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) *flag = 1;
}
"""
rows: list[dict[str, Any]] = []


def row(case: str, value: float, unit: str) -> None:
    rows.append({"case": case, "value": round(value, 3), "unit": unit})
    print(f"{case:58} {value:12.3f} {unit}", flush=True)


def microseconds(call: Callable[[], Any], repeat: int = 3000) -> float:
    for _ in range(min(repeat, 200)):
        call()
    times: list[int] = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return median(times) / 1000


def shared(device: cuda.CudaDevice, nbytes: int) -> tuple[np.ndarray[Any, Any], Any]:
    memory = np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)
    return memory, device.share(memory.ctypes.data, nbytes)


def program_of(device: cuda.CudaDevice, build: Callable[[TapeBuilder], None], pages: Any) -> Any:
    tape = TapeBuilder()
    build(tape)
    sizes = {space: p.nbytes for space, p in pages.items()}
    return device.compile(tape.build(sizes, work_limit=2**50), pages)


def guest(offset: int, *shape: int, dtype: DType = DType.F32, strides: tuple[int, ...] = ()) -> Tensor:
    return Tensor(Space.GUEST, offset, shape, dtype, strides)


def plays(device: cuda.CudaDevice) -> None:
    memory, pages = shared(device, 256 << 20)
    for size in (1 << 10, 1 << 16, 1 << 20, 16 << 20, 64 << 20, 256 << 20):
        x = guest(0, size // 4)
        program = program_of(device, lambda b, x=x: b.unary("neg", x, x), {Space.GUEST: pages})
        us = microseconds(lambda p=program: device.play(p), 3000 if size <= 1 << 20 else 30)
        row(f"play, negate {size >> 10} KiB in place", us, "us")
        if size == 1 << 10:
            row("play with a timeout", microseconds(lambda p=program: device.play(p, timeout=1)), "us")
            us = microseconds(lambda t=program.tape: device.compile(t, {Space.GUEST: pages}).close(), 500)
            row("compile and free a tape of one record", us, "us")
    for count in (2, 8, 64):
        x = guest(0, 256)

        def build(b: TapeBuilder, count: int = count, x: Tensor = x) -> None:
            for _ in range(count):
                b.unary("neg", x, x)

        program = program_of(device, build, {Space.GUEST: pages})
        row(f"play a graph of {count} records", microseconds(lambda p=program: device.play(p), 1000), "us")
        launches = [program_of(device, lambda b, x=x: b.unary("neg", x, x), {Space.GUEST: pages}).starts[0]]

        def one_by_one(count: int = count, start: Any = launches[0]) -> None:
            with device.driver.current():
                for _ in range(count):
                    start()
                device.driver.wait(None)

        row(f"the same {count} records as launches", microseconds(one_by_one, 1000), "us")
    pages.close()
    del memory


def alternatives(device: cuda.CudaDevice) -> None:  # noqa: PLR0915 (a list of cases)
    """Ways to launch one kernel and to learn that it has ended."""
    d = device.driver
    api = d._cuda
    nvrtc = device._compiler._nvrtc
    _, built = nvrtc.nvrtcCreateProgram(KERNEL, b"k.cu", 0, [], [])
    arch = f"--gpu-architecture={device._compiler.target}".encode()
    assert int(nvrtc.nvrtcCompileProgram(built, 1, [arch])[0]) == 0
    code = bytearray(nvrtc.nvrtcGetCUBINSize(built)[1])
    nvrtc.nvrtcGetCUBIN(built, code)
    memory, pages = shared(device, mmap.PAGESIZE)
    flag = ctypes.c_int32.from_address(memory.ctypes.data + 2048)
    with d.current():
        module = d.load(bytes(code))
        plain = api.cuModuleGetFunction(module, b"negate")[1]
        telling = api.cuModuleGetFunction(module, b"negate_and_tell")[1]
        where = memory.ctypes.data
        start = d.launcher(int(plain), 1, (256, 1), where.to_bytes(8, "little"))
        values = (ctypes.c_uint64 * 2)(where, where + 2048)
        both = (ctypes.c_void_p * 2)(ctypes.addressof(values), ctypes.addressof(values) + 8)
        legacy = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, *[ctypes.c_uint] * 7, *[ctypes.c_void_p] * 3
        )(int(api.cuGetProcAddress(b"cuLaunchKernel", 12000, 0)[1]))
        synchronize = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(
            int(api.cuGetProcAddress(b"cuStreamSynchronize", 12000, 0)[1])
        )
        write = ctypes.PYFUNCTYPE(
            ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint
        )(int(api.cuGetProcAddress(b"cuStreamWriteValue32", 12000, 0)[1]))
        stream, query = d._stream_handle, d._query
        arguments = (int(plain), 1, 1, 1, 256, 1, 1, 0, stream.value, ctypes.addressof(both), None)
        telling_arguments = (int(telling), *arguments[1:])
        tell = lambda: legacy(*telling_arguments)  # noqa: E731
        graph, _ = d.graph([start])
        telling_graph, _ = d.graph([tell])

        def polled(launch: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                launch()
                while query(stream) == NOT_READY:
                    pass

            return run

        def synchronized(launch: Callable[[], Any]) -> Callable[[], None]:
            def run() -> None:
                launch()
                synchronize(stream)

            return run

        def flagged(launch: Callable[[], Any], then: Callable[[], Any] | None = None) -> Callable[[], None]:
            def run() -> None:
                flag.value = 0
                launch()
                if then:
                    then()
                while not flag.value:
                    pass

            return run

        def checked() -> None:
            api.cuLaunchKernel(plain, 1, 1, 1, 256, 1, 1, 0, d._stream, ((where,), (ctypes.c_void_p,)), 0)
            api.cuStreamSynchronize(d._stream)

        tell_by_stream = lambda: write(stream, where + 2048, 1, 0)  # noqa: E731
        ways = {
            "cuLaunchKernelEx, poll cuStreamQuery": polled(start),
            "cuLaunchKernel, poll cuStreamQuery": polled(lambda: legacy(*arguments)),
            "cuLaunchKernelEx, cuStreamSynchronize": synchronized(start),
            "cuGraphLaunch, poll cuStreamQuery": polled(graph),
            "cuGraphLaunch, cuStreamSynchronize": synchronized(graph),
            "cuLaunchKernel, kernel writes a flag": flagged(tell),
            "cuGraphLaunch, kernel writes a flag": flagged(telling_graph),
            "cuLaunchKernelEx, cuStreamWriteValue32 writes a flag": flagged(start, tell_by_stream),
            "cuda-bindings, cuStreamSynchronize": checked,
        }
        for name, way in ways.items():
            row(name, microseconds(way), "us")
        row("part: cuLaunchKernelEx alone", microseconds(start, 500), "us")
        d.wait(None)
        row("part: cuStreamQuery of an idle stream", microseconds(lambda: query(stream)), "us")
        row("part: push and pop the context", microseconds(lambda: (d.enter(), d.leave())), "us")
    pages.close()


def products(device: cuda.CudaDevice) -> None:
    """f32 products in host pages and in device memory, by tile."""
    memory, pages = shared(device, 256 << 20)
    memory.view(np.float32)[:] = np.random.default_rng(0).standard_normal(64 << 20, np.float32)
    scratch = device.allocate(256 << 20)
    upload = program_of(
        device,
        lambda b: b.copy(Tensor(Space.SCRATCH, 0, (64 << 20,), DType.F32), guest(0, 64 << 20)),
        {Space.GUEST: pages, Space.SCRATCH: scratch},
    )
    device.play(upload)
    chosen = cuda_launch.GEOMETRY["matmul"]
    for n in (256, 512, 1024, 2048, 4096):
        for space, spaces in ((Space.GUEST, {Space.GUEST: pages}), (Space.SCRATCH, {Space.SCRATCH: scratch})):
            for side, kernel in ((0, ""), (128, "matmul_large"), (64, "matmul_medium"), (32, "matmul_small")):
                if side == 32 and n > 1024:
                    continue
                if side:
                    tiles = (-(-n // side)) ** 2
                    forced = cuda_launch.Shape("matmul", kernel, tiles, (256, 1))
                    cuda_launch.GEOMETRY["matmul"] = lambda _f, _m, forced=forced: forced
                a, b, c = (Tensor(space, i * 4 * n * n, (n, n), DType.F32) for i in range(3))
                program = program_of(device, lambda t, a=a, b=b, c=c: t.matmul(c, a, b), spaces)
                us = microseconds(lambda p=program: device.play(p), 20)
                where = "host pages" if space is Space.GUEST else "device memory"
                row(f"matmul {n} f32, {where}, {kernel or 'as chosen'}", 2e-6 * n**3 / us, "TFLOP/s")
                cuda_launch.GEOMETRY["matmul"] = chosen
    n = 1024
    a, b, c = (guest(i * 4 * n * n, n, n) for i in range(3))
    device.play(program_of(device, lambda t: t.matmul(c, a, b), {Space.GUEST: pages}))
    x, y, z = (memory[i * 4 * n * n : (i + 1) * 4 * n * n].view(np.float32).reshape(n, n) for i in range(3))
    exact = x.astype(np.float64) @ y
    row(
        "matmul 1024 f32, largest error over largest value",
        float(np.abs(z - exact).max() / np.abs(exact).max()),
        "",
    )
    scratch_cases(device, scratch)
    scratch.close()
    pages.close()


def _t(space: Space, offset: int, *shape: int, strides: tuple[int, ...] = ()) -> Tensor:
    return Tensor(space, offset, shape, DType.F32, strides)


def scratch_cases(device: cuda.CudaDevice, scratch: Any) -> None:
    """Other kernels on device memory, as bytes that must move over time."""
    s = Space.SCRATCH
    half = 128 << 20
    m = 4096
    cases: dict[str, tuple[int, Callable[[TapeBuilder], None]]] = {
        "copy 64 MiB": (2 * (64 << 20), lambda t: t.copy(_t(s, half, 16 << 20), _t(s, 0, 16 << 20))),
        "copy 64 MiB transposed": (
            2 * (64 << 20), lambda t: t.copy(_t(s, half, m, m), _t(s, 0, m, m, strides=(1, m)))
        ),
        "add 64 MiB": (
            3 * (64 << 20), lambda t: t.binary("add", _t(s, half, m, m), _t(s, 0, m, m), _t(s, 64 << 20, m, m))
        ),
        "gelu 64 MiB": (2 * (64 << 20), lambda t: t.unary("gelu", _t(s, half, m, m), _t(s, 0, m, m))),
        "sum of rows, 4096 x 4096": (64 << 20, lambda t: t.reduce("sum", _t(s, half, m), _t(s, 0, m, m))),
        "sum of columns, 4096 x 4096": (
            64 << 20, lambda t: t.reduce("sum", _t(s, half, m), _t(s, 0, m, m, strides=(1, m)))
        ),
        "sum of 16 Mi": (64 << 20, lambda t: t.reduce("sum", _t(s, half, 1), _t(s, 0, 1, m * m))),
        "softmax 4096 x 4096": (2 * (64 << 20), lambda t: t.softmax(_t(s, half, m, m), _t(s, 0, m, m))),
        "layernorm 4096 x 4096": (2 * (64 << 20), lambda t: t.layernorm(_t(s, half, m, m), _t(s, 0, m, m))),
        "rmsnorm 32768 x 512": (
            2 * (64 << 20), lambda t: t.rmsnorm(_t(s, half, 32768, 512), _t(s, 0, 32768, 512), None)
        ),
        "one row times 8192 x 3840": (
            4 * 8192 * 3840, lambda t: t.matmul(_t(s, 0, 1, 3840), _t(s, 32768, 1, 8192), _t(s, 65536, 8192, 3840))
        ),
        "one row times 8192 x 3840 transposed": (
            4 * 8192 * 3840,
            lambda t: t.matmul(
                _t(s, 0, 1, 3840), _t(s, 32768, 1, 8192), _t(s, 65536, 8192, 3840, strides=(1, 8192))
            ),
        ),
        "top 50 of 131072": (
            4 * 131072,
            lambda t: t.topk(_t(s, half, 50), Tensor(s, half + 4096, (50,), DType.I32), _t(s, 0, 131072)),
        ),
        "resize 3 x 1080 x 1920 to 3 x 2160 x 3840": (
            4 * 3 * 1080 * 1920 * 5,
            lambda t: t.resize(_t(s, half, 1, 3, 2160, 3840), _t(s, 0, 1, 3, 1080, 1920)),
        ),
        "blur 5 x 5, 3 x 1080 x 1920": (
            2 * 4 * 3 * 1080 * 1920,
            lambda t: t.conv2d(
                _t(s, half, 1, 3, 1080, 1920), _t(s, 0, 1, 3, 1080, 1920), _t(s, 0, 3, 1, 5, 5), None, pad=(2, 2)
            ),
        ),
    }  # fmt: skip
    for name, (nbytes, build) in cases.items():
        program = program_of(device, build, {s: scratch})
        us = microseconds(lambda p=program: device.play(p), 50)
        row(f"{name}, device memory", nbytes / us / 1e3, "GB/s")
    for c, hw in ((64, 128), (256, 32)):
        x, w, y = _t(s, 0, 4, c, hw, hw), _t(s, half, c, c, 3, 3), _t(s, 64 << 20, 4, c, hw, hw)
        program = program_of(
            device, lambda t, x=x, w=w, y=y: t.conv2d(y, x, w, None, pad=(1, 1)), {s: scratch}
        )
        us = microseconds(lambda p=program: device.play(p), 30)
        row(f"conv2d 4 x {c} x {hw}^2, 3 x 3, device memory", 2e-6 * 4 * c * c * 9 * hw * hw / us, "TFLOP/s")


def main() -> None:
    start = time.perf_counter()
    device = open_gpu()
    row("open the device", 1e3 * (time.perf_counter() - start), "ms")
    start = time.perf_counter()
    for source in sorted({name[:-3] for name in kernel_sources() if name.endswith(".cu")}):
        device._compiler.code(source)
    row("compile all kernels, or read them from the cache", 1e3 * (time.perf_counter() - start), "ms")
    plays(device)
    alternatives(device)
    products(device)
    if len(sys.argv) > 1:
        about = {"name": "cuda_play", "device": device.info.product, "details": dict(device.info.details)}
        with open(sys.argv[1], "w") as file:
            json.dump(about | {"rows": rows}, file, indent=1)
    device.close()


if __name__ == "__main__":
    main()
