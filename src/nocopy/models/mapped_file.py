"""A file mapped read-only: its bytes are used where they lie."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nocopy.errors import ClosedError, ModelFileError, UsageError

Bytes: TypeAlias = npt.NDArray[np.uint8]


class MappedFile:
    """A regular file, mapped read-only and shared with the page cache.

    The mapping lives as long as this object or any array over it. A file that another program shortens
    while it is mapped ends this process with SIGBUS: that is the operating system's rule for every mapping,
    and the reason to replace model files by renaming, never in place.

    Args:
        path: the file.

    Raises:
        UsageError: there is no such file, it is not a regular file, or it cannot be opened.
        ModelFileError: the file is empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            # A FIFO or a device would block or never end: look before opening.
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise UsageError(f"the model file '{path}' was asked for; it is not a regular file")
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    raise ModelFileError(str(path), "truncated", "the file is empty; fetch it again")
                self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UsageError(f"the model file '{path}' was asked for; {error.strerror}") from error
        except ValueError as error:  # a path with a NUL byte
            raise UsageError(f"the model file {str(path)!r} was asked for; {error}") from error
        self._bytes: Bytes | None = np.frombuffer(self.map, np.uint8)

    @property
    def bytes(self) -> Bytes:
        """The whole file: u8 [nbytes], read-only, no copy.

        Raises:
            ClosedError: the file was closed.
        """
        if self._bytes is None:
            raise ClosedError(f"the model file '{self.path}' was used after it was closed; open it again")
        return self._bytes

    @property
    def nbytes(self) -> int:
        """The file's size in bytes."""
        return self.bytes.size

    @property
    def address(self) -> int:
        """Host address of the first byte: a multiple of the page size."""
        return self.bytes.ctypes.data

    @property
    def mapped_nbytes(self) -> int:
        """The mapping's size: `nbytes` rounded up to whole pages. Bytes past the file's end read as 0."""
        return -(-self.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE

    def close(self) -> None:
        """Let go of the mapping; arrays made before keep it alive. Closing twice is allowed."""
        self._bytes = None
