"""A CUDA driver for machines without a GPU: memory is host memory, kernels run in emulated_cuda/emulator.cpp.

It is stricter than the real one: every call must be made with the context current, ranges may not be
registered or freed twice, what is started runs only when it is waited for, and a kernel whose threads do not
all reach a barrier is an error.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nocopy.device import cuda
from nocopy.device.cuda_compile import kernel_sources
from nocopy.device.cuda_fuse import Chip
from nocopy.errors import DeviceError, DeviceLostError
from tests.device.compiled import FIBERS, NO_FORTIFICATION, shared_library

HERE = Path(__file__).parent / "emulated_cuda"
FLAGS = [
    "-std=c++17",
    "-O1",
    NO_FORTIFICATION,
    "-ffp-contract=off",
    "-shared",
    "-fPIC",
    "-Wno-unknown-pragmas",
]


def build(source: str, name: str) -> Path:
    """`emulated_cuda/<source>` with all kernels, and the stand-in for half.cuh, as a shared library."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("there is no C++ compiler for the emulator")
    kernels = sorted(file for file in kernel_sources() if file.endswith(".cu"))
    files = {f"cuda/{file}": text for file, text in kernel_sources().items()}
    files |= {f"cuda/{own.name}": own.read_text() for own in HERE.iterdir()}
    files["cuda/fibers.hpp"] = FIBERS.read_text()
    files["cuda/kernels.inc"] = "".join(f'#include "{file}"\n' for file in kernels)
    flags = [*FLAGS, f"-Wl,-soname,{name}", "-ldl", "-pthread"]
    return shared_library(name, [compiler], flags, files, f"cuda/{source}")


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build("emulator.cpp", "kernels.so")))


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


class NamingCompiler:
    """Gives the name of a source instead of code: the library has all kernels already."""

    version = (13, 0)

    def code(self, source: str, defines: tuple[str, ...] = ()) -> bytes:
        del defines
        return source.encode()


class EmulatedDriver:
    """Stands in for `cuda_driver.Driver`. `refuse` names calls that fail with a DeviceError."""

    def __init__(self, library: ctypes.CDLL, *, memory_bytes: int = 1 << 24) -> None:
        self.product, self.version, self.capability = "emulated GPU", 13000, (9, 0)
        self.memory_bytes, self.multiprocessors = memory_bytes, 3
        self.chip = Chip(self.multiprocessors, 233472, 232448, 12.8)
        self.refuse: set[str] = set()
        self.failing = False
        self.endless: bool | str = False
        self.launched: list[str] = []
        self.registered: dict[int, int] = {}
        self.allocated: dict[int, mmap.mmap] = {}
        self.pinned: dict[int, mmap.mmap] = {}
        self.mapped_at: Callable[[int], int] = lambda address: address
        self.graphs = 0
        self.walks = self.groups = False
        self.closed = False
        self.lost = ""
        self.on_lost: Callable[[], None] = lambda: None
        self._library = library
        self._depth = 0
        self._queue: list[Callable[[], int]] = []
        self._marked = 0
        self.running = False
        self.behind = 0
        self._names: dict[int, str] = {}
        self._stop = ctypes.c_int32()
        self.stop_address = ctypes.addressof(self._stop)
        self._abandoned = False

    # The context

    def enter(self, *, settled: bool = True) -> None:
        assert not self.closed
        if self._abandoned:
            raise DeviceError("kernels that do not end hold the GPU")
        self._depth += 1
        if settled and self.running:
            try:
                if not self.wait(0.0):
                    raise self.abandon("what was started behind the last play does not end")
            except BaseException:
                self.leave()
                raise

    def leave(self) -> None:
        self._depth -= 1
        if self.lost and not self._depth:
            self.on_lost()

    @contextmanager
    def current(self) -> Generator[None]:
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def close(self) -> None:
        assert not self._depth
        if self._abandoned:
            raise DeviceError("kernels that do not end hold the GPU")
        self.closed = True
        self.registered.clear()

    def _called(self, name: str) -> None:
        assert self._depth > 0, f"{name} without a current context"
        if self.failing:
            self.lost = f"{name}: the context is gone"
            raise DeviceLostError(self.lost)
        if name in self.refuse:
            raise DeviceError(f"{name} refused")

    def check(self, status: int, what: str) -> None:
        if status:
            self.failing, self.lost = True, f"{what} failed with {status}"
            raise DeviceLostError(self.lost)

    # Memory

    def register(self, address: int, nbytes: int) -> int:
        self._called("register")
        assert address % mmap.PAGESIZE == 0
        assert nbytes % mmap.PAGESIZE == 0
        assert nbytes > 0
        for start, size in self.registered.items():
            assert address >= start + size or start >= address + nbytes, "registered twice"
        self.registered[address] = nbytes
        return self.mapped_at(address)

    def unregister(self, address: int) -> None:
        self._called("unregister")
        del self.registered[address]

    def free_bytes(self) -> int:
        self._called("free_bytes")
        return self.memory_bytes - sum(len(m) for m in self.allocated.values())

    def allocate(self, nbytes: int) -> int:
        self._called("allocate")
        free = self.free_bytes()
        if nbytes > free:
            raise DeviceError(f"{nbytes} bytes were asked for; {free} are free")
        memory = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.allocated[address] = memory
        return address

    def free(self, address: int) -> None:
        self._called("free")
        del self.allocated[address]

    def pin(self, nbytes: int) -> int:
        self._called("pin")
        memory = mmap.mmap(-1, nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.pinned[address] = memory
        return address

    def unpin(self, address: int) -> None:
        self._called("unpin")
        assert not self._queue, "pinned memory freed before the copy from it"
        del self.pinned[address]

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        self._called("copy_in")
        self._queue.append(lambda: (ctypes.memmove(device, host, nbytes), 0)[1])

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        self.copy_in(host, device, nbytes)

    def copy_within(self, to: int, source: int, nbytes: int) -> None:
        self.copy_in(to, source, nbytes)

    def zeroing(self, address: int, words: int) -> Callable[[], int]:
        self._called("zeroing")
        return lambda: (self._queue.append(lambda: (ctypes.memset(address, 0, 4 * words), 0)[1]), 0)[1]

    # Kernels

    def load(self, code: bytes) -> bytes:
        self._called("load")
        assert f"{code.decode()}.cu" in kernel_sources()
        return code

    def function(self, module: bytes, name: str) -> int:
        self._called("function")
        source = kernel_sources()[f"{module.decode()}.cu"]
        own = re.sub("^attention_rows?_", "", name)
        assert re.search(rf"(NOCOPY_\w+\(|\) ){name}[,(]|NOCOPY_ATTENTION_ROW\({own},", source)
        address = ctypes.cast(getattr(self._library, name), ctypes.c_void_p).value
        assert address
        self._names[address] = name
        return address

    def launcher(
        self,
        function: int,
        grid: int,
        block: tuple[int, int],
        argument: bytes,
        shared: int = 0,
        *,
        together: bool = False,
        beside: bool = False,
        after: bool = False,
    ) -> Callable[[], int]:
        assert not beside, "only the library's products have others beside them"
        del after
        assert 1 <= grid < 2**31
        assert grid <= self.multiprocessors or not together
        assert block[0] * block[1] <= 1024
        assert shared <= self.chip.block_shared_bytes

        def run() -> int:
            self.launched.append(self._names[function])
            size = ctypes.c_size_t(len(argument))
            return self._library.emulate(ctypes.c_void_p(function), grid, *block, shared, argument, size)

        def start() -> int:
            self._called("start")
            self._queue.append(run)
            return 0

        return start

    def graph(self, starts: list[Callable[[], int]]) -> tuple[Callable[[], int], Callable[[], None]]:
        self._called("graph")
        self.graphs += 1

        def start_all() -> int:
            for start in starts:
                start()
            return 0

        def free() -> None:
            self.graphs -= 1

        return start_all, free

    def start(self, start: Callable[[], int]) -> None:
        self.check(start(), "starting a kernel")

    # Waiting

    def mark(self) -> None:
        self._called("mark")
        self._marked, self.running = len(self._queue), True
        self.behind += 1

    def wait_for_mark(self, deadline: float, taken: object) -> bool:
        return self._wait(self._marked)

    def wait(self, deadline: float, taken: object = None) -> bool:
        ended = self._wait(len(self._queue))
        self.running = self.running and not ended
        return ended

    def _wait(self, count: int) -> bool:
        self._called("wait")
        if self.endless and not (self._stop.value and self.endless == "until asked"):
            return False
        queue, self._queue = self._queue[:count], self._queue[count:]
        self._marked -= count
        for run in queue:
            status = run()
            assert status != 1, f"{self.launched[-1]}: not all threads reached a barrier"
            self.check(status, "playing")
        return True

    def finish(self, nbytes: int) -> None:
        if not self.wait(0.0):
            raise self.abandon(f"copying {nbytes} bytes has not ended")

    def ask_to_stop(self, stop: bool, deadline: float) -> bool:
        self._stop.value = int(stop)
        return True

    def abandon(self, why: str) -> DeviceLostError:
        self._abandoned, self.lost = True, why
        return DeviceLostError(why)
