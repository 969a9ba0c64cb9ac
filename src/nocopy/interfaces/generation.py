"""`session_generate`: the options that a guest wrote, and the loop that draws and appends tokens."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import fields
from functools import lru_cache
from typing import Any

import numpy as np

from nocopy.errors import UsageError
from nocopy.interfaces.model_imports import BIAS, GENERATION, GENERATION_VERSION, Finish, Generate
from nocopy.interfaces.sessions import GuestSession
from nocopy.memory.linear import LinearMemory
from nocopy.session.sampler import Sampler, Sampling

_OFFSETS = {name: field[1] for name, field in (GENERATION.fields or {}).items()}
_HEAD = _OFFSETS["draws"]
"""Bytes that stay the same from call to call."""
_COUNT, _ADDRESS, _TAIL = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<QII")


class Options:
    """A guest's `nocopy_generation`.

    Raises:
        UsageError: it does not lie in the memory, or holds what it may not.
    """

    def __init__(self, memory: LinearMemory, pointer: int, vocabulary: int) -> None:
        self._memory, self._tail = memory, pointer + _HEAD
        raw = memory.read(pointer, GENERATION.itemsize)
        (count,) = _COUNT.unpack_from(raw, _OFFSETS["bias_count"])
        (biases,) = _ADDRESS.unpack_from(raw, _OFFSETS["biases"])
        if count > vocabulary:
            raise UsageError(f"{count} biases were given; the model has {vocabulary} tokens")
        options, flags = read_options(
            raw[:_HEAD], memory.read(biases, count * BIAS.itemsize) if count else b""
        )
        draws, _, reserved = _TAIL.unpack_from(raw, _HEAD)
        if reserved:
            raise UsageError(f"generation options with reserved = {reserved} were given; it must be 0")
        self.ignore_end = bool(flags & Generate.IGNORE_END)
        self.sampler = Sampler(options)
        self.sampler.draws = draws

    def finish(self, why: Finish) -> None:
        """Tell the guest why it stopped, and how far the random numbers have come."""
        self._memory.write(self._tail, _TAIL.pack(self.sampler.draws % 2**64, why, 0))


@lru_cache(maxsize=256)  # a guest that generates token by token gives the same ones each time
def read_options(head: bytes, biases: bytes) -> tuple[Sampling, int]:
    """The options and flags in the first bytes of a `nocopy_generation`.

    Raises:
        UsageError: another version, an unknown flag, or a number outside its range.
    """
    raw: Any = np.frombuffer(head.ljust(GENERATION.itemsize, b"\0"), GENERATION)[0]
    if raw["version"] != GENERATION_VERSION:
        raise UsageError(
            f"generation options of version {raw['version']} were given; this host knows"
            f" {GENERATION_VERSION}. Start from nocopy_generation_default()."
        )
    flags = int(raw["flags"])
    if flags & ~sum(Generate):
        raise UsageError(f"generation flags {flags:#x} were given; known are {sum(Generate):#x}")
    numbers = {f.name: raw[f.name].item() for f in fields(Sampling) if f.name in _OFFSETS}
    found = np.frombuffer(biases, BIAS)
    bias: dict[int, float] = dict(zip(found["token"].tolist(), found["bias"].tolist(), strict=True))
    return Sampling(**numbers, logit_bias=bias), flags


def generate(
    found: GuestSession,
    sampler: Sampler,
    most: int,
    *,
    put: Callable[[int, int], None],
    ends: Collection[int],
    check: Callable[[], object] | None,
) -> tuple[int, Finish]:
    """Draw tokens, append each, and write it where the guest wants it.

    Args:
        found: the session; its logits are those after its last token.
        sampler: knows the tokens that the session holds already.
        most: tokens to draw.
        put: writes a token: its index among those drawn, and the token.
        ends: tokens that end the text; they are neither written nor appended.
        check: called before each token; it raises when time is up. None for a guest that has all the time.

    Returns:
        How many tokens were written, and why it stopped.
    """
    session, constraint = found.session, found.constraint
    room = session.context - session.length
    for made in range(most):
        if constraint is not None and constraint.finished:
            return made, Finish.CONSTRAINT
        if made == room:
            return made, Finish.CONTEXT
        if check is not None:
            check()
        if constraint is None:
            token = session.draw(sampler, most - made)
        else:
            token = sampler.sample(session.logits, constraint.allowed())
        sampler.accept([token])
        if constraint is not None:
            constraint.accept(token)
        if token in ends:
            return made, Finish.END
        put(made, token)
        found.append([token])
    finished = constraint is not None and constraint.finished
    return most, Finish.CONSTRAINT if finished else Finish.LENGTH
