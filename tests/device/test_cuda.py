"""The CUDA device's own logic: opening, sharing, growing, staging, deadlines and losses, without a GPU."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device import cuda, cuda_compile, cuda_driver
from nocopy.device.cuda_compile import Compiler
from nocopy.device.protocol import Mode
from nocopy.errors import (
    ClosedError,
    CopyRefusedError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DeviceUnavailableError,
    UsageError,
)
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, TapeBuilder, Tensor
from tests.device.cuda_emulation import EmulatedDriver, device, driver, emulated, library  # noqa: F401
from tests.device.cuda_tapes import PAGE, host_pages, negation, tape_of, tensor


class Bindings:
    """cuda.bindings.driver as far as opening goes."""

    class Status(int):
        name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"

    def __init__(self, status: int | Exception) -> None:
        self._status = status

    def cuInit(self, flags: int) -> tuple[int]:
        if isinstance(self._status, Exception):
            raise self._status
        return (self.Status(self._status),)


@pytest.mark.parametrize(
    ("found", "reason", "fix"),
    [
        (ImportError("No module named 'cuda'"), "cuda-bindings is not installed", "pip install"),
        (Bindings(RuntimeError("no libcuda")), "no NVIDIA driver", "Install the NVIDIA driver"),
        (Bindings(100), "shows no GPU", "CUDA_VISIBLE_DEVICES"),
        (Bindings(803), "SYSTEM_DRIVER_MISMATCH", "restart"),
    ],
)
def test_what_is_missing_is_named_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, found: Any, reason: str, fix: str
) -> None:
    def import_module(name: str) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(cuda_driver, "import_module", import_module)
    with pytest.raises(DeviceUnavailableError) as e:
        cuda.open_device()
    assert reason in e.value.reason
    assert fix in e.value.fix


def test_a_compiler_that_is_newer_than_the_driver_is_refused(
    monkeypatch: pytest.MonkeyPatch, driver: EmulatedDriver
) -> None:
    class Newer:
        version = (14, 0)

    monkeypatch.setattr(cuda, "Driver", lambda: driver)
    monkeypatch.setattr(cuda, "Compiler", lambda capability, directory: Newer())
    with pytest.raises(DeviceUnavailableError, match=r"NVRTC 14\.0 .* CUDA 13\.0.*Update"):
        cuda.open_device()
    assert driver.closed


def test_a_gpu_that_fails_while_it_is_opened_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DeviceError("cuStreamCreate failed: CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(cuda, "Driver", fail)
    with pytest.raises(DeviceUnavailableError, match="cuStreamCreate failed"):
        cuda.open_device()


@pytest.mark.parametrize("failure", [ImportError("no module"), RuntimeError("no libnvrtc")])
def test_a_missing_compiler_is_named_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def import_module(name: str) -> Any:
        raise failure

    monkeypatch.setattr(cuda_compile, "import_module", import_module)
    with pytest.raises(DeviceUnavailableError, match=r"nocopy\[cuda\]"):
        Compiler((9, 0), Path("/nowhere"))


def test_kernels_work_on_the_host_pages_themselves(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    ledger, memory = Ledger(), host_pages(PAGE)
    memory.view(np.float32)[:] = 3
    pages = device.share(memory.ctypes.data, PAGE, ledger=ledger)
    assert (pages.mode, pages.device_address, pages.address) == (
        Mode.SAME_POINTER, memory.ctypes.data, memory.ctypes.data,
    )  # fmt: skip
    device.play(device.compile(negation(), {Space.GUEST: pages}))
    assert (memory.view(np.float32)[:256] == -3).all()
    assert (memory.view(np.float32)[256:] == 3).all()
    assert ledger.as_dict() == {"shared": PAGE, "uploaded": 0, "downloaded": 0, "staged": 0, "copied": 0}
    pages.close()
    pages.close()
    assert not driver.registered


def test_a_tape_is_a_graph_and_a_longer_one_several(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    memory = host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    x = Tensor(Space.GUEST, 0, (8,), DType.F32)
    short = device.compile(tape_of(lambda b: b.fill(x, 1), {Space.GUEST: PAGE}), {Space.GUEST: pages})
    assert driver.graphs == 1
    short.close()

    def build(b: TapeBuilder) -> None:
        b.fill(x, 2.0)
        for _ in range(cuda.GRAPH_RECORDS):
            b.binary("add", x, x, x) if len(b) < 4 else b.unary("neg", x, x)

    program = device.compile(tape_of(build, {Space.GUEST: PAGE}), {Space.GUEST: pages})
    assert driver.graphs == 2
    device.play(program)
    program.close()
    program.close()
    assert driver.graphs == 0
    with pytest.raises(ClosedError):
        device.play(program)


def test_records_see_what_earlier_ones_wrote(device: cuda.CudaDevice) -> None:
    memory = host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    x, y = tensor(0, 8), tensor(64, 8)

    def build(b: TapeBuilder) -> None:
        b.fill(x, 3)
        b.binary("mul", y, x, x)
        b.unary("neg", x, y)

    device.play(device.compile(tape_of(build, {Space.GUEST: PAGE}), {Space.GUEST: pages}))
    assert (memory[:32].view(np.float32) == -9).all()


def test_a_tape_that_writes_nothing_plays(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    memory = host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    device.play(device.compile(negation(0), {Space.GUEST: pages}))
    assert driver.launched == []


def test_pages_follow_growth_and_programs_stay_valid(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    ledger, memory = Ledger(), host_pages(4 * PAGE)
    pages = device.share(memory.ctypes.data, PAGE, ledger=ledger)
    program = device.compile(negation(), {Space.GUEST: pages})
    pages.grow(PAGE)
    pages.grow(4 * PAGE)
    assert ledger.shared == 4 * PAGE == pages.nbytes
    device.play(program)
    device.play(device.compile(negation(16, 4 * PAGE - 64), {Space.GUEST: pages}))
    with pytest.raises(UsageError):
        pages.grow(PAGE)
    pages.close()
    assert not driver.registered


def test_growth_that_is_refused_leaves_the_old_range(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    ledger, memory = Ledger(), host_pages(2 * PAGE)
    pages = device.share(memory.ctypes.data, PAGE, ledger=ledger)
    driver.refuse = {"register"}
    with pytest.raises(DeviceError, match=f"growing {PAGE} bytes to {2 * PAGE}"):
        pages.grow(2 * PAGE)
    assert pages.nbytes == PAGE == ledger.shared
    device.play(device.compile(negation(), {Space.GUEST: pages}))


def test_pages_mapped_elsewhere_grow_as_one_and_old_programs_are_refused(
    device: cuda.CudaDevice, driver: EmulatedDriver
) -> None:
    memory, elsewhere = host_pages(2 * PAGE), host_pages(8 * PAGE)
    places = iter([elsewhere.ctypes.data, elsewhere.ctypes.data + 6 * PAGE, elsewhere.ctypes.data + 2 * PAGE])
    driver.mapped_at = lambda _address: next(places)
    pages = device.share(memory.ctypes.data, PAGE)
    assert pages.mode is Mode.MAPPED
    program = device.compile(negation(), {Space.GUEST: pages})
    pages.grow(2 * PAGE)
    assert pages.device_address == elsewhere.ctypes.data + 2 * PAGE
    assert driver.registered == {memory.ctypes.data: 2 * PAGE}
    with pytest.raises(ClosedError, match="Compile it again"):
        device.play(program)


def test_allocated_memory_is_zero_and_its_lack_is_named(device: cuda.CudaDevice) -> None:
    scratch, memory = device.allocate(100), host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    memory[:] = 1
    out, x = tensor(0, 25), Tensor(Space.SCRATCH, 0, (25,), DType.F32)
    tape = tape_of(lambda b: b.copy(out, x), {Space.GUEST: PAGE, Space.SCRATCH: 100})
    device.play(device.compile(tape, {Space.GUEST: pages, Space.SCRATCH: scratch}))
    assert not memory[:100].any()
    assert scratch.address == 0
    with pytest.raises(DeviceError, match=f"{1 << 40} bytes"):
        device.allocate(1 << 40)
    with pytest.raises(DeviceError, match="does not grow"):
        scratch.grow(200)


def test_what_cannot_be_shared_is_refused(driver: EmulatedDriver) -> None:
    driver.refuse = {"register"}
    with pytest.raises(CopyRefusedError, match="Allow copies"):
        emulated(driver)


def test_with_copies_allowed_what_a_tape_touches_is_staged_and_counted(driver: EmulatedDriver) -> None:
    driver.refuse = {"register"}
    device, ledger, memory = emulated(driver, allow_copy=True), Ledger(), host_pages(2 * PAGE)
    assert device.info.mode is Mode.STAGED
    pages = device.share(memory.ctypes.data, PAGE, ledger=ledger)
    assert pages.mode is Mode.STAGED
    pages.grow(2 * PAGE)
    memory[:] = np.arange(2 * PAGE) % 251
    before = memory.copy()
    # Every second element is written: those between must come back as they were.
    x, y = tensor(0, 10), tensor(1024, 10, strides=(2,))
    tape = tape_of(lambda b: b.unary("neg", y, x), {Space.GUEST: 2 * PAGE})
    device.play(device.compile(tape, {Space.GUEST: pages}))
    out = memory[1024:1104].view(np.float32)[::2]
    assert np.array_equal(out, -before[:40].view(np.float32))
    out[:] = before[1024:1104].view(np.float32)[::2]
    assert np.array_equal(memory, before)
    assert ledger.as_dict() == {
        "shared": 0, "uploaded": 0, "downloaded": 0, "staged": 40 + 76 + 76, "copied": 192,
    }  # fmt: skip
    device.close()
    assert not driver.allocated


def test_a_deadline_stops_what_plays_and_the_device_goes_on(
    device: cuda.CudaDevice, driver: EmulatedDriver
) -> None:
    memory = host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    program = device.compile(negation(), {Space.GUEST: pages})
    driver.endless = "until asked"
    with pytest.raises(DeadlineError, match="longer than 0"):
        device.play(program, timeout=0.01)
    driver.endless = False
    device.play(program)


def test_kernels_that_do_not_stop_leave_their_pages_alone(driver: EmulatedDriver) -> None:
    device, memory = emulated(driver), host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    program = device.compile(negation(), {Space.GUEST: pages})
    driver.endless = True
    with pytest.raises(DeviceLostError, match="still run"):
        device.play(program, timeout=0.01)
    assert driver.registered, "kernels may still write there"
    with pytest.raises(DeviceError, match="Leave them mapped"):
        pages.close()
    with pytest.raises(ClosedError):
        device.play(program)


def test_an_interrupt_ends_the_kernels_first(
    device: cuda.CudaDevice, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = host_pages(PAGE)
    memory.view(np.float32)[:] = 1
    pages = device.share(memory.ctypes.data, PAGE)
    program = device.compile(negation(), {Space.GUEST: pages})
    wait, calls = driver.wait, iter([KeyboardInterrupt()])

    def interrupted(deadline: float | None, taken: object = None) -> bool:
        for e in calls:
            raise e
        return wait(deadline)

    monkeypatch.setattr(driver, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device.play(program)
    assert (memory.view(np.float32)[:256] == -1).all(), "the kernel had ended when play returned"


def test_a_lost_device_closes_and_memory_stays_usable(driver: EmulatedDriver) -> None:
    device, memory = emulated(driver), host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    program = device.compile(negation(), {Space.GUEST: pages})
    driver.failing = True
    with pytest.raises(DeviceLostError):
        device.play(program)
    assert driver.closed
    assert pages.closed
    memory[:] = 7
    for use in (
        lambda: device.play(program),
        lambda: device.share(memory.ctypes.data, PAGE),
        lambda: device.allocate(1),
        lambda: pages.grow(2 * PAGE),
    ):
        with pytest.raises(ClosedError):
            use()
    pages.close()
    device.close()


def test_a_play_without_a_deadline_ends_all_the_same(
    device: cuda.CudaDevice, driver: EmulatedDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "PLAY_SECONDS", 0.01)
    memory = host_pages(PAGE)
    program = device.compile(negation(), {Space.GUEST: device.share(memory.ctypes.data, PAGE)})
    driver.endless = "until asked"
    with pytest.raises(DeadlineError, match=r"longer than 0\.01"):
        device.play(program)
    driver.endless = False
    device.play(program)


Use = Callable[[cuda.CudaDevice, cuda.NearPages], object]
MEMORY = host_pages(4 * PAGE)
COPIES: dict[str, Use] = {
    "flush": lambda device, near: near.flush(0, 64),
    "reload": lambda device, near: near.reload(0, 64),
    "copy": lambda device, near: near.copy(near, 64),
    "upload": lambda device, near: device.place([(MEMORY.ctypes.data, PAGE)]),
}
USES: dict[str, Use] = {
    **COPIES,
    "allocate": lambda device, near: device.allocate(64),
    "near": lambda device, near: device.near(MEMORY.ctypes.data, 64),
    "room": lambda device, near: device.room(),
    "share": lambda device, near: device.share(MEMORY.ctypes.data, PAGE),
    "compile": lambda device, near: device.compile(negation(), {Space.GUEST: near}),
}


@pytest.mark.parametrize("use", COPIES.values(), ids=COPIES)
def test_a_copy_that_does_not_end_makes_the_device_lost(driver: EmulatedDriver, use: Use) -> None:
    device = emulated(driver)
    near = device.near(MEMORY.ctypes.data, PAGE)
    driver.endless = True
    with pytest.raises(DeviceLostError, match=r"copying \d+ bytes has not ended"):
        use(device, near)
    driver.endless = False
    for again in USES.values():
        with pytest.raises(ClosedError):
            again(device, near)
    assert driver.allocated, "what the copy may still write to is never freed"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_loss_closes_the_device_wherever_it_is_noticed(driver: EmulatedDriver, use: Use) -> None:
    device = emulated(driver)
    near = device.near(MEMORY.ctypes.data, PAGE)
    driver.failing = True
    with pytest.raises(DeviceLostError):
        use(device, near)
    assert driver.closed
    with pytest.raises(ClosedError, match=r"was lost: .* the context is gone"):
        device.allocate(64)
    with pytest.raises(ClosedError):
        near.flush(0, 64)
    near.close()
    device.close()


def test_what_is_free_leaves_room_for_workspaces(device: cuda.CudaDevice, driver: EmulatedDriver) -> None:
    whole = device.room()
    assert driver.memory_bytes - whole == driver.memory_bytes // 16
    pages = device.allocate(1 << 20)
    assert device.room() == whole - (1 << 20)
    pages.close()
    rest = device.allocate(driver.memory_bytes)
    assert device.room() == 0
    rest.close()
    device.close()
    with pytest.raises(ClosedError):
        device.room()


def test_pages_that_the_driver_keeps_are_reported(
    driver: EmulatedDriver, caplog: pytest.LogCaptureFixture
) -> None:
    device, memory = emulated(driver), host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    driver.refuse = {"unregister"}
    with caplog.at_level(logging.WARNING), pytest.raises(DeviceError, match="Leave them mapped"):
        pages.close()
    assert "leak" in caplog.text
    device.close()


def test_wrong_pages_are_refused(device: cuda.CudaDevice, library: ctypes.CDLL) -> None:
    memory = host_pages(PAGE)
    for address, nbytes in ((memory.ctypes.data + 1, PAGE), (memory.ctypes.data, 1), (memory.ctypes.data, 0)):
        with pytest.raises(UsageError):
            device.share(address, nbytes)
    other = emulated(EmulatedDriver(library))
    theirs = other.share(memory.ctypes.data, PAGE)
    with pytest.raises(UsageError, match="another device"):
        device.compile(negation(), {Space.GUEST: theirs})
    mine = device.share(memory.ctypes.data, PAGE)
    with pytest.raises(ClosedError, match="another device"):
        other.play(device.compile(negation(), {Space.GUEST: mine}))
    mine.close()
    with pytest.raises(ClosedError):
        device.compile(negation(), {Space.GUEST: mine})
    with pytest.raises(UsageError, match="guest"):
        device.compile(negation(), {})
    other.close()


def test_closing_the_device_closes_what_it_gave(driver: EmulatedDriver) -> None:
    device = emulated(driver)
    memory = host_pages(PAGE)
    pages = [device.share(memory.ctypes.data, PAGE), device.allocate(64)]
    program = device.compile(negation(), {Space.GUEST: pages[0]})
    device.close()
    device.close()
    assert all(p.closed for p in pages)
    assert program.closed
    assert not driver.registered
    assert not driver.allocated
