"""What the CUDA device does on a GPU (or on `emulated_cuda/libcuda.cpp`, through test_cuda_driver.py)."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from nocopy.device import cuda, cuda_driver, cuda_upload
from nocopy.device.protocol import Mode
from nocopy.errors import CopyRefusedError, DeadlineError, DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, Tape, TapeBuilder, Tensor
from tests.device.conftest import open_or_skip
from tests.device.cuda_tapes import PAGE, host_pages, negation, tape_of
from tests.device.region import Region


@pytest.fixture
def gpu() -> Iterator[cuda.CudaDevice]:
    device = open_or_skip("cuda")
    assert isinstance(device, cuda.CudaDevice)
    yield device
    device.close()


def test_gpu_address_is_the_host_address(gpu: cuda.CudaDevice) -> None:
    memory = host_pages(PAGE)
    memory.view(np.float32)[:] = 3
    pages = gpu.share(memory.ctypes.data, PAGE)
    assert (pages.mode, pages.device_address) == (Mode.SAME_POINTER, memory.ctypes.data)
    assert gpu.info.mode is Mode.SAME_POINTER
    gpu.play(gpu.compile(negation(), {Space.GUEST: pages}))
    assert (memory.view(np.float32)[:256] == -3).all()


def test_gpu_reads_across_what_grew(gpu: cuda.CudaDevice) -> None:
    region = Region(PAGE, room=15 * PAGE)
    pages = gpu.share(region.address, PAGE)
    program = gpu.compile(negation(), {Space.GUEST: pages})
    for size in (3 * PAGE, 16 * PAGE):
        region.grow(size)
        pages.grow(size)
    values = region.bytes.view(np.float32)
    values[:] = np.arange(values.size)
    gpu.play(gpu.compile(negation(values.size), {Space.GUEST: pages}))
    assert np.array_equal(values, -np.arange(values.size, dtype=np.float32))
    gpu.play(program)
    assert values[255] == 255
    pages.close()
    region.close()


def test_gpu_stages_what_it_cannot_share(gpu: cuda.CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: int, nbytes: int) -> int:
        raise DeviceError("refused")

    monkeypatch.setattr(gpu.driver, "register", refuse)
    memory, ledger = host_pages(PAGE), Ledger()
    memory.view(np.float32)[:] = 3
    pages = gpu.share(memory.ctypes.data, PAGE, ledger=ledger)
    assert pages.mode is Mode.STAGED
    gpu.play(gpu.compile(negation(), {Space.GUEST: pages}))
    assert (memory.view(np.float32)[:256] == -3).all()
    assert (memory.view(np.float32)[256:] == 3).all()
    assert (ledger.shared, ledger.staged) == (0, 2048)


def test_gpu_reads_weights_that_were_uploaded_in_chunks(
    gpu: cuda.CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_upload, "SLOT", 3 * PAGE)
    files, memory, ledger = [host_pages(n * PAGE) for n in (7, 4)], host_pages(11 * PAGE), Ledger()
    for seed, file in enumerate(files):
        file.view(np.float32)[:] = np.random.default_rng(seed).standard_normal(file.size // 4)
    placed, starts = gpu.place([(f.ctypes.data, len(f)) for f in files], ledger=ledger)
    assert (starts, ledger.uploaded, ledger.shared) == ([0, 7 * PAGE], 11 * PAGE, 0)
    n = memory.size // 4
    x, out = (Tensor(space, 0, (n,), DType.F32) for space in (Space.WEIGHTS, Space.GUEST))
    tape = tape_of(lambda t: t.copy(out, x), {Space.GUEST: memory.size, Space.WEIGHTS: placed.nbytes})
    guest = gpu.share(memory.ctypes.data, memory.size)
    gpu.play(gpu.compile(tape, {Space.GUEST: guest, Space.WEIGHTS: placed}))
    assert memory.tobytes() == b"".join(f.tobytes() for f in files)


def test_gpu_names_both_sizes_when_weights_do_not_fit(gpu: cuda.CudaDevice) -> None:
    memory = host_pages(PAGE)
    count = gpu.info.memory_bytes // (1 << 30) + 1
    huge = (memory.ctypes.data, 1 << 30)  # refused before a byte of it is read
    with pytest.raises(DeviceError, match=rf"uploading {count << 30} bytes of weights .* free"):
        gpu.place([huge] * count)


def endless(records: int) -> Tape:
    """Products of half a minute each: 8 x 8 over two thousand million terms, of one element repeated."""
    a = Tensor(Space.GUEST, 0, (8, 2**31 - 1), DType.F32, (0, 0))
    b = Tensor(Space.GUEST, 0, (2**31 - 1, 8), DType.F32, (0, 0))
    out = Tensor(Space.GUEST, 1024, (8, 8), DType.F32)

    def build(tape: TapeBuilder) -> None:
        for _ in range(records):
            tape.matmul(out, a, b)

    return tape_of(build, {Space.GUEST: PAGE})


@pytest.mark.parametrize("records", [1, 4])
def test_gpu_stops_at_the_deadline_and_goes_on(gpu: cuda.CudaDevice, records: int) -> None:
    memory = host_pages(PAGE)
    pages = gpu.share(memory.ctypes.data, PAGE)
    program = gpu.compile(endless(records), {Space.GUEST: pages})
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"longer than 0\.05 s"):
        gpu.play(program, timeout=0.05)
    assert time.monotonic() - began < 15
    memory.view(np.float32)[:] = 3
    gpu.play(gpu.compile(negation(), {Space.GUEST: pages}), timeout=1)
    assert (memory.view(np.float32)[:256] == -3).all()


FAULT = """
import ctypes, numpy as np
from nocopy.device import cuda, reference
from nocopy.errors import ClosedError, DeviceLostError, DeviceUnavailableError
from nocopy.tape import Space
from tests.device.cuda_tapes import PAGE, host_pages, negation

def raises(kind, call):
    try:
        call()
    except kind as error:
        return str(error)
    raise SystemExit(f"{kind.__name__} was not raised")

memory = host_pages(PAGE)
gpu = cuda.open_device()
pages = gpu.share(memory.ctypes.data, PAGE)
program = gpu.compile(negation(), {Space.GUEST: pages})
with gpu.driver.current():
    gpu.driver.unregister(memory.ctypes.data)  # behind the device's back: the kernel will fault
assert "start the process anew" in raises(DeviceLostError, lambda: gpu.play(program))
raises(ClosedError, lambda: gpu.play(program))
pages.close()
assert "no other context" in raises(DeviceUnavailableError, cuda.open_device)
memory.view(np.float32)[:] = 3
other = reference.open_device()
pages = other.share(memory.ctypes.data, PAGE)
other.play(other.compile(negation(), {Space.GUEST: pages}))
assert (memory.view(np.float32)[:256] == -3).all()
print("unharmed")
"""


def test_gpu_that_faults_is_lost_and_host_memory_is_unharmed(gpu: cuda.CudaDevice) -> None:
    # In a process of its own: CUDA gives no other context to one whose kernel has faulted.
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=False)
    assert "unharmed" in done.stdout, done.stdout + done.stderr


def test_gpu_names_both_sizes_when_memory_runs_out(gpu: cuda.CudaDevice) -> None:
    with pytest.raises(DeviceError, match=rf"{1 << 45} bytes on .* free"):
        gpu.allocate(1 << 45)
    gpu.allocate(1 << 20).close()


def test_gpu_refuses_pages_twice_and_says_so(gpu: cuda.CudaDevice) -> None:
    strict = cuda.open_device()
    memory = host_pages(PAGE)
    pages = strict.share(memory.ctypes.data, PAGE)
    with pytest.raises(CopyRefusedError, match="REGISTERED"):
        strict.share(memory.ctypes.data, PAGE)
    pages.close()
    strict.close()


def test_gpu_leaves_the_threads_context_as_it_was(gpu: cuda.CudaDevice) -> None:
    from cuda.bindings import driver

    memory = host_pages(PAGE)
    before = driver.cuCtxGetCurrent()
    pages = gpu.share(memory.ctypes.data, PAGE)
    gpu.play(gpu.compile(negation(), {Space.GUEST: pages}))
    assert int(driver.cuCtxGetCurrent()[1]) == int(before[1])


def test_gpu_devices_come_and_go_without_leaving_memory_behind() -> None:
    def free() -> int:
        device = open_or_skip("cuda")
        with device.driver.current():  # type: ignore[attr-defined]
            (_, free, _) = cuda_driver._load_driver().cuMemGetInfo()
        device.close()
        gc.collect()
        return free

    first = free()
    assert all(abs(free() - first) < 64 << 20 for _ in range(3))
