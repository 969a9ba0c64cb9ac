"""The CUDA device: kernels read and write the guest's own pages, over the bus, where they lie.

Host pages are registered with the driver and seen by kernels at the host's address (`cuda_pages`). Records
become launches (`cuda_launch`), kernels are compiled for the chip on first use and kept on disk
(`cuda_compile`), and `cuda_driver` is all there is of CUDA. A tape is played as CUDA graphs. Records of a
language model are joined where that is faster: the steps around a product of one row (`cuda_fuse`) or a few
(`cuda_fuse_rows`), whole passes over one row (`cuda_walk`), products of many rows on tensor cores
(`cuda_prefill`), which play side by side where they can (`cuda_beside`); `cuda_plan` chooses, and what it
chose for a model's tape is moved for the next session (`cuda_relocate`). Where pages cannot be registered and
copies are allowed, what a tape touches is copied before and after each play, and counted. Weights are
uploaded once (`cuda_upload`).
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nocopy.device.cuda_beside import pieces
from nocopy.device.cuda_blas import Blas, BlasLaunch, load_blas
from nocopy.device.cuda_compile import Compiler, cache_directory
from nocopy.device.cuda_driver import Driver, Start, version_name
from nocopy.device.cuda_launch import AnyLaunch, Branch, Shape
from nocopy.device.cuda_pages import (
    CudaPages,
    DevicePages,
    NearPages,
    RangedCudaPages,
    Staging,
    import_pages,
    stagings,
)
from nocopy.device.cuda_plan import Planner
from nocopy.device.cuda_upload import upload
from nocopy.device.cuda_wait import Taken
from nocopy.device.cuda_walk import WalkLaunch
from nocopy.device.protocol import DeviceInfo, Mode, OnDemand, Pages, Program, check_range, check_spaces
from nocopy.device.ranges import touched
from nocopy.errors import (
    ClosedError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DeviceUnavailableError,
    UsageError,
)
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

GRAPH_RECORDS = 1024
"""Launches in one graph; a longer tape is several, so that what waits on the GPU stays bounded."""
PASS_ROWS = 2048
"""Rows of a pass that keep the tensor cores busy, while what one op hands to the next stays in the cache."""
NO_BLAS = "kernels of nocopy; `pip install nvidia-cublas` adds cuBLASLt, which reads prompts twice as fast"
"""What large products are made with where the library is not installed."""
STOP_GRACE = 10.0
"""Seconds that kernels get to end after they were asked to stop."""
PLAY_SECONDS = 600.0
"""Deadline of a play that was given none, so that nothing holds its caller for good. The longest tape that a
guest may submit by default, 2**40 elements over the bus, takes a quarter of it."""
RESERVE = 128 << 20
"""Bytes of the GPU's memory that stay free beside weights, caches and scratch; of a small GPU's, a sixteenth.
For workspaces, of which a tape has one of up to 64 MiB, and for the driver's graphs and code."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class CudaProgram:
    """A tape as calls that start its pieces on the GPU, each with what it took.

    `places` are the pages it plays on with the addresses that are built into its launches.
    """

    device: CudaDevice
    tape: Tape
    starts: list[tuple[Start, Taken]]
    frees: list[Callable[[], None]]
    places: tuple[tuple[CudaPages, int], ...]
    staged: list[Staging]
    closed: bool = False

    @property
    def whole(self) -> bool:
        """True if one call starts it, and nothing is left to do after it."""
        return len(self.starts) == 1 and not self.staged

    def close(self) -> None:
        """See `Program.close`."""
        if not self.closed:
            self.closed = True
            self.device.drop_program(self)


class CudaDevice:
    """Plays tapes on an NVIDIA GPU.

    Args:
        driver: a context on the GPU; closed with the device.
        compiler: gives the kernels' code for it.
        allow_copy: copy what cannot be shared.
        blas: the library for large products, on the driver's context, closed with the device; or why they are
            kernels too.

    Raises:
        CopyRefusedError: this machine cannot share pages and `allow_copy` is False.
    """

    def __init__(
        self, driver: Driver, compiler: Compiler, *, allow_copy: bool = False, blas: Blas | str = NO_BLAS
    ) -> None:
        self._driver = driver
        self._compiler = compiler
        self._blas = None if isinstance(blas, str) else blas
        self._planner = Planner(driver, blas=self._blas is not None)
        self._allow_copy = allow_copy
        self._closed = False
        self._modules: dict[tuple[str, tuple[str, ...]], Any] = {}
        self._functions: dict[tuple[str, tuple[str, ...]], int] = {}
        self._pages: list[CudaPages] = []
        self._programs: list[CudaProgram] = []
        self._behind: CudaProgram | None = None
        """What was started behind the last play."""
        driver.on_lost = self.close
        self._info = DeviceInfo(
            "cuda",
            driver.product,
            self._try_sharing(),
            driver.memory_bytes,
            {
                "compute capability": "{}.{}".format(*driver.capability),
                "multiprocessors": str(driver.multiprocessors),
                "driver": f"CUDA {version_name(driver.version)}",
                "compiler": "NVRTC {}.{}".format(*compiler.version),
                "products": blas if isinstance(blas, str) else f"cuBLASLt {blas.version}",
            },
            pins=True,
            rows=PASS_ROWS,
            follows=True,
            few_shapes=True,
        )

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

    @property
    def driver(self) -> Driver:
        """CUDA, with this device's context: for copies that a benchmark makes on purpose."""
        return self._driver

    def _try_sharing(self) -> Mode:
        """Import one page: the only sure way to learn how this machine does it."""
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            held = ctypes.c_char.from_buffer(page)
            try:
                pages = self.share(ctypes.addressof(held), mmap.PAGESIZE)
                pages.close()
                return pages.mode
            finally:
                del held

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise ClosedError(f"{what} was asked for; the device {self._end()}")

    def _end(self) -> str:
        lost = self._driver.lost
        return f"was lost: {lost}. Go on with another." if lost else "is closed. Open it again."

    # Pages

    def share(
        self,
        address: int,
        nbytes: int,
        *,
        ledger: Ledger | None = None,
        on_demand: OnDemand | None = None,
    ) -> CudaPages:
        """See `Device.share`."""
        self._check_open("sharing")
        check_range(address, nbytes, mmap.PAGESIZE)
        forget = self._pages.remove
        if on_demand is not None and self._info.mode is Mode.SAME_POINTER:
            ranged = RangedCudaPages(self._driver, address, nbytes, forget, ledger, on_demand)
            self._pages.append(ranged)
            return ranged
        if on_demand is not None:
            on_demand.own(0, nbytes)
        pages = import_pages(self._driver, address, nbytes, forget, ledger, allow_copy=self._allow_copy)
        self._pages.append(pages)
        return pages

    def allocate(self, nbytes: int) -> CudaPages:
        """See `Device.allocate`."""
        self._check_open("allocating")
        with self._driver.current():
            pages = DevicePages(self._driver, nbytes, self._pages.remove)
        self._pages.append(pages)
        return pages

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> NearPages:
        """See `Device.near`: device memory, which kernels read fifty times as fast as host pages."""
        self._check_open("allocating")
        with self._driver.current():
            pages = NearPages(self._driver, address, nbytes, self._pages.remove, ledger)
        self._pages.append(pages)
        return pages

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """See `Device.expect`: it takes no hint."""

    def room(self) -> int:
        """See `Device.room`."""
        self._check_open("asking for room")
        with self._driver.current():
            return max(0, self._driver.free_bytes() - min(RESERVE, self._driver.memory_bytes // 16))

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[CudaPages, list[int]]:
        """See `Device.place`: one piece of device memory, the ranges one after another."""
        self._check_open("placing weights")
        pages, starts = upload(self._driver, ranges, self._pages.remove, ledger, progress)
        self._pages.append(pages)
        return pages, starts

    # Programs

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> CudaProgram:
        """See `Device.compile`."""
        self._check_open("compiling")
        check_spaces(tape, spaces)
        used = {space: self._own(space, spaces[space]) for space in tape.sizes}
        with self._driver.current():
            for space, each in used.items():
                if isinstance(each, RangedCudaPages):
                    each.reach(touched(tape, space))
            starts, frees = self._join(tape, used)
        places = tuple((pages, pages.device_address) for pages in used.values())
        timed = [(start, Taken()) for start in starts]
        program = CudaProgram(self, tape, timed, frees, places, stagings(tape, used))
        self._programs.append(program)
        return program

    def _own(self, space: Space, pages: Pages) -> CudaPages:
        if not isinstance(pages, CudaPages) or pages.driver is not self._driver:
            raise UsageError(
                f"space {space.name.lower()} was given pages of another device; share or allocate them here"
            )
        if pages.closed:
            raise ClosedError(f"space {space.name.lower()} was given pages that are closed")
        return pages

    def _join(
        self, tape: Tape, used: Mapping[Space, CudaPages]
    ) -> tuple[list[Start], list[Callable[[], None]]]:
        """The calls that start a tape's pieces, and those that free what they hold."""
        frees: list[Callable[[], None]] = []
        try:
            planned, workspace = self._planner.launches(tape, used, frees)
            # One launch is joined too: a graph starts 2.5 us sooner than a kernel (bench/cuda_launch.py).
            starts: list[Start] = []
            for piece in pieces(planned, GRAPH_RECORDS):
                start, free = self._driver.graph(list(self._starts(piece, workspace, frees)))
                starts.append(start)
                frees.append(free)
        except BaseException:
            for free in frees:
                free()
            raise
        return starts, frees

    def _starts(
        self, launches: list[AnyLaunch], workspace: int, frees: list[Callable[[], None]]
    ) -> Iterator[Start]:
        driver, beside, after = self._driver, False, False
        for launch in launches:
            if isinstance(launch, Branch):
                beside, after = launch is Branch.APART, launch is not Branch.BACK
                if after:
                    yield driver.part() if beside else driver.meet()
                continue
            if isinstance(launch, BlasLaunch):
                assert self._blas is not None
                stream = driver.beside if beside else driver.stream
                start, free = self._blas.launcher(launch.product, launch.workspace, stream)
                frees.append(free)
                yield start
            elif isinstance(launch, WalkLaunch):
                yield from self._walk(launch, frees)
            else:
                function, argument = self._function(launch.shape), launch.argument(workspace)
                yield driver.launcher(
                    function,
                    launch.grid,
                    launch.shape.block,
                    argument,
                    launch.shared,
                    beside=beside,
                    after=after,
                )
            after = False

    def _walk(self, launch: WalkLaunch, frees: list[Callable[[], None]]) -> Iterator[Start]:
        function, driver = self._function(launch.shape), self._driver
        memory = driver.allocate(len(launch.stages) + 4 * launch.exchange)
        frees.append(lambda: driver.free(memory))
        stages = ctypes.create_string_buffer(launch.stages, len(launch.stages))
        driver.copy_in(memory, ctypes.addressof(stages), len(launch.stages))
        driver.finish(len(launch.stages))
        if not launch.again:  # else it is zero since it was allocated
            yield driver.zeroing(memory + len(launch.stages), launch.exchange)
        argument = launch.argument(memory)
        yield driver.launcher(
            function, launch.grid, launch.shape.block, argument, launch.shared, together=True
        )

    def _function(self, shape: Shape) -> int:
        key = shape.kernel, shape.defines
        function = self._functions.get(key)
        if function is None:
            code = shape.source, shape.defines
            module = self._modules.get(code)
            if module is None:
                module = self._modules[code] = self._driver.load(self._compiler.code(*code))
            function = self._functions[key] = self._driver.function(module, shape.kernel)
        return function

    def drop_program(self, program: CudaProgram) -> None:
        """Free what a closing program holds."""
        self._programs.remove(program)
        if self._behind is program:
            self._behind = None
        with self._driver.current():
            for free in program.frees:
                free()

    # Playing

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """See `Device.play`. It stops between kernels and inside long ones.

        An exception from outside, such as KeyboardInterrupt, ends the kernels before it goes on.
        """
        playable, behind = self._playable(program), None if then is None else self._playable(then)
        driver = self._driver
        driver.enter(settled=False)
        try:
            self._run(playable, PLAY_SECONDS if timeout is None else timeout, behind)
        finally:
            driver.leave()

    def _playable(self, program: Program) -> CudaProgram:
        if not isinstance(program, CudaProgram) or program.device is not self:
            raise ClosedError("playing was asked for; the program was compiled by another device")
        self._check_open("playing")
        if program.closed:
            raise ClosedError("playing was asked for; the program is closed")
        for pages, address in program.places:
            if pages.closed or pages.device_address != address:
                raise ClosedError(
                    "playing was asked for; pages of the program are closed or have moved. Compile it again."
                )
        return program

    def _run(self, program: CudaProgram, timeout: float, then: CudaProgram | None) -> None:
        deadline = time.monotonic() + timeout
        started, self._behind = self._behind is program, None
        try:
            if then is not None and program.whole and then.whole:
                ended = self._run_before(then, program, deadline, started=started)
            else:
                ended = self._run_alone(program, deadline, started=started)
            if not ended:
                raise DeadlineError(
                    f"a tape of {len(program.tape)} records ran longer than {timeout} s on"
                    f" {self._driver.product}; it was stopped, and what it writes is incomplete"
                )
        except DeviceLostError:
            raise
        except BaseException:
            self._behind = None
            self._stop()
            raise

    def _run_alone(self, program: CudaProgram, deadline: float, *, started: bool) -> bool:
        """Whether it ended in time."""
        driver = self._driver
        for staging in program.staged:
            staging.pages.copy_in(staging.inward)
        for start, taken in program.starts:
            if not started:
                driver.start(start)
            if not driver.wait(deadline, taken):
                return False
        if program.staged:
            for staging in program.staged:
                staging.pages.copy_out(staging.outward)
            driver.finish(sum(staging.pages.nbytes for staging in program.staged))
        return True

    def _run_before(self, then: CudaProgram, program: CudaProgram, deadline: float, *, started: bool) -> bool:
        """The same, with another right behind it, which goes on when this returns."""
        driver, ((start, taken),) = self._driver, program.starts
        if not started:
            driver.start(start)
        driver.mark()
        driver.start(then.starts[0][0])
        self._behind = then
        return driver.wait_for_mark(deadline, taken)

    def settle(self) -> None:
        """See `Device.settle`."""
        self._check_open("settling")
        self._behind = None
        with self._driver.current():
            pass

    def _stop(self) -> None:
        """Make what plays end: nothing may go on writing to a guest's memory once a play has returned.

        Raises:
            DeviceLostError: it does not end.
        """
        driver = self._driver
        until = time.monotonic() + STOP_GRACE
        if not (driver.ask_to_stop(True, until) and driver.wait(until)):
            raise driver.abandon(f"kernels that were asked to stop still run {STOP_GRACE} s later")
        if not driver.ask_to_stop(False, time.monotonic() + STOP_GRACE):
            raise driver.abandon("a copy of 4 bytes does not end")

    # Closing

    def close(self) -> None:
        """See `Device.close`. What fails on the way is logged: the context goes, and with it all it holds."""
        if self._closed:
            return
        self._closed = True
        opened = list(self._pages)
        if self._driver.lost:  # nothing can be freed any more but all at once
            for program in self._programs:
                program.closed = True
            for pages in opened:
                pages.lose()
        else:
            for program in list(self._programs):
                with suppress(DeviceError):  # it is freed with the context
                    program.close()
            for pages in opened:
                with suppress(DeviceError):  # it has been logged
                    pages.close()
            if self._blas is not None:
                with suppress(DeviceError), self._driver.current():  # likewise: it goes with the context
                    self._blas.close()
        try:
            self._driver.close()
        except DeviceError as e:
            _log.warning("closing %s: %s", self._driver.product, e)
        else:
            for pages in opened:
                pages.leak = None


def open_device(*, allow_copy: bool = False) -> CudaDevice:
    """Open the first GPU that CUDA shows.

    Raises:
        DeviceUnavailableError: no driver, no GPU, one that is too old, or no compiler for kernels.
        CopyRefusedError: this machine cannot share pages and `allow_copy` is False.
    """
    try:
        driver = Driver()
        try:
            return _open_on(driver, allow_copy=allow_copy)
        except BaseException:
            driver.close()
            raise
    except DeviceUnavailableError:
        raise
    except DeviceError as e:
        fix = "See what `nvidia-smi` says of the GPU and of who uses it."
        raise DeviceUnavailableError("cuda", str(e), fix) from e


def _open_on(driver: Driver, *, allow_copy: bool) -> CudaDevice:
    compiler = Compiler(driver.capability, cache_directory())
    if compiler.version[0] > driver.version // 1000:
        raise DeviceUnavailableError(
            "cuda",
            "NVRTC {}.{} makes code for newer drivers than the one".format(*compiler.version)
            + f" here, which is for CUDA {version_name(driver.version)}",
            "Update the NVIDIA driver, or run `pip install 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12`.",
        )
    return CudaDevice(driver, compiler, allow_copy=allow_copy, blas=_open_blas(driver))


def _open_blas(driver: Driver) -> Blas | str:
    """The library for large products, or why kernels take them."""
    library = load_blas()
    if library is None:
        return NO_BLAS
    try:
        with driver.current():
            return Blas(library)
    except DeviceLostError:
        raise
    except DeviceError as e:
        return f"kernels of nocopy; cuBLASLt does not start here ({e})"
