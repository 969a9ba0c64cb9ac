"""The Vulkan device: a program is a recorded command buffer, submitted again each time it is played.

Kernels get 64-bit addresses, so there are no descriptors: the one push constant of a dispatch is the address
of its argument block, and the blocks of a program lie in one small host-visible buffer. Records are separated
by barriers only where one touches what an earlier one wrote, or writes what it read.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nocopy.device import launches
from nocopy.device.chunks import ChunkedPages, JoinedPages, Upload, join
from nocopy.device.protocol import DeviceInfo, Mode, OnDemand, Pages, Program, check_range, check_spaces
from nocopy.device.ranges import RangedPages, touched
from nocopy.device.vulkan_api import TYPE_CPU, Validate, open_api
from nocopy.device.vulkan_commands import Queue
from nocopy.device.vulkan_memory import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    MINIMUM_BYTES,
    Allocator,
    Buffer,
    Importer,
    create_buffer,
    destroy_buffer,
    import_buffer,
)
from nocopy.device.vulkan_upload import Uploader
from nocopy.errors import (
    ClosedError,
    CopyRefusedError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    UsageError,
)
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Extent, Tape


@dataclass(frozen=True)
class Staging:
    """What is copied around one play: (host address, address of the copy, size)."""

    before: list[tuple[int, int, int]]
    after: list[tuple[int, int, int]]
    ledgers: list[tuple[Ledger, int]]


@dataclass(eq=False)
class VulkanProgram:
    """A recorded command buffer; see `Program`."""

    tape: Tape
    device: VulkanDevice
    pages: list[tuple[ChunkedPages | JoinedPages, int]]
    submit: Any
    arguments: Buffer | None
    staging: Staging | None
    handles: Any
    closed: bool = field(default=False, init=False)

    def close(self) -> None:
        """Free the command buffer and the argument blocks."""
        if not self.closed:
            self.closed = True
            self.device.forget_program(self)


class VulkanDevice:
    """Plays tapes on a Vulkan device."""

    def __init__(self, *, allow_copy: bool = False, validate: Validate | None = None) -> None:
        self._api = open_api(allow_copy=allow_copy, validate=validate)
        self._pages: set[ChunkedPages | JoinedPages] = set()
        self._programs: set[VulkanProgram] = set()
        self._closed = False
        try:
            self._queue = Queue(self._api)
            mode = self._measure_mode()
            if mode is Mode.STAGED and not allow_copy:
                raise CopyRefusedError(
                    f"device 'vulkan' was asked for; {self._api.product} refuses to import host pages,"
                    " so it would have to copy; allow copies, or use another device"
                )
        except Exception:
            self._api.close()
            raise
        memory = self._api.device_bytes
        software = self._api.type == TYPE_CPU
        self._info = DeviceInfo(
            "vulkan", self._api.product, mode, memory, self._api.details, software, pins=not software
        )

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

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
        check_range(address, nbytes, max(mmap.PAGESIZE, self._api.limits.alignment))
        mode = self._info.mode
        if on_demand is not None and self._info.pins and mode is not Mode.STAGED:
            importer, forget = Importer(self._api), self._pages.discard
            ranged = RangedPages(importer, address, nbytes, mode, True, ledger, forget, on_demand=on_demand)
            self._pages.add(ranged)
            return ranged
        pages = self._new_pages(address, nbytes, mode, ledger)
        if ledger and pages.imported:
            ledger.shared += nbytes
        return pages

    def _new_pages(self, address: int, nbytes: int, mode: Mode, ledger: Ledger | None) -> ChunkedPages:
        imports = mode is not Mode.STAGED
        maker = Importer(self._api) if imports else Allocator(self._api, HOST_MEMORY)
        pages = ChunkedPages(maker, address, nbytes, mode, imports, ledger, self._pages.discard)
        self._pages.add(pages)
        return pages

    def allocate(self, nbytes: int) -> ChunkedPages:
        """See `Device.allocate`."""
        self._check_open()
        if nbytes > self._api.heap_bytes:
            raise DeviceError(
                f"allocating {nbytes} bytes was asked for; {self._api.product} has {self._api.heap_bytes}"
            )
        size = -(-max(nbytes, 1) // MINIMUM_BYTES) * MINIMUM_BYTES
        maker = Allocator(self._api, DEVICE_MEMORY)
        pages = ChunkedPages(maker, 0, size, self._own_mode, False, None, self._pages.discard)
        pages.nbytes = nbytes
        self._pages.add(pages)
        commands = self._queue.begin()
        for chunk in (c for c in pages.chunks if isinstance(c, Buffer)):
            self._api.lib.vkCmdFillBuffer(commands, chunk.handle, 0, 2**64 - 1, 0)
        self._queue.run_once(commands, f"clearing {nbytes} bytes")
        return pages

    def near(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> None:
        """See `Device.near`: host pages are this device's own."""
        del address, nbytes, ledger

    def expect(self, ranges: Sequence[tuple[int, int, bool]]) -> None:
        """See `Device.expect`: it takes no hint."""

    def room(self) -> None:
        """See `Device.room`: this interface does not tell what is free."""

    def place(
        self,
        ranges: Sequence[tuple[int, int]],
        *,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[JoinedPages, list[int]]:
        """See `Device.place`. Imported by a software device, uploaded once by any other.

        Drivers of hardware import anonymous memory; read-only pages of a file some refuse at once, and some
        not before the first kernel runs, which loses the device.
        """
        self._check_open()
        total = sum(nbytes for _, nbytes in ranges)
        pages = self._import_all(ranges)
        if pages is None:
            pages = self._upload_all(ranges, total, Upload(ledger, progress))
        elif ledger:
            ledger.shared += total
        self._pages.add(pages)
        return pages, pages.starts

    def _import_all(self, ranges: Sequence[tuple[int, int]]) -> JoinedPages | None:
        if not self._info.software or self._info.mode is Mode.STAGED:
            return None
        try:
            return join(Importer(self._api), ranges, self._info.mode, self._pages.discard)
        except DeviceLostError:
            raise
        except DeviceError:
            return None  # the driver takes no such pages; the ledger says that they were uploaded

    def _upload_all(self, ranges: Sequence[tuple[int, int]], total: int, upload: Upload) -> JoinedPages:
        memory = self._api.device_bytes or self._api.heap_bytes
        if total > memory:
            raise DeviceError(
                f"placing {total} bytes was asked for; {self._api.product} has {memory}; use a smaller model,"
                " or one with fewer bits for each weight"
            )
        maker = Uploader(self._api, self._queue, upload.add)
        pages = join(maker, ranges, self._own_mode, self._pages.discard)
        upload.progress = None  # what a later program needs across two buffers is counted, not shown
        return pages

    @property
    def _own_mode(self) -> Mode:
        """The mode of the device's own memory, which needs no staging."""
        return Mode.SAME_POINTER if self._info.mode is Mode.SAME_POINTER else Mode.MAPPED

    def _measure_mode(self) -> Mode:
        """Import one page and see at which address kernels find it."""
        if not self._api.can_import:
            return Mode.STAGED
        size = max(mmap.PAGESIZE, self._api.limits.alignment)
        owner = mmap.mmap(-1, 2 * size)
        start = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        address = -(-start // size) * size
        try:
            buffer = import_buffer(self._api, address, size)
        except DeviceError:
            return Mode.STAGED
        same = buffer.device_address == address
        destroy_buffer(self._api, buffer)
        return Mode.SAME_POINTER if same else Mode.MAPPED

    # -- programs -------------------------------------------------------------------------------------------

    def compile(self, tape: Tape, spaces: Mapping[Space, Pages]) -> VulkanProgram:
        """See `Device.compile`."""
        self._check_open()
        check_spaces(tape, spaces)
        pages = {space: self._own(spaces[space]) for space in tape.sizes}
        for space, each in pages.items():
            if isinstance(each, RangedPages):
                each.reach(touched(tape, space))
        todo = list(launches.launches(tape, lambda space, start, stop: pages[space].resolve(start, stop)))
        arguments = None
        if todo:
            arguments = create_buffer(self._api, len(todo) * launches.ARGS_BYTES, HOST_MEMORY)
            blocks = b"".join(launch.args for launch in todo)
            ctypes.memmove(arguments.mapped, blocks, len(blocks))
        try:
            commands = self._queue.record(todo, arguments.device_address if arguments else 0)
        except Exception:
            if arguments:
                destroy_buffer(self._api, arguments)
            raise
        handles = self._api.ffi.new("VkCommandBuffer[]", [commands])
        submit = self._api.new("VkSubmitInfo", "SUBMIT_INFO", commandBufferCount=1, pCommandBuffers=handles)
        versions = [(p, p.generation) for p in pages.values()]
        staging = self._staging(tape, pages) if self._info.mode is Mode.STAGED else None
        program = VulkanProgram(tape, self, versions, submit, arguments, staging, handles)
        self._programs.add(program)
        return program

    def _own(self, pages: Pages) -> ChunkedPages | JoinedPages:
        if isinstance(pages, ChunkedPages | JoinedPages) and pages.closed:
            raise ClosedError("compiling a tape was asked for; pages that it uses are closed")
        if not isinstance(pages, ChunkedPages | JoinedPages) or pages not in self._pages:
            raise UsageError("a space made of another device's pages was given; share them with this device")
        return pages

    @staticmethod
    def _staging(tape: Tape, pages: Mapping[Space, ChunkedPages | JoinedPages]) -> Staging:
        """Copy in all that the tape touches, also what it writes: strided results leave bytes between."""
        extents = [e for touched in tape.extents for e in touched]
        before, after = list[tuple[int, int, int]](), list[tuple[int, int, int]]()
        ledgers: list[tuple[Ledger, int]] = []
        for space, target in pages.items():
            if isinstance(target, JoinedPages) or not target.address:
                continue  # placed once, or the device's own
            moved = 0
            for pieces, written_only in ((before, False), (after, True)):
                for start, stop in _union(extents, space, written_only):
                    pieces.extend(target.staged(start, stop))
                    moved += stop - start
            if target.ledger:
                ledgers.append((target.ledger, moved))
        return Staging(before, after, ledgers)

    def play(self, program: Program, *, timeout: float | None = None, then: Program | None = None) -> None:
        """See `Device.play`. A GPU cannot be stopped: after a timeout this waits for the end, then raises."""
        del then
        if self._closed or not isinstance(program, VulkanProgram) or program.closed:
            raise ClosedError("playing was asked for; the device or the program is closed")
        for pages, generation in program.pages:
            if pages.closed:
                raise ClosedError("playing was asked for; pages of the program are closed")
            if pages.generation != generation:
                raise UsageError("playing was asked for; its pages have moved since, compile the tape again")
        staging = program.staging
        if staging:
            for host, copy, size in staging.before:
                ctypes.memmove(copy, host, size)
        late = self._queue.submit(program.submit, "playing a tape", timeout)
        if staging:
            for host, copy, size in staging.after:
                ctypes.memmove(host, copy, size)
            for ledger, moved in staging.ledgers:
                ledger.staged += moved
        if late is not None:
            raise DeadlineError(
                f"a tape of {len(program.tape)} records was to end within {timeout} s; it took {late:.3f} s"
            )

    def forget_program(self, program: VulkanProgram) -> None:
        """Free what a program holds."""
        self._programs.discard(program)
        if self._api.lost:
            return
        self._queue.free(program.handles)
        if program.arguments:
            destroy_buffer(self._api, program.arguments)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the device 'vulkan' was used after it was closed; open it again")

    def settle(self) -> None:
        """See `Device.settle`: nothing plays on here."""

    def close(self) -> None:
        """See `Device.close`. A lost device is left as it is: the driver may still write to its memory."""
        if self._closed:
            return
        self._closed = True
        for program in list(self._programs):
            program.close()
        for pages in list(self._pages):
            pages.close()
        if not self._api.lost:
            self._queue.close()
            self._api.close()


def _union(extents: list[Extent], space: Space, written_only: bool) -> list[tuple[int, int]]:
    """The bytes of a space that a tape touches (or writes), as disjoint ranges in order."""
    ranges: list[tuple[int, int]] = []
    wanted = (e for e in extents if e.space == space and e.stop > e.start and (e.written or not written_only))
    for start, stop in sorted((e.start, e.stop) for e in wanted):
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(ranges[-1][1], stop)
        else:
            ranges.append((start, stop))
    return ranges


def open_device(*, allow_copy: bool = False) -> VulkanDevice:
    """Open the best Vulkan device; see `vulkan_api.open_api` for what it may raise."""
    return VulkanDevice(allow_copy=allow_copy)
