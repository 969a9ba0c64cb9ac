"""WASI preview 1, with nothing granted that was not named."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import wasmtime

from nocopy.errors import UsageError
from nocopy.wasm import capi
from nocopy.wasm.calls import Calls
from nocopy.wasm.guard import cover_entry

MODULE: Final = "wasi_snapshot_preview1"
Output: TypeAlias = Literal["discard", "capture", "inherit"] | Callable[[bytes], None]


@dataclass(frozen=True)
class Dir:
    """A directory of the host that the guest may open.

    Args:
        host: path on the host.
        guest: the path under which the guest sees it; None means the same.
        writable: the guest may change what is in it.
    """

    host: str | PathLike[str]
    guest: str | None = None
    writable: bool = False


@dataclass(frozen=True)
class Wasi:
    """What a guest may reach through WASI. The default is nothing but clocks and random numbers.

    Args:
        args: the guest's argv, its own name first.
        env: environment variables.
        dirs: directories.
        stdin: "inherit" this process's, or bytes, or a path to read from; None is at its end at once.
        stdout: "discard", "inherit" this process's, "capture" into `Guest.stdout`, or a function that gets
        bytes.
        stderr: likewise, `Guest.stderr`.
        capture_limit: bytes of each captured stream, after which the guest's writes fail with ENOSPC.
    """

    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    dirs: Sequence[Dir] = ()
    stdin: Literal["inherit"] | bytes | PathLike[str] | None = None
    stdout: Output = "discard"
    stderr: Output = "discard"
    capture_limit: int = 16 << 20


class Stream:
    """Where one output stream of a guest goes: a buffer, or a function."""

    def __init__(self, output: Output, limit: int, calls: Calls) -> None:
        self.data = bytearray()
        self._limit = limit
        self._sink = output if callable(output) else None
        self.callback = capi.Output(self._writer(calls))

    def _writer(self, calls: Calls) -> Callable[[int, int, int], int]:
        write = self.write

        def writer(_data: int, address: int, size: int) -> int:
            try:
                return write(ctypes.string_at(address, size))
            except BaseException as error:
                calls.error = error
                return -errno.EIO

        return cover_entry(writer)

    def write(self, data: bytes) -> int:
        """Take what the guest wrote; return how much of it, or a negative errno."""
        if self._sink is not None:
            self._sink(data)
        elif len(self.data) + len(data) > self._limit:
            return -errno.ENOSPC
        else:
            self.data += data
        return len(data)


def _text(what: str, value: str) -> str:
    if "\0" in value:
        raise UsageError(f"{what} {value!r} was asked for; it has a NUL character, which ends it in WASI")
    return value


def _set_stdin(config: wasmtime.WasiConfig, stdin: Any) -> None:
    if stdin == "inherit":
        config.inherit_stdin()
    elif isinstance(stdin, bytes):
        vector = (ctypes.c_size_t * 2)()
        capi.byte_vec_new(ctypes.addressof(vector), len(stdin), stdin)
        capi.wasi_config_set_stdin_bytes(capi.address(config.ptr()), ctypes.addressof(vector))
    elif stdin is not None:
        try:
            config.stdin_file = fspath(stdin)
        except wasmtime.WasmtimeError:
            raise UsageError(f"stdin from {str(stdin)!r} was asked for; it cannot be read") from None


def configure(store: wasmtime.Store, wasi: Wasi, calls: Calls) -> tuple[Stream, Stream]:
    """Grant `wasi` to a store's guests; return the streams for stdout and stderr, which must live as long.

    Raises:
        UsageError: a directory or a file that cannot be opened, a NUL character, or a word that is not an
        output.
    """
    config = wasmtime.WasiConfig()
    pointer = capi.address(config.ptr())
    config.argv = [_text("argument", value) for value in wasi.args]
    config.env = [(_text("variable", k), _text("value", v)) for k, v in wasi.env.items()]
    for entry in wasi.dirs:
        host = fspath(entry.host)
        if not Path(host).is_dir():
            raise UsageError(
                f"the directory {host!r} was to be opened to the guest; it is not a directory here"
            )
        try:
            config.preopen_dir(host, _text("path", entry.guest or host), entry.writable)
        except wasmtime.WasmtimeError:
            raise UsageError(
                f"the directory {host!r} was to be opened to the guest; it cannot be read"
            ) from None
    _set_stdin(config, wasi.stdin)
    streams: list[Stream] = []
    outputs: list[tuple[str, Output, Callable[[], None], Any]] = [
        ("stdout", wasi.stdout, config.inherit_stdout, capi.wasi_config_set_stdout_custom),
        ("stderr", wasi.stderr, config.inherit_stderr, capi.wasi_config_set_stderr_custom),
    ]
    for name, output, inherit, custom in outputs:
        stream = Stream(output, wasi.capture_limit, calls)
        if output == "inherit":
            inherit()
        elif output == "capture" or callable(output):
            custom(pointer, stream.callback, None, None)
        elif output != "discard":
            raise UsageError(
                f"{name}={output!r} was asked for; it is one of discard, capture, inherit, or a function"
            )
        streams.append(stream)
    store.set_wasi(config)
    return streams[0], streams[1]
