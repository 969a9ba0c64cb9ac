"""What a snapshot says about itself: everything but the pages.

Each field here is a field of the manifest; docs/snapshot.md has the same list with the meaning of each. A
field that is added, dropped or retyped is a new format version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from nocopy.snapshot.format import LIMITS, PAGE
from nocopy.snapshot.typed_json import Length, Range

Name = Annotated[str, Length(0, 4096)]
Digest = Annotated[bytes, Length(32, 32)]
"""BLAKE3."""
U32 = Annotated[int, Range(0, 2**32 - 1)]
U64 = Annotated[int, Range(0, 2**64 - 1)]
Size = Annotated[int, Range(0, LIMITS["memory"][0])]
"""Bytes."""

GLOBAL_BYTES = {"i32": 4, "i64": 8, "f32": 4, "f64": 8, "v128": 16}


@dataclass(frozen=True, slots=True)
class MemoryState:
    """A linear memory.

    Sizes are in bytes, multiples of 64 KiB. `name` is what the module exports it as; None if it does not, or
    if it is no guest's.
    """

    size: Size
    name: Name | None = None
    minimum: Size = 0
    maximum: Size | None = None
    memory64: bool = False

    def __post_init__(self) -> None:
        most = self.size if self.maximum is None else self.maximum
        if any(n % PAGE for n in (self.size, self.minimum, most)):
            raise ValueError(f"sizes must be multiples of {PAGE} bytes; they are {self}")
        if not self.minimum <= self.size <= most:
            raise ValueError(f"the size must lie between minimum and maximum; they are {self}")


@dataclass(frozen=True, slots=True)
class GlobalState:
    """A mutable global: its index in the module, and its value as it lies in memory, little endian."""

    index: U32
    type: Literal["i32", "i64", "f32", "f64", "v128"]
    value: Annotated[bytes, Length(4, 16)]

    def __post_init__(self) -> None:
        if len(self.value) != GLOBAL_BYTES[self.type]:
            raise ValueError(f"{self.type} has {GLOBAL_BYTES[self.type]} bytes; {len(self.value)} were found")


@dataclass(frozen=True, slots=True)
class TableState:
    """A table: its index in the module, and the index of the function in each element, None for null."""

    index: U32
    elements: Annotated[tuple[U32 | None, ...], Length(0, 10_000_000)]


@dataclass(frozen=True, slots=True)
class EnvironmentVariable:
    """A variable that the guest sees."""

    name: Name
    value: Annotated[str, Length(0, 2**20)]


@dataclass(frozen=True, slots=True)
class WasiState:
    """What a guest was granted: arguments, environment, and folders by the name that it sees."""

    args: tuple[Annotated[str, Length(0, 2**20)], ...] = ()
    env: tuple[EnvironmentVariable, ...] = ()
    preopens: tuple[Name, ...] = ()


@dataclass(frozen=True, slots=True)
class ModuleState:
    """The module whose instance this was: the digest of its bytes as the user has them.

    The bytes themselves are the first `nbytes` of memory `memory`; None if the snapshot is without them.
    """

    digest: Digest
    name: Name | None = None
    memory: U32 | None = None
    nbytes: U64 = 0


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model that sessions use: its digest, the name under which it was granted, and the guest's handle."""

    digest: Digest
    name: Name | None = None
    handle: U32 | None = None


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Added to the logit of one token."""

    token: U32
    bias: float


@dataclass(frozen=True, slots=True)
class SamplerState:
    """A sampler: its options, its seed, how many draws it made, recent tokens (u32, little endian)."""

    temperature: float
    top_k: U32
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: Annotated[int, Range(-1, 2**31)]
    logit_bias: tuple[LogitBias, ...]
    seed: U64
    draws: U64
    recent: bytes = b""


@dataclass(frozen=True, slots=True)
class ConstraintState:
    """What may be generated: the kind, its source, and the tokens that it followed (u32, little endian)."""

    kind: Name
    source: Annotated[str, Length(0, 2**20)]
    tokens: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenState:
    """A session's tokens: `count` u32, little endian, from byte `offset` of a memory that is no guest's."""

    memory: U32
    offset: U64
    count: U32


@dataclass(frozen=True, slots=True)
class SessionState:
    """A session: where its region lies, its shape, and its tokens.

    `fresh` says that the logits in its region are those after its last token.
    """

    memory: U32
    offset: U64
    nbytes: U64
    model: U32
    context: U32
    chunk: U32
    kv: Name
    handle: U32
    tokens: TokenState
    sampler: SamplerState | None = None
    fresh: bool = False
    constraint: ConstraintState | None = None


@dataclass(frozen=True, slots=True)
class HandleState:
    """The handles that a guest has used: from `first` up to, and without, `next`."""

    first: U32
    next: U32


@dataclass(frozen=True, slots=True)
class Message:
    """A turn of a conversation."""

    role: Name
    content: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot without its pages.

    `generation` counts how often the guest was thawed or forked before, so that it can tell a clone.
    `parent` is the content digest of the snapshot that it was thawed from. `label` is what the guest gave to
    `checkpoint`. `device` is where it was frozen; it thaws on any. `scratch` is the index of the memory that
    holds what was in the device's own memory. `messages` are a session's conversation.
    """

    kind: Literal["guest", "session"]
    memories: Annotated[tuple[MemoryState, ...], Length(0, LIMITS["memories"][0])]
    generation: U64 = 0
    parent: Digest | None = None
    label: Annotated[str, Length(0, 65536)] | None = None
    created_by: Name = ""
    device: Name | None = None
    module: ModuleState | None = None
    globals: tuple[GlobalState, ...] = ()
    tables: tuple[TableState, ...] = ()
    wasi: WasiState | None = None
    models: tuple[ModelState, ...] = ()
    sessions: tuple[SessionState, ...] = field(default=())
    handles: HandleState | None = None
    scratch: U32 | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        for i, session in enumerate(self.sessions):
            if session.memory >= len(self.memories) or session.model >= len(self.models):
                raise ValueError(f"session {i} names memory {session.memory} and model {session.model}")
            if session.offset + session.nbytes > self.memories[session.memory].size:
                raise ValueError(f"session {i} ends after the memory that it lies in")
            tokens = session.tokens
            if tokens.memory >= len(self.memories):
                raise ValueError(f"the tokens of session {i} lie in memory {tokens.memory}")
            if tokens.offset + 4 * tokens.count > self.memories[tokens.memory].size:
                raise ValueError(f"the tokens of session {i} end after the memory that they lie in")
        for what, index in (("scratch", self.scratch), ("module", self.module and self.module.memory)):
            if index is not None and index >= len(self.memories):
                raise ValueError(f"the {what} lies in memory {index}; there are {len(self.memories)}")
        if self.module is not None and self.module.memory is not None:
            room = self.memories[self.module.memory].size
            if self.module.nbytes > room:
                raise ValueError(f"the module has {self.module.nbytes} bytes; its memory has {room}")
