"""What each function of `model_imports.MODEL_IMPORTS` does for one guest: pointers in, pointers out."""

from __future__ import annotations

import ctypes
import json
from array import array
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from nocopy.errors import UsageError
from nocopy.interfaces.attachment import Attachment
from nocopy.interfaces.constraint_limits import MAX_CONSTRAINT, check_constraint
from nocopy.interfaces.generation import Options, generate
from nocopy.interfaces.grip import rest
from nocopy.interfaces.loaded import Loaded, Source
from nocopy.interfaces.model_imports import ConstraintKind, Detokenize, Tokenize
from nocopy.interfaces.sessions import GuestSession, Sessions
from nocopy.models.kv import CACHE_TYPES, Cache
from nocopy.session.constraint import Constraint, Kind
from nocopy.tape.record import Space

MAX_NAME = 256
MAX_INPUT = 16 << 20
"""Bytes of text that one call takes: tokenising more would hold the host for seconds."""
MAX_TOKENS = 1 << 20
"""Tokens that become text in one call."""
CHAT_KEYS = {"messages", "tools", "add_generation_prompt"}


class ModelCalls:
    """The functions about models of one guest's import module. Each returns a number or raises an `Error`.

    Args:
        attachment: the guest's memory on its device.
        grants: the models that it may open, by name.
    """

    def __init__(self, attachment: Attachment, grants: Mapping[str, Source]) -> None:
        self.sessions = Sessions(attachment, grants)
        self._memory = attachment.memory

    # Models

    def model_open(self, name: int, length: int) -> int:
        """See `MODEL_IMPORTS`."""
        return self.sessions.open_model(self._text(name, length, MAX_NAME, "a model's name"))

    def model_close(self, model: int) -> int:
        """See `MODEL_IMPORTS`."""
        self.sessions.close_model(model)
        return 0

    def model_info(self, model: int, text: int, length: int) -> int:
        """See `MODEL_IMPORTS`."""
        raw = json.dumps(model_info(self.sessions.model(model))).encode()
        self._memory.check(text, length)
        self._memory.write(text, raw[: length - 1] + b"\0" if length else b"")
        return len(raw)

    # Sessions

    def session_size(self, model: int, context: int, kv: int, out: int) -> int:
        """See `MODEL_IMPORTS`."""
        region = self.sessions.region(self.sessions.model(model), 0, context, kv)
        self._write_u64(out, region.nbytes)
        return 0

    def session_open(self, model: int, at: int, length: int, context: int, kv: int) -> int:
        """See `MODEL_IMPORTS`."""
        return self.sessions.open(model, at, length, context, kv)

    def session_fork(self, session: int, at: int, length: int) -> int:
        """See `MODEL_IMPORTS`."""
        return self.sessions.fork(session, at, length)

    def session_close(self, session: int) -> int:
        """See `MODEL_IMPORTS`."""
        self.sessions.close_session(session)
        return 0

    def session_append(self, session: int, tokens: int, count: int) -> int:
        """See `MODEL_IMPORTS`."""
        found = self.sessions.session(session)
        found.append(self._tokens(tokens, count, found.session.context))
        return 0

    def session_extend(self, session: int, tokens: int, count: int) -> int:
        """See `MODEL_IMPORTS`."""
        found = self.sessions.session(session)
        if not count:
            raise UsageError("no tokens were fed; give at least one")
        return found.extend(self._tokens(tokens, count, found.session.context))

    def session_truncate(self, session: int, length: int) -> int:
        """See `MODEL_IMPORTS`."""
        self.sessions.session(session).truncate(length)
        return 0

    def session_length(self, session: int) -> int:
        """See `MODEL_IMPORTS`."""
        return self.sessions.session(session).session.length

    def session_logits(self, session: int, out: int) -> int:
        """See `MODEL_IMPORTS`."""
        found = self._ready(session)
        found.session.refresh()
        logits = found.session.region.logits
        self._write_u64(out, logits.offset)
        return logits.shape[0]

    def session_constrain(self, session: int, kind: int, text: int, length: int) -> int:
        """See `MODEL_IMPORTS`."""
        found = self.sessions.session(session)
        if kind not in tuple(ConstraintKind):
            raise UsageError(
                f"a constraint of kind {kind} was asked for; there are 0 to {len(ConstraintKind) - 1}"
            )
        if kind == ConstraintKind.NONE:
            found.constraint = None
            return 0
        source = self._text(text, length, MAX_CONSTRAINT, "a constraint")
        wanted = ConstraintKind(kind)
        check_constraint(wanted, source)
        name = cast(Kind, wanted.name.lower())
        found.constraint = Constraint.make(found.lease.loaded.vocabulary, name, source)
        return 0

    def session_generate(self, session: int, options: int, tokens: int, most: int) -> int:
        """See `MODEL_IMPORTS`."""
        found = self._ready(session)
        self._aligned(options, 8, "generation options")
        chosen = Options(self._memory, options, found.session.engine.config.vocabulary)
        self._aligned(tokens, 4, "tokens")
        self._memory.check(tokens, 4 * most)
        # A view of the memory would cost more than a small model's token.
        place = ctypes.cast(self._memory.address + tokens, ctypes.POINTER(ctypes.c_int32))
        recent = chosen.sampler.options.repeat_last_n
        chosen.sampler.accept(found.session.tokens[-recent:] if recent > 0 else found.session.tokens)
        try:
            made, why = generate(
                found,
                chosen.sampler,
                most,
                put=place.__setitem__,
                ends=() if chosen.ignore_end else found.lease.loaded.model.tokenizer.end_ids,
                check=None if self.sessions.until is None else lambda: rest(self.sessions.until),
            )
        finally:
            self.sessions.settle(found)
        chosen.finish(why)
        return made

    # Text

    def tokenize(self, model: int, text: int, length: int, tokens: int, most: int, flags: int) -> int:
        """See `MODEL_IMPORTS`."""
        tokenizer = self.sessions.model(model).model.tokenizer
        known(flags, sum(Tokenize), "tokenize")
        out = self._tokens_out(tokens, most)
        ids = tokenizer.encode(
            self._text(text, length, MAX_INPUT, "a text"),
            add_special=bool(flags & Tokenize.ADD_SPECIAL),
            parse_special=bool(flags & Tokenize.PARSE_SPECIAL),
        )
        out[: len(ids)] = ids[:most]
        return len(ids)

    def detokenize(self, model: int, tokens: int, count: int, text: int, most: int, flags: int) -> int:
        """See `MODEL_IMPORTS`."""
        tokenizer = self.sessions.model(model).model.tokenizer
        known(flags, sum(Detokenize), "detokenize")
        stream = tokenizer.stream(
            continues=bool(flags & Detokenize.CONTINUES), skip_special=not flags & Detokenize.SHOW_SPECIAL
        )
        ids = self._tokens(tokens, count, MAX_TOKENS)
        return self._write_text(text, most, b"".join(map(stream.push_bytes, ids)))

    def chat_template(self, model: int, messages: int, length: int, text: int, most: int) -> int:
        """See `MODEL_IMPORTS`."""
        source = self._text(messages, length, MAX_INPUT, "a conversation")
        prompt = self.sessions.model(model).model.template.render(**conversation(source))
        return self._write_text(text, most, prompt.encode())

    # The guest's memory

    def _ready(self, session: int) -> GuestSession:
        """A session whose logits are those after its last token."""
        found = self.sessions.session(session)
        if not found.fresh:
            raise UsageError(
                f"logits of session {session} were asked for; it is empty or was truncated."
                " Append tokens first."
            )
        return found

    def _text(self, pointer: int, length: int, most: int, what: str) -> str:
        if length > most:
            raise UsageError(f"{what} of {length} bytes was given; at most {most} are taken")
        try:
            return self._memory.read(pointer, length).decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{what} was given that is not UTF-8: byte {error.start}, {error.reason}"
            ) from error

    def _tokens(self, pointer: int, count: int, most: int) -> array[int]:
        self._aligned(pointer, 4, "tokens")
        if count > most:
            raise UsageError(f"{count} tokens were given; there is room for {most}")
        return array("i", self._memory.read(pointer, 4 * count))

    def _tokens_out(self, pointer: int, count: int) -> npt.NDArray[np.int32]:
        self._aligned(pointer, 4, "tokens")
        self._memory.check(pointer, 4 * count)
        return self._memory.view(count, "i32", pointer).numpy()

    def _write_text(self, pointer: int, most: int, raw: bytes) -> int:
        self._memory.check(pointer, most)
        self._memory.write(pointer, raw[:most])
        return len(raw)

    def _write_u64(self, pointer: int, value: int) -> None:
        self._aligned(pointer, 8, "a 64-bit number")
        self._memory.write(pointer, value.to_bytes(8, "little"))

    def _aligned(self, pointer: int, size: int, what: str) -> None:
        if pointer % size:
            raise UsageError(f"{what} at address {pointer} was asked for; use a multiple of {size}")


def known(flags: int, every: int, function: str) -> None:
    """Refuse flags that do not exist."""
    if flags & ~every:
        raise UsageError(f"{function} with flags {flags:#x} was asked for; known are {every:#x}")


def conversation(source: str) -> dict[str, Any]:
    """The arguments of a chat template.

    Raises:
        UsageError: not JSON, or not a conversation.
    """
    try:
        found: Any = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"a conversation was given that is not JSON: {error}") from error
    values: dict[str, Any] = cast(dict[str, Any], found) if isinstance(found, dict) else {"messages": found}
    messages, tools = values.get("messages"), values.get("tools")
    if not _are_objects(messages) or not (tools is None or _are_objects(tools)) or values.keys() - CHAT_KEYS:
        raise UsageError(
            'a conversation was given that is neither a list of {"role", "content"} nor an object with'
            f" {', '.join(sorted(CHAT_KEYS))}"
        )
    return values


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in cast(list[object], value))


def model_info(loaded: Loaded) -> dict[str, Any]:
    """What a guest may know of a model: nothing of where it lies."""
    model, c = loaded.model, loaded.model.config
    tokenizer = model.tokenizer
    return {
        "architecture": c.architecture,
        "context": c.context,
        "vocabulary": c.vocabulary,
        "width": c.width,
        "layers": c.layers,
        "heads": c.heads,
        "kv_heads": c.groups,
        "head": c.head,
        "hidden": c.hidden,
        "chunk": loaded.engine.chunk,
        "kv_bytes_per_token": {
            kind.name.lower(): Cache(c, Space.GUEST, 0, 1, kind).token_bytes
            for kind in CACHE_TYPES
            if c.head % kind.block == 0
        },
        "tokenizer": tokenizer.kind,
        "special_tokens": dict(tokenizer.special),
        "end_tokens": sorted(tokenizer.end_ids),
    }
