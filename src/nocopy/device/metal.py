"""The Metal device: host pages become `bytesNoCopy` buffers, a tape one command buffer that is encoded anew.

Kernels reach operands by GPU address (Metal 3), so a dispatch binds only its argument block; the buffers that
it reaches that way are declared with `useResource`. The encoder is a serial one: each dispatch sees what
those before it wrote. The committed Metal source is compiled when a program first needs a kernel.

`pyobjc` retains what `new...` methods return once too often, so their buffers would never let go of the
pages; `describe_ownership` tells it the truth before the first call.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from nocopy.device import launches
from nocopy.device.chunks import ChunkedPages, JoinedPages, Upload, join
from nocopy.device.metal_memory import Allocator, Copier, Importer, MetalBuffer, describe_ownership
from nocopy.device.protocol import DeviceInfo, Mode, OnDemand, Pages, Program, check_range, check_spaces
from nocopy.device.ranges import RangedPages, touched
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

LOST = {3, 4, 7, 11}  # MTLCommandBufferError: page fault, access revoked, not permitted, device removed


@dataclass(eq=False)
class MetalProgram:
    """Pipelines, argument blocks and the buffers that they reach; see `Program`."""

    tape: Tape
    device: MetalDevice
    pages: list[tuple[ChunkedPages | JoinedPages, int]]
    steps: list[tuple[Any, int, Any]]
    """For each dispatch: pipeline state, offset of its argument block, grid in groups."""
    arguments: MetalBuffer | None
    closed: bool = field(default=False, init=False)

    def resources(self) -> list[Any]:
        """Every buffer that the kernels may reach by address."""
        return [b.handle for pages, _ in self.pages for b in pages.buffers() if isinstance(b, MetalBuffer)]

    def close(self) -> None:
        """Let go of the argument blocks."""
        if not self.closed:
            self.closed = True
            self.device.forget_program(self)


class MetalDevice:
    """Plays tapes on a Mac's GPU.

    Args:
        metal: the framework's module, `Metal`.
        objc: the bridge's module, `objc`.
        page: bytes of a host page.
    """

    def __init__(self, metal: Any, objc: Any, *, page: int = mmap.PAGESIZE) -> None:
        self._metal, self._objc, self._page = metal, objc, page
        self._pages: set[ChunkedPages | JoinedPages] = set()
        self._programs: set[MetalProgram] = set()
        self._pipelines: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._lost = self._closed = False
        describe_ownership(objc)
        with objc.autorelease_pool():
            self._device: Any = metal.MTLCreateSystemDefaultDevice()
            if self._device is None:
                raise DeviceUnavailableError("metal", "macOS offers no Metal device", "Use the device 'cpu'.")
            product = str(self._device.name())
            if not self._device.supportsFamily_(metal.MTLGPUFamilyMetal3):
                reason = f"{product} does not support Metal 3, which gives buffers addresses"
                fix = "Use macOS 13 or newer on Apple silicon, or the device 'cpu'."
                raise DeviceUnavailableError("metal", reason, fix)
            self._queue: Any = self._device.newCommandQueue()
            if self._queue is None:
                raise DeviceError(f"opening {product} was asked for; it gives no command queue")
            self._importer = Importer(metal, self._device, product, page)
            mode = self._measure_mode()
        unified = bool(self._device.hasUnifiedMemory())
        memory = 0 if unified else int(self._device.recommendedMaxWorkingSetSize())
        details = {"memory": "unified" if unified else "own", "page": f"{page} bytes"}
        self._info = DeviceInfo("metal", product, mode, memory, details, pins=True)
        self._threads = metal.MTLSizeMake(launches.THREADS, 1, 1)

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

    def _measure_mode(self) -> Mode:
        """Import one page and see at which address kernels find it."""
        owner = mmap.mmap(-1, 2 * self._page)
        start = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        address = -(-start // self._page) * self._page
        buffer = self._importer.make(address, self._page)
        self._importer.destroy(buffer)
        return Mode.SAME_POINTER if buffer.device_address == address else Mode.MAPPED

    # -- memory ---------------------------------------------------------------------------------------------

    def share(
        self,
        address: int,
        nbytes: int,
        *,
        ledger: Ledger | None = None,
        on_demand: OnDemand | None = None,
    ) -> ChunkedPages:
        """See `Device.share`."""
        self._check_open()
        check_range(address, nbytes, self._page)
        forget, mode = self._pages.discard, self._info.mode
        if on_demand is not None:
            ranged = RangedPages(
                self._importer, address, nbytes, mode, True, ledger, forget, on_demand=on_demand
            )
            self._pages.add(ranged)
            return ranged
        with self._objc.autorelease_pool():
            pages = ChunkedPages(self._importer, address, nbytes, mode, True, ledger, forget)
        self._pages.add(pages)
        if ledger:
            ledger.shared += nbytes
        return pages

    def allocate(self, nbytes: int) -> ChunkedPages:
        """See `Device.allocate`. The CPU reaches the memory too; `address` is 0 all the same."""
        self._check_open()
        most = int(self._device.recommendedMaxWorkingSetSize())
        if nbytes > most:
            raise DeviceError(f"allocating {nbytes} bytes was asked for; {self._info.product} has {most}")
        maker = Allocator(self._metal, self._device, self._info.product, self._page)
        with self._objc.autorelease_pool():
            pages = ChunkedPages(maker, 0, max(nbytes, 1), self._info.mode, False, None, self._pages.discard)
        pages.nbytes = nbytes
        self._pages.add(pages)
        return pages

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> None:
        """See `Device.near`: host pages are this device's own."""
        del address, nbytes, ledger

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """See `Device.expect`: it takes no hint."""

    def room(self) -> None:
        """See `Device.room`: host pages are its own."""

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[JoinedPages, list[int]]:
        """See `Device.place`. Imported where they lie; copied if Metal refuses the pages."""
        self._check_open()
        total, most = sum(nbytes for _, nbytes in ranges), int(self._device.recommendedMaxWorkingSetSize())
        if total > most:
            raise DeviceError(
                f"placing {total} bytes was asked for; {self._info.product} has {most}; use a smaller model,"
                " or one with fewer bits for each weight"
            )
        with self._objc.autorelease_pool():
            try:
                pages = join(self._importer, ranges, self._info.mode, self._pages.discard)
                if ledger:
                    ledger.shared += total
            except DeviceError:
                upload = Upload(ledger, progress)
                maker = Copier(self._metal, self._device, self._info.product, self._page, upload.add)
                pages = join(maker, ranges, self._info.mode, self._pages.discard)
                upload.progress = None
        self._pages.add(pages)
        return pages, pages.starts

    # -- programs -------------------------------------------------------------------------------------------

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> MetalProgram:
        """See `Device.compile`."""
        self._check_open()
        check_spaces(tape, spaces)
        pages = {space: self._own(spaces[space]) for space in tape.sizes}
        for space, each in pages.items():
            if isinstance(each, RangedPages):
                each.reach(touched(tape, space))
        with self._objc.autorelease_pool():
            todo = list(launches.launches(tape, lambda space, start, stop: pages[space].resolve(start, stop)))
            pipelines = [self._pipeline(launch.kernel, launch.constants) for launch in todo]
            arguments = None
            if todo:
                maker = Allocator(self._metal, self._device, self._info.product, self._page)
                arguments = maker.make(0, len(todo) * launches.ARGS_BYTES)
                blocks = b"".join(launch.args for launch in todo)
                ctypes.memmove(arguments.mapped, blocks, len(blocks))
        steps = [
            (pipeline, index * launches.ARGS_BYTES, self._metal.MTLSizeMake(launch.groups, 1, 1))
            for index, (launch, pipeline) in enumerate(zip(todo, pipelines, strict=True))
        ]
        versions = [(p, p.generation) for p in pages.values()]
        program = MetalProgram(tape, self, versions, steps, arguments)
        self._programs.add(program)
        return program

    def _own(self, pages: Pages) -> ChunkedPages | JoinedPages:
        if isinstance(pages, ChunkedPages | JoinedPages) and pages.closed:
            raise ClosedError("compiling a tape was asked for; pages that it uses are closed")
        if not isinstance(pages, ChunkedPages | JoinedPages) or pages not in self._pages:
            raise UsageError("a space made of another device's pages was given; share them with this device")
        return pages

    def _pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        """The kernel for a function and dtypes; compiled once."""
        key = kernel, constants
        if key not in self._pipelines:
            self._pipelines[key] = self._create_pipeline(kernel, constants)
        return self._pipelines[key]

    def _create_pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        what = f"compiling the kernel {kernel} for {constants}"
        options = self._metal.MTLCompileOptions.alloc().init()
        options.setPreprocessorMacros_({f"NOCOPY_CONSTANT_{i}": value for i, value in enumerate(constants)})
        options.setLanguageVersion_(self._metal.MTLLanguageVersion3_0)
        options.setFastMathEnabled_(False)  # NaN, infinity and the order of additions count
        source = launches.kernel_code(kernel, "metal").decode()
        library, error = self._device.newLibraryWithSource_options_error_(source, options, None)
        if library is None:
            raise DeviceError(f"{what}: {self._info.product} refuses the source: {error}")
        function = library.newFunctionWithName_(f"{kernel}_kernel")
        if function is None:
            raise DeviceError(f"{what}: the source has no function {kernel}_kernel")
        state, error = self._device.newComputePipelineStateWithFunction_error_(function, None)
        if state is None:
            raise DeviceError(f"{what}: {self._info.product} gives no pipeline: {error}")
        most = int(state.maxTotalThreadsPerThreadgroup())
        if most < launches.THREADS:
            raise DeviceError(
                f"{what}: {launches.THREADS} threads a group were asked for;"
                f" {self._info.product} allows {most}"
            )
        return state

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """See `Device.play`. A GPU cannot be stopped: after a timeout this waits for the end, then raises.

        macOS ends a command buffer that hangs, so the wait is bounded.
        """
        del then
        if self._closed or not isinstance(program, MetalProgram) or program.closed:
            raise ClosedError("playing was asked for; the device or the program is closed")
        for pages, generation in program.pages:
            if pages.closed:
                raise ClosedError("playing was asked for; pages of the program are closed")
            if pages.generation != generation:
                raise UsageError("playing was asked for; its pages have moved since, compile the tape again")
        if self._lost:
            raise DeviceLostError(f"playing: {self._info.product} was lost before; open the device again")
        if not program.steps:
            return
        started = time.monotonic()
        with self._objc.autorelease_pool():
            commands = self._encode(program)
            commands.commit()
            commands.waitUntilCompleted()
            if commands.status() != self._metal.MTLCommandBufferStatusCompleted:
                self._fail(commands.error())
        took = time.monotonic() - started
        if timeout is not None and took > timeout:
            raise DeadlineError(
                f"a tape of {len(program.tape)} records was to end within {timeout} s; it took {took:.3f} s"
            )

    def _encode(self, program: MetalProgram) -> Any:
        """A command buffer with every dispatch of a program."""
        commands = self._queue.commandBuffer()
        encoder = commands.computeCommandEncoder() if commands is not None else None
        if commands is None or encoder is None or program.arguments is None:
            raise DeviceError(f"playing: {self._info.product} gives no command encoder")
        usage = self._metal.MTLResourceUsageRead | self._metal.MTLResourceUsageWrite
        for buffer in program.resources():
            encoder.useResource_usage_(buffer, usage)
        encoder.setBuffer_offset_atIndex_(program.arguments.handle, 0, 0)
        current = None
        for pipeline, offset, groups in program.steps:
            if pipeline is not current:
                encoder.setComputePipelineState_(pipeline)
                current = pipeline
            encoder.setBufferOffset_atIndex_(offset, 0)
            encoder.dispatchThreadgroups_threadsPerThreadgroup_(groups, self._threads)
        encoder.endEncoding()
        return commands

    def _fail(self, error: Any) -> None:
        """Raise what a failed command buffer means."""
        code = int(error.code()) if error is not None else 0
        text = f"playing: {self._info.product} answered error {code}: {error}"
        if code in LOST:
            self._lost = True
            raise DeviceLostError(f"{text}; open the device again")
        raise DeviceError(text)

    def forget_program(self, program: MetalProgram) -> None:
        """Free what a program holds."""
        self._programs.discard(program)
        program.steps = []
        program.arguments = None

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the device 'metal' was used after it was closed; open it again")

    def settle(self) -> None:
        """See `Device.settle`: nothing plays on here."""

    def close(self) -> None:
        """See `Device.close`."""
        if self._closed:
            return
        self._closed = True
        with self._objc.autorelease_pool():
            for program in list(self._programs):
                program.close()
            for pages in list(self._pages):
                pages.close()
            self._pipelines.clear()
            self._queue = self._device = None


def open_device(*, allow_copy: bool = False) -> MetalDevice:
    """Open the Mac's GPU; it never needs to copy, so `allow_copy` changes nothing.

    Raises:
        DeviceUnavailableError: this is not macOS, or the bridge to its frameworks is missing.
    """
    del allow_copy
    if sys.platform != "darwin":
        reason = f"this is {sys.platform}; Metal is a part of macOS"
        raise DeviceUnavailableError("metal", reason, "Use the device 'cuda', 'vulkan' or 'cpu' here.")
    try:
        metal, objc = import_module("Metal"), import_module("objc")
    except ImportError as e:
        reason = f"the Python package for it is not installed ({e})"
        raise DeviceUnavailableError("metal", reason, "pip install pyobjc-framework-Metal") from e
    return MetalDevice(metal, objc)
