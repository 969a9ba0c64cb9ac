"""A session with a memory of its own: for callers that are no guest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

from nocopy import native
from nocopy.device.protocol import Pages
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.memory.pages import LARGE, PAGE, round_up
from nocopy.memory.quota import Quota
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.session.session import Play, Session


class OwnSession(Session):
    """A session whose region is a memory made for it; `close` frees that too.

    Args:
        engine: the model on its device; stays open as long as the session.
        context: tokens that fit.
        kv: element type of the cache.
        ledger: counts the bytes of the region as shared.
        fill: puts the region of a session that was frozen into the memory, before any device has it.
        tokens: those that this region holds.
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
        fill: Callable[[LinearMemory], None] | None = None,
        tokens: Sequence[int] = (),
        quota: Quota | None = None,
        play: Play | None = None,
        step: int | None = None,
    ) -> None:
        region = engine.own_region(context, kv)
        size = region.nbytes
        self.on_close: Callable[[], None] | None = None
        """Called when the session has been closed."""
        memory = LinearMemory(size, reserve=size, guard=0, limit=quota)
        try:
            if fill is None:
                if region.boundary >= LARGE:  # attention passes over all of it for each token
                    memory.pages.prefer_large(region.home)
            else:
                fill(memory)
                if engine.device.info.pins:
                    memory.own(0, size)
                else:
                    _expect_token(memory, region, len(tokens))
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


def _expect_token(memory: LinearMemory, region: Region, length: int) -> None:
    """Have the pages ready that a token after `length` others touches: its row, the cache, the head."""
    cache, start = region.cache, memory.address
    row = region.home + length * cache.token_bytes
    low, high = row // PAGE * PAGE, min(round_up(row + cache.token_bytes), memory.size)
    head = round_up(region.draw.offset + 1)
    native.populate(
        (start + low, high - low, True), (start + region.home, low - region.home, False), (start, head, True)
    )
