"""Tokens after a prompt: sampling, stops, constraints, log-probabilities, streaming text, cancelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from nocopy.errors import UsageError
from nocopy.models.tokenizer import Tokenizer
from nocopy.session.constraint import Constraint
from nocopy.session.sampler import Sampler, log_probabilities
from nocopy.session.session import Session


@dataclass(frozen=True)
class LogProbability:
    """A token with the natural logarithm of its probability, before sampling options."""

    token: int
    value: float


@dataclass(frozen=True)
class Step:
    """One generated token and the text that became complete with it.

    `finish` is "" until the last step, which has "stop" (an end token, a stop string or a finished
    constraint) or "length". A step that has no token of its own has -1.
    """

    token: int
    text: str
    finish: str = ""
    logprob: float | None = None
    top: tuple[LogProbability, ...] = ()


@dataclass
class Generation:
    """What to generate.

    Args:
        limit: most tokens to generate; None means until the context is full.
        stop: strings that end the text; they are not part of it.
        logprobs: how many of the likeliest tokens to report at each step; None reports nothing.
        constraint: what may be generated.
        ignore_end: go on past end-of-text tokens.
    """

    limit: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    constraint: Constraint | None = None
    ignore_end: bool = False
    cancelled: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise UsageError(f"{self.limit} tokens were asked for; the number must be 0 or more")
        if any(not s for s in self.stop):
            raise UsageError("an empty stop string was given; it would stop everything")

    def cancel(self) -> None:
        """End after the token that is being made; may be called from another thread."""
        self.cancelled = True


def generate(
    session: Session, tokenizer: Tokenizer, sampler: Sampler, request: Generation | None = None
) -> Iterator[Step]:
    """Generate from where the session is: `session.logits` are those after its last token.

    Every token that is yielded has been fed, except the last: the session can be continued with `append`.

    Yields:
        One `Step` a token; text may lag behind tokens while a character or a stop string is incomplete.
    """
    request = request or Generation()
    stream, held = tokenizer.stream(), _StopStrings(request.stop)
    room = session.context - session.length
    limit = room if request.limit is None else min(request.limit, room)
    for made in range(limit):
        token, logprob, top = _next(session, sampler, request, limit - made)
        if token in tokenizer.end_ids and not request.ignore_end:
            yield Step(-1, held.flush(stream.finish()), "stop")
            return
        text, stopped = held.push(stream.push(token))
        if stopped:
            yield Step(token, text, "stop", logprob, top)
            return
        finished = request.constraint is not None and request.constraint.finished
        last = finished or request.cancelled or made + 1 == limit
        if last:
            text += held.flush(stream.finish())
            yield Step(token, text, "stop" if finished else "length", logprob, top)
            return
        yield Step(token, text, "", logprob, top)
        session.append([token])
    yield Step(-1, "", "length")


def _next(
    session: Session, sampler: Sampler, request: Generation, wanted: int
) -> tuple[int, float | None, tuple[LogProbability, ...]]:
    allowed = request.constraint.allowed() if request.constraint else None
    if allowed is None and request.logprobs is None:
        token = session.draw(sampler, wanted - 1)
    else:
        token = sampler.sample(session.logits, allowed)
    sampler.accept([token])
    if request.constraint:
        request.constraint.accept(token)
    if request.logprobs is None:
        return token, None, ()
    all_logprobs = log_probabilities(session.logits)
    best = np.argsort(-all_logprobs, kind="stable")[: request.logprobs]
    top = tuple(LogProbability(int(t), float(all_logprobs[t])) for t in best)
    return token, float(all_logprobs[token]), top


class _StopStrings:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is safe to show, and whether a stop string was completed."""
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max((self._overlap(s) for s in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def flush(self, text: str) -> str:
        """The rest, when nothing more comes; cut at a stop string."""
        shown, stopped = self.push(text)
        return shown if stopped else shown + self._held

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
