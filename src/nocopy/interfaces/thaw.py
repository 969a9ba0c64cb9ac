"""Thawing: a guest that goes on from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from os import PathLike
from typing import TYPE_CHECKING, Any

from nocopy.device.protocol import Device
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.clone import Clone
from nocopy.interfaces.compute import Log, log_line
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.restore import Restore, find_module, granted_dirs
from nocopy.interfaces.wasi_nn.encoding import Dialect
from nocopy.interfaces.wasi_nn.grants import Grant, NnLimits
from nocopy.memory.ledger import Ledger
from nocopy.snapshot.manifest import WasiState
from nocopy.snapshot.origin import FileOrigin
from nocopy.snapshot.read import Verify, open_snapshot
from nocopy.snapshot.sign import Verifier
from nocopy.wasm import Dir, HostFunction, Limits, Module, NativeFunction, default_engine

if TYPE_CHECKING:
    from nocopy.interfaces.loaded import Source


def thaw(
    path: str | PathLike[str],
    *,
    module: str | bytes | bytearray | PathLike[str] | Module | None = None,
    device: str | Device = "auto",
    args: Sequence[str] | None = None,
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
    verify: Verify = "eager",
    key: Verifier | None = None,
) -> DeviceGuest:
    """Return a guest that goes on from a snapshot, on any device.

    Everything that it may use is granted anew, by the names that it knows; what is not named here is as for
    `DeviceGuest`.

    Args:
        path: the file.
        module: what it was frozen of; None for the module in the file.
        device: where it goes on.
        args: None for those that it had.
        env: likewise.
        dirs: exactly those that it had, by the names under which it sees them.
        stdin: as for a new guest; so are the next ones.
        stdout: likewise.
        stderr: likewise.
        limits: likewise; they are not those that it had.
        compute_limits: likewise.
        ledger: likewise.
        imports: likewise.
        models: at least those that it has open, by the names that it knows; compared by their digests.
        nn_models: as for a new guest; so are the next ones.
        nn_dialect: likewise.
        nn_limits: likewise.
        nn_copy: likewise.
        log: likewise.
        allow_copy: likewise.
        verify: "eager" checks every page first, "lazy" while the guest runs, "off" none: for your own files.
        key: the file must be signed by it.

    Raises:
        UsageError: there is no such file, or the file is none of a guest.
        SnapshotFileError: it breaks the format.
        SnapshotDamagedError: a digest does not match.
        SnapshotSignatureError: it is not signed by `key`.
        SnapshotMismatchError: another module, model or directory than it had; the message says what differs.
        DeviceUnavailableError, CopyRefusedError, MemoryLimitError: as `DeviceGuest`.
    """
    snapshot = open_snapshot(path, verify=verify, key=key)
    with ExitStack() as stack:
        stack.callback(snapshot.close)
        manifest = snapshot.manifest
        counted = limits is not None and limits.fuel is not None
        engine = module.engine if isinstance(module, Module) else default_engine(fuel=counted)
        found = find_module(snapshot, module, engine)
        wasi = manifest.wasi or WasiState()
        guest = DeviceGuest(
            found,
            device=device,
            args=wasi.args if args is None else args,
            env={v.name: v.value for v in wasi.env} if env is None else env,
            dirs=granted_dirs(wasi.preopens, dirs),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            limits=limits,
            compute_limits=compute_limits,
            ledger=ledger,
            imports=imports,
            models=models,
            nn_models=nn_models,
            nn_dialect=nn_dialect,
            nn_limits=nn_limits,
            nn_copy=nn_copy,
            log=log,
            allow_copy=allow_copy,
            restore=Restore(
                manifest, FileOrigin(snapshot), Clone(manifest.generation).next(), snapshot.digest
            ),
        )
        if verify == "lazy":
            guest.snapshot = snapshot
            stack.pop_all()
    return guest
