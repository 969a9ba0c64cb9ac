"""What a guest of wasi-nn is told beside its error numbers, and where its text goes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from nocopy.errors import Error, NnError
from nocopy.interfaces.compute import Compute, Log
from nocopy.interfaces.imports import LOG_LEVELS
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.wasm import Guest


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
