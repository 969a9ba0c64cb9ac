"""A guest with a device: Wasmtime, the device and the import module `nocopy`, joined on one memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device, Pages
from nocopy.errors import Error, NnError, UsageError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.compute import Compute, Log, log_line
from nocopy.interfaces.imports import LOG_LEVELS, MODULE
from nocopy.interfaces.native import native_submit
from nocopy.interfaces.wasi_nn.abi import Nn
from nocopy.interfaces.wasi_nn.encoding import Dialect, Errno
from nocopy.interfaces.wasi_nn.grants import Grant, NnLimits, nn_grants
from nocopy.interfaces.wasi_nn.imports import Abi
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.tape.builder import TapeBuilder
from nocopy.tape.validate import Tape
from nocopy.wasm import Dir, Guest, HostFunction, Limits, Module, NativeFunction, Wasi

if TYPE_CHECKING:
    from nocopy.interfaces.loaded import Source


class DeviceGuest(Guest):
    """A guest whose memory is a device's memory.

    Everything of `Guest`, and: the guest can import the module `nocopy`, and the host can play tapes on the
    guest's memory too. Several guests may share one device; nothing that one does touches another.

    Args:
        source: a path, bytes, text, or a `Module`.
        device: where tapes play: a name to open one for this guest, which is closed with it, or an open one.
        args: the guest's arguments, its own name first.
        env: its environment variables.
        dirs: directories that it may open: a path, or a `Dir`.
        stdin: "inherit", bytes, a path; None is at its end.
        stdout: "discard", "inherit", "capture", or a function that gets bytes.
        stderr: likewise.
        limits: memory, deadline, fuel.
        compute_limits: scratch memory and work.
        ledger: counts the bytes that cross; a new one unless given.
        imports: more host functions, by (module, name).
        models: the language models that it may open, by name: a GGUF file, a Hugging Face folder, or a model
            that is open and stays the caller's. Guests on one device share what they are both given.
        nn_models: the models that it may load by name through wasi-nn: an ONNX or GGUF file, or an `NnModel`,
            which says more.
        nn_dialect: whose encoding numbers it uses there: "spec", "wasmedge" or "wamr"; by default its
            imports tell.
        nn_limits: graphs, contexts and bytes of wasi-nn.
        nn_copy: copy wasi-nn's inputs at `set_input`, for guests that reuse their bytes before the outputs
            are there.
        log: gets what the guest logs: a level and a line.
        allow_copy: let a device that cannot share memory copy it; only with a device's name.

    Raises:
        UsageError: no such device, path or directory.
        DeviceUnavailableError: the device is not on this machine.
        CopyRefusedError: it could only copy, and `allow_copy` is False.
        InvalidModuleError: not a module with a memory, or an import that nothing provides.
        GuestError: as `Guest`.
    """

    def __init__(
        self,
        source: str | bytes | bytearray | PathLike[str] | Module,
        *,
        device: str | Device = "auto",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        dirs: Sequence[str | PathLike[str] | Dir] = (),
        stdin: Any = None,
        stdout: Any = "discard",
        stderr: Any = "discard",
        limits: Limits | None = None,
        compute_limits: ComputeLimits | None = None,
        ledger: Ledger | None = None,
        imports: Mapping[tuple[str, str], HostFunction | NativeFunction] | None = None,
        models: Mapping[str, Source] | None = None,
        nn_models: Mapping[str, Grant] | None = None,
        nn_dialect: Dialect | str | None = None,
        nn_limits: NnLimits | None = None,
        nn_copy: bool = False,
        log: Log = log_line,
        allow_copy: bool = False,
    ) -> None:
        check_grants(models or {})
        granted = nn_grants(nn_models, nn_dialect, nn_limits, nn_copy)
        self.ledger = ledger or Ledger()
        self.device: Device = (
            open_device(device, allow_copy=allow_copy) if isinstance(device, str) else device
        )
        self._owned = isinstance(device, str)
        self._compute = Compute(
            self.device,
            limits=compute_limits or ComputeLimits(),
            ledger=self.ledger,
            log=log,
            time_left=self._time_left,
            models=models,
        )
        self._nn = Nn(
            granted,
            attached=lambda: self._compute.attachment,
            on_error=Failures(self._compute, log).add,
            log=log,
            stdout=stdout_of(self),
        )
        more = dict(imports or {})
        wasi = Wasi(
            args=args,
            env=env or {},
            dirs=[d if isinstance(d, Dir) else Dir(d) for d in dirs],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            super().__init__(
                source,
                imports=lambda _guest: self._imports() | more,
                wasi=wasi,
                limits=limits,
                on_memory=self._attach,
            )
        except BaseException:
            self._detach()
            raise

    def _imports(self) -> dict[tuple[str, str], HostFunction | NativeFunction]:
        """What the module needs from `nocopy`."""
        needed = [(name, kind) for module, name, kind in self.module.imports if module == MODULE]
        found = self._compute.functions(self.module.name, needed)
        linked: dict[tuple[str, str], HostFunction | NativeFunction] = {
            (MODULE, n): f for n, f in found.items()
        }
        submit = found.get("submit")
        # The native cache knows one timeout, not how much of a deadline is left, so a guest with a deadline
        # takes the path through Python: exact, and some microseconds slower.
        if submit is not None and self.limits.deadline is None:
            native = native_submit(self._compute, submit, self._calls)
            if native is not None:
                linked[MODULE, "submit"] = native
        timed = None if self.limits.deadline is None else self._calls.time_left
        return linked | self._nn.functions(self.module.name, self.module.imports, timed)

    def _attach(self, memory: LinearMemory) -> None:
        if self._nn.used:
            memory.pages.prefer_large()  # tensors lie there that models pass over
        self._compute.attach(memory)

    def _time_left(self) -> float | None:
        return self._calls.time_left()

    @property
    def pages(self) -> Pages | None:
        """The guest's memory as the device has imported it; None while the memory has no bytes.

        Raises:
            ClosedError: the guest is closed.
        """
        return self._compute.attachment.pages

    @property
    def last_error(self) -> str:
        """The text of the guest's last call to `nocopy` or wasi-nn that failed; "" if none did."""
        return self._compute.error

    @property
    def nn(self) -> Abi:
        """How the guest uses wasi-nn: whose numbers, which records."""
        return self._nn.abi

    def play(self, tape: TapeBuilder | Tape, *, timeout: float | None = None) -> None:
        """Play a tape on the guest's memory, from the host; results are there when this returns.

        Args:
            tape: over `guest.memory.view(...)` and, for what only kernels need, `Space.SCRATCH`.
            timeout: seconds.

        Raises:
            TapeError: a record is refused; nothing was played.
            MemoryLimitError: it needs more scratch than the guest may have.
            DeadlineError: it took longer than `timeout`.
            DeviceError: the device failed.
            ClosedError: the guest or the device is closed.
            UsageError: another thread is inside the guest.
        """
        if not self._calls.lock.acquire(blocking=False):
            raise UsageError(
                "playing was asked for while another thread is inside the guest; wait for that call"
            )
        try:
            self._compute.attachment.play(bytes(tape), time_left=timeout)
        finally:
            self._calls.lock.release()

    def close(self) -> None:
        """Detach the memory from the device, end the guest, and close the device if it is this guest's own.

        Raises:
            UsageError: the guest is running.
            DeviceError: the device did not let go of the memory; its pages stay mapped.
        """
        if self.closed or self._calls.inside() or not self._calls.lock.acquire(blocking=False):
            super().close()  # which does nothing, or says why not
            return
        try:
            try:
                self._detach()
            finally:
                self._calls.lock.release()
        finally:
            super().close()

    def _detach(self) -> None:
        self._nn.close()
        try:
            self._compute.close()
        finally:
            if self._owned:
                self.device.close()


class Failures:
    """What failing calls of wasi-nn were about: the guest only gets a number."""

    MOST = 16
    """Lines that are logged; a guest may fail a million times."""

    def __init__(self, compute: Compute, log: Log) -> None:
        self._compute, self._log, self._count = compute, log, 0

    def add(self, error: Error) -> None:
        """Keep it, and log it."""
        self._compute.keep_error(error)
        if isinstance(error, NnError) and error.errno == Errno.END_OF_SEQUENCE:
            return  # how every answer that is made token by token ends
        self._count += 1
        if self._count <= self.MOST:
            self._log(LOG_LEVELS.index("warning"), f"wasi-nn: {self._compute.error}")
        elif self._count == self.MOST + 1:
            self._log(LOG_LEVELS.index("warning"), "wasi-nn: more calls failed; their reasons are not logged")


def stdout_of(guest: Guest) -> Callable[[bytes], None]:
    """What writes to a guest's stdout, without keeping the guest alive."""
    weak = weakref.ref(guest)

    def write(data: bytes) -> None:
        guest = weak()
        if guest is not None:
            guest.write_stdout(data)

    return write


def check_grants(models: Mapping[str, Source]) -> None:
    """Refuse models that are not there, before a guest asks for them.

    Raises:
        UsageError: a path leads nowhere.
    """
    for name, source in models.items():
        if isinstance(source, str | PathLike) and not Path(source).exists():
            raise UsageError(
                f"the model '{source}' was to be granted as {name!r}; there is no such file or folder"
            )
