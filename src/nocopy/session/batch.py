"""Several sequences of one model, decoded together: a pass reads the weights once for a token of each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Program
from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.models import graph
from nocopy.models.forward import decoder
from nocopy.session.engine import MOST_SEQUENCES, Engine
from nocopy.session.pace import AHEAD, Pace, floor2
from nocopy.session.region import ALIGNMENT, PAGE, Region
from nocopy.session.sampler import Sampler, no_token
from nocopy.session.session import PROGRAMS, Session, at_once
from nocopy.tape import Space, TapeBuilder, Tensor
from nocopy.tape.ops import CHOICE, DRAW, MAX_SAMPLED, PENALTIES

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lanes:
    """Where a pass finds the tokens of its rows: a lane for each, from byte 0 of the memory.

    tokens [8, width], positions [8, 8], and what the ops sample and penalize want: choice, penalties, draw.
    In a lane lie the recent tokens, then the one that is fed, then those that are chosen.
    """

    width: int

    @cached_property
    def tokens(self) -> Tensor:
        """i32 [8, width]."""
        return Tensor(Space.GUEST, 0, (MOST_SEQUENCES, self.width), DType.I32)

    @cached_property
    def positions(self) -> Tensor:
        """i32 [8, 8]: of each row, for each step."""
        return _after(self.tokens, (MOST_SEQUENCES, AHEAD), DType.I32)

    @cached_property
    def choice(self) -> Tensor:
        """f32 [8, 3]."""
        return _after(self.positions, (MOST_SEQUENCES, len(CHOICE)), DType.F32)

    @cached_property
    def penalties(self) -> Tensor:
        """f32 [8, 4]."""
        return _after(self.choice, (MOST_SEQUENCES, len(PENALTIES)), DType.F32)

    @cached_property
    def draw(self) -> Tensor:
        """i32 [8, 5]."""
        return _after(self.penalties, (MOST_SEQUENCES, len(DRAW)), DType.I32)

    @cached_property
    def nbytes(self) -> int:
        """Their size, a multiple of 64 KiB."""
        return -(-_end(self.draw) // PAGE) * PAGE


@dataclass(frozen=True)
class Together:
    """Passes over a token of each of some sequences, `steps` one after another.

    `window` None takes the likeliest tokens, HOST chooses none and leaves the logits in the regions; else
    tokens are drawn, and penalties count as many recent ones.
    """

    sequences: tuple[int, ...]
    steps: int
    window: int | None

    @property
    def first(self) -> int:
        """Where in a lane the token lies that is fed first."""
        return max(self.window or 0, 1) - 1


HOST = -1
"""The `window` of passes after which the host chooses."""
NO_PENALTIES = (1.0, 1.0, 0.0, 0.0)


class SessionBatch:
    """Up to 8 sequences of one model in a memory made for them.

    Each is a `Session`, to be used like any other; `feed` and `generate` take a token of several at once. The
    others have no influence on a sequence's tokens, beyond the rounding of sums (docs/models.md).

    Args:
        engine: the model on its device; stays open as long as the batch.
        count: of sequences, 1 to 8.
        context: tokens that fit each.
        kv: element type of the caches.
        ledger: counts the bytes of the memory as shared.

    Raises:
        UsageError: the count, the context or the element type does not suit the model.
        MemoryLimitError: there is not that much memory.
    """

    def __init__(
        self, engine: Engine, count: int, *, context: int, kv: DType = DType.F16, ledger: Ledger | None = None
    ) -> None:
        if not 0 < count <= MOST_SEQUENCES:
            raise UsageError(f"a batch of {count} sequences was asked for; it has 1 to {MOST_SEQUENCES}")
        self.engine = engine
        self._lanes = Lanes(max(engine.chunk, AHEAD + 1))
        each = Region(engine.config, 0, context, engine.chunk, kv).nbytes
        size = self._lanes.nbytes + count * each
        self._programs: OrderedDict[Together, Program] = OrderedDict()
        self._pace, self._play = Pace(), at_once(engine.device)
        with ExitStack() as stack:
            self.memory = LinearMemory(size, reserve=size, guard=0)
            stack.callback(self.memory.close)
            self._pages = engine.device.share(self.memory.address, size, ledger=ledger)
            stack.callback(self._pages.close)
            self._near = engine.device.near(self.memory.address, size, ledger=engine.ledger)
            if self._near is not None:
                stack.callback(self._near.close)
            self.sequences: tuple[Session, ...] = tuple(
                Session(
                    engine,
                    self.memory,
                    self._pages,
                    offset=self._lanes.nbytes + i * each,
                    context=context,
                    kv=kv,
                    near=self._near,
                )
                for i in range(count)
            )
            self._closing = stack.pop_all()
        lanes = self._lanes
        self._tokens, self._positions = self._array(lanes.tokens), self._array(lanes.positions)
        self._choice, self._penalties = self._array(lanes.choice), self._array(lanes.penalties)
        self._draw = self._array(lanes.draw)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Session:
        return self.sequences[index]

    def feed(self, tokens: Mapping[int, int]) -> None:
        """Append a token to each of several sequences in one pass; the logits of each are written.

        Args:
            tokens: by the number of the sequence.

        Raises:
            UsageError: there is no such sequence, no such token, or no room in its context.
            ClosedError: the batch is closed.
        """
        self._check(tokens)
        wanted = Together(tuple(tokens), 1, HOST)
        self._put(wanted, tokens, {})
        self._play(lambda: self._program(wanted), None)
        for i, token in tokens.items():
            self.sequences[i].count(token)
            self.sequences[i].counted()

    def generate(
        self, samplers: Mapping[int, Sampler], *, limit: int | None = None, ends: Collection[int] = ()
    ) -> Iterator[dict[int, int]]:
        """Go on with several sequences, each from where it is, a token of each at a time.

        Args:
            samplers: which go on, by number, and what draws their tokens; a sampler has accepted the tokens
                that its penalties are to count, and belongs to the batch until this ends.
            limit: most tokens for each; None goes on until its context is full.
            ends: tokens that end a sequence; they are not part of it.

        Yields:
            The tokens of a step, by number. A sequence that has ended is left out from then on. Every token
            has been fed except a sequence's last, so that it can go on with `append`.

        Raises:
            UsageError: there is no such sequence, it is empty, or its logits are no numbers.
            ClosedError: the batch is closed.
        """
        left = {i: self._room(i, limit) for i in samplers}
        left = {i: n for i, n in left.items() if n > 0}
        tokens = {i: _accepted(self.sequences[i].draw(samplers[i]), samplers[i]) for i in left}
        chosen: list[dict[int, int]] = []
        while True:
            tokens = {i: token for i, token in tokens.items() if token not in ends}
            if not tokens:
                return
            left = {i: left[i] - 1 for i in tokens}
            yield tokens
            tokens = {i: token for i, token in tokens.items() if left[i] > 0}
            if not tokens:
                return
            chosen = chosen or self._ahead(tokens, {i: samplers[i] for i in tokens}, left)
            if not chosen:
                self.feed(tokens)
                drawn = {i: samplers[i].sample(self.sequences[i].logits) for i in tokens}
            else:
                for i, token in tokens.items():
                    self.sequences[i].count(token)
                now = chosen.pop(0)
                drawn = {i: _drawn(now[i], samplers[i]) for i in tokens}
            tokens = {i: _accepted(token, samplers[i]) for i, token in drawn.items()}

    def _room(self, index: int, limit: int | None) -> int:
        """How many tokens a sequence may make."""
        if not 0 <= index < len(self.sequences):
            raise UsageError(f"sequence {index} was asked for; the batch has 0 to {len(self.sequences) - 1}")
        session = self.sequences[index]
        if not session.length:
            raise UsageError(f"sequence {index} was to go on; it is empty: append its prompt first")
        room = session.context - session.length
        return room if limit is None else min(limit, room)

    def _ahead(
        self, tokens: Mapping[int, int], samplers: Mapping[int, Sampler], left: Mapping[int, int]
    ) -> list[dict[int, int]]:
        """Feed tokens and those chosen after them, a few steps in one play; none if the host must choose."""
        windows = {sampler.window for sampler in samplers.values()}
        known = [w for w in windows if w is not None]
        window = max(known, default=0)
        room = self._lanes.width - max(window, 1)
        if len(known) < len(windows) or room < 1 or self.engine.config.vocabulary > MAX_SAMPLED:
            return []
        steps = floor2(max(min(self._pace.steps, room, *left.values()), 1)) if len(windows) == 1 else 1
        greedy = all(sampler.greedy for sampler in samplers.values())
        wanted = Together(tuple(tokens), steps, None if greedy else window)
        self._put(wanted, tokens, {} if greedy else samplers)
        self._pace.play(self._play, lambda: self._program(wanted), steps)
        found = self._tokens[: len(tokens), wanted.first + 1 : wanted.first + 1 + steps]
        return [dict(zip(tokens, column, strict=True)) for column in found.T.tolist()]

    def _put(self, wanted: Together, tokens: Mapping[int, int], samplers: Mapping[int, Sampler]) -> None:
        """Put tokens where passes find them; samplers that are to draw more have accepted them."""
        for lane, i in enumerate(wanted.sequences):
            at = self.sequences[i].length
            self._positions[lane, : wanted.steps] = np.arange(at, at + wanted.steps)
            sampler = samplers.get(i)
            if sampler is not None:
                recent = sampler.position().recent
                self._tokens[lane, : wanted.first + 1] = -1
                self._tokens[lane, wanted.first + 1 - len(recent) : wanted.first + 1] = recent
                self._choice[lane], self._draw[lane] = sampler.choice, sampler.state()
                self._penalties[lane] = sampler.penalties if sampler.window else NO_PENALTIES
            self._tokens[lane, wanted.first] = tokens[i]

    def _program(self, wanted: Together) -> Program:
        if wanted not in self._programs:
            raw = b"".join(bytes(self._step(wanted, step)) for step in range(wanted.steps))
            tape = self.engine.validated(raw)
            self._programs[wanted] = self.engine.compile(tape, self._pages, self._near)
            if len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)[1].close()
        self._programs.move_to_end(wanted)
        return self._programs[wanted]

    def _step(self, wanted: Together, step: int) -> TapeBuilder:
        """One pass: a row for each sequence, each with its own cache; then the tokens after it."""
        engine, lanes = self.engine, self._lanes
        rows, at = len(wanted.sequences), wanted.first + step
        regions = [self.sequences[i].region for i in wanted.sequences]
        positions = _column(lanes.positions, step, rows)
        spans = tuple((lane, lane + 1, region.cache) for lane, region in enumerate(regions))
        batch = graph.Batch(
            _column(lanes.tokens, at, rows), positions, positions, regions[0].frequencies, spans
        )
        logits = engine.logits(rows)
        g = decoder(engine.config, engine.placement.tensors, batch, logits)
        tape, then = g.tape, _column(lanes.tokens, at + 1, rows)
        if wanted.window is None:
            tape.argmax(then, logits)
        elif wanted.window == HOST:
            for lane, region in enumerate(regions):
                out = region.logits
                tape.copy(
                    Tensor(out.space, out.offset, (1, *out.shape), out.dtype), g.rows(logits, lane, lane + 1)
                )
        else:
            scores = logits
            if wanted.window:
                recent = _rows(lanes.tokens, rows, at + 1 - wanted.window, wanted.window)
                scores = engine.logits(rows, penalized=True)
                tape.penalize(scores, logits, recent, _rows(lanes.penalties, rows))
            tape.sample(then, scores, _rows(lanes.choice, rows), _rows(lanes.draw, rows), ahead=step)
        return tape

    def _check(self, tokens: Mapping[int, int]) -> None:
        """Refuse tokens that a pass cannot take."""
        if not tokens:
            raise UsageError("no tokens were fed; give one for at least one sequence")
        for i, token in tokens.items():
            if not 0 <= i < len(self.sequences):
                raise UsageError(f"sequence {i} was fed; the batch has 0 to {len(self.sequences) - 1}")
            self.sequences[i].admit([token])

    def _array(self, tensor: Tensor) -> Array:
        return self.memory.view(tensor.shape, tensor.dtype, tensor.offset).numpy()

    def close(self) -> None:
        """Free the sequences and their memory. Twice is allowed."""
        while self._programs:
            self._programs.popitem()[1].close()
        for session in self.sequences:
            session.close()
        nothing = np.empty((0, 0), np.int32)  # arrays keep the memory mapped
        self._tokens = self._positions = self._choice = self._penalties = self._draw = nothing
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _accepted(token: int, sampler: Sampler) -> int:
    sampler.accept([token])
    return token


def _drawn(token: int, sampler: Sampler) -> int:
    """A token that a device drew for a sampler."""
    if token < 0:
        raise no_token()
    sampler.drew()
    return token


def _rows(x: Tensor, rows: int, start: int = 0, count: int | None = None) -> Tensor:
    """x[:rows, start : start + count], without a copy."""
    width = x.shape[1] - start if count is None else count
    return Tensor(x.space, x.offset + 4 * start, (rows, width), x.dtype, x.strides)


def _column(x: Tensor, at: int, rows: int) -> Tensor:
    """x[:rows, at], without a copy."""
    return Tensor(x.space, x.offset + 4 * at, (rows,), x.dtype, x.strides[:1])


def _after(previous: Tensor, shape: tuple[int, int], dtype: DType) -> Tensor:
    return Tensor(Space.GUEST, -(-_end(previous) // ALIGNMENT) * ALIGNMENT, shape, dtype)


def _end(x: Tensor) -> int:
    return x.offset + 4 * x.shape[0] * x.shape[1]
