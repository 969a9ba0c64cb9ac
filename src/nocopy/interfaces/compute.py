"""The import module `nocopy`: what each function of `imports.IMPORTS` does for one guest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nocopy.device.protocol import Device, Mode
from nocopy.errors import (
    ClosedError,
    DeadlineError,
    DeviceLostError,
    Error,
    InvalidModuleError,
    UsageError,
)
from nocopy.interfaces.attachment import Attachment, ComputeLimits
from nocopy.interfaces.clone import Clone
from nocopy.interfaces.imports import (
    BY_NAME,
    DEVICE_INFO,
    IMPORTS,
    INTERFACE_VERSION,
    LOG_LEVELS,
    MAX_TEXT,
    MODULE,
    RESUME,
)
from nocopy.interfaces.model_imports import MODEL_IMPORTS
from nocopy.interfaces.moved import Left, Moved
from nocopy.interfaces.signature import Import, declared, kind_text
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.tape.record import RECORD_BYTES
from nocopy.tape.validate import MAX_RECORDS
from nocopy.wasm import HostFunction

if TYPE_CHECKING:
    from nocopy.interfaces.loaded import Source
    from nocopy.interfaces.model_calls import ModelCalls
    from nocopy.interfaces.sessions import Sessions

Log = Callable[[int, str], None]
"""Takes a level (an index of `LOG_LEVELS`) and a line."""

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_CONTROL = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if c != ord("\t")}


def log_line(level: int, text: str) -> None:
    """Hand a guest's line to the logger `nocopy.guest`."""
    logging.getLogger("nocopy.guest").log(_LEVELS[level], "%s", text)


class Compute:
    """One guest's import module.

    A failing call returns the error's code, leaves its text for `last_error`, and the guest goes on. Only a
    deadline ends the guest.

    Args:
        device: that plays; borrowed.
        limits: what the guest may use of it.
        ledger: counts the bytes.
        log: gets what the guest logs.
        time_left: seconds until the call that is running in the guest must end; None means no limit.
        models: what the guest may open, by name.
    """

    def __init__(
        self,
        device: Device,
        *,
        limits: ComputeLimits,
        ledger: Ledger,
        log: Log = log_line,
        time_left: Callable[[], float | None] = lambda: None,
        models: Mapping[str, Source] | None = None,
    ) -> None:
        self.device, self.limits, self.ledger = device, limits, ledger
        self.error = ""
        """The text of the last call that failed."""
        self.clone_info = Clone()
        self.checkpoint_label: str | None = None
        """What the guest called its last checkpoint."""
        self.parent: bytes | None = None
        """The content digest of the snapshot that the guest was thawed from."""
        self.asked = False
        """Whether it has asked to be frozen and has not gone on since."""
        self.can_resume: Callable[[], bool] = lambda: False
        self._log, self._time_left = log, time_left
        self.grants: dict[str, Source] = dict(models or {})
        self._models: ModelCalls | None = None
        self._attached: Attachment | None = None
        self._memory: LinearMemory | None = None
        self._left = Left()
        self.on_accepted: Callable[[bytes], None] = lambda _records: None
        """Called with the records of every tape that was played to its end."""
        self.on_move: Callable[[], None] = lambda: None
        """Called before memory that accepted tapes play over goes away."""

    # The guest's memory

    def attach(self, memory: LinearMemory) -> None:
        """Import the guest's memory, before any code of the guest runs. Errors as in `Attachment`."""
        self._memory = memory
        self._attached = Attachment(
            self.device,
            memory,
            limits=self.limits,
            ledger=self.ledger,
            on_refusal=self.keep_error,
            on_move=self._moving,
        )

    def _moving(self) -> None:
        self.on_move()

    @property
    def attachment(self) -> Attachment:
        """The memory on the device.

        Raises:
            ClosedError: there is none yet, or none any more.
        """
        if self._attached is None:
            raise ClosedError("the device was asked for; the guest's memory is not attached to it")
        return self._attached

    @property
    def memory(self) -> LinearMemory:
        """The guest's memory, also while it is on no device.

        Raises:
            ClosedError: there is none yet, or none any more.
        """
        if self._memory is None:
            raise ClosedError("the guest's memory was asked for; the guest is closed")
        return self._memory

    def move(self, device: Device) -> Moved:
        """Attach the memory to another device, with what the guest had on the one before. See `Moved`.

        Raises:
            UsageError: a model's file is another one than it was.
            CopyRefusedError: the device could only copy.
            DeviceError: it has too little memory, or fails. The guest is on no device then; move it again.
        """
        sessions = self.sessions
        if self._attached is not None:
            self._left = self._leave(self._attached, sessions)
            self._attached = None
        left = self._left
        self.device = device
        self.attach(self.memory)
        try:
            if left.scratch is not None:
                self.attachment.grip.write_scratch(left.scratch, self.ledger)
            fed = {} if sessions is None else sessions.resume(self.attachment, lost=left.lost)
        except BaseException:
            if sessions is not None:
                sessions.leave()
            self.attachment.leave()
            self._attached = None
            raise
        left.close()
        self._left = Left()
        return Moved(left.lost, fed, left.gone)

    def _leave(self, attached: Attachment, sessions: Sessions | None) -> Left:
        """Take from a device what it still gives, and let go of it."""
        grip, left = attached.grip, Left(lost=attached.grip.lost)
        try:
            if sessions is not None:
                sessions.flush()
            left.scratch = grip.read_scratch(self.ledger)
        except (DeviceLostError, ClosedError):
            left = Left(lost=True, gone=grip.scratch.nbytes)
        if sessions is not None:
            sessions.leave()
        self.on_move()
        # Native code that answered for the device before must not be told of what plays on this one.
        self.on_accepted, self.on_move = lambda _records: None, lambda: None
        attached.leave()
        return left

    def close(self) -> None:
        """Detach the memory. Errors as in `Attachment.close`."""
        attached, self._attached, self._models = self._attached, None, None
        self._memory = None
        self._left.close()
        if attached is not None:
            self.on_move()
            attached.close()

    # The guest's calls

    def version(self) -> int:
        """See `IMPORTS`."""
        return INTERFACE_VERSION

    def describe(self, pointer: int, size: int) -> int:
        """See `IMPORTS`."""
        info = device_info(self.device, self.limits)
        return self.guarded(lambda: self._write(pointer, size, info[:size], len(info)))

    def submit(self, pointer: int, count: int) -> int:
        """See `IMPORTS`."""
        try:  # not `guarded`: a closure on the way that every play takes would cost it half a microsecond
            records = self.records(pointer, count)
            self.attachment.play(records, time_left=self._time_left())
            self.on_accepted(records)
        except DeadlineError:
            raise
        except Error as error:
            self.keep_error(error)
            return error.code
        return 0

    def last_error(self, pointer: int, size: int) -> int:
        """See `IMPORTS`."""
        kept = self.error
        result = self.guarded(lambda: self._write_text(pointer, size, kept))
        self.error = kept
        return result

    def log(self, level: int, pointer: int, size: int) -> int:
        """See `IMPORTS`."""

        def line() -> int:
            if level >= len(LOG_LEVELS):
                raise UsageError(f"log level {level} was asked for; there are 0 to {len(LOG_LEVELS) - 1}")
            self.memory.check(pointer, size)
            raw = self.memory.read(pointer, min(size, MAX_TEXT))
            more = f" … and {size - MAX_TEXT} bytes more" if size > MAX_TEXT else ""
            self._log(level, raw.decode(errors="replace").translate(_CONTROL) + more)
            return 0

        return self.guarded(line)

    def checkpoint(self, pointer: int, size: int) -> int:
        """See `IMPORTS`."""

        def ask() -> int:
            if not self.can_resume():
                raise UsageError(
                    f"a checkpoint was asked for; the guest exports no {RESUME}, so nothing could go on from"
                    " it. Export that function: () -> i32."
                )
            if size > MAX_TEXT:
                raise UsageError(f"a label of {size} bytes was given; at most {MAX_TEXT} are taken")
            self.memory.check(pointer, size)
            try:
                self.checkpoint_label = self.memory.read(pointer, size).decode()
            except UnicodeDecodeError as error:
                raise UsageError(f"a label was given that is not UTF-8: {error.reason}") from error
            self.asked = True
            return 0

        return self.guarded(ask)

    def label(self, pointer: int, size: int) -> int:
        """See `IMPORTS`."""
        return self.guarded(lambda: self._write_text(pointer, size, self.checkpoint_label or ""))

    def clone(self, pointer: int, size: int) -> int:
        """See `IMPORTS`."""
        info = self.clone_info.pack()
        return self.guarded(lambda: self._write(pointer, size, info[:size], len(info)))

    def model_function(self, name: str) -> Callable[..., int]:
        """The function of `ModelCalls`, guarded."""

        def call(*args: int) -> int:
            return self.guarded(lambda: getattr(self._model_calls(), name)(*args))

        return call

    def _model_calls(self) -> ModelCalls:
        """The functions about models, told how long they may take."""
        left = self._time_left()
        sessions = self.open_sessions()
        sessions.until = None if left is None else time.monotonic() + left
        assert self._models is not None
        return self._models

    @property
    def sessions(self) -> Sessions | None:
        """The guest's models and sessions; None if it has never called a function about models."""
        return None if self._models is None else self._models.sessions

    def open_sessions(self) -> Sessions:
        """The guest's models and sessions."""
        if self._models is None:
            from nocopy.interfaces.model_calls import ModelCalls  # most guests have no use for a tokenizer

            self._models = ModelCalls(self.attachment, self.grants)
        return self._models.sessions

    def records(self, pointer: int, count: int) -> bytes:
        """A copy of the records that a guest submits.

        Raises:
            UsageError: there are too many, or they do not lie in its memory.
        """
        if count > MAX_RECORDS:
            raise UsageError(f"a submit of {count} records was asked for; at most {MAX_RECORDS} are allowed")
        memory = self.memory
        if pointer + count * RECORD_BYTES > memory.size:
            raise UsageError(
                f"a submit of {count} records at address {pointer} was asked for; they end at byte"
                f" {pointer + count * RECORD_BYTES}, and the memory at {memory.size}"
            )
        return memory.read(pointer, count * RECORD_BYTES)

    def _write(self, pointer: int, size: int, data: bytes, whole: int) -> int:
        """Write to the start of a guest's buffer of `size` bytes, all of which must be there."""
        memory = self.memory
        memory.check(pointer, size)
        memory.write(pointer, data)
        return whole

    def _write_text(self, pointer: int, size: int, text: str) -> int:
        """Write as much of a text as fits, and a NUL; return its whole length in bytes."""
        raw = text.encode()
        return self._write(pointer, size, cut(raw, size - 1) + b"\0" if size else b"", len(raw))

    def guarded(self, call: Callable[[], int]) -> int:
        """The result of a call, or the code of the error that it raised."""
        try:
            return call()
        except DeadlineError:
            raise
        except Error as error:
            self.keep_error(error)
            return error.code

    def keep_error(self, error: Error) -> None:
        """Make it what `last_error` gives."""
        text = str(error)
        self.error = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"

    # Linking

    def functions(self, module: str, needed: Sequence[tuple[str, object]]) -> dict[str, HostFunction]:
        """The host functions for a guest's imports from `nocopy`, each with the type that the guest declares.

        Args:
            module: its name, for messages.
            needed: name and type of each import.

        Raises:
            InvalidModuleError: an import that is unknown or has another type.
        """
        return {name: self._function(module, name, kind) for name, kind in needed}

    def _function(self, module: str, name: str, kind: object) -> HostFunction:
        known = BY_NAME.get(name)
        if known is None:
            raise InvalidModuleError(
                f"{module} imports {MODULE}.{name}; version {INTERFACE_VERSION} of that module has"
                f" {', '.join(i.name for i in IMPORTS)}. Build it with this version's nocopy.h."
            )
        params = declared(kind)
        for memory64 in (False, True):
            if params == known.kinds(memory64=memory64):
                unsigned = [k.replace("i", "u") for k in known.kinds(memory64=memory64)]
                function = self.model_function(name) if known in MODEL_IMPORTS else getattr(self, name)
                return HostFunction(function, unsigned, ("i32",))
        raise InvalidModuleError(
            f"{module} imports {MODULE}.{name} as {kind_text(kind)}; it is {signature_text(known)}."
            " Build it with this version's nocopy.h."
        )


def signature_text(function: Import) -> str:
    """What a guest must declare, for messages."""
    narrow, wide = (", ".join(function.kinds(memory64=m)) for m in (False, True))
    return f"({narrow}) -> (i32)" + (f", or ({wide}) -> (i32) with 64-bit pointers" if wide != narrow else "")


def device_info(device: Device, limits: ComputeLimits) -> bytes:
    """The struct that `describe` writes."""
    info = device.info
    record = np.zeros((), DEVICE_INFO)
    record["version"] = INTERFACE_VERSION
    record["mode"] = list(Mode).index(info.mode)
    record["software"] = info.software
    record["max_records"] = MAX_RECORDS
    record["memory_bytes"] = info.memory_bytes
    record["scratch_bytes"] = limits.scratch
    record["work_limit"] = limits.work
    for name, text in (("name", info.name), ("product", info.product)):
        record[name] = cut(text.encode(), DEVICE_INFO[name].itemsize - 1)
    return record.tobytes()


def cut(text: bytes, size: int) -> bytes:
    """The first characters of UTF-8 text that fit `size` bytes."""
    return text if len(text) <= size else text[:size].decode(errors="ignore").encode()
