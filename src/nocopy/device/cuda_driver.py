"""CUDA's driver, reduced to what the device needs: one GPU, one context of our own, one stream.

The context is ours, so that a kernel that faults takes down nobody else's CUDA work in this process; it is
current on a thread only between `enter` and `leave`, because other libraries rely on theirs being so.
Calls on the way of every play go to the driver through ctypes with arguments made beforehand: the checked
wrappers of cuda-bindings cost several microseconds each.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from nocopy.device.cuda_compile import INSTALL
from nocopy.device.cuda_fuse import Chip
from nocopy.device.cuda_wait import Taken, wait
from nocopy.errors import DeviceError, DeviceLostError, DeviceUnavailableError
from nocopy.memory import mapped
from nocopy.memory.mapped import Mapping

OLDEST_CAPABILITY = (8, 0)
OLDEST_DRIVER = 12000  # CUDA 12.0, as cuDriverGetVersion writes it

NOT_READY = 600
NO_DEVICE = 100
OUT_OF_MEMORY = 2
LOST = frozenset({4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
"""Statuses (CUresult) after which the context is of no more use: faults, uncorrectable memory errors, a GPU
that went away, a context that is gone."""

_PORTABLE = 0x01
_REGISTER_PORTABLE_MAPPED = _PORTABLE | 0x02
_STREAM_NON_BLOCKING = 0x1
_CAPTURE_RELAXED = 2  # a kernel may be loaded while its first launch is captured
_SCHEDULE_SPIN = 0x1
_MULTIPROCESSORS, _CAPABILITY_MAJOR, _CAPABILITY_MINOR = 16, 75, 76  # CUdevice_attribute
_SHARED_BYTES, _BLOCK_SHARED_BYTES = 81, 97  # the same: of a multiprocessor, and of a block that asks for it
_CLOCK, _MEMORY_CLOCK, _BUS_WIDTH = 13, 36, 37  # the same, in kHz and bits
_DYNAMIC_SHARED_BYTES, _SHARED_CARVEOUT = 8, 9  # CUfunction_attribute
_COOPERATIVE, _OVERLAP = 2, 6  # CUlaunchAttributeID; the latter: programmatic stream serialization
WARPGROUPS = (9, 0)
"""The compute capability whose warpgroups multiply: later ones have another instruction."""
_OLDEST_OVERLAP = (9, 0), 12030
"""Compute capability and driver from which on a graph's kernel may start before the last one has ended."""
COPY_GRACE, COPY_BYTES_PER_SECOND = 30.0, 100e6
"""Seconds that a copy may take beside those for its bytes at the slowest rate that counts as going on: a
hundredth of the bus's."""
SETTLING = 10.0
"""Seconds that what was started behind the last play gets to end."""
_NO_TIMING = 0x2  # CUevent_flags

Start = Callable[[], int]
"""Starts a piece of a program; returns a CUresult."""


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("attribute_count", ctypes.c_uint),
    )


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute, with the values that ours have."""

    _fields_ = (("id", ctypes.c_uint), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int * 16))


class Driver:
    """The first GPU that CUDA shows (`CUDA_VISIBLE_DEVICES` chooses).

    Raises:
        DeviceUnavailableError: no bindings, no driver, no GPU, or one that is too old.
    """

    def __init__(self) -> None:
        self._cuda = _load_driver()
        (self.version,) = self._ask("cuDriverGetVersion")
        (gpu,) = self._ask("cuDeviceGet", 0)
        (name,) = self._ask("cuDeviceGetName", 256, gpu)
        self.product: str = name.decode(errors="replace").split("\0")[0]
        (self.memory_bytes,) = self._ask("cuDeviceTotalMem", gpu)
        self.capability = (self._attribute(_CAPABILITY_MAJOR, gpu), self._attribute(_CAPABILITY_MINOR, gpu))
        self.multiprocessors = self._attribute(_MULTIPROCESSORS, gpu)
        self.chip = Chip(
            self.multiprocessors,
            self._attribute(_SHARED_BYTES, gpu),
            self._attribute(_BLOCK_SHARED_BYTES, gpu),
            self._bytes_per_cycle(gpu),
        )
        oldest_chip, oldest_driver = _OLDEST_OVERLAP
        self._overlaps = self.capability >= oldest_chip and self.version >= oldest_driver
        self.walks = self.capability >= oldest_chip
        """Whether whole passes are one kernel, which needs bulk copies and all blocks at the same time."""
        self.groups = self.capability == WARPGROUPS
        """Whether warpgroups multiply matrices of shared memory (kernels/cuda/wgmma.cuh)."""
        self._refuse_old()
        self.lost = ""
        """Why the context is of no more use; "" while it is."""
        self.on_lost: Callable[[], None] = lambda: None
        """Called once no call is inside the context any more that is lost."""
        self._abandoned = self._closed = False
        self._inside = 0
        self._registered: set[int] = set()
        self._context = self._create_context(gpu)
        self.running = False
        """Whether something was started that nobody has waited for: calls of `enter` wait for it."""
        self._push, self._pop, self._query, self._launch, *others = self._fast_calls()
        self._launch_graph, self._record, self._reached, self._await = others
        self._popped = ctypes.byref(ctypes.c_void_p())
        try:
            self._make_stream_and_word()
        except BaseException:
            self._cuda.cuCtxDestroy(self._context)
            raise

    def _make_stream_and_word(self) -> None:
        with self.current():
            (self._stream,) = self._ask("cuStreamCreate", _STREAM_NON_BLOCKING)
            (self._side_stream,) = self._ask("cuStreamCreate", _STREAM_NON_BLOCKING)
            (beside,) = self._ask("cuStreamCreate", _STREAM_NON_BLOCKING)
            (mark, parted, ended) = (self._ask("cuEventCreate", _NO_TIMING)[0] for _ in range(3))
            (self._word,) = self._ask("cuMemHostAlloc", 4096, _REGISTER_PORTABLE_MAPPED)
            # Kernels look at a copy in device memory: thousands of blocks that read the host's word over the
            # bus made them a hundred times slower.
            self.stop_address: int = self.allocate(4)
        self._stop = ctypes.c_int32.from_address(int(self._word))
        self._stop.value = 0
        self._stream_handle = ctypes.c_void_p(int(self._stream))
        self._side_handle = ctypes.c_void_p(int(self._side_stream))
        self._beside_handle = ctypes.c_void_p(int(beside))
        self._mark, self._parted, self._ended = (ctypes.c_void_p(int(e)) for e in (mark, parted, ended))

    @property
    def stream(self) -> int:
        """The handle of the stream that everything is put on."""
        return int(self._stream)

    @property
    def beside(self) -> int:
        """The handle of the stream that the branch of a graph is captured on."""
        return self._beside_handle.value or 0

    # Opening

    def _refuse_old(self) -> None:
        major, minor = self.capability
        if self.capability < OLDEST_CAPABILITY:
            raise DeviceUnavailableError(
                "cuda",
                f"{self.product} has compute capability {major}.{minor}; 8.0 is the oldest that works",
                "Use `--device vulkan`, or a newer GPU.",
            )
        if self.version < OLDEST_DRIVER:
            raise DeviceUnavailableError(
                "cuda",
                f"the NVIDIA driver is for CUDA {version_name(self.version)}; 12.0 is the oldest that works",
                "Update the NVIDIA driver.",
            )

    def _create_context(self, gpu: Any) -> Any:
        # cuda-bindings 13 binds the function's newer version, with creation parameters in front.
        newer = int(import_module("cuda.bindings").__version__.split(".")[0]) >= 13
        arguments = (None, _SCHEDULE_SPIN, gpu) if newer else (_SCHEDULE_SPIN, gpu)
        status, context = self._cuda.cuCtxCreate(*arguments)
        if int(status) in LOST:
            raise DeviceUnavailableError(
                "cuda",
                f"a kernel of this process failed on {self.product} ({self._describe(int(status))}), and CUDA"
                " gives the process no other context",
                "Go on with another device, such as cpu, or start the process anew.",
            )
        if int(status):
            raise DeviceUnavailableError(
                "cuda",
                f"{self.product} gives no context ({self._describe(int(status))})",
                "See with `nvidia-smi` whether another program uses it up, or whether it needs a reset.",
            )
        self._ask("cuCtxPopCurrent")
        self._context_handle = ctypes.c_void_p(int(context))
        return context

    def _fast_calls(self) -> tuple[Any, ...]:
        pointer = ctypes.c_void_p
        return (
            self._function("cuCtxPushCurrent", pointer),
            self._function("cuCtxPopCurrent", pointer),
            self._function("cuStreamQuery", pointer),
            self._function("cuLaunchKernelEx", pointer, pointer, pointer, pointer),
            self._function("cuGraphLaunch", pointer, pointer),
            self._function("cuEventRecord", pointer, pointer),
            self._function("cuEventQuery", pointer),
            self._function("cuStreamWaitEvent", pointer, pointer, ctypes.c_uint),
        )

    def _function(self, name: str, *types: Any) -> Any:
        # These return at once, so they keep the interpreter's lock: giving it up and taking it back under
        # contention would cost more than they do.
        (address, _) = self._ask("cuGetProcAddress", name.encode(), OLDEST_DRIVER, 0)
        return ctypes.PYFUNCTYPE(ctypes.c_int, *types)(int(address))

    def _attribute(self, number: int, gpu: Any) -> int:
        attribute = self._cuda.CUdevice_attribute(number)
        return int(self._ask("cuDeviceGetAttribute", attribute, gpu)[0])

    def _bytes_per_cycle(self, gpu: Any) -> float:
        """See `Chip`. Memory moves two words of its bus's width in a cycle of its clock."""
        clock, memory, bits = (self._attribute(a, gpu) for a in (_CLOCK, _MEMORY_CLOCK, _BUS_WIDTH))
        known = clock and memory and bits
        return 2 * memory * bits / 8 / clock / self.multiprocessors if known else math.inf

    # Errors

    def _ask(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._cuda, function)(*arguments)
        self.check(int(status), function)
        return tuple(results)

    def check(self, status: int, what: str) -> None:
        """Raise for a CUresult that is not success.

        Raises:
            DeviceLostError: the context is of no more use.
            DeviceError: anything else; the device goes on.
        """
        if status in LOST:
            self.lost = f"{what} failed: {self._describe(status)}"
            raise DeviceLostError(
                f"{self.lost}. The device is closed; guests and sessions keep their memory."
                " Go on with another device (`move`), or start the process anew."
            )
        if status == OUT_OF_MEMORY:
            raise DeviceError(f"{what} failed: {self._describe(status)}; {self._room()}")
        if status:
            raise DeviceError(f"{what} failed: {self._describe(status)}")

    def _room(self) -> str:
        """How much of the GPU's memory is free, for messages."""
        status, free, total = self._cuda.cuMemGetInfo()
        return (
            f"{self.product} does not say what is free"
            if int(status)
            else (f"{free} of the {total} bytes of {self.product} are free")
        )

    def _describe(self, status: int) -> str:
        try:
            name = self._cuda.CUresult(status).name
        except ValueError:
            return f"CUDA error {status}"
        found, text = self._cuda.cuGetErrorString(self._cuda.CUresult(status))
        return f"{name}, {text.decode()}" if not int(found) and text else name

    # The context

    def enter(self, *, settled: bool = True) -> None:
        """Make the context current on this thread; pair it with `leave`.

        Args:
            settled: wait for what is `running`; False for who knows what it is.

        Raises:
            DeviceError: kernels that did not end hold the GPU (`abandon`).
            DeviceLostError: the context is gone, or what is running fails or does not end.
        """
        if self._abandoned:
            raise DeviceError(f"work that does not end holds {self.product}; start the process anew")
        status = self._push(self._context_handle)
        if status:
            try:
                self.check(status, "cuCtxPushCurrent")
            finally:
                self._tell()
        self._inside += 1
        if settled and self.running:
            try:
                self._settle()
            except BaseException:
                self.leave()
                raise

    def _settle(self) -> None:
        if not self.wait(time.monotonic() + SETTLING):
            raise self.abandon(f"what was started behind the last play still runs {SETTLING} s later")

    def leave(self) -> None:
        """Give the thread back the context that it had; the last to leave one that is lost tells of it."""
        self._pop(self._popped)
        self._inside -= 1
        if self.lost:
            self._tell()

    def _tell(self) -> None:
        if self.lost and not self._inside:
            self.on_lost()

    @contextmanager
    def current(self) -> Generator[None]:
        """The context is current inside the block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def close(self) -> None:
        """Destroy the context and with it all that it holds; registered pages are let go of as well.

        Raises:
            DeviceError: it cannot be destroyed; the GPU may still write to those pages. Twice is allowed.
        """
        if self._closed:
            return
        self._closed = True
        while self._registered:
            mapped.remove(self._registered.pop())
        with suppress(DeviceLostError), self.current():
            self._cuda.cuMemFreeHost(self._word)
        self._ask("cuCtxDestroy", self._context)

    # Memory; all of these need the context to be current

    def register(self, address: int, nbytes: int) -> int:
        """Import host pages; their device address.

        Raises:
            DeviceError: the driver refuses, or cannot lock so many pages.
        """
        self._ask("cuMemHostRegister", address, nbytes, _REGISTER_PORTABLE_MAPPED)
        at = int(self._ask("cuMemHostGetDevicePointer", address, 0)[0])
        self._registered.add(address)
        mapped.add(Mapping(address, address + nbytes, at))
        return at

    def unregister(self, address: int) -> None:
        """Let go of pages that were registered at this address."""
        mapped.remove(address)
        self._ask("cuMemHostUnregister", address)
        self._registered.discard(address)

    def free_bytes(self) -> int:
        """Bytes of device memory that nobody has."""
        return int(self._ask("cuMemGetInfo")[0])

    def allocate(self, nbytes: int) -> int:
        """Zero-filled device memory.

        Raises:
            DeviceError: there is not that much.
        """
        status, address = self._cuda.cuMemAlloc(nbytes)
        if int(status) == OUT_OF_MEMORY:
            raise DeviceError(
                f"{nbytes} bytes on {self.product} were asked for; {self._room()}."
                " Close what you no longer need, or use a smaller size."
            )
        self.check(int(status), "cuMemAlloc")
        self._ask("cuMemsetD8Async", address, 0, nbytes, self._stream)
        return int(address)

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        self._ask("cuMemFree", address)

    def pin(self, nbytes: int) -> int:
        """Host memory that copies read from at the bus's speed; free it with `unpin`.

        Raises:
            DeviceError: the system does not lock that much.
        """
        return int(self._ask("cuMemHostAlloc", nbytes, _PORTABLE)[0])

    def unpin(self, address: int) -> None:
        """Free what `pin` returned, once no copy reads it."""
        self._ask("cuMemFreeHost", address)

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        """Copy from the host before what is started next."""
        self._ask("cuMemcpyHtoDAsync", device, host, nbytes, self._stream)

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        """Copy to the host after what was started so far."""
        self._ask("cuMemcpyDtoHAsync", host, device, nbytes, self._stream)

    def copy_within(self, to: int, source: int, nbytes: int) -> None:
        """Copy from device memory to device memory, after what was started so far."""
        self._ask("cuMemcpyDtoDAsync", to, source, nbytes, self._stream)

    # Kernels

    def load(self, code: bytes) -> Any:
        """A module from machine code or PTX."""
        return self._ask("cuModuleLoadData", code)[0]

    def function(self, module: Any, name: str) -> int:
        """The handle of one of its kernels."""
        (function,) = self._ask("cuModuleGetFunction", module, name.encode())
        # Kernels that divide a multiprocessor's memory differently cannot be on it at the same time.
        self._set(function, _SHARED_CARVEOUT, 100)
        return int(function)

    def _set(self, function: Any, attribute: int, value: int) -> None:
        self._ask("cuFuncSetAttribute", function, self._cuda.CUfunction_attribute(attribute), value)

    def zeroing(self, address: int, words: int) -> Start:
        """A call that fills words of 32 bits with zeros before what is started next."""
        fill = self._function(
            "cuMemsetD32Async", ctypes.c_uint64, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
        )
        stream = self._stream_handle
        return lambda: fill(address, 0, words, stream)

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
    ) -> Start:
        """A call that launches a kernel with this argument, and `shared` bytes a block, on the stream.

        `together` has all blocks run at the same time, after everything before them, or not at all; `after`
        has them begin after everything before. `beside` puts it on the branch that `part` began.
        """
        if shared:
            self._set(self._cuda.CUfunction(function), _DYNAMIC_SHARED_BYTES, self.chip.block_shared_bytes)
        value = ctypes.create_string_buffer(argument, len(argument))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(value))
        kind = _COOPERATIVE if together else _OVERLAP
        attributes = (_LaunchAttribute * 1)((kind, b"", (1,)))
        config = _LaunchConfig(
            (grid, 1, 1),
            (*block, 1),
            shared,
            self.beside if beside else self.stream,
            ctypes.addressof(attributes),
            int(together or (self._overlaps and not after)),
        )
        launch, handle = self._launch, ctypes.c_void_p(function)
        where, what = ctypes.c_void_p(ctypes.addressof(config)), ctypes.c_void_p(ctypes.addressof(parameters))

        def start(_keep: Any = (value, parameters, attributes, config)) -> int:
            return launch(where, handle, what, None)

        return start

    def part(self) -> Start:
        """A call in a graph from which on launches with `beside` are a branch beside the others."""
        return self._hand_over(self._stream_handle, self._parted, self._beside_handle)

    def meet(self) -> Start:
        """A call that has what is launched next come after that branch too, which ends."""
        return self._hand_over(self._beside_handle, self._ended, self._stream_handle)

    def _hand_over(self, done: Any, event: Any, to: Any) -> Start:
        """A call that has one stream go on after all that another was given."""
        record, wait = self._record, self._await
        return lambda: record(event, done) or wait(to, event, 0)

    def graph(self, starts: list[Start]) -> tuple[Start, Callable[[], None]]:
        """Launches joined in order: a call that starts them all, and one that frees the graph."""
        self._ask("cuStreamBeginCapture", self._stream, self._cuda.CUstreamCaptureMode(_CAPTURE_RELAXED))
        try:
            for start in starts:
                self.check(start(), "cuLaunchKernelEx")
        finally:
            status, graph = self._cuda.cuStreamEndCapture(self._stream)
        self.check(int(status), "cuStreamEndCapture")
        try:
            (ready,) = self._ask("cuGraphInstantiate", graph, 0)
        finally:
            self._ask("cuGraphDestroy", graph)
        handle, stream, launch = ctypes.c_void_p(int(ready)), self._stream_handle, self._launch_graph
        return lambda: launch(handle, stream), lambda: self._cuda.cuGraphExecDestroy(ready)

    def start(self, start: Start) -> None:
        """Start a piece of a program."""
        status = start()
        if status:
            self.check(status, "starting a kernel")

    # Waiting

    def wait(self, deadline: float | None, taken: Taken | None = None) -> bool:
        """Wait for all that was started; False if the deadline (of `time.monotonic`) passed first.

        Args:
            deadline: None for none.
            taken: how long the same took before; None for what is not done again.

        Raises:
            DeviceLostError: something that was started has failed.
        """
        ended = self._wait(self._query, self._stream_handle, deadline, taken or Taken())
        self.running = self.running and not ended
        return ended

    def mark(self) -> None:
        """Have `wait_for_mark` wait for what was started so far, and not for what is started next."""
        self.check(self._record(self._mark, self._stream_handle), "cuEventRecord")
        self.running = True

    def wait_for_mark(self, deadline: float, taken: Taken) -> bool:
        """Wait for what was started before the last `mark`; otherwise as `wait`."""
        return self._wait(self._reached, self._mark, deadline, taken)

    def _wait(
        self, query: Callable[[Any], int], what: ctypes.c_void_p, deadline: float | None, taken: Taken
    ) -> bool:
        def ready() -> bool:
            status = query(what)
            if status == NOT_READY:
                return False
            self.check(status, "playing")
            return True

        return wait(ready, deadline, taken)

    def finish(self, nbytes: int) -> None:
        """Wait for copies of so many bytes that were started.

        Raises:
            DeviceLostError: they failed, or do not end.
        """
        limit = COPY_GRACE + nbytes / COPY_BYTES_PER_SECOND
        if not self.wait(time.monotonic() + limit):
            raise self.abandon(f"copying {nbytes} bytes has not ended within {limit:.0f} s")

    def abandon(self, why: str) -> DeviceLostError:
        """Make no more calls that would wait for work that does not end; the error to raise."""
        self._abandoned, self.lost = True, f"{why} on {self.product}"
        return DeviceLostError(
            f"{self.lost}. The device is closed, and pages that it may still write to stay mapped; guests and"
            " sessions keep their memory. Go on with another device (`move`), or start the process anew."
        )

    def ask_to_stop(self, stop: bool, deadline: float) -> bool:
        """Set or clear the word that long kernels look at, past those that are running.

        Returns:
            Whether the GPU took it before the deadline (of `time.monotonic`).
        """
        self._stop.value = int(stop)
        self._ask("cuMemcpyHtoDAsync", self.stop_address, int(self._word), 4, self._side_stream)
        return self._wait(self._query, self._side_handle, deadline, Taken())


def version_name(version: int) -> str:
    """`cuDriverGetVersion`'s number as people write it: 13000 is "13.0"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _load_driver() -> Any:
    """The driver's bindings, initialised.

    Raises:
        DeviceUnavailableError: there are no bindings, no driver, or no GPU.
    """
    try:
        cuda = import_module("cuda.bindings.driver")
    except ImportError as e:
        raise DeviceUnavailableError("cuda", f"cuda-bindings is not installed ({e})", INSTALL) from e
    try:
        (status,) = cuda.cuInit(0)
    except RuntimeError as e:  # the bindings did not find the library
        raise DeviceUnavailableError(
            "cuda", "there is no NVIDIA driver (libcuda.so.1 was not found)", "Install the NVIDIA driver."
        ) from e
    if int(status) == NO_DEVICE:
        raise DeviceUnavailableError(
            "cuda",
            "the NVIDIA driver shows no GPU",
            "See whether `nvidia-smi` lists one, and whether CUDA_VISIBLE_DEVICES hides it.",
        )
    if int(status):
        raise DeviceUnavailableError(
            "cuda",
            f"the NVIDIA driver does not start ({status.name})",
            "See what `nvidia-smi` says; after a driver update the machine needs a restart.",
        )
    return cuda
