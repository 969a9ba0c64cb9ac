"""Where a store keeps its objects: a folder of this machine, or an object store by URL.

An object is bytes under a key, a path of plain names. It appears whole or not at all, and once `put` has
returned, every reader sees it (S3, Google and Azure promise this as well).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nocopy.errors import StoreError
from nocopy.snapshot.publish import Publication, leftovers, sync_folder


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """An object: its key, its bytes, and when it was written, in seconds of the store's own clock."""

    key: str
    nbytes: int
    modified: float


class Objects(Protocol):
    """Objects under keys. Several threads may use it at a time.

    Every method raises `StoreError` (or `SnapshotWriteError`) if the store cannot be reached or refuses.
    """

    url: str
    """What the user calls the store."""

    def put(self, key: str, data: bytes) -> None:
        """Write an object; one that is there is replaced."""
        ...

    def get(self, key: str, limit: int) -> bytes | None:
        """Read an object of at most `limit` bytes; None if there is none."""
        ...

    def stat(self, key: str) -> ObjectStat | None:
        """Size and time of an object; None if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """All objects whose key begins with `prefix`, which ends in a slash."""
        ...

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        ...

    def clean(self) -> int:
        """Remove what interrupted writes have left; returns the bytes."""
        ...


class FolderObjects:
    """Objects as files under a folder, which is made when the first is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def put(self, key: str, data: bytes) -> None:
        """See `Objects`."""
        path = self.root / key
        try:
            self._make(path.parent)
        except OSError as error:
            raise self._failure(f"writing {key}", error) from error
        with Publication(path) as file:
            file.write(0, data)
            file.commit()

    def _make(self, folder: Path) -> None:
        """Make a folder, and bring its name to the disk."""
        if not folder.is_dir():
            self._make(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)

    def get(self, key: str, limit: int) -> bytes | None:
        """See `Objects`."""
        try:
            with open(self.root / key, "rb") as file:
                refuse_large(self.url, key, os.fstat(file.fileno()).st_size, limit)
                return file.read(limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure(f"reading {key}", error) from error

    def stat(self, key: str) -> ObjectStat | None:
        """See `Objects`."""
        try:
            found = os.stat(self.root / key)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure(f"looking for {key}", error) from error
        return ObjectStat(key, found.st_size, found.st_mtime)

    def list(self, prefix: str) -> Iterator[ObjectStat]:
        """See `Objects`."""

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise self._failure(f"listing {prefix}", error) from error

        for folder, _, files in os.walk(self.root / prefix, onerror=refuse):
            for name in files:
                key = str((Path(folder) / name).relative_to(self.root))
                found = self.stat(key)
                if found is not None and not name.startswith("."):
                    yield found

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects`."""
        for key in keys:
            try:
                (self.root / key).unlink(missing_ok=True)
            except OSError as error:
                raise self._failure(f"deleting {key}", error) from error

    def clean(self) -> int:
        """See `Objects`."""
        return sum(remove_leftovers(Path(folder))[1] for folder, _, _ in os.walk(self.root))

    def _failure(self, what: str, error: OSError) -> StoreError:
        return StoreError(f"the store {self.url}: {what} was asked for; the system says: {error.strerror}")


def remove_leftovers(folder: Path) -> tuple[int, int]:
    """Remove the temporary files that crashed writers have left in a folder; returns files and bytes.

    Raises:
        StoreError: one cannot be removed.
    """
    count = freed = 0
    try:
        for path in leftovers(folder):
            nbytes = path.stat().st_size
            path.unlink()
            count, freed = count + 1, freed + nbytes
    except OSError as error:
        what = f"removing what crashed writers have left in '{folder}'"
        raise StoreError(f"{what} was asked for; the system says: {error.strerror}") from error
    return count, freed


def refuse_large(url: str, key: str, nbytes: int, limit: int) -> None:
    """Refuse to read an object that is larger than what can be under its key.

    Raises:
        StoreError: it is.
    """
    if nbytes > limit:
        raise StoreError(f"the store {url}: {key} has {nbytes} bytes; at most {limit} can be right")
