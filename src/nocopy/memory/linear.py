"""A linear memory: a reserved address range that is committed from its start and grows in place.

The base address never changes, so a pointer into the memory stays right for as long as the memory lives.
Three parties can keep the pages mapped: the memory itself until `close()`, everything that was handed out
(views, arrays, capsules), and devices through `hold()`. Closing is refused while a device holds the
memory, because only the device can let go of it; it is deferred while arrays are alive, because arrays let
go by themselves.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from nocopy.errors import ClosedError, MemoryLimitError, UsageError
from nocopy.memory.pages import PAGE, Pages, round_up
from nocopy.memory.quota import Quota

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from nocopy.memory.dtype import DType
    from nocopy.memory.view import TensorView

RESERVE: Final = 4 << 30
"""Bytes that a 32-bit guest can address; with them reserved, compiled code needs no bounds checks."""
GUARD: Final = 32 << 20
"""Bytes after the reservation that stay inaccessible, for an access at a large constant offset."""

_leaked: list[Pages] = []


class GrowthHook(Protocol):
    """Somebody who must follow when a memory grows, such as a device that has imported its pages."""

    def before(self, old: int, new: int) -> None:
        """Called before the commit, sizes in bytes. Raising refuses the growth."""
        ...

    def after(self, size: int) -> None:
        """Called with the size that the memory has now: the new one, or the old one if the growth was
        refused.

        Called on every hook whose `before` returned. Raising on success refuses the growth too.
        """
        ...


class Hold:
    """A device's grip on a memory: until `release()`, the memory cannot be closed and no page is unmapped."""

    def __init__(self, memory: LinearMemory, owner: str) -> None:
        self.owner = owner
        self.pages = memory.pages
        self._memory: LinearMemory | None = memory

    def release(self) -> None:
        """Let go. Calling it again does nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory._drop(self)  # pyright: ignore[reportPrivateUsage]

    def leak(self) -> None:
        """Let go but never unmap the pages.

        The device failed to let go of them, and may still write there.
        """
        if self._memory is not None:
            _leaked.append(self.pages)
        self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


class LinearMemory:
    """Zero-filled, page-aligned host memory with a fixed base, which grows in place.

    Without a guest this is simply aligned memory that a device can import.

    Args:
        size: bytes that are accessible at first.
        maximum: bytes beyond which it never grows; None means the reservation.
        reserve: bytes of address space, at least; at least 4 GiB for a guest's memory.
        guard: inaccessible bytes behind the reservation.
        limit: bytes that may be committed, or a `Quota` shared with other memories; None means no limit.

    Raises:
        UsageError: a negative size, or a size above the maximum.
        MemoryLimitError: the limit does not allow `size`, or the system refuses.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        maximum: int | None = None,
        reserve: int = RESERVE,
        guard: int = GUARD,
        limit: int | Quota | None = None,
    ) -> None:
        for name, value in (("size", size), ("reserve", reserve), ("guard", guard)):
            if value < 0:
                raise UsageError(f"{name}={value} was asked for; a number of bytes is 0 or more")
        if maximum is not None and size > maximum:
            raise UsageError(f"size={size} was asked for with maximum={maximum} bytes; raise the maximum")
        self.quota = limit if isinstance(limit, Quota) else Quota(limit)
        self.quota.charge(size)
        self._charged = size
        self._lock = threading.RLock()
        self._holds: list[Hold] = []
        self._hooks: list[GrowthHook] = []
        self.borrowed: list[tuple[int, int]] = []
        """Ranges [start, end) of bytes that are a file's pages until they are written, shared with whoever
        has mapped the file too."""
        self._pages: Pages | None = None
        self.grow_through: Callable[[int], None] | None = None
        """Set by whoever keeps its own record of the size (a Wasm engine): `grow` asks it instead."""
        try:
            self._pages = Pages(max(reserve, size), guard, size)
        except BaseException:
            self.quota.refund(size)
            raise
        self._pages.state.size = size
        self.address: Final = self._pages.address
        """Address of the first byte; it never changes."""
        self.maximum: Final = (
            min(maximum, self._pages.reserve) if maximum is not None else self._pages.reserve
        )
        """Bytes beyond which it cannot grow."""

    # What it is

    @property
    def pages(self) -> Pages:
        """The pages themselves; a reference keeps them mapped.

        Raises:
            ClosedError: the memory is closed.
        """
        if self._pages is None:
            raise ClosedError(
                "the memory is closed; what was in it is gone. Open it again, or close it later."
            )
        return self._pages

    @property
    def closed(self) -> bool:
        """True after `close()`."""
        return self._pages is None

    @property
    def size(self) -> int:
        """Bytes that are accessible now; 0 when closed."""
        return 0 if self._pages is None else self._pages.state.size

    @property
    def generation(self) -> int:
        """How many times it has grown. A view made at another generation is stale."""
        return self.pages.state.generation

    @property
    def size_address(self) -> int:
        """Address of a `size_t` that always holds `size`, for native code.

        Valid as long as `pages` is referenced.
        """
        return ctypes.addressof(self.pages.state)

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds it, by the name they gave."""
        return tuple(hold.owner for hold in self._holds)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{self.size} bytes"
        return f"<LinearMemory {state} at {self.address:#x}>"

    # Growth

    def grow(self, new_size: int) -> None:
        """Make `new_size` bytes accessible, in place; what is added reads as zero.

        Raises:
            ClosedError: the memory is closed.
            UsageError: `new_size` is below the present size.
            MemoryLimitError: the maximum, the limit or the system does not allow it; nothing has changed.
        """
        if self.grow_through is not None:
            self.grow_through(new_size)
        else:
            self.grow_in_place(new_size)

    def grow_in_place(self, new_size: int) -> None:
        """Do what `grow` does, past `grow_through`. For the engine whose memory this is."""
        with self._lock:
            pages, old = self.pages, self.size
            if new_size < old:
                raise UsageError(
                    f"growing to {new_size} bytes was asked for; the memory has {old} and never shrinks"
                )
            if new_size == old:
                return
            if new_size > self.maximum:
                raise MemoryLimitError(
                    f"growing to {new_size} bytes was asked for; the maximum is {self.maximum}. "
                    "Create the memory with a larger maximum and reservation."
                )
            self.quota.charge(new_size - old)
            try:
                self._commit(pages, old, new_size)
            except BaseException:
                self.quota.refund(new_size - old)
                raise
            self._charged = new_size

    def _commit(self, pages: Pages, old: int, new: int) -> None:
        """Commit between the hooks, and undo everything if one of them, or the system, refuses."""
        called: list[GrowthHook] = []
        try:
            for hook in tuple(self._hooks):
                hook.before(old, new)
                called.append(hook)
            pages.commit(old, new)
            for hook in called:
                hook.after(new)
        except BaseException:
            try:
                for hook in called:
                    hook.after(old)
            finally:
                pages.decommit(old, new)
            raise
        pages.state.size = new
        pages.state.generation += 1

    def on_grow(self, hook: GrowthHook) -> Callable[[], None]:
        """Have `hook` called around every growth; returns a function that ends this.

        The memory keeps the hook, and Wasmtime keeps a guest's memory: a hook that refers to the guest
        itself would keep it from being freed when it is forgotten.
        """
        self._hooks.append(hook)

        def remove() -> None:
            if hook in self._hooks:
                self._hooks.remove(hook)

        return remove

    # What it is made of

    def refill(
        self,
        place: Callable[[int], Sequence[tuple[int, int]]],
        *,
        owner: str | None = None,
        fresh: bool = False,
    ) -> None:
        """Replace all that is in the memory.

        Args:
            place: gets the address and puts pages or bytes there, where all is new and zero; returns the
                ranges [start, end) that it mapped from a file.
            owner: who may hold the memory meanwhile: a guest that is not running.
            fresh: nobody has written to the memory yet.

        Raises:
            ClosedError: the memory is closed.
            UsageError: a device holds it, which would keep the old pages.
            MemoryLimitError: the system refuses; the memory is zero then.
        """
        with self._lock:
            self._refuse_others(owner)
            if not fresh:
                self.pages.refresh(0, self.size)
            try:
                self.borrowed = list(place(self.address))
            except BaseException:
                self.pages.refresh(0, self.size)
                raise

    def _refuse_others(self, owner: str | None) -> None:
        others = [hold.owner for hold in self._holds if hold.owner != owner]
        if others:
            raise UsageError(
                f"new pages for the memory at {self.address:#x} were asked for; it is held by:"
                f" {', '.join(others)}. Close that first."
            )

    def own(self, start: int, end: int) -> int:
        """Have pages of the memory's own, in place, for the bytes of a file from `start` to `end`.

        For devices that lock pages in memory: some refuse those of a file, and none leaves them shared. The
        range must not be imported yet, and nothing may run in the memory.

        Returns:
            Bytes that were copied.
        """
        with self._lock:
            copied, left = 0, list[tuple[int, int]]()
            for first, last in self.borrowed:
                low, high = max(first, start // PAGE * PAGE), min(last, round_up(end))
                if low >= high:
                    left.append((first, last))
                    continue
                data = ctypes.string_at(self.address + low, high - low)
                self.pages.refresh(low, high)
                ctypes.memmove(self.address + low, data, high - low)
                copied += high - low
                left += [each for each in ((first, low), (high, last)) if each[0] < each[1]]
            self.borrowed = left
            return copied

    # Who keeps it alive

    def hold(self, owner: str) -> Hold:
        """Keep the memory from being closed until the result is released.

        Args:
            owner: who holds it, for the message that refuses `close()`.

        Raises:
            ClosedError: the memory is closed.
        """
        with self._lock:
            hold = Hold(self, owner)
            self._holds.append(hold)
            return hold

    def _drop(self, hold: Hold) -> None:
        with self._lock:
            if hold in self._holds:
                self._holds.remove(hold)

    def close(self) -> None:
        """Give the memory up. Views refuse to be used from now on; closing again does nothing.

        The pages are unmapped when the last array, capsule or view into them is gone, at once if there is
        none.

        Raises:
            UsageError: a device or a guest holds the memory; close that first.
        """
        with self._lock:
            if self._pages is None:
                return
            if self._holds:
                owners = ", ".join(self.holders)
                raise UsageError(
                    f"closing the memory at {self.address:#x} was asked for; it is held by: {owners}. "
                    "Close that first."
                )
            self.quota.refund(self._charged)
            self._charged = 0
            # Native code that still has `size_address` must find no byte it may touch.
            self._pages.state.size = 0
            self._pages = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # What is in it

    def check(self, offset: int, size: int) -> int:
        """Return the address of `size` bytes at `offset`.

        Raises:
            ClosedError: the memory is closed.
            UsageError: the range is not inside the memory.
        """
        present = self.pages.state.size
        if offset < 0 or size < 0 or offset + size > present:
            raise UsageError(
                f"bytes {offset} to {offset + size} were asked for; the memory has bytes 0 to {present}. "
                "Correct the offset or the size, or grow the memory first."
            )
        return self.address + offset

    def read(self, offset: int, size: int) -> bytes:
        """Return a copy of `size` bytes. Errors as in `check`."""
        return ctypes.string_at(self.check(offset, size), size)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` to `offset`. Errors as in `check`."""
        source = bytes(data)
        ctypes.memmove(self.check(offset, len(source)), source, len(source))

    def view(
        self,
        shape: int | Sequence[int],
        dtype: DType | npt.DTypeLike,
        offset: int = 0,
        strides: Sequence[int] | None = None,
    ) -> TensorView:
        """Return a typed view of bytes in this memory. Arguments and errors as in `TensorView`."""
        from nocopy.memory.view import TensorView

        return TensorView(self, offset, shape, dtype, strides=strides)

    def buffer(self) -> memoryview[Any]:
        """All accessible bytes as a writable `memoryview` without a copy; it keeps the pages mapped."""
        return self.view(self.size, "u8").buffer()
