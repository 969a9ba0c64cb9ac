"""A guest with a device: Wasmtime, the device and the import module `nocopy`, joined on one memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nocopy.device.protocol import Device, Pages
from nocopy.errors import ExitError, UsageError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.clone import Clone
from nocopy.interfaces.compute import Compute, Log, declared, log_line
from nocopy.interfaces.device_use import DeviceUse
from nocopy.interfaces.freeze import Progress, describe
from nocopy.interfaces.imports import MODULE, RESUME
from nocopy.interfaces.moved import Moved
from nocopy.interfaces.native import native_submit
from nocopy.interfaces.restore import Restore
from nocopy.interfaces.wasi_nn.abi import Nn
from nocopy.interfaces.wasi_nn.encoding import Dialect
from nocopy.interfaces.wasi_nn.failures import Failures, stdout_of
from nocopy.interfaces.wasi_nn.grants import Grant, NnLimits, nn_grants
from nocopy.interfaces.wasi_nn.imports import Abi
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.snapshot.image import Image
from nocopy.snapshot.read import Snapshot
from nocopy.snapshot.sign import Signer
from nocopy.snapshot.write import Written, write_snapshot
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
        restore: makes it a guest that was frozen; `thaw` and `fork` pass it.

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
        device: str | Device | DeviceUse = "auto",
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
        restore: Restore | None = None,
    ) -> None:
        check_grants(models or {})
        granted = nn_grants(nn_models, nn_dialect, nn_limits, nn_copy)
        self.ledger = ledger or Ledger()
        self._use = DeviceUse.of(device, allow_copy=allow_copy)
        self.device: Device = self._use.device
        self.snapshot: Snapshot | None = None
        """The file that it was thawed from, while its pages are verified in the background."""
        self._given: dict[str, Any] = {
            "limits": limits,
            "compute_limits": compute_limits,
            "imports": imports,
            "models": models,
            "nn_models": nn_models,
            "nn_dialect": nn_dialect,
            "nn_limits": nn_limits,
            "nn_copy": nn_copy,
            "log": log,
        }
        self._compute = Compute(
            self.device,
            limits=compute_limits or ComputeLimits(),
            ledger=self.ledger,
            log=log,
            time_left=self._time_left,
            models=models,
        )
        self._compute.can_resume = lambda: declared(self.module.exports.get(RESUME)) == ()
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
                on_memory=lambda memory: self._attach(memory, restore),
                restore=None if restore is None else restore.fill,
            )
        except BaseException:
            self._detach()
            raise

    def _attach(self, memory: LinearMemory, restore: Restore | None) -> None:
        if self._nn.used:
            memory.pages.prefer_large()  # tensors lie there that models pass over
        self._compute.attach(memory)
        if restore is not None:
            restore.bind(self._compute)

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

    def move(self, device: str | Device, *, allow_copy: bool = False) -> Moved:
        """Go on with another device, such as after the loss of the one before. The memory stays where it is.

        Models that are open are opened there too, sessions go on under their handles. What only a lost device
        had is computed again, or is gone: the result says what. Graphs and contexts of wasi-nn end; the guest
        loads them again.

        Args:
            device: a name to open one for this guest, or an open one.
            allow_copy: as for a new guest.

        Raises:
            UsageError: a call is in progress, or a model's file is another one than it was.
            ClosedError: the guest is closed.
            DeviceUnavailableError: the device is not on this machine. The guest is where it was.
            CopyRefusedError: the device could only copy. Now and below, the guest is on no device: move it
                again.
            DeviceError: it has too little memory, or fails.
        """
        with self.quiescent("moving"):
            use = DeviceUse.of(device, allow_copy=allow_copy)
            self._nn.close()
            try:
                moved = self._compute.move(use.device)
            except BaseException:
                use.end()
                raise
            self._use.end()
            self._use, self.device = use, use.device
            return moved

    # Going on

    @property
    def checkpoint(self) -> str | None:
        """The label under which the guest asked to be frozen, until `resume` goes on from there; None if it
        did not ask.
        """
        return self._compute.checkpoint_label if self._compute.asked else None

    def resume(self) -> None:
        """Go on from the checkpoint that the guest asked for, here or before it was thawed.

        It may end at another one: see `checkpoint`.

        Raises:
            UsageError: it did not ask for one.
            ExitError: what goes on returned a status that is not 0, or exited with one.
            GuestError: as `call`.
        """
        if not self._compute.asked:
            raise UsageError(
                f"going on was asked for; {self.module.name} is at no checkpoint. Call a function."
            )
        self._compute.asked = False
        function = self.function(RESUME)
        try:
            with self._clock.interruptible():
                status = function()
        except ExitError as error:
            status = error.status
        self.check_pages()
        if status:
            raise ExitError(status)

    def call(self, name: str, *args: float) -> Any:
        """See `Guest.call`. Raises SnapshotDamagedError if pages it was thawed from were found damaged."""
        result = super().call(name, *args)
        self.check_pages()
        return result

    def run(self) -> None:
        """See `Guest.run`. It ends early where the guest asks for a checkpoint: `resume` goes on."""
        super().run()
        self.check_pages()

    def check_pages(self) -> None:
        """Raise what the verification of the snapshot in the background has found so far.

        Raises:
            SnapshotDamagedError: a page is not what was written.
        """
        if self.snapshot is not None:
            self.snapshot.check()

    # Freezing

    @property
    def clone(self) -> Clone:
        """Which copy of itself it is; what it gets from `nocopy.clone`."""
        return self._compute.clone_info

    def freeze(
        self,
        path: str | PathLike[str],
        *,
        compress: bool = False,
        signer: Signer | None = None,
        progress: Progress | None = None,
        with_module: bool = True,
    ) -> Written:
        """Write all that the guest is to a file; it goes on here as if nothing had happened.

        The file has its memories, its mutable globals, its tables, its arguments and environment, its
        sessions and what it has in the device's memory. It has no open files, no captured output, no limits.

        Args:
            path: replaced when all of the file is on the disk.
            compress: smaller, for transport; thawing reads it instead of mapping it.
            signer: signs it.
            progress: called with the bytes of memory written, and how many there are.
            with_module: put the module in it too; without, whoever thaws it must have the module.

        Raises:
            UsageError: a call is in progress, or the guest holds something that cannot be kept.
            ClosedError: it is closed.
            SnapshotWriteError: the file cannot be written; `path` has what it had.
            DeviceError: the device does not give back what is in its own memory.
        """
        with self.quiescent("freezing"), ExitStack() as stack:
            self._nn.check_empty("freezing")
            manifest, memories = describe(self, self._wasi, self._compute, stack, with_module=with_module)
            return write_snapshot(
                path, manifest, memories, compress=compress, signer=signer, progress=progress
            )

    def fork(
        self, n: int, *, stdin: Any = None, stdout: Any = "discard", stderr: Any = "discard"
    ) -> list[Self]:
        """Return guests that go on from where this one is, which goes on too.

        What none of them has written they share. They have this one's device, grants and limits, and
        `clone.index` from 0 up.

        Args:
            n: how many.
            stdin: as for a new guest, for each.
            stdout: likewise.
            stderr: likewise.

        Raises:
            UsageError: a call is in progress, or the guest holds something that cannot be kept.
            ClosedError: it is closed.
            MemoryLimitError: there is no room.
        """
        if n < 0:
            raise UsageError(f"{n} forks were asked for; the number must be 0 or more")
        made: list[Self] = []
        with self.quiescent("forking"), ExitStack() as stack:
            self._nn.check_empty("forking")
            manifest, memories = describe(self, self._wasi, self._compute, stack, with_module=False)
            image = stack.enter_context(Image(memories))
            try:
                for index in range(n):
                    clone = self._compute.clone_info.next(index)
                    made.append(
                        type(self)(
                            self.module,
                            device=self._use,
                            args=self._wasi.args,
                            env=self._wasi.env,
                            dirs=self._wasi.dirs,
                            stdin=stdin,
                            stdout=stdout,
                            stderr=stderr,
                            restore=Restore(manifest, image, clone, self._compute.parent),
                            **self._given,
                        )
                    )
            except BaseException:
                for guest in made:
                    guest.close()
                raise
        return made

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
            if self.snapshot is not None:
                self.snapshot.close()
            self._use.end()


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
