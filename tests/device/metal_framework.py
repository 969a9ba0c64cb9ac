"""A stand-in for the modules `Metal` and `objc` that refuses what Metal refuses, for machines without it.

Refusals that Metal reports come back as nil and an error; what its validation layer aborts on raises
`MetalAbort`. Kernels run: the Metal source is compiled for the CPU (`metal_compiler.py`) and plays when the
command buffer is waited for. GPU addresses differ from host addresses, and an address that lies in no buffer
declared with useResource is refused.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

from tests.device.metal_compiler import MetalSourceError, compile_for_cpu

PAGE = 16384
GPU_OFFSET = 0x7000_0000_0000
ARGUMENT_ALIGNMENT = 256
OWNED = {
    "newCommandQueue": "newCommandQueue",
    "newBufferWithLength_options_": "newBufferWithLength:options:",
    "newBufferWithBytesNoCopy_length_options_deallocator_":
        "newBufferWithBytesNoCopy:length:options:deallocator:",
    "newLibraryWithSource_options_error_": "newLibraryWithSource:options:error:",
    "newFunctionWithName_": "newFunctionWithName:",
    "newComputePipelineStateWithFunction_error_": "newComputePipelineStateWithFunction:error:",
}  # fmt: skip


class MetalAbort(Exception):
    """The validation layer would end the process here."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise MetalAbort(what)


class MTLSize(NamedTuple):
    width: int
    height: int
    depth: int


class NSError:
    def __init__(self, code: int, text: str) -> None:
        self._code, self._text = code, text

    def code(self) -> int:
        return self._code

    def __str__(self) -> str:
        return self._text


class Objc:
    """The bridge: autorelease pools, and who owns what a `new...` method returns."""

    def __init__(self) -> None:
        self.pools = 0
        self.retained: set[bytes] = set()
        self.leaked: list[Any] = []

    def registerMetaDataForSelector(self, cls: bytes, selector: bytes, metadata: dict[str, Any]) -> None:
        require(cls == b"NSObject", f"class {cls!r}")
        arguments = selector.count(b":")
        require(set(metadata["arguments"]) == set(range(2, 2 + arguments)), f"arguments of {selector!r}")
        if metadata["retval"].get("already_retained"):
            self.retained.add(selector)

    @contextmanager
    def autorelease_pool(self) -> Generator[None]:
        self.pools += 1
        yield
        self.pools -= 1

    def hand_over(self, method: str, value: Any) -> Any:
        """What the bridge does with a `new...` result: without a description it is never released."""
        if OWNED[method].encode() not in self.retained:
            self.leaked.append(value)
        return value


class Varlist:
    def __init__(self, address: int) -> None:
        self._address = address

    def as_buffer(self, count: int) -> memoryview:
        return memoryview((ctypes.c_char * count).from_address(self._address))


class Buffer:
    """An MTLBuffer of shared storage."""

    def __init__(self, address: int, length: int, owner: Any = None) -> None:
        self.host, self._length, self._owner = address, length, owner

    def contents(self) -> Varlist:
        return Varlist(self.host)

    def length(self) -> int:
        return self._length

    def gpuAddress(self) -> int:
        return self.host + GPU_OFFSET


class CompileOptions:
    def __init__(self) -> None:
        self.macros: dict[str, int] = {}
        self.fast, self.version = True, 0

    @classmethod
    def alloc(cls) -> CompileOptions:
        return cls()

    def init(self) -> CompileOptions:
        return self

    def setPreprocessorMacros_(self, macros: dict[str, int]) -> None:
        require(all(isinstance(v, int | str) for v in macros.values()), "macros are numbers or strings")
        self.macros = dict(macros)

    def setLanguageVersion_(self, version: int) -> None:
        self.version = version

    def setFastMathEnabled_(self, fast: bool) -> None:
        self.fast = fast


class Function:
    def __init__(self, run: Any, constants: list[int]) -> None:
        self.run, self.constants = run, constants


class Library:
    def __init__(self, framework: Metal, source: str, options: CompileOptions) -> None:
        used = {int(n) for n in re.findall(r"NOCOPY_CONSTANT_(\d)", source)}
        for number in used:
            if f"NOCOPY_CONSTANT_{number}" not in options.macros:
                raise MetalSourceError(f"use of undeclared identifier NOCOPY_CONSTANT_{number}")
        if options.fast or options.version < Metal.MTLLanguageVersion3_0:
            raise MetalSourceError("the kernels count on Metal 3.0 and safe mathematics")
        self._framework = framework
        self._library = compile_for_cpu(source)
        self._names = re.findall(r"\[\[kernel\]\] void (\w+)\(", source)
        self._constants = [int(options.macros.get(f"NOCOPY_CONSTANT_{i}", 0)) for i in range(5)]

    def newFunctionWithName_(self, name: str) -> Function | None:
        if name not in self._names:
            return None
        values = (ctypes.c_uint * 5).in_dll(self._library, "nocopy_constants")

        def run(block: Any, groups: int, threads: int) -> int:
            values[:] = self._constants
            return self._library.run(block, groups, threads)

        function = Function(run, self._constants)
        return self._framework.objc.hand_over("newFunctionWithName_", function)


class PipelineState:
    def __init__(self, function: Function, most_threads: int) -> None:
        self.function, self._most = function, most_threads

    def maxTotalThreadsPerThreadgroup(self) -> int:
        return self._most


class ComputeCommandEncoder:
    def __init__(self, commands: CommandBuffer) -> None:
        self.ended = False
        self._commands = commands
        self._pipeline: PipelineState | None = None
        self._bound: dict[int, tuple[Buffer, int]] = {}
        self._used: list[Buffer] = []

    def _check(self) -> None:
        require(not self.ended, "the encoder has ended")

    def setComputePipelineState_(self, state: PipelineState) -> None:
        self._check()
        require(isinstance(state, PipelineState), "a pipeline state is needed")
        self._pipeline = state

    def setBuffer_offset_atIndex_(self, buffer: Buffer, offset: int, index: int) -> None:
        self._check()
        require(isinstance(buffer, Buffer), "nil buffer")
        require(0 <= offset < buffer.length(), f"offset {offset} in a buffer of {buffer.length()} bytes")
        require(offset % ARGUMENT_ALIGNMENT == 0, f"offset {offset} of constant memory is not aligned")
        self._bound[index] = buffer, offset

    def setBufferOffset_atIndex_(self, offset: int, index: int) -> None:
        require(index in self._bound, f"no buffer at index {index} to move")
        self.setBuffer_offset_atIndex_(self._bound[index][0], offset, index)

    def useResource_usage_(self, buffer: Buffer, usage: int) -> None:
        self._check()
        require(isinstance(buffer, Buffer), "nil resource")
        require(usage == Metal.MTLResourceUsageRead | Metal.MTLResourceUsageWrite, f"usage {usage}")
        self._used.append(buffer)

    def dispatchThreadgroups_threadsPerThreadgroup_(self, groups: MTLSize, threads: MTLSize) -> None:
        self._check()
        require(self._pipeline is not None, "no pipeline state")
        assert self._pipeline is not None
        require(0 in self._bound, "missing binding: buffer 0")
        require(min(groups) > 0 and min(threads) > 0, f"empty dispatch {groups} x {threads}")
        flat = groups.height == groups.depth == threads.height == threads.depth == 1
        require(flat, "the kernels have one axis")
        most = self._pipeline.maxTotalThreadsPerThreadgroup()
        require(threads.width <= most, f"{threads.width} threads a group; at most {most}")
        buffer, offset = self._bound[0]
        require(offset + ARGUMENT_ALIGNMENT <= buffer.length(), "the argument block leaves its buffer")
        self._commands.work.append(
            self._job(self._pipeline, buffer, offset, groups.width, threads.width, list(self._used))
        )

    @staticmethod
    def _job(
        pipeline: PipelineState, buffer: Buffer, offset: int, groups: int, threads: int, used: list[Buffer]
    ) -> Callable[[], None]:
        def job() -> None:
            block = bytearray(ctypes.string_at(buffer.host + offset, ARGUMENT_ALIGNMENT))
            for slot in range(5):
                (address,) = struct.unpack_from("<Q", block, 8 * slot)
                if address:
                    struct.pack_into("<Q", block, 8 * slot, _host_address(address, used))
            raw = (ctypes.c_char * ARGUMENT_ALIGNMENT).from_buffer(block)
            stuck = pipeline.function.run(raw, groups, threads)
            require(not stuck, "some threads wait at a barrier that others never reach")

        return job

    def endEncoding(self) -> None:
        self._check()
        self.ended = True


def _host_address(address: int, used: list[Buffer]) -> int:
    for buffer in used:
        if buffer.gpuAddress() <= address < buffer.gpuAddress() + buffer.length():
            return address - GPU_OFFSET
    raise MetalAbort(f"page fault at {address:#x}: no buffer declared with useResource holds it")


class CommandBuffer:
    def __init__(self, framework: Metal) -> None:
        self._framework = framework
        self._encoder: ComputeCommandEncoder | None = None
        self._status = 0
        self.work: list[Callable[[], None]] = []

    def computeCommandEncoder(self) -> ComputeCommandEncoder:
        require(self._status == 0, "encoding after commit")
        require(self._encoder is None or self._encoder.ended, "another encoder is open")
        self._encoder = ComputeCommandEncoder(self)
        return self._encoder

    def commit(self) -> None:
        require(self._status == 0, "committed twice")
        require(self._encoder is None or self._encoder.ended, "commit before endEncoding")
        self._status = 2

    def waitUntilCompleted(self) -> None:
        require(self._status == 2, "waiting for a command buffer that was not committed")
        if self._framework.fail_next:
            self._status = Metal.MTLCommandBufferStatusError
            return
        for job in self.work:
            job()
        self._status = Metal.MTLCommandBufferStatusCompleted

    def status(self) -> int:
        return self._status

    def error(self) -> NSError | None:
        code, self._framework.fail_next = self._framework.fail_next, 0
        return NSError(code, f"error {code} of the command buffer") if code else None


class CommandQueue:
    def __init__(self, framework: Metal) -> None:
        self._framework = framework

    def commandBuffer(self) -> CommandBuffer | None:
        require(self._framework.objc.pools, "commandBuffer is autoreleased; there is no pool")
        return None if self._framework.no_commands else CommandBuffer(self._framework)


class Device:
    def __init__(self, framework: Metal) -> None:
        self._framework = framework

    def name(self) -> str:
        return "Stand-in M0"

    def supportsFamily_(self, family: int) -> bool:
        return family <= self._framework.family

    def hasUnifiedMemory(self) -> bool:
        return True

    def maxBufferLength(self) -> int:
        return self._framework.max_buffer

    def recommendedMaxWorkingSetSize(self) -> int:
        return 4 << 30

    def newCommandQueue(self) -> CommandQueue:
        return self._framework.objc.hand_over("newCommandQueue", CommandQueue(self._framework))

    def newBufferWithLength_options_(self, length: int, options: int) -> Buffer | None:
        require(options == Metal.MTLResourceStorageModeShared, f"storage mode {options} has no contents")
        if not 0 < length <= self._framework.max_buffer:
            return None
        owner = mmap.mmap(-1, length)
        owner.write(b"\xcd" * length)  # Metal does not promise zeros
        buffer = Buffer(ctypes.addressof(ctypes.c_char.from_buffer(owner)), length, owner)
        return self._register("newBufferWithLength_options_", buffer)

    def newBufferWithBytesNoCopy_length_options_deallocator_(
        self, pointer: memoryview, length: int, options: int, deallocator: Any
    ) -> Buffer | None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(pointer))
        require(address % PAGE == 0, f"newBufferWithBytesNoCopy: pointer {address:#x} is not page aligned")
        require(length % PAGE == 0, f"newBufferWithBytesNoCopy: length {length} is not page aligned")
        require(pointer.nbytes == length, "the bridge checks the buffer against the length")
        require(options == Metal.MTLResourceStorageModeShared, f"storage mode {options} for host pages")
        require(deallocator is None, "the pages belong to the caller")
        if not 0 < length <= self._framework.max_buffer:
            return None
        buffer = Buffer(address + self._framework.moved, length)
        return self._register("newBufferWithBytesNoCopy_length_options_deallocator_", buffer)

    def _register(self, method: str, buffer: Buffer) -> Buffer:
        self._framework.buffers.add(buffer)
        return self._framework.objc.hand_over(method, buffer)

    def newLibraryWithSource_options_error_(self, source: str, options: CompileOptions, error: None) -> Any:
        require(error is None, "the error is an output")
        try:
            library = Library(self._framework, source, options)
        except MetalSourceError as e:
            return None, NSError(3, str(e))
        return self._framework.objc.hand_over("newLibraryWithSource_options_error_", library), None

    def newComputePipelineStateWithFunction_error_(self, function: Function, error: None) -> Any:
        require(isinstance(function, Function), "nil function")
        require(error is None, "the error is an output")
        state = PipelineState(function, self._framework.most_threads)
        return self._framework.objc.hand_over("newComputePipelineStateWithFunction_error_", state), None


class Metal:
    """The module. Its attributes set what the machine is like."""

    MTLGPUFamilyMetal3 = 5001
    MTLLanguageVersion3_0 = 0x30000
    MTLResourceStorageModeShared = 0
    MTLResourceUsageRead, MTLResourceUsageWrite = 1, 2
    MTLCommandBufferStatusCompleted, MTLCommandBufferStatusError = 4, 5
    MTLCompileOptions = CompileOptions

    def __init__(self, objc: Objc) -> None:
        self.objc = objc
        self.present, self.family = True, 5001
        self.max_buffer, self.most_threads = 1 << 30, 1024
        self.moved = 0
        self.fail_next = 0
        self.no_commands = False
        self.buffers: WeakSet[Buffer] = WeakSet()

    def MTLCreateSystemDefaultDevice(self) -> Device | None:
        return Device(self) if self.present else None

    @staticmethod
    def MTLSizeMake(width: int, height: int, depth: int) -> MTLSize:
        return MTLSize(width, height, depth)
