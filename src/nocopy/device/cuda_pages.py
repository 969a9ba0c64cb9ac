"""What a CUDA device can reach: registered host pages, memory of its own, and stand-ins for host pages."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from nocopy.device.chunks import Chunk
from nocopy.device.protocol import Mode, Near, OnDemand, check_range
from nocopy.device.ranges import Imports
from nocopy.errors import ClosedError, CopyRefusedError, DeviceError, DeviceLostError, UsageError
from nocopy.memory.ledger import Ledger
from nocopy.tape.record import Space
from nocopy.tape.validate import Tape

Ranges = list[tuple[int, int]]
_log = logging.getLogger(__name__)


class MemoryDriver(Protocol):
    """The part of `cuda_driver.Driver` that moves memory; its context is current during every call."""

    def register(self, address: int, nbytes: int) -> int:
        """Import host pages; their device address."""
        ...

    def unregister(self, address: int) -> None:
        """Let go of pages that were registered at this address."""
        ...

    def allocate(self, nbytes: int) -> int:
        """Zero-filled device memory."""
        ...

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""
        ...

    def copy_in(self, device: int, host: int, nbytes: int) -> None:
        """Copy from the host before what is started next."""
        ...

    def copy_out(self, host: int, device: int, nbytes: int) -> None:
        """Copy to the host after what was started so far."""
        ...

    def copy_within(self, to: int, source: int, nbytes: int) -> None:
        """Copy from device memory to device memory, after what was started so far."""
        ...

    def finish(self, nbytes: int) -> None:
        """Wait for copies of so many bytes that were started."""
        ...

    def enter(self) -> None:
        """Make the context current on this thread; pair it with `leave`."""
        ...

    def leave(self) -> None:
        """Give the thread back the context that it had."""
        ...


class CudaPages:
    """A range that kernels can reach. `forget` is called when it closes."""

    mode = Mode.MAPPED

    def __init__(
        self,
        driver: MemoryDriver,
        address: int,
        nbytes: int,
        device_address: int,
        forget: Callable[[CudaPages], None],
    ) -> None:
        self.driver, self.address, self.nbytes, self.device_address = driver, address, nbytes, device_address
        self.closed = False
        self.leak: DeviceError | None = None
        self._forget = forget

    def grow(self, nbytes: int) -> None:
        """See `Pages.grow`."""
        if self.closed:
            raise ClosedError("growing pages was asked for; they, or their device, are closed")
        if nbytes == self.nbytes:
            return
        check_range(self.address + self.nbytes, nbytes - self.nbytes, mmap.PAGESIZE)
        self.driver.enter()
        try:
            self._extend(nbytes)
        except DeviceLostError:
            raise
        except DeviceError as e:
            raise DeviceError(f"growing {self.nbytes} bytes to {nbytes} was asked for; {e}") from e
        finally:
            self.driver.leave()
        self.nbytes = nbytes

    def close(self) -> None:
        """See `Pages.close`.

        Raises:
            DeviceError: the driver does not let go; host pages must then stay mapped for good. So does every
                later call, until the device's context is gone.
        """
        if not self.closed:
            self.closed = True
            self._forget(self)
            self.leak = self._let_go()
        if self.leak:
            raise self.leak

    def lose(self) -> None:
        """Be closed: the context is lost. Until it is gone, the GPU may still reach host pages."""
        self.closed = True
        self.leak = self._kept("the device is lost")

    def _let_go(self) -> DeviceError | None:
        """Release what the driver holds; the error if it does not."""
        try:
            self.driver.enter()
            try:
                self._release()
            finally:
                self.driver.leave()
        except DeviceError as e:
            _log.warning("%d bytes at %#x leak: %s", self.nbytes, self.device_address, e)
            return self._kept(str(e))
        return None

    def _kept(self, why: str) -> DeviceError:
        return DeviceError(
            f"letting go of {self.nbytes} bytes at {self.device_address:#x} was asked for; {why}."
            " Leave them mapped: the GPU may still reach them."
        )

    def _extend(self, nbytes: int) -> None:
        raise NotImplementedError

    def _release(self) -> None:
        raise NotImplementedError


class RegisteredPages(CudaPages):
    """Host pages that the driver has locked and mapped for kernels; each growth adds a registration."""

    def __init__(
        self,
        driver: MemoryDriver,
        address: int,
        nbytes: int,
        forget: Callable[[CudaPages], None],
        ledger: Ledger | None,
    ) -> None:
        super().__init__(driver, address, nbytes, driver.register(address, nbytes), forget)
        self._registered = [address]
        self._ledger = ledger
        # The addresses are one wherever the chip and the system allow it.
        self.mode = Mode.SAME_POINTER if self.device_address == address else Mode.MAPPED
        if ledger:
            ledger.shared += nbytes

    def _extend(self, nbytes: int) -> None:
        tail = self.address + self.nbytes
        at = self.driver.register(tail, nbytes - self.nbytes)
        self._registered.append(tail)
        if at != self.device_address + self.nbytes:
            self._register_as_one(nbytes)
        if self._ledger:
            self._ledger.shared += nbytes - self.nbytes

    def _register_as_one(self, nbytes: int) -> None:
        """The tail is mapped somewhere else, but kernels need the whole range in one place."""
        self._release()
        try:
            self.device_address = self.driver.register(self.address, nbytes)
        except DeviceLostError:
            raise
        except DeviceError:
            self.device_address = self.driver.register(self.address, self.nbytes)
            raise
        finally:
            self._registered.append(self.address)

    def _release(self) -> None:
        while self._registered:
            self.driver.unregister(self._registered[-1])
            self._registered.pop()


@dataclass(frozen=True)
class Registration:
    """Registered pages; see `chunks.Chunk`."""

    address: int
    device_address: int
    mapped: int = 0


@dataclass(frozen=True)
class Registrar:
    """Registers host pages; see `chunks.Maker`. The driver's context is current during every call."""

    driver: MemoryDriver
    product: str = "the GPU"
    limit: int = 1 << 62
    alignment: int = mmap.PAGESIZE

    def make(self, address: int, nbytes: int) -> Registration:
        """Register pages, which kernels see at the host's own address."""
        at = self.driver.register(address, nbytes)
        if at != address:
            self.driver.unregister(address)
            raise DeviceError(f"the driver maps {nbytes} bytes at {address:#x} to {at:#x}, another address")
        return Registration(address, at)

    def destroy(self, chunk: Chunk) -> None:
        """Unregister them."""
        self.driver.unregister(chunk.device_address)


class RangedCudaPages(CudaPages):
    """Host pages of which only what programs need is registered, at the host's own addresses."""

    mode = Mode.SAME_POINTER

    def __init__(
        self,
        driver: MemoryDriver,
        address: int,
        nbytes: int,
        forget: Callable[[CudaPages], None],
        ledger: Ledger | None,
        on_demand: OnDemand,
    ) -> None:
        super().__init__(driver, address, nbytes, address, forget)
        self._imports = Imports(Registrar(driver), address, on_demand, ledger)

    def reach(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Register what is missing of these ranges; the driver's context is current.

        What was there keeps its address, so programs stay what they are.

        Raises:
            DeviceError: the driver refuses.
        """
        self._imports.reach(ranges, self.nbytes)

    def _extend(self, nbytes: int) -> None:
        """Nothing is registered before it is needed."""

    def _release(self) -> None:
        self._imports.close()


class DevicePages(CudaPages):
    """The GPU's own memory, zero-filled; the CPU cannot reach it."""

    def __init__(self, driver: MemoryDriver, nbytes: int, forget: Callable[[CudaPages], None]) -> None:
        super().__init__(driver, 0, nbytes, driver.allocate(max(nbytes, 1)), forget)

    def grow(self, nbytes: int) -> None:
        """Refused: only host pages grow."""
        raise DeviceError(
            f"growing {self.nbytes} bytes of device memory to {nbytes} was asked for;"
            " device memory does not grow. Allocate another piece."
        )

    def _release(self) -> None:
        self.driver.free(self.device_address)


class NearPages(DevicePages):
    """Device memory that stands in for host pages. See `Near`."""

    def __init__(
        self,
        driver: MemoryDriver,
        host: int,
        nbytes: int,
        forget: Callable[[CudaPages], None],
        ledger: Ledger | None,
    ) -> None:
        super().__init__(driver, nbytes, forget)
        self._host, self._ledger = host, ledger

    def flush(self, start: int, stop: int) -> None:
        """See `Near.flush`."""
        self._copy(
            start, stop, lambda n: self.driver.copy_out(self._host + start, self.device_address + start, n)
        )
        if self._ledger:
            self._ledger.downloaded += stop - start

    def reload(self, start: int, stop: int) -> None:
        """See `Near.reload`."""
        self._copy(
            start, stop, lambda n: self.driver.copy_in(self.device_address + start, self._host + start, n)
        )
        if self._ledger:
            self._ledger.uploaded += stop - start

    def copy(self, source: Near, nbytes: int, *, start: int = 0, to: int = 0) -> None:
        """See `Near.copy`."""
        if not 0 <= start <= source.nbytes - nbytes:
            raise UsageError(
                f"{nbytes} bytes from byte {start} were to be copied of {source.nbytes} of device memory"
            )
        here, there = self.device_address + to, source.device_address + start
        self._copy(to, to + nbytes, lambda n: self.driver.copy_within(here, there, n))

    def _copy(self, start: int, stop: int, copy: Callable[[int], None]) -> None:
        if self.closed:
            raise ClosedError("copying device memory was asked for; it, or its device, is closed")
        if not 0 <= start <= stop <= self.nbytes:
            raise UsageError(f"bytes {start} to {stop} of {self.nbytes} of device memory were to be copied")
        if start == stop:
            return
        self.driver.enter()
        try:
            copy(stop - start)
            self.driver.finish(stop - start)
        finally:
            self.driver.leave()


class StagedPages(CudaPages):
    """Host pages that cannot be registered, and device memory that stands in for them during a play."""

    mode = Mode.STAGED

    def __init__(
        self,
        driver: MemoryDriver,
        address: int,
        nbytes: int,
        forget: Callable[[CudaPages], None],
        ledger: Ledger | None,
    ) -> None:
        super().__init__(driver, address, nbytes, driver.allocate(nbytes), forget)
        self._ledger = ledger

    def copy_in(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Copy ranges [start, stop) of bytes to the device."""
        for start, stop in ranges:
            self.driver.copy_in(self.device_address + start, self.address + start, stop - start)
            self._count(stop - start)

    def copy_out(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Copy ranges [start, stop) of bytes back."""
        for start, stop in ranges:
            self.driver.copy_out(self.address + start, self.device_address + start, stop - start)
            self._count(stop - start)

    def _count(self, nbytes: int) -> None:
        if self._ledger:
            self._ledger.staged += nbytes

    def _extend(self, nbytes: int) -> None:
        larger = self.driver.allocate(nbytes)
        self.driver.free(self.device_address)
        self.device_address = larger

    def _release(self) -> None:
        self.driver.free(self.device_address)


def import_pages(
    driver: MemoryDriver,
    address: int,
    nbytes: int,
    forget: Callable[[CudaPages], None],
    ledger: Ledger | None,
    *,
    allow_copy: bool,
) -> RegisteredPages | StagedPages:
    """Register host pages, or stage them where that is refused and copies are allowed.

    Raises:
        CopyRefusedError: they cannot be registered and copies are not allowed.
        DeviceError: there is no device memory to stage them in.
    """
    driver.enter()
    try:
        return RegisteredPages(driver, address, nbytes, forget, ledger)
    except DeviceLostError:
        raise
    except DeviceError as e:
        if not allow_copy:
            raise CopyRefusedError(
                f"sharing {nbytes} bytes at {address:#x} with the GPU was asked for; {e}."
                " Allow copies to go on without sharing."
            ) from e
        _log.warning("%d bytes at %#x cannot be shared (%s); they will be copied", nbytes, address, e)
        return StagedPages(driver, address, nbytes, forget, ledger)
    finally:
        driver.leave()


@dataclass(frozen=True)
class Staging:
    """Byte ranges that are copied in before a play and out after it."""

    pages: StagedPages
    inward: Ranges
    outward: Ranges


def stagings(tape: Tape, used: Mapping[Space, CudaPages]) -> list[Staging]:
    """What to copy for the spaces that are staged: all that is touched inward, all that is written outward.

    Written ranges go in as well, because strides may leave bytes between the elements that are written.
    """
    stagings: list[Staging] = []
    for space, pages in used.items():
        if isinstance(pages, StagedPages):
            touched = [e for extents in tape.extents for e in extents if e.space == space]
            inward = _union([(e.start, e.stop) for e in touched])
            outward = _union([(e.start, e.stop) for e in touched if e.written])
            stagings.append(Staging(pages, inward, outward))
    return stagings


def _union(ranges: Ranges) -> Ranges:
    """The same bytes as disjoint ranges in order."""
    union: Ranges = []
    for start, stop in sorted(ranges):
        if start == stop:
            continue
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], stop)
        else:
            union.append((start, stop))
    return union
