"""A model on a device: its weights placed once, its passes recorded once for each shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import accumulate

import numpy as np

from nocopy.device.protocol import Device, Pages, Program
from nocopy.errors import DeviceError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.pages import LARGE
from nocopy.models.forward import decoder
from nocopy.models.graph import Graph
from nocopy.models.model import Model
from nocopy.models.placement import place, tensors_at, weight_ranges
from nocopy.session.region import PAGE, Region
from nocopy.tape import Space, Tape, Tensor, validate

TAPES = 64
"""Recorded passes to keep: one is made for each number of rows and each place of a region."""
REGIONS = 64
"""Layouts to keep: sessions of one shape share theirs."""
GUEST_BYTES = 2**48
"""Upper bound of the guest space while recording; compiling checks against the real size."""


class Engine:
    """A model on a device. Sessions of any memory share it; one thread at a time.

    Args:
        model: an open model; stays the caller's to close, after the engine.
        device: an open device; likewise.
        chunk: tokens that one pass of a long prompt takes.
        ledger: counts the weights as shared or uploaded.
        progress: called with the bytes uploaded so far.
        cache: bytes of KV cache that sessions will want at once.

    Raises:
        DeviceError: the device has too little memory for all of it; nothing was uploaded.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        *,
        chunk: int = 512,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
        cache: int = 0,
    ) -> None:
        self.model, self.device, self.config = model, device, model.config
        self.ledger = ledger
        self.chunk = min(chunk, model.config.context)
        ranges = weight_ranges(model)
        starts = list(accumulate((nbytes for _, nbytes in ranges), initial=0))
        self._weights = tensors_at(model, starts)
        region = Region(self.config, 0, self.config.context, self.chunk, DType.F16)
        widest = self.record(region, self.chunk).scratch_bytes
        self._logits = Tensor(
            Space.SCRATCH, self.record(region, 1).scratch_bytes, (1, self.config.vocabulary), DType.F32
        )
        last = self._logits.offset + 4 * self.config.vocabulary
        scratch = -(-max(widest, last) // 65536) * 65536
        self._check_room({"weights": starts[-1], "scratch": scratch, "the KV cache": cache})
        self.placement = place(model, device, ledger, progress)
        self._weights = self.placement.tensors
        try:
            self.scratch = device.allocate(scratch)
        except BaseException:
            self.placement.close()
            raise
        self._tapes: OrderedDict[tuple[Region, int, bool | None], Tape] = OrderedDict()
        self._regions: dict[tuple[int, int, DType, int], Region] = {}
        self.frequencies = {
            rope: np.asarray(rope.frequencies, np.float32).tobytes() for rope in region.frequencies
        }
        """What each region has in its place: f32 [pairs], as bytes."""

    def region(self, offset: int, context: int, kv: DType, boundary: int = PAGE) -> Region:
        """Where a session lies. Arguments as for `Region`.

        Raises:
            UsageError: the context, the offset or the element type does not suit the model.
        """
        key = (offset, context, kv, boundary)
        found = self._regions.get(key)
        if found is None:
            found = Region(self.config, offset, context, self.chunk, kv, boundary)
            if len(self._regions) == REGIONS:
                self._regions.clear()
            self._regions[key] = found
        return found

    def own_region(self, context: int, kv: DType) -> Region:
        """Where a session lies in a memory of its own. Raises as `region`."""
        large = self.region(0, context, kv, LARGE)
        return large if large.nbytes >= 2 * LARGE else self.region(0, context, kv)

    def _check_room(self, needs: Mapping[str, int]) -> None:
        """Refuse what the device's own memory has no room for, before any of it is there."""
        room, info = self.device.room(), self.device.info
        total = sum(needs.values())
        if room is None or total <= room:
            return
        parts = ", ".join(f"{nbytes} for {what}" for what, nbytes in needs.items() if nbytes)
        raise DeviceError(
            f"{total} bytes on {info.product} were asked for: {parts}; {room} of its {info.memory_bytes} are"
            " free for that. Use a shorter context, a smaller model or type, or another device."
        )

    def tape(self, region: Region, rows: int, *, logits: bool) -> Tape:
        """The pass over `rows` tokens of a session that lies at `region`."""
        return self._kept(
            (region, rows, logits), lambda: bytes(self.record(region, rows, logits=logits).tape)
        )

    def ahead(self, region: Region, steps: int) -> Tape:
        """The passes over `steps` tokens one after another, each but the first the likeliest after the last.

        Token i + 1 is written behind token i; the logits after the last one are written where the region
        has them.
        """
        return self._kept((region, steps, None), lambda: self._record_ahead(region, steps))

    def _record_ahead(self, region: Region, steps: int) -> bytes:
        records: list[bytes] = []
        for i in range(steps):
            logits = self._logits if i + 1 < steps else _row(region.logits)
            g = decoder(self.config, self._weights, region.batch(1, i), logits)
            token = Tensor(Space.GUEST, region.tokens.offset + 4 * (i + 1), (1,), DType.I32)
            g.tape.argmax(token, logits)
            records.append(bytes(g.tape))
        return b"".join(records)

    def _kept(self, key: tuple[Region, int, bool | None], record: Callable[[], bytes]) -> Tape:
        if key in self._tapes:
            self._tapes.move_to_end(key)
            return self._tapes[key]
        spaces = {
            Space.GUEST: GUEST_BYTES,
            Space.WEIGHTS: self.placement.pages.nbytes,
            Space.SCRATCH: self.scratch.nbytes,
            Space.KV: GUEST_BYTES,
        }
        tape = validate(record(), spaces, work_limit=2**62)
        self._tapes[key] = tape
        if len(self._tapes) > TAPES:
            self._tapes.popitem(last=False)
        return tape

    def record(self, region: Region, rows: int, *, logits: bool = True) -> Graph:
        """Record the pass over `rows` tokens of a session at `region`, not yet validated."""
        row = _row(region.logits) if logits else None
        return decoder(self.config, self._weights, region.batch(rows), row)

    def compile(self, tape: Tape, guest: Pages, cache: Pages | None = None) -> Program:
        """Make a pass ready to play on a guest's memory; `cache` is what the device keeps near."""
        spaces = {Space.GUEST: guest, Space.WEIGHTS: self.placement.pages, Space.SCRATCH: self.scratch}
        if cache is not None:
            spaces[Space.KV] = cache
        return self.device.compile(tape, spaces)

    def close(self) -> None:
        """Let go of the weights and the scratch; sessions must be closed first. Twice is allowed."""
        self.scratch.close()
        self.placement.close()


def _row(x: Tensor) -> Tensor:
    """[n] seen as [1, n]."""
    return Tensor(x.space, x.offset, (1, *x.shape), x.dtype)
