"""Freezes and thaws a session that is no guest's: a conversation with a language model, as a file."""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from nocopy.errors import SnapshotMismatchError, UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.memory.pages import PAGE as PAGE_SIZE
from nocopy.memory.pages import round_up
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.region import Region
from nocopy.session.sampler import Sampler, Sampling
from nocopy.snapshot.format import PAGE
from nocopy.snapshot.manifest import (
    LogitBias,
    Manifest,
    MemoryState,
    Message,
    ModelState,
    SamplerState,
    SessionState,
    TokenState,
)
from nocopy.snapshot.origin import FileOrigin
from nocopy.snapshot.read import Snapshot, Verify, open_snapshot
from nocopy.snapshot.sign import Signer, Verifier
from nocopy.snapshot.write import Written, write_snapshot

CREATOR: Final = f"nocopy {version('nocopy')}"


@dataclass(frozen=True)
class Thawed:
    """A session that goes on, the sampler that it was frozen with, if any, and its conversation."""

    session: OwnSession
    sampler: Sampler | None
    messages: list[dict[str, str]]


def freeze_session(
    session: OwnSession,
    path: str | os.PathLike[str],
    *,
    sampler: Sampler | None = None,
    messages: Sequence[Mapping[str, str]] = (),
    compress: bool = False,
    signer: Signer | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Written:
    """Write a session to a file; it goes on here as if nothing had happened.

    Args:
        session: of a `LanguageModel`; nothing is being generated.
        path: replaced when all of the file is on the disk.
        sampler: goes into the file too, with how far its random numbers have come.
        messages: the conversation: objects with role and content.
        compress: smaller, for transport; thawing reads it instead of mapping it.
        signer: signs it.
        progress: called with the bytes of memory written, and how many there are.

    Raises:
        ClosedError: the session is closed.
        SnapshotWriteError: the file cannot be written; `path` has what it had.
    """
    region, model = session.region, session.engine.model
    size = session.memory.pages.state.size
    session.flush()
    tokens = BytesSource(token_bytes(session.tokens))

    def describe() -> Manifest:
        state = SessionState(
            0,
            region.offset,
            region.nbytes,
            0,
            region.context,
            region.chunk,
            region.kv.name.lower(),
            0,
            TokenState(1, 0, session.length),
            fresh=True,
            sampler=None if sampler is None else _sampler_state(sampler),
        )
        return Manifest(
            "session",
            (MemoryState(size), MemoryState(tokens.size)),
            created_by=CREATOR,
            device=session.engine.device.info.name,
            models=(ModelState(model.digest, model.path.name),),
            sessions=(state,),
            messages=tuple(Message(m["role"], m["content"]) for m in messages),
        )

    return write_snapshot(
        path,
        describe,
        [session.memory, tokens],
        held=[region.used(session.length), [(0, 4 * session.length)]],
        compress=compress,
        signer=signer,
        progress=progress,
    )


def thaw_session(
    model: LanguageModel,
    path: str | os.PathLike[str],
    *,
    verify: Verify = "eager",
    key: Verifier | None = None,
) -> Thawed:
    """Go on with a session that was frozen, on any device. It takes as long for a long one as for a short one
    if the file is not compressed and `verify` is "off".

    Args:
        model: the same model; it closes the session at the latest.
        path: the file.
        verify: "eager" checks every page first; "lazy" while the session goes on, which raises
            `SnapshotDamagedError` when it is used once damage was found; "off" none: for your own files.
        key: the file must be signed by it.

    Raises:
        UsageError: there is no such file, or it is none of a session.
        SnapshotFileError: it breaks the format.
        SnapshotDamagedError: a digest does not match.
        SnapshotSignatureError: it is not signed by `key`.
        SnapshotMismatchError: another model; the message says what differs.
        MemoryLimitError: there is not that much memory.
    """
    snapshot = open_snapshot(path, verify=verify, key=key)
    manifest = snapshot.manifest
    try:
        if manifest.kind != "session" or len(manifest.sessions) != 1 or manifest.sessions[0].memory != 0:
            raise UsageError(f"a session was to be thawed; '{snapshot.path}' is a {manifest.kind}. Use thaw.")
        (state,) = manifest.sessions
        check_model(manifest.models[state.model].digest, model.model.digest, "that is open")
        check_shape(state, model.engine.chunk)
        session = _open(model, snapshot, state)
    except BaseException:
        snapshot.close()
        raise
    if verify == "lazy":
        session.before_use, session.on_close = snapshot.check, snapshot.close
    else:
        snapshot.close()
    messages = [{"role": m.role, "content": m.content} for m in manifest.messages]
    return Thawed(session, None if state.sampler is None else _sampler(state.sampler), messages)


def _open(model: LanguageModel, snapshot: Snapshot, state: SessionState) -> OwnSession:
    kv, size = kv_type(state), snapshot.manifest.memories[0].size

    def fill(memory: LinearMemory) -> array[int]:
        if state.offset or state.nbytes != memory.size or size != memory.size:
            raise mismatch(
                f"a session in {state.nbytes} of {size} bytes", f"this model's takes {memory.size}"
            )
        origin = FileOrigin(snapshot)
        memory.refill(lambda address: origin.place(0, address), fresh=True)
        region = model.engine.own_region(state.context, kv)
        model.device.expect(_touched(memory.address, memory.size, region, state.tokens.count))
        return tokens_of(snapshot.read(state.tokens.memory, state.tokens.offset, 4 * state.tokens.count))

    try:
        return model.session(context=state.context, kv=kv, fill=fill)
    except UsageError as error:
        raise SnapshotMismatchError(f"the session of the snapshot cannot go on: {error}") from error


def _touched(start: int, size: int, region: Region, length: int) -> list[tuple[int, int, bool]]:
    """The pages that a token after `length` others touches, as `Device.expect` takes them: what the session
    itself writes, the token's row of the cache, the rows before it, the logits.
    """
    row = region.home + length * region.cache.token_bytes
    low, high = row // PAGE_SIZE * PAGE_SIZE, min(round_up(row + region.cache.token_bytes), size)
    logits, head = round_up(region.logits.offset), round_up(region.draws[0].offset + 1)
    return [
        (start, logits, True),
        (start + low, high - low, True),
        (start + region.home, low - region.home, False),
        (start + logits, head - logits, True),
    ]


_TYPES: Final = dict(DType.__members__)
_BIASED: Final = ("logit_bias", "seed")
_NUMBERS: Final = [field.name for field in fields(Sampling) if field.name not in _BIASED]


def _sampler_state(sampler: Sampler) -> SamplerState:
    options = sampler.options
    numbers: dict[str, Any] = {name: getattr(options, name) for name in _NUMBERS}
    return SamplerState(
        **numbers,
        logit_bias=tuple(LogitBias(token, bias) for token, bias in options.logit_bias.items()),
        seed=sampler.seed,
        draws=sampler.draws,
        recent=token_bytes(list(sampler.recent)),
    )


def _sampler(state: SamplerState) -> Sampler:
    numbers: dict[str, Any] = {name: getattr(state, name) for name in _NUMBERS}
    bias = {b.token: b.bias for b in state.logit_bias}
    try:
        sampler = Sampler(Sampling(**numbers, logit_bias=bias, seed=state.seed))
    except UsageError as error:
        raise SnapshotMismatchError(f"the sampler of the snapshot cannot go on: {error}") from error
    sampler.draws = state.draws
    sampler.accept(tokens_of(state.recent))
    return sampler


class BytesSource:
    """Bytes as a memory that a snapshot is written from: whole pages, zero after the last byte."""

    def __init__(self, data: bytes) -> None:
        self.size = max(-(-len(data) // PAGE), 1) * PAGE
        self._room = np.zeros(self.size + PAGE_SIZE, np.uint8)
        begins: int = self._room.__array_interface__["data"][0]
        skip = -begins % PAGE_SIZE
        self.address = begins + skip
        self._room[skip : skip + len(data)] = np.frombuffer(data, np.uint8)


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Tokens as a snapshot has them: u32, little endian."""
    made = array("I", tokens)
    if sys.byteorder == "big":
        made.byteswap()
    return made.tobytes()


def mismatch(had: str, found: str) -> SnapshotMismatchError:
    """The error for a snapshot that has one thing where another is found."""
    return SnapshotMismatchError(f"thawing was asked for; the snapshot has {had}; {found}")


def check_model(wanted: bytes, found: bytes, where: str) -> None:
    """Refuse another model than the one that a session was frozen with.

    Raises:
        SnapshotMismatchError: it is another.
    """
    if wanted != found:
        raise mismatch(
            f"sessions of the model {wanted.hex()[:16]}…",
            f"the one {where} is another, {found.hex()[:16]}…",
        )


def check_shape(state: SessionState, chunk: int) -> None:
    """Refuse a session that is laid out for another number of tokens in a pass, or has more than fit.

    Raises:
        SnapshotMismatchError: it is, or has.
    """
    if state.tokens.count > state.context:
        raise mismatch(f"a session of {state.tokens.count} tokens", f"{state.context} fit into it")
    if state.chunk != chunk:
        raise mismatch(f"a session that takes {state.chunk} tokens in a pass", f"this engine takes {chunk}")


def kv_type(state: SessionState) -> DType:
    """The element type of a session's cache.

    Raises:
        SnapshotMismatchError: there is none of that name.
    """
    found = _TYPES.get(state.kv.upper())
    if found is None:
        raise mismatch(f"a session with a KV cache of {state.kv!r}", "there is no such type")
    return found


def tokens_of(raw: bytes) -> array[int]:
    """Tokens of a snapshot; what is no token comes back as a negative number.

    Raises:
        SnapshotMismatchError: they are no whole numbers of four bytes.
    """
    if len(raw) % 4:
        raise mismatch(f"{len(raw)} bytes of tokens", "each takes 4")
    found = array("i", raw)
    if sys.byteorder == "big":
        found.byteswap()
    return found
