"""Weights go to the GPU's own memory once, in chunks, without a GPU."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from nocopy.device import cuda, cuda_upload
from nocopy.errors import ClosedError, DeviceError, DeviceLostError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, Tensor
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.device.cuda_tapes import PAGE, Array, host_pages, tape_of


@pytest.fixture(autouse=True)
def small_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots that small ranges fill several times."""
    monkeypatch.setattr(cuda_upload, "SLOT", 3 * PAGE)


def noise(pages: int, seed: int) -> Array:
    memory = host_pages(pages * PAGE)
    memory[:] = np.random.default_rng(seed).integers(0, 256, len(memory), np.uint8)
    return memory


def device_bytes(driver: EmulatedDriver, address: int) -> bytes:
    return bytes(driver.allocated[address])


def test_ranges_lie_one_after_another(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    ranges, ledger, told = [noise(n, n) for n in (7, 1, 3)], Ledger(), list[int]()
    pages, starts = device.place(
        [(r.ctypes.data, len(r)) for r in ranges], ledger=ledger, progress=told.append
    )
    assert starts == [0, 7 * PAGE, 8 * PAGE]
    assert (pages.nbytes, pages.address) == (11 * PAGE, 0)
    assert device_bytes(driver, pages.device_address) == b"".join(r.tobytes() for r in ranges)
    assert ledger.as_dict() == Ledger(uploaded=11 * PAGE).as_dict()
    assert told == [n * PAGE for n in (3, 6, 7, 8, 11)]
    assert not driver.pinned
    pages.close()
    pages.close()
    assert not driver.allocated


def test_a_mapped_file_that_may_not_be_written_is_placed(
    device: cuda.CudaDevice, driver: EmulatedDriver, tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(noise(5, 1).tobytes())
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    address = np.frombuffer(mapped, np.uint8).ctypes.data
    pages, _ = device.place([(address, len(mapped))])
    assert device_bytes(driver, pages.device_address) == path.read_bytes()


def test_kernels_read_what_was_placed(device: cuda.CudaDevice) -> None:
    weights, memory = host_pages(2 * PAGE), host_pages(PAGE)
    weights.view(np.float32)[:] = np.arange(2 * PAGE // 4)
    placed, starts = device.place([(weights.ctypes.data, PAGE), (weights.ctypes.data + PAGE, PAGE)])
    x = Tensor(Space.WEIGHTS, starts[1] + 16, (8,), DType.F32)
    sizes = {Space.GUEST: PAGE, Space.WEIGHTS: placed.nbytes}
    tape = tape_of(lambda t: t.unary("neg", Tensor(Space.GUEST, 0, (8,), DType.F32), x), sizes)
    guest = device.share(memory.ctypes.data, PAGE)
    device.play(device.compile(tape, {Space.GUEST: guest, Space.WEIGHTS: placed}))
    assert (memory.view(np.float32)[:8] == -(np.arange(8) + PAGE // 4 + 4)).all()


def test_too_little_memory_names_both_sizes_before_anything_is_copied(
    device: cuda.CudaDevice, driver: EmulatedDriver
) -> None:
    memory, told, ledger = host_pages(PAGE), list[int](), Ledger()
    ranges = [(memory.ctypes.data, PAGE)] * (driver.memory_bytes // PAGE + 1)
    wanted = driver.memory_bytes + PAGE
    with pytest.raises(DeviceError, match=rf"uploading {wanted} bytes.* {driver.memory_bytes} are free"):
        device.place(ranges, ledger=ledger, progress=told.append)
    assert not told
    assert not ledger.copied
    assert not driver.pinned


@pytest.mark.parametrize("failure", ["pin", "copy_in"])
def test_what_fails_on_the_way_leaves_nothing_behind(
    device: cuda.CudaDevice, driver: EmulatedDriver, failure: str
) -> None:
    memory, ledger = noise(4, 1), Ledger()
    driver.refuse.add(failure)
    with pytest.raises(DeviceError, match=f"{failure} refused"):
        device.place([(memory.ctypes.data, len(memory))], ledger=ledger)
    assert not driver.allocated
    assert not driver.pinned
    assert not ledger.copied


def test_an_interrupted_upload_leaves_nothing_behind(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    memory = noise(9, 1)

    def interrupt(copied: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.place([(memory.ctypes.data, len(memory))], progress=interrupt)
    assert not driver.allocated
    assert not driver.pinned


def test_a_gpu_lost_during_an_upload_closes_the_device(
    device: cuda.CudaDevice, driver: EmulatedDriver
) -> None:
    memory = noise(9, 1)

    def lose(copied: int) -> None:
        driver.failing = True

    with pytest.raises(DeviceLostError):
        device.place([(memory.ctypes.data, len(memory))], progress=lose)
    assert driver.closed
    with pytest.raises(ClosedError):
        device.allocate(1)


def test_ranges_must_be_on_pages_and_the_device_open(device: cuda.CudaDevice) -> None:
    memory = host_pages(2 * PAGE)
    for address, nbytes in (
        (memory.ctypes.data + 8, PAGE),
        (memory.ctypes.data, 100),
        (memory.ctypes.data, 0),
    ):
        with pytest.raises(UsageError, match="multiples of the page size"):
            device.place([(address, nbytes)])
    device.close()
    with pytest.raises(ClosedError):
        device.place([(memory.ctypes.data, PAGE)])
