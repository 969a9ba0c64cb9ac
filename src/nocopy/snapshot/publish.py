"""A file that appears under its name whole, or not at all.

It is written under another name in the same folder, brought to the disk (fsync), renamed over the old one,
and the rename is brought to the disk (fsync of the folder). Whenever the machine stops, the name has the old
file or the new one. The temporary file is locked while it is written; the lock ends with the process, so
whoever cleans up can tell what a crash has left from what is still being written.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from nocopy.errors import SnapshotWriteError

PREFIX: Final = ".nocopy-"
SUFFIX: Final = ".tmp"
WRITE_BYTES: Final = 8 << 20
"""A system call writes up to the next multiple of so many bytes: large enough to cost little, and progress
shows. Whole blocks then arrive in one call, for which some systems keep them in one piece in memory."""

WORTH_STARTING: Final = 1 << 18
"""Bytes of a write from which the disk is asked to begin with it."""
START_WRITING: Final = 2
"""Linux: SYNC_FILE_RANGE_WRITE."""

Buffer = bytes | memoryview
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = [ctypes.c_int, ctypes.c_longlong, ctypes.c_longlong, ctypes.c_uint]


class Publication:
    """A file being written; it is published by `commit`, and gone if the block ends without it.

    Only its owner may read it: a memory can hold anything.

    Raises:
        SnapshotWriteError: it cannot be created or written, or the disk is full. The name has what it had.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.nbytes = 0
        self._file = -1
        try:
            if "\0" in os.fspath(path):
                raise ValueError("embedded null byte")
            self._create()
        except (OSError, ValueError) as error:
            failure = self._failure(error)
            self._discard(failure)
            raise failure from error

    def _create(self) -> None:
        while True:
            self.temporary = self.path.parent / f"{PREFIX}{os.urandom(8).hex()}{SUFFIX}"
            self._file = os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if os.fstat(self._file).st_nlink:
                return
            # A cleaner found it before it was locked, and removed it.
            os.close(self._file)
            self._file = -1

    def write(self, at: int, data: Buffer) -> None:
        """Write all of `data` at byte `at` of the file."""
        left = memoryview(data).cast("B")
        try:
            while left:
                done = os.pwrite(self._file, left[: WRITE_BYTES - at % WRITE_BYTES], at)
                if done == 0:
                    raise OSError(errno.EIO, "the system wrote nothing")
                if _sync_file_range is not None and done >= WORTH_STARTING:
                    # The disk begins at once instead of at the fsync: for 1 GiB a third of the time less. It
                    # is a hint without a result to look at: what goes wrong on the disk is fsync's to report.
                    _sync_file_range(self._file, at, done, START_WRITING)
                left, at = left[done:], at + done
        except OSError as error:
            raise self._failure(error) from error
        self.nbytes = max(self.nbytes, at)

    def clear(self) -> None:
        """Begin anew with an empty file."""
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:
            raise self._failure(error) from error
        self.nbytes = 0

    def commit(self) -> None:
        """Publish what was written."""
        try:
            sync(self._file)
            os.rename(self.temporary, self.path)
            sync_folder(self.path.parent)
            file, self._file = self._file, -1
            os.close(file)
        except OSError as error:
            raise self._failure(error) from error

    def _discard(self, error: BaseException | None) -> None:
        """Remove the temporary file, unless it was published.

        `error` is why, if anything is wrong; what fails here is noted on it.
        """
        file, self._file = self._file, -1
        if file < 0:
            return
        for step in (partial(self.temporary.unlink, missing_ok=True), partial(os.close, file)):
            try:
                step()
            except OSError as second:
                if error is None:
                    raise self._failure(second) from second
                error.add_note(
                    f"Removing {self.temporary}: {second.strerror}. `nocopy snapshots gc` tries it again."
                )

    def _failure(self, error: OSError | ValueError) -> SnapshotWriteError:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        advice = {
            errno.ENOSPC: "Free space, or write it elsewhere.",
            errno.EDQUOT: "Free space, or write it elsewhere.",
            errno.ENOENT: "Create the folder first.",
            errno.EACCES: "Choose a folder that you may write to.",
            errno.EISDIR: "Choose the name of a file.",
        }.get(getattr(error, "errno", 0) or 0, "Write it elsewhere.")
        return SnapshotWriteError(f"the snapshot '{self.path}' was to be written; {reason}. {advice}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard(error)


def sync(file: int) -> None:
    """Bring what was written to the disk.

    Raises:
        OSError: the system cannot.
    """
    if sys.platform == "darwin":  # there fsync leaves it in the disk's own memory
        fcntl.fcntl(file, fcntl.F_FULLFSYNC)
    else:
        os.fsync(file)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(file)
    finally:
        os.close(file)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files in `folder` that nobody writes any more: what a crash has left."""
    found: list[Path] = []
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):  # being written, or published meanwhile
            continue
        found.append(path)
    return found
