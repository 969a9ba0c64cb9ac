"""The CUDA device: its kernels and its logic without a GPU, then what only a GPU can show.

Without one, kernels run in an emulator (`emulated_cuda`) under a strict stand-in for the driver.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device import cuda, cuda_compile, cuda_driver
from nocopy.device.cuda_compile import Compiler, kernel_sources
from nocopy.device.cuda_launch import GEOMETRY
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
from nocopy.tape import OPS, Space, Tape, TapeBuilder, Tensor
from tests.device import test_conformance as conformance
from tests.device.arena import Arena
from tests.device.conftest import open_or_skip
from tests.device.cuda_emulation import EmulatedDriver, NamingCompiler, build_kernels, compiler
from tests.device.region import Region
from tests.tape.choices import Seeded

PAGE = mmap.PAGESIZE
Array = np.ndarray[Any, Any]


def host_pages(nbytes: int) -> Array:
    """Page-aligned zeros."""
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)


def tape_of(build: Callable[[TapeBuilder], None], sizes: Mapping[Space, int]) -> Tape:
    builder = TapeBuilder()
    build(builder)
    return builder.build(sizes)


def negation(n: int = 256, offset: int = 0) -> Tape:
    """Negates n f32 in place."""
    x = Tensor(Space.GUEST, offset, (n,), DType.F32)
    return tape_of(lambda b: b.unary("neg", x, x), {Space.GUEST: offset + 4 * n})


# -- compiling ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nvrtc() -> Any:
    try:
        return cuda_compile.load_nvrtc()
    except DeviceUnavailableError as e:
        pytest.skip(str(e))


SOURCES = sorted(name[:-3] for name in kernel_sources() if name.endswith(".cu"))


@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 0)])
@pytest.mark.parametrize("source", SOURCES)
def test_every_kernel_compiles_for_every_chip(
    nvrtc: Any, tmp_path: Path, source: str, capability: tuple[int, int]
) -> None:
    code = Compiler(capability, tmp_path).code(source)
    assert code.startswith(b"\x7fELF")


def test_a_chip_that_nvrtc_does_not_know_gets_ptx(nvrtc: Any, tmp_path: Path) -> None:
    compiler = Compiler((99, 0), tmp_path)
    assert compiler.target.startswith("compute_")
    assert b".entry unary" in compiler.code("unary")


def test_compiled_kernels_are_kept(nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Compiler((9, 0), tmp_path).code("copy")
    again = Compiler((9, 0), tmp_path)
    monkeypatch.setattr(again, "_compile", lambda source: pytest.fail("compiled again"))
    assert again.code("copy") == first
    assert [p.suffix for p in tmp_path.iterdir()] == [".bin"]


def test_a_damaged_entry_is_compiled_again(nvrtc: Any, tmp_path: Path) -> None:
    code = Compiler((9, 0), tmp_path).code("copy")
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    assert Compiler((9, 0), tmp_path).code("copy") == code
    assert len(entry.read_bytes()) == len(code) + 32


@pytest.mark.parametrize("changed", ["copy.cu", "record.cuh", "../tape.h", "target", "version"])
def test_what_decides_the_code_decides_the_entry(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    before, after = Compiler((9, 0), tmp_path), Compiler((9, 0), tmp_path)
    key = before._key("copy")
    if changed == "target":
        after.target = "sm_80"
    elif changed == "version":
        after.version = (1, 0)
    else:
        sources = {**kernel_sources(), changed: "// another"}
        monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    assert after._key("copy") != key


def test_another_kernel_does_not_change_the_entry(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Compiler((9, 0), tmp_path)._key("copy")
    sources = {**kernel_sources(), "unary.cu": "// another"}
    monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    assert Compiler((9, 0), tmp_path)._key("copy") == key


def test_without_a_place_to_keep_them_kernels_still_compile(
    nvrtc: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        assert Compiler((9, 0), blocked / "cache").code("copy")
    assert "could not be kept" in caplog.text


def test_a_refused_source_says_why(nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {**kernel_sources(), "copy.cu": "int broken("}
    monkeypatch.setattr(cuda_compile, "kernel_sources", lambda: sources)
    with pytest.raises(DeviceError, match=r"(?s)copy\.cu for sm_90.*error"):
        Compiler((9, 0), tmp_path).code("copy")


def test_the_cache_is_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cuda_compile.cache_directory() == Path("/somewhere/nocopy/cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is to be ignored")
    assert cuda_compile.cache_directory() == Path.home() / ".cache/nocopy/cuda"


# -- opening ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("failure", [ImportError("no module"), RuntimeError("no libnvrtc")])
def test_a_missing_compiler_is_named_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def import_module(name: str) -> Any:
        raise failure

    monkeypatch.setattr(cuda_compile, "import_module", import_module)
    with pytest.raises(DeviceUnavailableError, match=r"nocopy\[cuda\]"):
        Compiler((9, 0), Path("/nowhere"))


# -- what kernels compute, in the emulator ------------------------------------------------------------


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if not compiler():
        pytest.skip("no C++ compiler for the emulator")
    return build_kernels(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def driver(library: ctypes.CDLL) -> EmulatedDriver:
    return EmulatedDriver(library)


@pytest.fixture
def device(driver: EmulatedDriver) -> Iterator[cuda.CudaDevice]:
    device = emulated(driver)
    yield device
    device.close()
    assert driver.closed


def emulated(driver: EmulatedDriver, *, allow_copy: bool = False) -> cuda.CudaDevice:
    return cuda.CudaDevice(driver, NamingCompiler(), allow_copy=allow_copy)  # type: ignore[arg-type]


@pytest.fixture
def arena(device: cuda.CudaDevice) -> Iterator[Arena]:
    """Guarded pages that the emulated device shares."""
    arena = Arena(device)
    yield arena
    arena.close()


@pytest.mark.parametrize("seed", range(4))
def test_kernels_mean_what_the_reference_means(arena: Arena, seed: int) -> None:
    conformance.fill_with_numbers(arena, seed)
    arena.judge(conformance.generated(Seeded(seed), arena.sizes[Space.GUEST] // conformance.SLICE))


def tensor(offset: int, *shape: int, dtype: DType = DType.F32, strides: tuple[int, ...] = ()) -> Tensor:
    return Tensor(Space.GUEST, offset, shape, dtype, strides)


def large_cases() -> dict[str, tuple[str, Callable[[TapeBuilder], None]]]:
    """Shapes that choose the kernels and paths which small random records do not."""
    a, b, c = 0, 16384, 32768
    return {
        "a block takes a row": ("reduce", lambda t: t.reduce("sum", tensor(c, 2, 1), tensor(a, 2, 1, 3000))),
        "a block takes a row and reads it thrice": (
            "softmax",
            lambda t: t.softmax(tensor(c, 2, 3000), tensor(a, 2, 3000)),
        ),
        "a block finds the largest": ("argmax", lambda t: t.argmax(tensor(c, 1, dtype=DType.I32), tensor(a, 1, 4000))),
        "a thread takes a column": (
            "reduce",
            lambda t: t.reduce("max", tensor(c, 200), tensor(a, 200, 40, strides=(1, 200))),
        ),
        "the largest of more than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 300), tensor(c, 300, dtype=DType.I32), tensor(a, 3000)),
        ),
        "more results than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 2500), tensor(c, 2500, dtype=DType.I32), tensor(a, 3000)),
        ),
        "all of more than a chunk": (
            "topk",
            lambda t: t.topk(tensor(b, 1025), tensor(c, 1025, dtype=DType.I32), tensor(a, 1025)),
        ),
        "ties": (
            "topk",
            lambda t: t.topk(tensor(b, 9), tensor(c, 9, dtype=DType.I32), tensor(a, 2000, strides=(0,))),
        ),
        "large tiles": (
            "matmul_large",
            lambda t: t.matmul(tensor(b, 4, 1, 40, 36), tensor(a, 4, 1, 40, 9), tensor(a + 8192, 1, 9, 36)),
        ),
        "medium tiles": (
            "matmul_medium",
            lambda t: t.matmul(
                tensor(b, 70, 50), tensor(a, 70, 33, strides=(1, 70)), tensor(a, 33, 50, strides=(1, 33)), 0.5
            ),
        ),
        "small tiles": ("matmul_small", lambda t: t.matmul(tensor(b, 33, 34), tensor(a, 33, 65), tensor(a, 65, 34))),
        "one row": ("matmul_narrow", lambda t: t.matmul(tensor(c, 1, 90), tensor(b, 1, 40), tensor(a, 40, 90))),
        "one row by a transpose": (
            "matmul_narrow",
            lambda t: t.matmul(tensor(c, 3, 90), tensor(b, 3, 40), tensor(a, 40, 90, strides=(1, 40))),
        ),
        "one column": ("matmul_narrow", lambda t: t.matmul(tensor(c, 90, 1), tensor(a, 90, 40), tensor(b, 40, 1))),
        "a convolution as tiles": (
            "conv2d_tiles",
            lambda t: t.conv2d(
                tensor(c, 2, 34, 6, 7), tensor(a, 2, 6, 6, 7), tensor(b, 34, 3, 3, 3), tensor(a, 34), pad=(1, 1)
            ),
        ),
        "a convolution that few outputs share": (
            "conv2d_direct",
            lambda t: t.conv2d(tensor(c, 1, 3, 2, 2), tensor(a, 1, 2, 6, 7), tensor(b, 3, 2, 5, 6), None),
        ),
        "a convolution of one output": (
            "conv2d_direct",
            lambda t: t.conv2d(tensor(c, 1, 1, 1, 1), tensor(a, 1, 1, 64, 64), tensor(b, 1, 1, 64, 64), None),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", large_cases())
def test_large_shapes_mean_what_the_reference_means(arena: Arena, driver: EmulatedDriver, case: str) -> None:
    kernel, build = large_cases()[case]
    if kernel == "matmul_medium":
        driver.multiprocessors = 2
    conformance.fill_with_numbers(arena, 1)
    arena.judge(bytes(tape_of(build, arena.sizes)))
    assert driver.launched == [kernel]


def test_every_op_has_a_launch_and_every_launch_a_kernel() -> None:
    assert set(GEOMETRY) == {op.name for op in OPS}


# -- the device's logic -------------------------------------------------------------------------------


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


def test_a_record_is_a_launch_and_a_longer_tape_a_graph(
    device: cuda.CudaDevice, driver: EmulatedDriver
) -> None:
    memory = host_pages(PAGE)
    pages = device.share(memory.ctypes.data, PAGE)
    x = Tensor(Space.GUEST, 0, (8,), DType.F32)
    device.compile(tape_of(lambda b: b.fill(x, 1), {Space.GUEST: PAGE}), {Space.GUEST: pages})
    assert driver.graphs == 0

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
    driver.endless = "until asked"  # type: ignore[assignment]
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

    def interrupted(deadline: float | None) -> bool:
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
    driver.lost = True
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


# -- what only a GPU can show -------------------------------------------------------------------------


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
    assert time.monotonic() - began < 2
    memory.view(np.float32)[:] = 3
    gpu.play(gpu.compile(negation(), {Space.GUEST: pages}), timeout=1)
    assert (memory.view(np.float32)[:256] == -3).all()


def test_gpu_that_faults_is_lost_and_can_be_opened_again(gpu: cuda.CudaDevice) -> None:
    memory = host_pages(PAGE)
    pages = gpu.share(memory.ctypes.data, PAGE)
    program = gpu.compile(negation(), {Space.GUEST: pages})
    with gpu.driver.current():
        gpu.driver.unregister(memory.ctypes.data)  # behind the device's back: the kernel will fault
    with pytest.raises(DeviceLostError, match="open the device again"):
        gpu.play(program)
    with pytest.raises(ClosedError):
        gpu.play(program)
    pages.close()
    memory.view(np.float32)[:] = 3
    again = cuda.open_device()
    pages = again.share(memory.ctypes.data, PAGE)
    again.play(again.compile(negation(), {Space.GUEST: pages}))
    assert (memory.view(np.float32)[:256] == -3).all()
    again.close()


def test_gpu_names_both_sizes_when_memory_runs_out(gpu: cuda.CudaDevice) -> None:
    with pytest.raises(DeviceError, match=rf"{1 << 45} bytes on .* free"):
        gpu.allocate(1 << 45)
    gpu.allocate(1 << 20).close()


def test_gpu_refuses_pages_twice_and_says_so(gpu: cuda.CudaDevice) -> None:
    memory = host_pages(PAGE)
    pages = gpu.share(memory.ctypes.data, PAGE)
    strict = cuda.open_device()
    with pytest.raises(CopyRefusedError, match="REGISTERED"):
        strict.share(memory.ctypes.data, PAGE)
    strict.close()
    pages.close()


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
