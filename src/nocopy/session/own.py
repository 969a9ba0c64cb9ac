"""A session with a memory of its own: for callers that are no guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from nocopy.device.protocol import Pages
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.memory.pages import LARGE
from nocopy.memory.quota import Quota
from nocopy.session.engine import Engine
from nocopy.session.session import Play, Session


class OwnSession(Session):
    """A session whose region is a memory made for it; `close` frees that too.

    Args:
        engine: the model on its device; stays open as long as the session.
        context: tokens that fit.
        kv: element type of the cache.
        ledger: counts the bytes of the region as shared.
        fill: puts the region of a session that was frozen into the memory, before any device has it; returns
            the tokens that this region holds.
        quota: what the memory is charged to; None means no limit.
        play: as for `Session`.
        step: likewise.

    Raises:
        UsageError: the context or the element type does not suit the model.
        MemoryLimitError: there is not that much memory, or the quota is used up.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        context: int,
        kv: DType,
        ledger: Ledger | None = None,
        fill: Callable[[LinearMemory], Sequence[int]] | None = None,
        quota: Quota | None = None,
        play: Play | None = None,
        step: int | None = None,
    ) -> None:
        region = engine.own_region(context, kv)
        size = region.nbytes
        self.on_close: Callable[[], None] | None = None
        """Called when the session has been closed."""
        memory = LinearMemory(size, reserve=size, guard=0, limit=quota)
        tokens: Sequence[int] = ()
        try:
            if fill is None:
                if region.boundary >= LARGE:  # attention passes over all of it for each token
                    memory.pages.prefer_large(region.home)
            else:
                tokens = fill(memory)
                if engine.device.info.pins:
                    memory.own(0, size)
            pages = engine.device.share(memory.address, size, ledger=ledger)
        except BaseException:
            memory.close()
            raise
        try:
            super().__init__(
                engine,
                memory,
                pages,
                context=context,
                kv=kv,
                boundary=region.boundary,
                play=play,
                step=step,
                tokens=tokens,
            )
        except BaseException:
            pages.close()
            memory.close()
            raise

    def leave(self) -> None:
        """See `Session.leave`."""
        super().leave()
        try:
            self.pages.close()
        except DeviceError:  # it may still write there
            self.memory.hold("a lost device").leak()

    def resume(self, engine: Engine, pages: Pages | None = None, play: Play | None = None) -> None:
        """See `Session.resume`; the memory is shared with the device here, unless it is already."""
        if pages is None:
            if engine.device.info.pins:
                self.memory.own(0, self.memory.size)
            pages = engine.device.share(self.memory.address, self.memory.size, ledger=engine.ledger)
        super().resume(engine, pages, play)

    def close(self) -> None:
        """Free the session and its memory. Twice is allowed."""
        super().close()
        self.pages.close()
        self.memory.close()
        if self.on_close is not None:
            self.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
