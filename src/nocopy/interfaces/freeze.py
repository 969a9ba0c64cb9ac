"""From a guest that is not running to what a snapshot holds: the manifest and the memories."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from os import fspath
from typing import TYPE_CHECKING

from nocopy.errors import UsageError
from nocopy.interfaces.compute import Compute
from nocopy.snapshot.format import LIMITS, PAGE
from nocopy.snapshot.manifest import (
    ConstraintState,
    EnvironmentVariable,
    GlobalState,
    HandleState,
    Manifest,
    MemoryState,
    ModelState,
    ModuleState,
    SessionState,
    TableState,
    TokenState,
    WasiState,
)
from nocopy.snapshot.session import CREATOR, BytesSource, token_bytes
from nocopy.snapshot.write import Source
from nocopy.wasm import Dir, Guest, Wasi

if TYPE_CHECKING:
    from nocopy.interfaces.sessions import Sessions
    from nocopy.session.constraint import Constraint


def describe(
    guest: Guest, wasi: Wasi, compute: Compute, stack: ExitStack, *, with_module: bool
) -> tuple[Manifest, list[Source]]:
    """What a snapshot of a guest holds.

    Args:
        guest: quiescent.
        wasi: what it was granted.
        compute: its import module.
        stack: closes the memories that are made for the snapshot alone.
        with_module: whether the module's bytes are part of it.

    Raises:
        UsageError: the guest holds something that cannot be kept; the message says what.
        DeviceError: the device does not give back what is in its own memory.
    """
    sessions = compute.sessions
    if sessions is not None:
        sessions.flush()
    state = guest.read_state()
    memories: list[Source] = list(guest.memories)
    states = _memories(guest)
    main = next(i for i, memory in enumerate(memories) if memory is guest.memory)

    def add(memory: Source) -> int:
        memories.append(memory)
        states.append(MemoryState(memory.size))
        return len(memories) - 1

    scratch = compute.attachment.grip.read_scratch(compute.ledger)
    held_scratch = None if scratch is None else add(stack.enter_context(scratch))
    binary = guest.module.binary
    held = add(BytesSource(binary)) if with_module else None
    open_sessions = () if sessions is None else _sessions(sessions, main, add)
    models = [] if sessions is None else _models(sessions)
    manifest = Manifest(
        "guest",
        tuple(states),
        generation=compute.clone_info.generation,
        parent=compute.parent,
        label=compute.checkpoint_label if compute.asked else None,
        created_by=CREATOR,
        device=compute.device.info.name,
        module=ModuleState(guest.module.digest, guest.module.name, held, len(binary) if with_module else 0),
        globals=tuple(GlobalState(g.index, g.type, g.value) for g in state.globals),  # pyright: ignore
        tables=tuple(TableState(t.index, t.elements) for t in state.tables),
        wasi=WasiState(
            tuple(wasi.args),
            tuple(EnvironmentVariable(name, value) for name, value in wasi.env.items()),
            tuple(map(preopen_name, wasi.dirs)),
        ),
        models=tuple(models),
        sessions=open_sessions,
        handles=None if sessions is None else HandleState(*sessions.handles.used),
        scratch=held_scratch,
    )
    return manifest, memories


def preopen_name(entry: Dir) -> str:
    """Under which name the guest sees a directory."""
    return entry.guest or fspath(entry.host)


def _memories(guest: Guest) -> list[MemoryState]:
    found: list[MemoryState] = []
    for exposed, memory in zip(guest.module.exposed.memories, guest.memories, strict=True):
        if memory.size % PAGE:
            raise UsageError(
                f"freezing was asked for; memory {exposed.index} has {memory.size} bytes, and only whole"
                f" pages of {PAGE} bytes can be kept. Build the guest with pages of that size."
            )
        low, high, wide = exposed.limits
        most = None if high is None or high * PAGE > LIMITS["memory"][0] else high * PAGE
        found.append(MemoryState(memory.size, exposed.named, low * PAGE, most, wide))
    return found


def _models(sessions: Sessions) -> list[ModelState]:
    return [
        ModelState(lease.loaded.model.digest, sessions.names[handle], handle)
        for handle, lease in sessions.leases
    ]


def _sessions(sessions: Sessions, main: int, add: Callable[[Source], int]) -> tuple[SessionState, ...]:
    """The open sessions, whose regions lie in memory `main`; their tokens become a memory that is added."""
    leases = [lease for _, lease in sessions.leases]
    tokens = [token_bytes(found.session.tokens) for _, found in sessions.open_ones]
    memory, at = (add(BytesSource(b"".join(tokens))), 0) if tokens else (0, 0)
    made: list[SessionState] = []
    for (handle, found), raw in zip(sessions.open_ones, tokens, strict=True):
        region = found.session.region
        made.append(
            SessionState(
                main,
                found.start,
                found.stop - found.start,
                leases.index(found.lease),
                region.context,
                region.chunk,
                region.kv.name.lower(),
                handle,
                TokenState(memory, at, len(raw) // 4),
                fresh=found.fresh,
                constraint=constraint_state(found.constraint),
            )
        )
        at += len(raw)
    return tuple(made)


def constraint_state(constraint: Constraint | None) -> ConstraintState | None:
    """A constraint as a manifest has it."""
    if constraint is None:
        return None
    return ConstraintState(constraint.kind, constraint.source, token_bytes(constraint.tokens))


Progress = Callable[[int, int], None]
"""Gets the bytes of memory that were written, and how many there are."""
