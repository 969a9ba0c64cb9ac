"""From a snapshot to a guest that goes on: its memories, then what Wasmtime holds, then the device's side."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, cast

from nocopy.errors import SnapshotFileError, SnapshotMismatchError, UsageError
from nocopy.interfaces.clone import Clone
from nocopy.interfaces.compute import Compute
from nocopy.interfaces.freeze import preopen_name
from nocopy.memory.linear import LinearMemory
from nocopy.snapshot.manifest import ConstraintState, Manifest, MemoryState, TokenState
from nocopy.snapshot.origin import Origin
from nocopy.snapshot.read import Snapshot
from nocopy.snapshot.session import check_model, check_shape, kv_type, mismatch, tokens_of
from nocopy.wasm import Dir, Engine, Guest, Module
from nocopy.wasm.memory_creator import GUEST
from nocopy.wasm.state import GlobalValue, State, TableValue

if TYPE_CHECKING:
    from nocopy.interfaces.loaded import Loaded
    from nocopy.interfaces.sessions import GuestSession
    from nocopy.session.constraint import Constraint, Kind, Vocabulary


class Restore:
    """Makes a guest that was just made the one that a manifest describes.

    Args:
        manifest: of a guest.
        origin: has its memories.
        clone: which copy the new guest is.
        parent: the content digest of the snapshot that it comes from; None if it comes from none.
    """

    def __init__(self, manifest: Manifest, origin: Origin, clone: Clone, parent: bytes | None) -> None:
        self.manifest, self._origin, self._clone, self._parent = manifest, origin, clone, parent
        self._main = 0

    def fill(self, guest: Guest) -> None:
        """Give it its memories, globals and tables.

        Raises:
            SnapshotMismatchError: they are those of another module.
            MemoryLimitError: they are larger than the guest's limits allow.
        """
        manifest = self.manifest
        self._main = next(i for i, memory in enumerate(guest.memories) if memory is guest.memory)
        own = len(guest.memories)
        if len(manifest.memories) < own:
            raise mismatch(f"{len(manifest.memories)} memories", f"the module has {own}")
        for i, memory in enumerate(guest.memories):
            wanted = manifest.memories[i]
            self._check_memory(i, wanted, guest)
            memory.grow(wanted.size)
            memory.refill(lambda address, i=i: self._origin.place(i, address), owner=GUEST)
        state = State(
            tuple(GlobalValue(g.index, g.type, g.value) for g in manifest.globals),
            tuple(TableValue(t.index, t.elements) for t in manifest.tables),
        )
        try:
            guest.write_state(state)
        except UsageError as error:
            raise SnapshotMismatchError(f"the snapshot does not fit its module: {error}") from error

    def _check_memory(self, index: int, wanted: MemoryState, guest: Guest) -> None:
        exposed = guest.module.exposed.memories[index]
        size, most = guest.memories[index].size, guest.memories[index].maximum
        if wanted.name != exposed.named or not size <= wanted.size <= most:
            raise mismatch(
                f"memory {index}, {wanted.name!r}, of {wanted.size} bytes",
                f"the module's is {exposed.named!r} and may have {size} to {most}",
            )

    def bind(self, compute: Compute) -> None:
        """Give it what it had on its device: scratch memory, models, sessions.

        Raises:
            SnapshotMismatchError: a model that is granted now is another one, or none is under that name.
            MemoryLimitError: it had more than it may have here.
            DeviceError: the device has too little memory.
        """
        manifest = self.manifest
        compute.clone_info, compute.parent = self._clone, self._parent
        compute.checkpoint_label, compute.asked = manifest.label, manifest.label is not None
        if manifest.scratch is not None:
            memory = self.memory(manifest.scratch)
            try:
                compute.attachment.grip.write_scratch(memory, compute.ledger)
            finally:
                memory.close()
        if manifest.handles is not None:
            self._bind_sessions(compute)

    def _check_handles(self) -> None:
        """Refuse handles that are missing or come twice, and sessions outside the guest's own memory."""
        models, sessions = self.manifest.models, self.manifest.sessions
        handles = [*(model.handle for model in models), *(session.handle for session in sessions)]
        if not all(handles) or len(set(handles)) != len(handles):
            raise mismatch(f"the handles {handles}", "each must be there, once")
        outside = [session.memory for session in sessions if session.memory != self._main]
        if outside:
            raise mismatch(f"a session in memory {outside[0]}", f"sessions lie in memory {self._main}")

    def memory(self, index: int) -> LinearMemory:
        """A memory that is no guest's, made for the caller to close."""
        size = self.manifest.memories[index].size
        memory = LinearMemory(size, reserve=size, guard=0)
        try:
            self._origin.place(index, memory.address)
        except BaseException:
            memory.close()
            raise
        return memory

    def _tokens(self, state: TokenState) -> array[int]:
        memory = self.memory(state.memory)
        try:
            return tokens_of(memory.read(state.offset, 4 * state.count))
        finally:
            memory.close()

    def _bind_sessions(self, compute: Compute) -> None:
        manifest = self.manifest
        assert manifest.handles is not None
        self._check_handles()
        models = {model.handle or 0: model for model in manifest.models}
        handles = list(models)

        def check(handle: int, loaded: Loaded) -> None:
            check_model(models[handle].digest, loaded.model.digest, f"granted as {models[handle].name!r}")
            for state in manifest.sessions:
                if handles[state.model] == handle:
                    check_shape(state, loaded.engine.chunk)
                    loaded.engine.region(
                        state.offset, state.context, kv_type(state)
                    )  # before tokens are read

        def sessions(resume: Callable[..., GuestSession]) -> Mapping[int, GuestSession]:
            made: dict[int, GuestSession] = {}
            for state in manifest.sessions:
                found = resume(
                    handles[state.model],
                    state.offset,
                    state.nbytes,
                    state.context,
                    kv_type(state),
                    self._tokens(state.tokens),
                )
                found.fresh = state.fresh
                if state.constraint is not None:
                    if len(state.constraint.tokens) > 4 * state.context:
                        raise mismatch("a constraint that followed more tokens than fit", "that cannot be")
                    found.constraint = constraint_of(state.constraint, found.lease.loaded.vocabulary)
                made[state.handle] = found
            return made

        names = {handle: model.name or "" for handle, model in models.items()}
        missing = [name for name in names.values() if name not in compute.grants]
        if missing:
            raise mismatch(
                f"the models {', '.join(map(repr, dict.fromkeys(missing)))}",
                f"granted are {', '.join(map(repr, compute.grants)) or 'none'}; grant them under these names",
            )
        used = manifest.handles.first, manifest.handles.next
        try:
            compute.open_sessions().restore(used, names, check, sessions)
        except UsageError as error:
            raise SnapshotMismatchError(f"the sessions of the snapshot cannot go on: {error}") from error


def constraint_of(state: ConstraintState, vocabulary: Vocabulary) -> Constraint:
    """A constraint that has followed the tokens of a manifest."""
    from nocopy.interfaces.constraint_limits import check_constraint
    from nocopy.interfaces.model_imports import ConstraintKind
    from nocopy.session.constraint import Constraint

    kinds = {kind.name.lower(): kind for kind in ConstraintKind if kind}
    if state.kind not in kinds:
        raise mismatch(f"a constraint of kind {state.kind!r}", f"there are {', '.join(kinds)}")
    check_constraint(kinds[state.kind], state.source)
    constraint = Constraint.make(vocabulary, cast("Kind", state.kind), state.source)
    for token in tokens_of(state.tokens):
        constraint.accept(token)
    return constraint


def find_module(
    snapshot: Snapshot, given: str | bytes | bytearray | PathLike[str] | Module | None, engine: Engine
) -> Module:
    """The module that a guest was frozen of: the one that was given, or the one in the snapshot.

    Raises:
        UsageError: none was given and the snapshot has none.
        SnapshotMismatchError: it is another one.
        InvalidModuleError: what was given is no module.
    """
    wanted = snapshot.manifest.module
    if snapshot.manifest.kind != "guest" or wanted is None:
        raise UsageError(
            f"a guest was to be thawed; '{snapshot.path}' is a {snapshot.manifest.kind}."
            " Use thaw_session, or /load in a chat."
        )
    name = wanted.name or "module"
    if given is None:
        if wanted.memory is None:
            raise UsageError(
                f"a guest was to be thawed from '{snapshot.path}', which is without its module."
                f" Give the module: {name}, digest {wanted.digest.hex()[:16]}…"
            )
        module = Module(_binary(snapshot, wanted.memory, wanted.nbytes), engine)
        module.name = name
    else:
        module = given if isinstance(given, Module) else Module(given, engine)
    if module.digest != wanted.digest:
        raise mismatch(
            f"a guest of the module {name}, digest {wanted.digest.hex()[:16]}…",
            f"{module.name} has {module.digest.hex()[:16]}…",
        )
    return module


def _binary(snapshot: Snapshot, index: int, nbytes: int) -> bytes:
    size = snapshot.manifest.memories[index].size
    with LinearMemory(size, reserve=size, guard=0) as memory:
        snapshot.map_into(index, memory.address)
        data = memory.read(0, nbytes)
    if not data.startswith(b"\0asm"):
        raise SnapshotFileError(snapshot.path, "manifest", "what it says is the module is none")
    return data


def granted_dirs(names: Sequence[str], dirs: Sequence[str | PathLike[str] | Dir]) -> list[Dir]:
    """The directories in the order in which the guest knows them.

    Raises:
        SnapshotMismatchError: one that it had is not granted, or one is that it did not have.
    """
    given = {preopen_name(d): d for d in (d if isinstance(d, Dir) else Dir(d) for d in dirs)}
    if set(given) != set(names):
        raise mismatch(
            f"the directories {', '.join(map(repr, names)) or 'none'}",
            f"granted are {', '.join(map(repr, given)) or 'none'}. Grant the same, by the names it sees.",
        )
    return [given[name] for name in names]
