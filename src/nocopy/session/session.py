"""A session: tokens go in, logits come out, and what it remembers lies in the region that it was given."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Device, Near, Pages, Program
from nocopy.errors import ClosedError, DeviceError, DeviceLostError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.memory.view import byte_array
from nocopy.session.engine import Ahead, Engine, Pass, Rows
from nocopy.session.pace import Make, Pace, Play, floor2
from nocopy.session.region import PAGE, Region
from nocopy.session.sampler import Position, Sampler, Sampling, no_token
from nocopy.tape import Tensor
from nocopy.tape.ops import MAX_SAMPLED

PROGRAMS = 16
"""Compiled passes that a session keeps."""
MANY = 500
"""Tokens from which NumPy is faster at finding the largest."""

NOWHERE = Position(Sampling(), 0, -1, ())
"""Where no sampler stands."""


class Session:
    """One sequence of tokens and its KV cache.

    Args:
        engine: the model on its device; stays open as long as the session.
        memory: the linear memory that the region lies in.
        pages: that memory, shared with the engine's device.
        offset: where the region begins, a multiple of 64 KiB.
        context: tokens that fit; at most what the model was trained for.
        kv: element type of the cache: F16, Q8_0, F32 or BF16.
        boundary: what the cache begins on a multiple of.
        play: plays a pass; None plays it at once, for whoever has the device to himself.
        step: most tokens that one pass takes; None means the engine's step, which is the most.
        tokens: those whose keys and values the region holds already: it is that of a session that was frozen.
            An array of i32 becomes the session's own.
        near: what the device keeps near of the whole memory, for several sessions; stays the caller's.

    Raises:
        UsageError: the region does not fit the memory, or an argument is out of range.
    """

    def __init__(
        self,
        engine: Engine,
        memory: LinearMemory,
        pages: Pages,
        *,
        offset: int = 0,
        context: int | None = None,
        kv: DType = DType.F16,
        boundary: int = PAGE,
        play: Play | None = None,
        step: int | None = None,
        tokens: Sequence[int] = (),
        near: Near | None = None,
    ) -> None:
        context = engine.config.context if context is None else context
        self.engine, self.memory, self.pages = engine, memory, pages
        self._closed = False
        region = engine.region(offset, context, kv, boundary)
        if offset + region.nbytes > memory.size:
            raise UsageError(
                f"a session of {context} tokens needs {region.nbytes} bytes from byte {offset};"
                f" the memory has {memory.size}. Grow it, or use a shorter context."
            )
        self.region = region
        self.tokens: array[int] = array("i")
        """What it has read: i32 [length]."""
        self._kept = len(tokens)
        self._unread: list[int] = []
        if len(tokens):
            self.tokens = self._checked(tokens, have=0)
        self._owns_near, near_at = near is None, 0 if near is None else region.home
        self._near = self._make_near() if near is None else near
        if self._near is not None:  # a region that is the engine's own knows its layout already
            self.region = replace(region, near=True, near_at=near_at)
        self.step = engine.step if step is None else step
        self._play = play or at_once(engine.device)
        self._programs: OrderedDict[Pass, Program] = OrderedDict()
        self._ahead: list[int] = []
        """Tokens that were chosen before they were asked for: all but the last have been fed."""
        self._stand: Position | None = None
        """Where a sampler must stand to have chosen the first of them; None: they are the likeliest."""
        self._then: Position | None = None
        """The same for the second of them."""
        self._finite = True
        """Whether the likeliest token after all of them has a number for its logit."""
        self._followed = False
        """Whether something was to play behind the passes that chose them, so that their logits are gone."""
        self._following: Ahead | None = None
        """What that is, while it goes on from them: all that it reads lies where it looks for it."""
        self._loose = False
        """Whether it may still play though nobody wants it."""
        self._stale = False
        self._pace = Pace(follows=engine.device.info.follows)
        # Made once: a view costs more than a small model's pass. The memory never moves.
        head = self._head = byte_array(memory, offset, region.home - offset)
        for rope, place in region.frequencies.items():
            found, wanted = _part(head, region, place), engine.frequencies[rope]
            if found.tobytes() != wanted:  # a page that is not written stays shared
                found[...] = np.frombuffer(wanted, np.float32)
        self._tokens = _part(head, region, region.tokens).data
        self._positions = _part(head, region, region.positions).data
        self._logits: npt.NDArray[np.float32] | None = _part(head, region, region.logits)
        self.before_use: Callable[[], None] | None = None
        """Called before anything that the session knows is used: raises if its pages proved to be damaged."""
        self.reload()

    @property
    def near(self) -> Near | None:
        """The device's own memory that stands in for the cache; None where the region is as near."""
        return self._near

    def _make_near(self) -> Near | None:
        cache = self.region.cache
        try:
            return self.engine.device.near(
                self.memory.address + self.region.home, cache.nbytes, ledger=self.engine.ledger
            )
        except DeviceLostError:
            raise
        except DeviceError as error:
            raise DeviceError(
                f"a session of {self.context} tokens was asked for; its KV cache takes {cache.nbytes} bytes"
                f" of the device: {error}"
            ) from error

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    @property
    def kept(self) -> int:
        """Tokens whose keys and values the region holds: what is left of the cache if the device is lost."""
        return self.length if self._near is None else min(self._kept, self.length)

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return self.region.context

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """f32 [vocabulary] after the last token: a view of the region, written again by each pass."""
        if self._logits is None:
            raise ClosedError("the logits of a session were asked for; it is closed")
        if self.before_use is not None:
            self.before_use()
        self.refresh()
        return self._logits

    def append(self, tokens: Sequence[int], *, logits: bool = True) -> None:
        """Feed tokens: their keys and values join the cache, the logits of the last one are written.

        Raises:
            UsageError: they do not fit the context (the message names both lengths), or one is not a token.
            ClosedError: the session is closed.
        """
        ahead = self._ahead
        if len(ahead) > 1 and len(tokens) == 1 and tokens[0] == ahead[0]:
            self.tokens.append(ahead.pop(0))
            if self._stand is not None:
                self._stand, self._then = self._then, NOWHERE
            self._stale = len(ahead) > 1 or self._followed
            return
        own = self._checked(tokens)
        self._forget_ahead()
        self._feed(own, logits=logits)

    def _feed(self, tokens: Sequence[int], *, logits: bool) -> None:
        for start in range(0, len(tokens), self.step):
            part = array("i", tokens[start : start + self.step])
            count, at = len(part), len(self.tokens)
            rows = self.engine.width(count, self.step)
            # Rows before the first token's are nowhere: they see nothing, and nothing of them is kept.
            own = array("i", [0]) * (rows - count) + part
            places = array("i", [-1]) * (rows - count)
            places.frombytes(np.arange(at, at + count, dtype=np.int32).tobytes())

            def put(rows: int = rows, own: array[int] = own, places: array[int] = places) -> None:
                self._tokens[:rows], self._positions[:rows] = own, places

            wanted = logits and start + count == len(tokens)
            self._run(Rows(rows, wanted), put, steps=int(rows == 1))
            self.tokens.extend(part)

    def likeliest(self, more: int = 0) -> int:
        """Return the token with the largest logit, the lowest of equals.

        Args:
            more: how many such tokens will be appended, this one included. Devices with time to spare feed
                some of them ahead, in one go; appending them then costs nothing.

        Raises:
            UsageError: no logit is a number.
            ClosedError: the session is closed.
        """
        if self.before_use is not None:
            self.before_use()
        if self._ahead and self._stand is None:
            token, finite = self._ahead[0], self._finite or len(self._ahead) > 1
        else:
            token = int(self.logits.argmax())
            finite = isfinite(self.logits[token])
            self._forget_ahead()
        if not finite:
            raise no_token()
        self._stand = self._then = None
        self._look_ahead(token, more, None)
        return token

    def draw(self, sampler: Sampler, more: int = 0) -> int:
        """Return the token that a sampler draws after the last token.

        Whether it was drawn on the device or on the host is not to be told from the token: both do the same.

        Args:
            sampler: counts the draw; it must be told of the token by its `accept`.
            more: as in `likeliest`, for tokens that are drawn by the same sampler.

        Raises:
            UsageError: no logit is a number.
            ClosedError: the session is closed.
        """
        if sampler.greedy:
            return self.likeliest(more)
        if self.before_use is not None:
            self.before_use()
        if sampler.window is None or self.engine.config.vocabulary > MAX_SAMPLED:
            return sampler.sample(self.logits)
        stand = sampler.position()
        if self._ahead and self._stand == stand:
            token = self._ahead[0]
            if token < 0:
                raise no_token()
            sampler.drew()
        else:
            token = sampler.sample(self.logits)
            self._forget_ahead()
        self._stand, self._then = stand, sampler.position([token])
        self._look_ahead(token, more, sampler)
        return token

    def _look_ahead(self, token: int, more: int, sampler: Sampler | None) -> None:
        """Feed a token that was chosen, and tokens after it as they are chosen, if more are wanted."""
        if len(self._ahead) > 1 or more < 1:
            return
        started, self._following = self._following, None
        ahead = started or self._quick(more, sampler.window if sampler else None)
        if ahead is not None:
            self._feed_ahead(ahead, token, more, sampler, started=started is not None)

    def _quick(self, more: int, window: int | None) -> Ahead | None:
        """As many of the tokens that are wanted as fit and do not take too long."""
        size = min(self._pace.most, self.region.chunk - 1 - Ahead(1, window, 1).first)
        room = min(self.context - len(self.tokens), size, self.step)
        steps = floor2(min(more, self._pace.steps, room))
        return Ahead(steps, window, size) if steps else None

    def _follower(self, ahead: Ahead, more: int) -> Ahead | None:
        """What is to play right behind: as many steps, or fewer if no more are wanted or fit."""
        if not self._pace.known or 2 * ahead.size > self.region.chunk:
            return None
        left = min(more, self.context - len(self.tokens)) - ahead.steps
        steps = floor2(min(left, self._pace.steps))
        follows = steps <= ahead.steps and self.engine.device.info.follows
        return ahead.follower(steps) if follows else None

    @cached_property
    def _drawing(self) -> tuple[npt.NDArray[Any], ...]:
        """Where the region says how a token is drawn on the device: `choice`, `penalties` and `draws`."""
        places = self.region.choice, self.region.penalties, *self.region.draws
        return tuple(_part(self._head, self.region, place)[0] for place in places)

    def _feed_ahead(
        self, ahead: Ahead, token: int, more: int, sampler: Sampler | None, *, started: bool
    ) -> None:
        """Feed a token and those chosen after it; they are not part of the session yet."""
        at, steps, first, then = len(self.tokens), ahead.steps, ahead.first, self._follower(ahead, more)

        def put() -> None:
            if not started:
                self._tokens[first] = token
                self._place(ahead, at, sampler)
                if sampler is not None:
                    recent = sampler.position([token]).recent
                    self._tokens[: len(recent)] = array("i", recent)
                    choice, penalties, *_ = self._drawing
                    choice[...], penalties[...] = sampler.choice, sampler.penalties
            if then is not None:
                self._place(then, at + steps, sampler, steps)

        self._stale, self._followed = True, then is not None
        self._run(ahead, put, 0 if started else steps, then)
        self._following = then
        self._ahead = [token, *self._tokens[first + 1 : first + steps], self._tokens[ahead.last]]
        self._finite = self._logits is None or isfinite(self._logits[self._ahead[-1]])

    def _place(self, ahead: Ahead, at: int, sampler: Sampler | None, later: int = 0) -> None:
        """Say where tokens stand that are fed ahead, and which draws are theirs."""
        self._positions[ahead.first : ahead.first + ahead.steps] = array("i", range(at, at + ahead.steps))
        if sampler is not None:
            *_, draws, others = self._drawing
            (others if ahead.half else draws)[...] = sampler.state(later)

    def _forget_ahead(self) -> None:
        self._ahead = []
        self._stale = self._followed = False
        self._loose = self._loose or self._following is not None
        self._following = None

    @property
    def plays_on(self) -> bool:
        """Whether a device may still write to the region: see `settle`."""
        return self._loose or self._following is not None

    def settle(self) -> None:
        """Have nothing play on behind the last pass."""
        if self.plays_on:
            self.engine.device.settle()
        self._following, self._loose = None, False

    def refresh(self) -> None:
        """Have the region hold the logits after the last token, if those of a token ahead are there."""
        if self._stale and self.tokens:
            last = self.tokens.pop()
            self._forget_ahead()
            try:
                self._feed([last], logits=True)
            except BaseException:
                self.tokens.append(last)  # it was read before, and whoever goes on reads it again
                self._stale = True
                raise

    def flush(self) -> None:
        """Have the region hold all that the session knows: for who reads, copies or freezes its bytes."""
        self._check_read("flushing was asked for of a session")
        if self.before_use is not None:
            self.before_use()
        self.refresh()
        self.settle()
        if self._near is not None:
            self._near.flush(*self._used())
            self._kept = self.length

    def reload(self) -> None:
        """Take the cache of its tokens from the region, after somebody else has written it there."""
        if self._near is not None:
            self._near.reload(*self._used())
            self._kept = self.length

    def _used(self) -> tuple[int, int]:
        """The bytes of what the device keeps near that hold the tokens."""
        start = self.region.near_at
        return start, start + self.length * self.region.cache.token_bytes

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Costs nothing: the cache is overwritten later.

        Raises:
            UsageError: there are fewer.
        """
        self._check_read("truncating was asked for of a session")
        if not 0 <= length <= len(self.tokens):
            raise UsageError(
                f"truncating to {length} tokens was asked for; the session has {len(self.tokens)}"
            )
        if length < len(self.tokens):
            self._forget_ahead()
        del self.tokens[length:]
        self._kept = min(self._kept, length)

    def extend_to(self, tokens: Sequence[int]) -> int:
        """Make the session hold exactly these tokens, using again what it already has of them.

        At least the last token is fed, so that the logits are those after it.

        Returns:
            How many tokens were found in the cache.
        """
        common = 0
        for have, want in zip(self.tokens, tokens, strict=False):
            if have != want:
                break
            common += 1
        common = min(common, len(tokens) - 1)
        self._checked(tokens[common:], have=common)
        self.truncate(common)
        self.append(tokens[common:])
        return common

    def fork(self, memory: LinearMemory, pages: Pages, *, offset: int = 0) -> Session:
        """Return a session that continues from here in another region; what is cached is copied there."""
        self._check_read("forking was asked for of a session")
        other = Session(
            self.engine,
            memory,
            pages,
            offset=offset,
            context=self.context,
            kv=self.region.kv,
            play=self._play,
            step=self.step,
        )
        other.become(self)
        return other

    def become(self, source: Session) -> None:
        """Hold what another session of the same engine and type of cache holds; its cache is copied.

        Raises:
            UsageError: it has more tokens than fit, or another type of cache.
            ClosedError: one of them is closed.
        """
        if source.engine is not self.engine or source.region.kv is not self.region.kv:
            raise UsageError("a session was to become one of another model or type of cache; feed its tokens")
        if source.tokens:
            self._checked(source.tokens, have=0)
        self.settle()
        logits, used = source.logits, source.length * source.region.cache.token_bytes
        if self._near is not None and source._near is not None:
            self._near.copy(source._near, used, start=source.region.near_at, to=self.region.near_at)
        else:
            there = source.memory.view(used, "u8", source.region.home).numpy()
            self.memory.view(used, "u8", self.region.home).numpy()[...] = there
        self._forget_ahead()
        if self._logits is not None:
            self._logits[...] = logits
        self.tokens = array("i", source.tokens)

    def admit(self, tokens: Sequence[int]) -> None:
        """Refuse tokens that `append` would refuse, and raise what it would raise."""
        self._checked(tokens)

    def count(self, token: int) -> None:
        """Take over a token that somebody else has fed; the logits after it are computed when asked for."""
        self._forget_ahead()
        self.tokens.append(token)
        self._stale = True

    def counted(self) -> None:
        """Take over that somebody else has written the logits after the last token."""
        self._stale = False

    def move(self, pages: Pages) -> None:
        """Go on in the same memory, which the device sees as `pages` now."""
        self.pages, self._following = pages, None  # what plays ends with the programs
        self._forget()

    # From one device to another

    def leave(self) -> None:
        """Be on no device, which may be lost: `resume` goes on. Twice is allowed.

        What the device has in its own memory and the region does not is gone: `flush` before, if it can.
        """
        kept = self.kept
        self._unread = self.tokens[kept:].tolist() + self._unread
        self._kept = kept
        del self.tokens[kept:]
        self._forget_ahead()
        self._loose = False  # what plays ends with the programs
        self._forget()
        near, self._near = self._near, None
        self.region = replace(self.region, near=False)
        if near is not None:
            with suppress(DeviceError):  # memory of a device that is lost goes with it
                near.close()

    def resume(self, engine: Engine, pages: Pages, play: Play | None = None) -> None:
        """Go on in the same memory with the same model on another device; then call `reread`.

        Args:
            engine: there.
            pages: the memory, shared with its device.
            play: as for a new session.

        Raises:
            UsageError: it is another model, or takes another number of tokens in a pass.
            DeviceError: the device has too little memory.
        """
        if (engine.config, engine.chunk) != (self.region.config, self.region.chunk):
            raise UsageError("a session was to go on with another model, or another chunk; use its own")
        self.engine, self.pages, self._play = engine, pages, play or at_once(engine.device)
        self._pace = Pace(follows=engine.device.info.follows)
        self._near, self._owns_near = self._make_near(), True
        self.region = replace(self.region, near=self._near is not None, near_at=0)
        self.reload()

    def reread(self, *, logits: bool) -> int:
        """Feed again what was lost with a device.

        Args:
            logits: feed the last token in any case: what the region has of its logits may be half written.

        Returns:
            How many tokens were fed. Errors as in `append`; then `leave`, and go on with another device.
        """
        if logits and not self._unread and self.tokens:
            last = self.tokens[-1]
            self.truncate(self.length - 1)
            self._unread = [last]
        fed = 0
        while self._unread:
            part = self._unread[: self.step]
            self._feed(part, logits=len(part) == len(self._unread))
            del self._unread[: len(part)]
            fed += len(part)
        return fed

    def close(self) -> None:
        """Free what the session has compiled; the region stays as it is. Twice is allowed."""
        self._closed = True
        self._forget()
        if self._near is not None and self._owns_near:
            self._near.close()
        self._logits = self._following = None
        self._ahead = []
        self._loose = False
        self._head = np.empty(0, np.uint8)  # arrays keep the memory mapped
        self._tokens = self._positions = memoryview(b"")
        self.__dict__.pop("_drawing", None)

    def _forget(self) -> None:
        while self._programs:
            self._programs.popitem()[1].close()

    def _checked(self, tokens: Sequence[int], have: int | None = None) -> array[int]:
        """Tokens that may follow `have` others, as i32: quick to look through and to copy."""
        if self._closed:
            raise ClosedError("tokens were fed to a session that is closed; open another")
        self._check_read("tokens were fed to a session")
        have = len(self.tokens) if have is None else have
        if not len(tokens):
            raise UsageError("no tokens were fed; give at least one")
        if have + len(tokens) > self.context:
            raise UsageError(
                f"{len(tokens)} tokens were to follow {have}; the context has room for {self.context}"
            )
        vocabulary = self.engine.config.vocabulary
        try:
            own = tokens if isinstance(tokens, array) and tokens.typecode == "i" else array("i", tokens)
        except OverflowError:
            own = None
        if own is not None and len(own) > MANY:
            unsigned = np.frombuffer(own, np.uint32)  # one below 0 is 2^31 or more there
            if 0 <= own[unsigned.argmax()] < vocabulary:
                return own
        low, high = min(own or tokens), max(own or tokens)
        if own is None or low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            raise UsageError(f"token {wrong} was fed; tokens are 0 to {vocabulary - 1}")
        return own

    def _check_read(self, asked: str) -> None:
        if self._unread:
            raise ClosedError(
                f"{asked} that has {len(self._unread)} tokens to read again, which were lost with its device;"
                " move it to a device that works"
            )

    def _run(self, wanted: Pass, put: Callable[[], None], steps: int, then: Pass | None = None) -> None:
        """Play a pass, or several in a row.

        Args:
            wanted: what.
            put: brings what they read to its place, once nothing plays that writes there.
            steps: of one token each, which tell how long such a step takes; 0 if they tell nothing of that.
            then: what may be started right behind.
        """

        def make() -> Program:
            self.settle()
            put()
            return self._program(wanted)

        behind = None if then is None else lambda: self._program(then)
        if steps:
            self._pace.play(self._play, make, steps, behind)
        else:
            self._play(make, behind)

    def _program(self, wanted: Pass) -> Program:
        """A pass, or several in a row, ready to play."""
        found = self._programs.pop(wanted, None)
        if found is None:
            tape = self.engine.play_of(self.region, wanted)
            found = self.engine.compile(tape, self.pages, self._near)
            if len(self._programs) == PROGRAMS:
                self._programs.popitem(last=False)[1].close()
        self._programs[wanted] = found  # the last one used
        return found


def _part(head: npt.NDArray[np.uint8], region: Region, tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor of the region, as a view of the bytes before the cache."""
    return np.ndarray(tensor.shape, tensor.dtype.numpy, head, tensor.offset - region.offset)


def at_once(device: Device) -> Play:
    """Plays right away."""

    def play(make: Make, then: Make | None) -> None:
        device.play(make(), then=None if then is None else then())

    return play
