"""A model on a device: its weights placed once, its passes recorded once for each shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from nocopy.device.protocol import Device, Pages, Program
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.models.forward import decoder
from nocopy.models.graph import Graph
from nocopy.models.model import Model
from nocopy.models.placement import place
from nocopy.session.region import Region
from nocopy.tape import Space, Tape, Tensor, validate

TAPES = 64
"""Recorded passes to keep: one is made for each number of rows and each place of a region."""
ROOM = 2048
"""Tokens of one pass that a region has room for, on every device, so that it can go from one to another."""
GUEST_BYTES = 2**48
"""Upper bound of the guest space while recording; compiling checks against the real size."""


class Engine:
    """A model on a device. Sessions of any memory share it; one thread at a time.

    `chunk` is the tokens that a session's region has room for in one pass, `step` those that a pass takes.

    Args:
        model: an open model; stays the caller's to close, after the engine.
        device: an open device; likewise.
        chunk: most tokens that one pass takes; None: as many as the device takes best, in regions with room
            for `ROOM`.
        ledger: counts the weights as shared or uploaded.
        progress: called with the bytes uploaded so far.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        *,
        chunk: int | None = None,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.device, self.config = model, device, model.config
        self.ledger = ledger
        self.chunk = min(ROOM if chunk is None else chunk, model.config.context)
        self.step = self.chunk if chunk is not None else min(device.info.rows, self.chunk)
        self.placement = place(model, device, ledger, progress)
        region = Region(self.config, 0, self.config.context, self.chunk, DType.F16)
        widest = self.record(region, self.step).scratch_bytes
        self._logits = Tensor(
            Space.SCRATCH, self.record(region, 1).scratch_bytes, (1, self.config.vocabulary), DType.F32
        )
        last = self._logits.offset + 4 * self.config.vocabulary
        self.scratch = device.allocate(-(-max(widest, last) // 65536) * 65536)
        self._tapes: OrderedDict[tuple[Region, int, bool | None], Tape] = OrderedDict()

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
            g = decoder(self.config, self.placement.tensors, region.batch(1, i), logits)
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
        return decoder(self.config, self.placement.tensors, region.batch(rows), row)

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
