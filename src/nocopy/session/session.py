"""A session: tokens go in, logits come out, and what it remembers lies in the region that it was given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Device, Near, Pages, Program
from nocopy.errors import ClosedError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.tape import Tensor

PROGRAMS = 16
"""Compiled passes that a session keeps."""
AHEAD = 8
"""Most tokens that are fed ahead of being asked for; a power of two."""
PATIENCE = 0.02
"""Seconds that feeding ahead may take: nobody should see text come in bursts."""

Play = Callable[[Callable[[], Program]], None]
"""Plays the program that it gets from a function, which it calls once the device is free."""


class Session:
    """One sequence of tokens and its KV cache.

    Args:
        engine: the model on its device; stays open as long as the session.
        memory: the linear memory that the region lies in.
        pages: that memory, shared with the engine's device.
        offset: where the region begins, a multiple of 64 KiB.
        context: tokens that fit; at most what the model was trained for.
        kv: element type of the cache: F16, Q8_0, F32 or BF16.
        play: plays a pass; None plays it at once, for whoever has the device to himself.
        step: most tokens that one pass takes; None means the engine's step, which is the most.
        tokens: those whose keys and values the region holds already: it is that of a session that was frozen.

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
        play: Play | None = None,
        step: int | None = None,
        tokens: Sequence[int] = (),
    ) -> None:
        context = engine.config.context if context is None else context
        self.engine, self.memory, self.pages = engine, memory, pages
        self._closed = False
        region = Region(engine.config, offset, context, engine.chunk, kv)
        if offset + region.nbytes > memory.size:
            raise UsageError(
                f"a session of {context} tokens needs {region.nbytes} bytes from byte {offset};"
                f" the memory has {memory.size}. Grow it, or use a shorter context."
            )
        self.region = region
        self.tokens: list[int] = []
        if tokens:
            self._check(tokens, have=0)
            self.tokens.extend(tokens)
        self._near = engine.device.near(
            memory.address + region.home, region.cache.nbytes, ledger=engine.ledger
        )
        self.region = replace(region, near=self._near is not None)
        self.step = engine.step if step is None else step
        self._play = play or _at_once(engine.device)
        self._programs: OrderedDict[tuple[int, bool | None], Program] = OrderedDict()
        self._ahead: list[int] = []
        self._next: int | None = None
        self._stale = False
        self._seconds = 0.0
        for rope, place in self.region.frequencies.items():
            found, wanted = self._array(place), np.asarray(rope.frequencies, np.float32)
            if not np.array_equal(found, wanted):  # a page that is not written stays shared
                found[...] = wanted
        # Made once: a view costs more than a small model's pass. The memory never moves.
        self._tokens, self._positions = self._array(self.region.tokens), self._array(self.region.positions)
        self._logits: npt.NDArray[np.float32] | None = self._array(self.region.logits)
        self.reload()

    @property
    def near(self) -> Near | None:
        """The device's own memory that stands in for the cache; None where the region is as near."""
        return self._near

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    @property
    def context(self) -> int:
        """Tokens that fit."""
        return self.region.context

    @property
    def logits(self) -> npt.NDArray[np.float32]:
        """f32 [vocabulary] after the last token: a view of the region, written again by each pass."""
        if self._logits is None:
            raise ClosedError("the logits of a session were asked for; it is closed")
        self.refresh()
        return self._logits

    def append(self, tokens: Sequence[int], *, logits: bool = True) -> None:
        """Feed tokens: their keys and values join the cache, the logits of the last one are written.

        Raises:
            UsageError: they do not fit the context (the message names both lengths), or one is not a token.
            ClosedError: the session is closed.
        """
        self._check(tokens)
        if self._ahead[:1] == list(tokens):
            self.tokens.append(self._ahead.pop(0))
            self._stale = bool(self._ahead)
            return
        self._forget_ahead()
        self._feed(tokens, logits=logits)

    def _feed(self, tokens: Sequence[int], *, logits: bool) -> None:
        for start in range(0, len(tokens), self.step):
            part = tokens[start : start + self.step]
            rows, at = len(part), len(self.tokens)
            self._tokens[:rows] = part
            self._positions[:rows] = np.arange(at, at + rows)
            wanted = logits and start + rows == len(tokens)
            self._play(partial(self._program, rows, wanted))
            self.tokens.extend(part)

    def likeliest(self, more: int = 0) -> int:
        """Return the token with the largest logit, the lowest of equals.

        Args:
            more: how many more such tokens will be appended and asked for. Devices with time to spare feed
                some of them ahead, in one go; appending them then costs nothing.

        Raises:
            UsageError: no logit is a number.
            ClosedError: the session is closed.
        """
        if self._ahead:
            return self._ahead[0]
        token = int(self.logits.argmax()) if self._next is None else self._next
        if not np.isfinite(self.logits[token]):
            raise UsageError("no token can be drawn: the logits are not numbers")
        steps = min(
            more, self._steps_ahead(), self.context - len(self.tokens), self.region.chunk - 1, self.step
        )
        if steps > 0:
            self._feed_ahead(token, 1 << steps.bit_length() - 1)
        return token

    def _steps_ahead(self) -> int:
        """As many steps as `PATIENCE` allows, by how long the last ones took; one while nothing is known."""
        return min(AHEAD, int(PATIENCE / self._seconds)) if self._seconds else 1

    def _feed_ahead(self, token: int, steps: int) -> None:
        """Feed a token and the likeliest after it, `steps` in all; they are not part of the session yet."""
        at = len(self.tokens)
        self._tokens[0] = token
        self._positions[:steps] = np.arange(at, at + steps)
        self._stale = True
        start = perf_counter()
        self._play(partial(self._program, steps, None))
        found: list[int] = self._tokens[: steps + 1].tolist()
        # The first play of a shape compiles it; that is no measure.
        self._seconds = min((perf_counter() - start) / steps, self._seconds or np.inf)
        *self._ahead, self._next = found

    def _forget_ahead(self) -> None:
        self._ahead.clear()
        self._next, self._stale = None, False

    def refresh(self) -> None:
        """Have the region hold the logits after the last token, if those of a token ahead are there."""
        if self._stale and self.tokens:
            last = self.tokens.pop()
            self._forget_ahead()
            self._feed([last], logits=True)

    def flush(self) -> None:
        """Have the region hold all that the session knows: for who reads, copies or freezes its bytes."""
        self.refresh()
        if self._near is not None:
            self._near.flush(0, self.length * self.region.cache.token_bytes)

    def reload(self) -> None:
        """Take the cache of its tokens from the region, after somebody else has written it there."""
        if self._near is not None:
            self._near.reload(0, self.length * self.region.cache.token_bytes)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Costs nothing: the cache is overwritten later.

        Raises:
            UsageError: there are fewer.
        """
        if not 0 <= length <= len(self.tokens):
            raise UsageError(
                f"truncating to {length} tokens was asked for; the session has {len(self.tokens)}"
            )
        if length < len(self.tokens):
            self._forget_ahead()
        del self.tokens[length:]

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
        self._check(tokens[common:], have=common)
        self.truncate(common)
        self.append(tokens[common:])
        return common

    def fork(self, memory: LinearMemory, pages: Pages, *, offset: int = 0) -> Session:
        """Return a session that continues from here in another region; what is cached is copied there."""
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
        used = self.length * self.region.cache.token_bytes
        if self._near is not None and other._near is not None:
            other._near.copy(self._near, used)
        else:
            source = self.memory.view(used, "u8", self.region.home).numpy()
            memory.view(used, "u8", other.region.home).numpy()[...] = source
        other.logits[...] = self.logits
        other.tokens = list(self.tokens)
        return other

    def move(self, pages: Pages) -> None:
        """Go on in the same memory, which the device sees as `pages` now."""
        self.pages = pages
        self._forget()

    def close(self) -> None:
        """Free what the session has compiled; the region stays as it is. Twice is allowed."""
        self._closed = True
        self._forget()
        if self._near is not None:
            self._near.close()
        self._logits = None
        self._tokens = self._positions = np.empty(0, np.int32)  # arrays keep the memory mapped

    def _forget(self) -> None:
        while self._programs:
            self._programs.popitem()[1].close()

    def _check(self, tokens: Sequence[int], have: int | None = None) -> None:
        if self._closed:
            raise ClosedError("tokens were fed to a session that is closed; open another")
        have = len(self.tokens) if have is None else have
        if not tokens:
            raise UsageError("no tokens were fed; give at least one")
        if have + len(tokens) > self.context:
            raise UsageError(
                f"{len(tokens)} tokens were to follow {have}; the context has room for {self.context}"
            )
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.engine.config.vocabulary:
            wrong, top = (low if low < 0 else high), self.engine.config.vocabulary - 1
            raise UsageError(f"token {wrong} was fed; tokens are 0 to {top}")

    def _program(self, rows: int, logits: bool | None) -> Program:
        """The pass over some rows, with logits or without; or as many steps ahead, for None."""
        key = (rows, logits)
        if key not in self._programs:
            engine, region = self.engine, self.region
            tape = engine.ahead(region, rows) if logits is None else engine.tape(region, rows, logits=logits)
            self._programs[key] = engine.compile(tape, self.pages, self._near)
            if len(self._programs) > PROGRAMS:
                self._programs.popitem(last=False)[1].close()
        self._programs.move_to_end(key)
        return self._programs[key]

    def _array(self, tensor: Tensor) -> npt.NDArray[Any]:
        return self.memory.view(tensor.shape, tensor.dtype, tensor.offset).numpy()


def _at_once(device: Device) -> Play:
    def play(make: Callable[[], Program]) -> None:
        device.play(make())

    return play
