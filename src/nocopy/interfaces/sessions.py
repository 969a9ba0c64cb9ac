"""One guest's models and sessions: handles, quotas, and where in its memory each session lies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from nocopy.device.protocol import Pages
from nocopy.errors import DeviceError, MemoryLimitError, TapeError, UsageError
from nocopy.interfaces.attachment import Attachment
from nocopy.interfaces.handles import Handles
from nocopy.interfaces.loaded import Lease, Loaded, Source
from nocopy.memory.dtype import DType
from nocopy.models.kv import CACHE_TYPES
from nocopy.session.constraint import Constraint
from nocopy.session.engine import Engine
from nocopy.session.pace import Make
from nocopy.session.region import Region
from nocopy.session.session import Session

T = TypeVar("T")


@dataclass
class GuestSession:
    """An open session: the bytes [start, stop) of the guest's memory.

    `fresh` says that its logits are those after its last token.
    """

    lease: Lease
    session: Session
    start: int
    stop: int
    constraint: Constraint | None = None
    fresh: bool = False

    def append(self, tokens: Sequence[int]) -> None:
        """Feed tokens. Errors as in `Session.append`."""
        self._feed(self.session.append, tokens)

    def extend(self, tokens: Sequence[int]) -> int:
        """Make it hold exactly these tokens; return how many it had. Errors as in `Session.extend_to`."""
        return self._feed(self.session.extend_to, tokens)

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens. Errors as in `Session.truncate`."""
        before = self.session.length
        self.session.truncate(length)
        self.fresh = self.fresh and length == before

    def _feed(self, feed: Callable[[Sequence[int]], T], tokens: Sequence[int]) -> T:
        try:
            result = feed(tokens)
        except UsageError:  # nothing was fed
            raise
        except BaseException:
            self.fresh = False
            raise
        self.fresh = True
        return result


class Sessions:
    """What one guest has of models. It is closed with the guest's grip on the device.

    Args:
        attachment: the guest's memory on its device; it is not kept.
        grants: the models that it may open, by name.
    """

    def __init__(self, attachment: Attachment, grants: Mapping[str, Source]) -> None:
        self.grip, self.memory = attachment.grip, attachment.memory
        self.limits, self.ledger = attachment.limits, attachment.ledger
        self.grants = dict(grants)
        self.handles = Handles()
        self.names: dict[int, str] = {}
        """Under which name each open model was granted, by handle."""
        self.until: float | None = None
        """When the guest's call that is running must end, by `time.monotonic()`."""
        self.grip.dependents.append(self)

    # Models

    def open_model(self, name: str) -> int:
        """Return a handle of the model that was granted under a name.

        Raises:
            UsageError: none was.
            MemoryLimitError: too many are open.
            ModelError: it cannot be used.
            DeviceError: the device has too little memory.
        """
        if name not in self.grants:
            known = ", ".join(map(repr, self.grants)) or "none"
            raise UsageError(f"the model {name!r} was asked for; this guest was granted {known}")
        if len(self.handles.every(Lease)) >= self.limits.models:
            raise MemoryLimitError(
                f"one more open model was asked for; this guest may have {self.limits.models}. Close one."
            )
        with self.grip.turn(self.until):
            source, grip = self.grants[name], self.grip
            lease = Lease(source, grip.device, grip.turns, self.ledger)
            try:
                _ = lease.loaded.engine  # places the weights
                handle = self.handles.add(lease)
            except BaseException:
                lease.close()
                raise
        self.names[handle] = name
        return handle

    @property
    def leases(self) -> list[tuple[int, Lease]]:
        """The open models by handle, oldest first."""
        return self.handles.items(Lease)

    @property
    def open_ones(self) -> list[tuple[int, GuestSession]]:
        """The open sessions by handle, oldest first."""
        return self.handles.items(GuestSession)

    def model(self, handle: int) -> Loaded:
        """The model that a handle names. Errors as in `Handles.get`."""
        return self.handles.get(handle, Lease, "model").loaded

    def close_model(self, handle: int) -> None:
        """Let go of a model.

        Raises:
            UsageError: it has open sessions.
        """
        lease = self.handles.get(handle, Lease, "model")
        used = sum(s.lease is lease for s in self.handles.every(GuestSession))
        if used:
            raise UsageError(
                f"closing model {handle} was asked for; its open sessions are {used}. Close them first."
            )
        self.handles.remove(handle)
        del self.names[handle]
        with self.grip.turn(None):
            lease.close()

    # Sessions

    def region(self, model: Loaded, start: int, context: int, kv: int) -> Region:
        """Where the parts of a session would lie.

        Raises:
            UsageError: a context or type that the model cannot have, or a wrong place.
        """
        if kv not in CACHE_TYPES:
            names = ", ".join(f"{d.value} ({d.name.lower()})" for d in CACHE_TYPES)
            raise UsageError(f"a KV cache of type {kv} was asked for; there are {names}")
        return model.engine.region(start, context, DType(kv))

    def restore(
        self,
        used: tuple[int, int],
        names: Mapping[int, str],
        check: Callable[[int, Loaded], None],
        sessions: Callable[[Callable[..., GuestSession]], Mapping[int, GuestSession]],
    ) -> None:
        """Become what a guest that was frozen had: the same handles for the same models and sessions.

        Args:
            used: as `Handles.used` had it.
            names: the names of the models that were open, by handle.
            check: gets the handle and the model that is granted under its name now; raises if it is another.
            sessions: gets a function that opens a session that lies in the memory already, and calls it for
                each: the model's handle, first byte, bytes, context, type, tokens.

        Raises:
            UsageError: a model was not granted, or the handles make no sense.
            MemoryLimitError: more than this guest may have.
        """
        leases = {self.open_model(name): name for name in names.values()}
        by_old = dict(zip(names, leases, strict=True))
        for old, new in by_old.items():
            check(old, self.model(new))

        def resume(
            model: int, start: int, size: int, context: int, kv: DType, tokens: Sequence[int]
        ) -> GuestSession:
            found = self._open(by_old[model], start, size, context, kv, tokens)
            self.handles.add(found)  # counts against the limits from now on
            return found

        made = sessions(resume)
        kept = {old: self.handles.get(new, Lease, "model") for old, new in by_old.items()}
        self.handles.restore(used, {**kept, **made})
        self.names = dict(names)

    def flush(self) -> None:
        """Have the memory hold all that the open sessions know, for a host that reads it between calls.

        Errors as in `append`.
        """
        self.until = None  # the last call's, which is over
        for _, each in self.open_ones:
            each.session.refresh()
            with self.grip.turn(self.until):
                each.session.flush()

    def open(self, handle: int, start: int, size: int, context: int, kv: int) -> int:
        """Return the handle of a new session in the bytes [start, start + size) of the memory.

        Raises:
            UsageError: the bytes do not lie in the memory, are too few, or another session lies there.
            MemoryLimitError: a quota is used up.
        """
        return self.handles.add(self._open(handle, start, size, context, kv))

    def _open(
        self, handle: int, start: int, size: int, context: int, kv: int, tokens: Sequence[int] = ()
    ) -> GuestSession:
        """A new session; or one whose region holds so many tokens already."""
        lease = self.handles.get(handle, Lease, "model")
        region = self.region(lease.loaded, start, context, kv)
        self._check_place(region, size)
        pages = self._pages()
        with self.grip.turn(self.until):
            session = Session(
                lease.loaded.engine,
                self.memory,
                pages,
                offset=start,
                context=context,
                kv=DType(kv),
                play=self._play,
                step=tokens_at_once(lease.loaded.engine, region, self.limits.work),
                tokens=tokens,
            )
        return GuestSession(lease, session, start, start + size)

    def fork(self, handle: int, start: int, size: int) -> int:
        """Return the handle of a session that continues from where one is. Errors as in `open`."""
        old = self.session(handle)
        region = old.session.region
        self._check_place(Region(region.config, start, region.context, region.chunk, region.kv), size)
        old.session.refresh()
        pages = self._pages()
        with self.grip.turn(self.until):
            session = old.session.fork(self.memory, pages, offset=start)
        constraint = old.constraint.copy() if old.constraint else None
        return self.handles.add(GuestSession(old.lease, session, start, start + size, constraint, old.fresh))

    # From one device to another

    def leave(self) -> None:
        """Be on no device, which may be lost: `resume` goes on under the same handles. Twice is allowed."""
        if self in self.grip.dependents:
            self.grip.dependents.remove(self)
        with self.grip.turns.lock:
            for found in self.handles.every(GuestSession):
                found.session.leave()
            for lease in self.handles.every(Lease):
                with suppress(DeviceError):  # a lost device's memory goes with it
                    lease.close()

    def resume(self, attachment: Attachment, *, lost: bool) -> dict[int, int]:
        """Go on where the memory is attached now: models are opened again, and what is missing is read again.

        Args:
            attachment: the same guest's memory on another device.
            lost: whether the device before failed; sessions then read their last token again in any case.

        Returns:
            How many tokens each session has read again, by handle.

        Raises:
            UsageError: a model's file is another one now.
            DeviceError: the device has too little memory, or failed; call `leave`, and go on with another.
        """
        self.grip = attachment.grip
        self.grip.dependents.append(self)
        for handle, old in self.handles.items(Lease):
            with self.grip.turn(None):
                self._open_again(handle, old)
        fed: dict[int, int] = {}
        for handle, found in self.open_ones:
            with self.grip.turn(None):
                found.session.resume(found.lease.loaded.engine, self._pages(), self._play)
            fed[handle] = found.session.reread(logits=lost)
            found.fresh = found.fresh or fed[handle] > 0
        return fed

    def _open_again(self, handle: int, old: Lease) -> None:
        lease = Lease(self.grants[self.names[handle]], self.grip.device, self.grip.turns, self.ledger)
        if lease.key != old.key:
            lease.close()
            raise UsageError(
                f"the model {self.names[handle]!r} was to be opened again; its file is another one now"
            )
        self.handles.replace(handle, lease)
        for found in self.handles.every(GuestSession):
            if found.lease is old:
                found.lease = lease
        _ = lease.loaded.engine  # places the weights

    def session(self, handle: int) -> GuestSession:
        """The session that a handle names. Errors as in `Handles.get`."""
        return self.handles.get(handle, GuestSession, "session")

    def settle(self, found: GuestSession) -> None:
        """Have nothing play on behind a session's last pass: the guest that goes on may use its bytes."""
        if found.session.plays_on:
            with self.grip.turn(None):
                found.session.settle()

    def close_session(self, handle: int) -> None:
        """Let go of a session; its bytes stay as they are."""
        found = self.session(handle)
        self.handles.remove(handle)
        with self.grip.turn(None):
            found.session.close()

    def _check_place(self, region: Region, size: int) -> None:
        """Refuse bytes that a session cannot have."""
        self.memory.check(region.offset, size)
        if size < region.nbytes:
            raise UsageError(
                f"a session of {region.context} tokens in {size} bytes was asked for; it takes"
                f" {region.nbytes}. Give it more, or use a shorter context."
            )
        open_ones = self.handles.every(GuestSession)
        if len(open_ones) >= self.limits.sessions:
            raise MemoryLimitError(
                f"one more session was asked for; this guest may have {self.limits.sessions}. Close one."
            )
        pinned = sum(s.stop - s.start for s in open_ones)
        if pinned + size > self.limits.pinned:
            raise MemoryLimitError(
                f"a session in {size} bytes was asked for; others lie in {pinned}, and this guest may pin"
                f" {self.limits.pinned}. Close one, or raise the limit."
            )
        start, stop = region.offset, region.offset + size
        for other in open_ones:
            if start < other.stop and other.start < stop:
                raise UsageError(
                    f"a session in bytes {start} to {stop} was asked for; another lies in {other.start} to"
                    f" {other.stop}. Close that, or use other bytes."
                )

    def _pages(self) -> Pages:
        if self.grip.pages is None:
            raise UsageError("a session was asked for; the guest's memory has no bytes")
        return self.grip.pages

    def _play(self, make: Make, then: Make | None) -> None:
        self.grip.play(make, self.until, then)

    # What the grip tells

    def moved(self, pages: Pages | None) -> None:
        """See `Dependent`."""
        if pages is not None:
            for found in self.handles.every(GuestSession):
                found.session.move(pages)

    def close(self) -> None:
        """See `Dependent`."""
        for found in self.handles.every(GuestSession):
            found.session.close()
        for lease in self.handles.every(Lease):
            lease.close()


def tokens_at_once(engine: Engine, region: Region, limit: int) -> int:
    """How many tokens a pass may take, so that none costs more than a guest may ask for at once.

    Raises:
        TapeError: one token costs more.
    """
    cost = engine.tape(region, engine.step, logits=True).work
    if cost <= limit:
        return engine.step
    one = engine.tape(region, 1, logits=True).work
    if one > limit:
        raise TapeError(
            f"a session was asked for; one token costs {one} elements, and this guest may ask for {limit}"
            " at once. Raise the work limit, or use a smaller model or context."
        )
    return max(1, engine.step * limit // cost)
