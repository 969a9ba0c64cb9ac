"""Which number a guest gets for an error of nocopy's."""

from __future__ import annotations

from typing import Final

from nocopy.errors import (
    ClosedError,
    DeviceUnavailableError,
    Error,
    MemoryLimitError,
    ModelFileError,
    NnError,
    UnsupportedModelError,
    UsageError,
)
from nocopy.interfaces.wasi_nn.encoding import Errno

ERRNOS: Final[tuple[tuple[type[Error], Errno], ...]] = (
    (UsageError, Errno.INVALID_ARGUMENT),
    (ClosedError, Errno.INVALID_ARGUMENT),
    (MemoryLimitError, Errno.TOO_LARGE),
    (ModelFileError, Errno.INVALID_ENCODING),
    (UnsupportedModelError, Errno.UNSUPPORTED_OPERATION),
    (DeviceUnavailableError, Errno.UNSUPPORTED_OPERATION),
)
"""The first that fits counts; all others are RUNTIME_ERROR."""


def errno_of(error: Error) -> int:
    """The number for an error."""
    if isinstance(error, NnError):
        return error.errno
    return next((errno for kind, errno in ERRNOS if isinstance(error, kind)), Errno.RUNTIME_ERROR)
