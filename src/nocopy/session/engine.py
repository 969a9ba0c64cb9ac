"""A model on a device: its weights placed once, its passes recorded once for each shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TypeAlias

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
from nocopy.session.region import PAGE, Region, part, row
from nocopy.tape import Space, Tape, TapeBuilder, Tensor, validate

MOST_SEQUENCES = 8
"""Sequences that one pass can take a token of."""
TAPES = 64
"""Recorded passes to keep: one is made for each number of rows and each place of a region."""
REGIONS = 64
"""Layouts to keep: sessions of one shape share theirs."""
GRAIN = 16
"""Rows of a pass are a multiple of this, and of a sixteenth of the next power of two, if the device wants few
shapes."""
ROOM = 2048
"""Tokens of one pass that a region has room for, on every device, so that it can go from one to another."""
GUEST_BYTES = 2**48
"""Upper bound of the guest space while recording; compiling checks against the real size."""


@dataclass(frozen=True)
class Rows:
    """A pass over the first `rows` tokens of a region, with the logits of the last one or without."""

    rows: int
    logits: bool


@dataclass(frozen=True)
class Ahead:
    """Passes over `steps` tokens one after another, each but the first chosen after the last.

    The logits after the last are written where the region has them. `window` None takes the likeliest; else
    the region says how to draw, and the penalties count the `window` tokens that end with the one just fed.

    The first token lies at `first` among those of the region, behind the recent ones, what is chosen behind
    it. Two such plays follow each other without the host if each has a half of the tokens to itself, of
    `size`, and what one chooses last is what the other feeds first.
    """

    steps: int
    window: int | None
    size: int
    half: int = 0

    @property
    def first(self) -> int:
        """Where the token lies that is fed first."""
        return self.half * self.size + max(self.window or 0, 1) - 1

    @property
    def last(self) -> int:
        """Where the token lies that is chosen last."""
        return 0 if self.half else self.first + self.size

    def follower(self, steps: int) -> Ahead | None:
        """What can play so many steps right behind it; None for none, or where the host has to bring recent
        tokens to their place.
        """
        return replace(self, steps=steps, half=1 - self.half) if steps and not self.window else None


Pass: TypeAlias = Rows | Ahead


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
        cache: bytes of KV cache that sessions will want at once.

    Raises:
        DeviceError: the device has too little memory for all of it; nothing was uploaded.
    """

    def __init__(
        self,
        model: Model,
        device: Device,
        *,
        chunk: int | None = None,
        ledger: Ledger | None = None,
        progress: Callable[[int], None] | None = None,
        cache: int = 0,
    ) -> None:
        self.model, self.device, self.config = model, device, model.config
        self.ledger = ledger
        self.chunk = min(ROOM if chunk is None else chunk, model.config.context)
        self.step = self.chunk if chunk is not None else min(device.info.rows, self.chunk)
        ranges = weight_ranges(model)
        starts = list(accumulate((nbytes for _, nbytes in ranges), initial=0))
        self._weights = tensors_at(model, starts)
        region = Region(self.config, 0, self.config.context, self.chunk, DType.F16)
        widest = self.record(region, self.step).scratch_bytes
        sequences = min(MOST_SEQUENCES, self.chunk)  # each with logits of its own
        each = Tensor(Space.GUEST, 0, (sequences, self.config.vocabulary), DType.F32)
        few = decoder(self.config, self._weights, region.batch(sequences), each).scratch_bytes
        row_bytes = -(-4 * self.config.vocabulary // 64) * 64
        self._near_rows = few, row_bytes
        last = few + 2 * MOST_SEQUENCES * row_bytes
        scratch = -(-max(widest, last) // 65536) * 65536
        self._check_room({"weights": starts[-1], "scratch": scratch, "the KV cache": cache})
        self.placement = place(model, device, ledger, progress)
        self._weights = self.placement.tensors
        try:
            self.scratch = device.allocate(scratch)
        except BaseException:
            self.placement.close()
            raise
        self._tapes: OrderedDict[tuple[Region, Pass], Tape] = OrderedDict()
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

    def logits(self, rows: int, *, penalized: bool = False) -> Tensor:
        """f32 [rows, vocabulary] of scratch, which no pass over up to 8 rows uses: logits; or scores."""
        start, row_bytes = self._near_rows
        offset = start + MOST_SEQUENCES * row_bytes * penalized
        return Tensor(Space.SCRATCH, offset, (rows, self.config.vocabulary), DType.F32, (row_bytes // 4, 1))

    def width(self, tokens: int, step: int) -> int:
        """Rows of the pass that takes so many tokens: up to `step`, if the device wants few shapes."""
        if not self.device.info.few_shapes or tokens <= MOST_SEQUENCES:
            return tokens
        grain = max(GRAIN, (1 << (tokens - 1).bit_length()) // GRAIN)
        return min(-(-tokens // grain) * grain, step)

    def tape(self, region: Region, rows: int, *, logits: bool) -> Tape:
        """The pass over `rows` tokens of a session that lies at `region`."""
        return self.play_of(region, Rows(rows, logits))

    def play_of(self, region: Region, wanted: Pass) -> Tape:
        """The tape of a pass, or of several in a row."""
        key = (region, wanted)
        if key in self._tapes:
            self._tapes.move_to_end(key)
            return self._tapes[key]
        if isinstance(wanted, Rows):
            raw = bytes(self.record(region, wanted.rows, logits=wanted.logits).tape)
        else:
            raw = self._record_ahead(region, wanted)
        tape = self._tapes[key] = self.validated(raw)
        if len(self._tapes) > TAPES:
            self._tapes.popitem(last=False)
        return tape

    def validated(self, raw: bytes) -> Tape:
        """A tape of records over a guest's memory, the weights, scratch and what a device keeps near."""
        spaces = {
            Space.GUEST: GUEST_BYTES,
            Space.WEIGHTS: self.placement.pages.nbytes,
            Space.SCRATCH: self.scratch.nbytes,
            Space.KV: GUEST_BYTES,
        }
        return validate(raw, spaces, work_limit=2**62)

    def _record_ahead(self, region: Region, ahead: Ahead) -> bytes:
        return b"".join(bytes(self._step(region, ahead, i)) for i in range(ahead.steps))

    def _step(self, region: Region, ahead: Ahead, i: int) -> TapeBuilder:
        """One pass of several: token `first` + i is fed, the one after it is chosen and written behind it."""
        last, drawn = i + 1 == ahead.steps, ahead.window is not None
        logits = row(region.logits) if last and not drawn else self.logits(1)
        g = decoder(self.config, self._weights, region.batch(1, ahead.first + i), logits)
        tape, end = g.tape, ahead.first + i + 1
        token = part(region.tokens, ahead.last if last else end, 1)
        if ahead.window is None:
            tape.argmax(token, logits)
            return tape
        scores = logits
        if ahead.window:
            recent = row(part(region.tokens, end - ahead.window, ahead.window))
            scores = self.logits(1, penalized=True)
            tape.penalize(scores, logits, recent, region.penalties)
        tape.sample(token, scores, region.choice, region.draws[ahead.half], ahead=i)
        if last:  # sampling reads logits several times, so where kernels have them near
            tape.copy(row(region.logits), logits)
        return tape

    def record(self, region: Region, rows: int, *, logits: bool = True) -> Graph:
        """Record the pass over `rows` tokens of a session at `region`, not yet validated."""
        last = row(region.logits) if logits else None
        return decoder(self.config, self._weights, region.batch(rows), last)

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
