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
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        *,
        chunk: int = 512,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.device, self.config = model, device, model.config
        self.chunk = min(chunk, model.config.context)
        self.placement = place(model, device, ledger, progress)
        widest = self.record(Region(self.config, 0, self.config.context, self.chunk, DType.F16), self.chunk)
        self.scratch = device.allocate(-(-widest.scratch_bytes // 65536) * 65536)
        self._tapes: OrderedDict[tuple[Region, int, bool], Tape] = OrderedDict()

    def tape(self, region: Region, rows: int, *, logits: bool) -> Tape:
        """The pass over `rows` tokens of a session that lies at `region`."""
        key = (region, rows, logits)
        if key in self._tapes:
            self._tapes.move_to_end(key)
            return self._tapes[key]
        g = self.record(region, rows, logits=logits)
        spaces = {
            Space.GUEST: GUEST_BYTES,
            Space.WEIGHTS: self.placement.pages.nbytes,
            Space.SCRATCH: self.scratch.nbytes,
        }
        tape = validate(bytes(g.tape), spaces, work_limit=2**62)
        self._tapes[key] = tape
        if len(self._tapes) > TAPES:
            self._tapes.popitem(last=False)
        return tape

    def record(self, region: Region, rows: int, *, logits: bool = True) -> Graph:
        """Record the pass over `rows` tokens of a session at `region`, not yet validated."""
        out = region.logits
        row = Tensor(out.space, out.offset, (1, *out.shape), out.dtype) if logits else None
        return decoder(self.config, self.placement.tensors, region.batch(rows), row)

    def compile(self, tape: Tape, guest: Pages) -> Program:
        """Make a pass ready to play on a guest's memory."""
        spaces = {Space.GUEST: guest, Space.WEIGHTS: self.placement.pages, Space.SCRATCH: self.scratch}
        return self.device.compile(tape, spaces)

    def close(self) -> None:
        """Let go of the weights and the scratch; sessions must be closed first. Twice is allowed."""
        self.scratch.close()
        self.placement.close()
