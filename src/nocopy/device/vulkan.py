"""The Vulkan device: a program is a recorded command buffer that is submitted again each time it is played.

Kernels get 64-bit addresses, so there are no descriptors: the one push constant of a dispatch is the address of
its argument block, and the blocks of a program lie in one small host-visible buffer. Records are separated by
barriers only where one touches what an earlier one wrote or reads.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nocopy.device import launches
from nocopy.device.protocol import DeviceInfo, Mode, Pages, Program, check_range, check_spaces
from nocopy.device.vulkan_api import TYPE_CPU, Validate, open_api
from nocopy.device.vulkan_memory import (
    DEVICE_MEMORY,
    HOST_MEMORY,
    MINIMUM_BYTES,
    Buffer,
    VulkanPages,
    copy_bytes,
    create_buffer,
    destroy_buffer,
    import_buffer,
)
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

WAIT_SLICE = 100_000_000  # ns; between slices Python handles signals, so Ctrl-C works while a kernel runs
GRACE = 30.0  # s after a timeout until a program counts as hung
VK_TIMEOUT = 2


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
    pages: list[tuple[VulkanPages, int]]
    commands: Any
    submit: Any
    arguments: Buffer | None
    staging: Staging | None
    keep: tuple[Any, ...] = field(repr=False)
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
        self._pages: set[VulkanPages] = set()
        self._programs: set[VulkanProgram] = set()
        self._pipelines: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._modules: dict[str, Any] = {}
        self._closed = False
        try:
            self._create_objects()
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
        self._info = DeviceInfo("vulkan", self._api.product, mode, memory, self._api.details, software)

    @property
    def info(self) -> DeviceInfo:
        """What it is."""
        return self._info

    # -- memory ---------------------------------------------------------------------------------------------

    def share(self, address: int, nbytes: int, *, ledger: Ledger | None = None) -> VulkanPages:
        """See `Device.share`."""
        self._check_open()
        check_range(address, nbytes, max(mmap.PAGESIZE, self._api.limits.alignment))
        pages = self._new_pages(address, nbytes, self._info.mode, ledger)
        if ledger and pages.imported:
            ledger.shared += nbytes
        return pages

    def _new_pages(self, address: int, nbytes: int, mode: Mode, ledger: Ledger | None) -> VulkanPages:
        api = self._api

        def imported(start: int, size: int) -> Buffer:
            return import_buffer(api, start, size)

        def staged(_start: int, size: int) -> Buffer:
            return create_buffer(api, size, HOST_MEMORY)

        imports = mode is not Mode.STAGED
        make = imported if imports else staged
        pages = VulkanPages(api, address, nbytes, mode, make, imports, ledger, self._pages.discard)
        self._pages.add(pages)
        return pages

    def allocate(self, nbytes: int) -> VulkanPages:
        """See `Device.allocate`."""
        self._check_open()
        size = -(-max(nbytes, 1) // MINIMUM_BYTES) * MINIMUM_BYTES

        def own(_start: int, chunk: int) -> Buffer:
            return create_buffer(self._api, chunk, DEVICE_MEMORY)

        mode = Mode.SAME_POINTER if self._info.mode is Mode.SAME_POINTER else Mode.MAPPED
        pages = VulkanPages(self._api, 0, size, mode, own, False, None, self._pages.discard)
        pages.nbytes = nbytes
        self._pages.add(pages)
        commands = self._begin()
        for chunk in pages.chunks:
            self._api.lib.vkCmdFillBuffer(commands, chunk.handle, 0, 2**64 - 1, 0)
        self._run_once(commands, f"clearing {nbytes} bytes")
        return pages

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
        todo = list(launches.launches(tape, lambda space, start, stop: pages[space].resolve(start, stop)))
        arguments = None
        if todo:
            arguments = create_buffer(self._api, len(todo) * launches.ARGS_BYTES, HOST_MEMORY)
            blocks = b"".join(launch.args for launch in todo)
            ctypes.memmove(arguments.mapped, blocks, len(blocks))
        try:
            commands = self._record(todo, arguments.device_address if arguments else 0)
        except Exception:
            if arguments:
                destroy_buffer(self._api, arguments)
            raise
        handles = self._api.ffi.new("VkCommandBuffer[]", [commands])
        submit = self._api.new("VkSubmitInfo", "SUBMIT_INFO", commandBufferCount=1, pCommandBuffers=handles)
        versions = [(p, p.generation) for p in pages.values()]
        staging = self._staging(tape, pages) if self._info.mode is Mode.STAGED else None
        program = VulkanProgram(tape, self, versions, commands, submit, arguments, staging, (handles,))
        self._programs.add(program)
        return program

    def _own(self, pages: Pages) -> VulkanPages:
        if not isinstance(pages, VulkanPages) or pages.api is not self._api:
            raise UsageError("a space made of another device's pages was given; share them with this device")
        return pages

    def _record(self, todo: list[launches.Launch], arguments: int) -> Any:
        lib, ffi = self._api.lib, self._api.ffi
        pipelines = [self._pipeline(launch.kernel, launch.constants) for launch in todo]
        commands = self._begin()
        push = ffi.new("uint64_t *")
        for index, (launch, pipeline) in enumerate(zip(todo, pipelines, strict=True)):
            if launch.barrier:
                lib.vkCmdPipelineBarrier(commands, *self._between)
            push[0] = arguments + index * launches.ARGS_BYTES
            lib.vkCmdBindPipeline(commands, self._api.vk.VK_PIPELINE_BIND_POINT_COMPUTE, pipeline)
            stage = self._api.vk.VK_SHADER_STAGE_COMPUTE_BIT
            lib.vkCmdPushConstants(commands, self._layout, stage, 0, 8, push)
            lib.vkCmdDispatch(commands, launch.groups, 1, 1)
        lib.vkCmdPipelineBarrier(commands, *self._to_host)
        self._api.check(lib.vkEndCommandBuffer(commands), f"recording {len(todo)} kernels")
        return commands

    @staticmethod
    def _staging(tape: Tape, pages: Mapping[Space, VulkanPages]) -> Staging:
        """Copy in all that the tape touches, also what it writes: strided results leave bytes between."""
        extents = [e for touched in tape.extents for e in touched]
        before, after, ledgers = list[tuple[int, int, int]](), list[tuple[int, int, int]](), []
        for space, target in pages.items():
            if not target.address:
                continue
            moved = 0
            for pieces, written_only in ((before, False), (after, True)):
                for start, stop in _union(extents, space, written_only):
                    pieces += target.staged(start, stop)
                    moved += stop - start
            if target.ledger:
                ledgers.append((target.ledger, moved))
        return Staging(before, after, ledgers)

    def play(self, program: Program, *, timeout: float | None = None) -> None:
        """See `Device.play`. A GPU cannot be stopped: after a timeout this waits for the end, then raises."""
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
                copy_bytes(host, copy, size)
        late = self._submit(program.submit, "playing a tape", timeout)
        if staging:
            for host, copy, size in staging.after:
                copy_bytes(copy, host, size)
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
        handles = program.keep[0]
        self._api.lib.vkFreeCommandBuffers(self._api.device, self._pool, 1, handles)
        if program.arguments:
            destroy_buffer(self._api, program.arguments)

    # -- submission -----------------------------------------------------------------------------------------

    def _submit(self, submit: Any, what: str, timeout: float | None) -> float | None:
        """Submit and wait for the end. Returns how long it took if that was longer than `timeout`."""
        api, lib = self._api, self._api.lib
        if api.lost:
            raise DeviceLostError(f"{what}: {api.product} was lost before; open the device again")
        lib.vkResetFences(api.device, 1, self._fence_array)
        started = time.monotonic()
        result = lib.vkQueueSubmit(api.queue, 1, submit, self._fence)
        if result:
            api.fail(result, what)
        result = lib.vkWaitForFences(api.device, 1, self._fence_array, 1, WAIT_SLICE)
        while result == VK_TIMEOUT:
            if timeout is not None and time.monotonic() - started > timeout + GRACE:
                api.lost = True
                raise DeviceLostError(
                    f"{what}: {api.product} still runs {GRACE} s after the timeout of {timeout} s;"
                    " its memory stays imported; open the device again"
                )
            result = lib.vkWaitForFences(api.device, 1, self._fence_array, 1, WAIT_SLICE)
        if result:
            api.fail(result, what)
        if timeout is None:
            return None
        took = time.monotonic() - started
        return took if took > timeout else None

    def _begin(self) -> Any:
        """A new command buffer that is being recorded."""
        api = self._api
        info = api.new(
            "VkCommandBufferAllocateInfo", "COMMAND_BUFFER_ALLOCATE_INFO",
            commandPool=self._pool, commandBufferCount=1,
        )  # fmt: skip
        out = api.ffi.new("VkCommandBuffer *")
        api.check(api.lib.vkAllocateCommandBuffers(api.device, info, out), "allocating a command buffer")
        begin = api.new("VkCommandBufferBeginInfo", "COMMAND_BUFFER_BEGIN_INFO")
        api.check(api.lib.vkBeginCommandBuffer(out[0], begin), "beginning a command buffer")
        return out[0]

    def _run_once(self, commands: Any, what: str) -> None:
        api = self._api
        handles = api.ffi.new("VkCommandBuffer[]", [commands])
        submit = api.new("VkSubmitInfo", "SUBMIT_INFO", commandBufferCount=1, pCommandBuffers=handles)
        api.check(api.lib.vkEndCommandBuffer(commands), what)
        self._submit(submit, what, None)
        api.lib.vkFreeCommandBuffers(api.device, self._pool, 1, handles)

    # -- objects that live as long as the device ------------------------------------------------------------

    def _create_objects(self) -> None:
        api, vk, ffi, lib = self._api, self._api.vk, self._api.ffi, self._api.lib
        pool = ffi.new("VkCommandPool *")
        info = api.new("VkCommandPoolCreateInfo", "COMMAND_POOL_CREATE_INFO", queueFamilyIndex=api.family)
        api.check(lib.vkCreateCommandPool(api.device, info, ffi.NULL, pool), "creating a command pool")
        self._fence_array = ffi.new("VkFence[1]")
        info = api.new("VkFenceCreateInfo", "FENCE_CREATE_INFO")
        api.check(lib.vkCreateFence(api.device, info, ffi.NULL, self._fence_array), "creating a fence")
        constant = ffi.new("VkPushConstantRange *", {"stageFlags": vk.VK_SHADER_STAGE_COMPUTE_BIT, "size": 8})
        info = api.new(
            "VkPipelineLayoutCreateInfo", "PIPELINE_LAYOUT_CREATE_INFO",
            pushConstantRangeCount=1, pPushConstantRanges=constant,
        )  # fmt: skip
        layout = ffi.new("VkPipelineLayout *")
        api.check(lib.vkCreatePipelineLayout(api.device, info, ffi.NULL, layout), "creating a layout")
        self._pool, self._fence, self._layout = pool[0], self._fence_array[0], layout[0]
        shader, host = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, vk.VK_PIPELINE_STAGE_HOST_BIT
        write, read = vk.VK_ACCESS_SHADER_WRITE_BIT, vk.VK_ACCESS_SHADER_READ_BIT
        self._between = self._barrier(shader, shader, write, read | write)
        self._to_host = self._barrier(
            shader, host, write, vk.VK_ACCESS_HOST_READ_BIT | vk.VK_ACCESS_HOST_WRITE_BIT
        )

    def _barrier(self, source: int, target: int, written: int, wanted: int) -> tuple[Any, ...]:
        """The arguments of vkCmdPipelineBarrier after the command buffer."""
        barrier = self._api.new(
            "VkMemoryBarrier", "MEMORY_BARRIER", srcAccessMask=written, dstAccessMask=wanted
        )
        null = self._api.ffi.NULL
        return source, target, 0, 1, barrier, 0, null, 0, null

    def _pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        """The kernel specialised for a function and dtypes; made once."""
        key = kernel, constants
        if key not in self._pipelines:
            self._pipelines[key] = self._create_pipeline(kernel, constants)
        return self._pipelines[key]

    def _module(self, kernel: str) -> Any:
        if kernel not in self._modules:
            api = self._api
            code = launches.kernel_code(kernel, "spv")
            words = api.ffi.new("uint32_t[]", len(code) // 4)
            api.ffi.buffer(words)[:] = code
            info = api.new(
                "VkShaderModuleCreateInfo", "SHADER_MODULE_CREATE_INFO", codeSize=len(code), pCode=words
            )
            out = api.ffi.new("VkShaderModule *")
            result = api.lib.vkCreateShaderModule(api.device, info, api.ffi.NULL, out)
            api.check(result, f"loading the kernel {kernel}")
            self._modules[kernel] = out[0]
        return self._modules[kernel]

    def _create_pipeline(self, kernel: str, constants: tuple[int, ...]) -> Any:
        api, ffi = self._api, self._api.ffi
        entries = ffi.new("VkSpecializationMapEntry[]", [(i, 4 * i, 4) for i in range(len(constants))])
        data = ffi.new("char[]", launches.pack_constants(constants))
        special = ffi.new("VkSpecializationInfo *", (len(constants), entries, 4 * len(constants), data))
        main = ffi.new("char[]", b"main")
        info = api.new("VkComputePipelineCreateInfo", "COMPUTE_PIPELINE_CREATE_INFO", layout=self._layout)
        info.stage.sType = api.vk.VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO
        info.stage.stage = api.vk.VK_SHADER_STAGE_COMPUTE_BIT
        info.stage.module, info.stage.pName = self._module(kernel), main
        info.stage.pSpecializationInfo = special
        out = ffi.new("VkPipeline *")
        result = api.lib.vkCreateComputePipelines(api.device, ffi.NULL, 1, info, ffi.NULL, out)
        api.check(result, f"compiling the kernel {kernel} for {constants}")
        return out[0]

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the device 'vulkan' was used after it was closed; open it again")

    def close(self) -> None:
        """See `Device.close`. A lost device is left as it is: the driver may still write to its memory."""
        if self._closed:
            return
        self._closed = True
        for program in list(self._programs):
            program.close()
        for pages in list(self._pages):
            pages.close()
        api, lib, null = self._api, self._api.lib, self._api.ffi.NULL
        if api.lost:
            return
        for pipeline in self._pipelines.values():
            lib.vkDestroyPipeline(api.device, pipeline, null)
        for module in self._modules.values():
            lib.vkDestroyShaderModule(api.device, module, null)
        lib.vkDestroyPipelineLayout(api.device, self._layout, null)
        lib.vkDestroyFence(api.device, self._fence, null)
        lib.vkDestroyCommandPool(api.device, self._pool, null)
        api.close()


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
