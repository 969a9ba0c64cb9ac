"""A store of snapshots: chunks under the digest of their bytes, and a skeleton under each snapshot's name.

    nocopy-store.json                   says that this is a store, and which version
    chunks/3f/3f09…                     the stored bytes of a chunk, named by their BLAKE3 digest
    snapshots/NAME.snapshot             the file without its padding and chunks
    pushing/TOKEN                       the skeleton of a snapshot that is being pushed
    collecting/TOKEN                    a collection of garbage is going on

Two snapshots of one agent share the chunks that did not change. A snapshot appears when its skeleton is
written, after everything that it needs; pulling it gives the very bytes that were pushed. `collect.py` says
how pushes and collections keep out of each other's way.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Final, TypeVar

from blake3 import blake3

from nocopy.errors import SnapshotDamagedError, StoreError, UsageError
from nocopy.snapshot.check import Checked, check_file
from nocopy.snapshot.format import CHUNK
from nocopy.snapshot.in_order import in_order
from nocopy.snapshot.marks import LEASE, Mark, marked
from nocopy.snapshot.objects import Objects
from nocopy.snapshot.publish import Publication
from nocopy.snapshot.read import Snapshot, open_snapshot
from nocopy.snapshot.sign import Verifier
from nocopy.snapshot.skeleton import LARGEST, Skeleton

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int, int], None]

MARK: Final = "nocopy-store.json"
MARKED: Final = b'{"format":"nocopy store","version":1}\n'
CHUNKS, SNAPSHOTS, PUSHING, COLLECTING = "chunks/", "snapshots/", "pushing/", "collecting/"
SUFFIX: Final = ".snapshot"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
NAME_LENGTH: Final = 200
WAIT: Final = 60.0
"""Seconds that a push waits for a collection to end."""
THREADS: Final = 8
"""Requests at a time."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot of a store: its name, and when it was published, in seconds of the store's own clock."""

    name: str
    published: float


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push took: bytes that were written, and bytes that the store had already."""

    sent: int
    shared: int


class Store:
    """Snapshots under names. `nocopy.snapshot.open_store` makes one."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    @property
    def url(self) -> str:
        """What the user calls it."""
        return self.objects.url

    # Looking

    def exists(self) -> bool:
        """Whether there is a store, of a version that is known here.

        Raises:
            StoreError: it cannot be reached, or is of another version.
        """
        mark = self.objects.get(MARK, 4096)
        if mark is not None and mark != MARKED:
            raise StoreError(f"the store {self.url} is of a format that is not known here: {mark[:80]!r}")
        return mark is not None

    def names(self) -> list[Stored]:
        """The snapshots, by name. Objects that no push can have written are not among them.

        Raises:
            StoreError: there is no store, or it cannot be reached.
        """
        self.require()
        found = [
            Stored(stat.key[len(SNAPSHOTS) : -len(SUFFIX)], stat.modified)
            for stat in self.objects.list(SNAPSHOTS)
            if stat.key.endswith(SUFFIX)
        ]
        return sorted((s for s in found if _is_name(s.name)), key=lambda stored: stored.name)

    def read(self, name: str, *, key: Verifier | None = None) -> Checked:
        """Everything of a snapshot but its chunks.

        Raises:
            UsageError: no snapshot can have this name.
            StoreError: the store has no such snapshot, or cannot be reached.
            SnapshotError: what it has is damaged, or not signed by `key`.
        """
        return check_file(self._skeleton(name), key)

    def _skeleton(self, name: str) -> Skeleton:
        found = self.find(name)
        if found is None:
            self.require()
            raise StoreError(
                f"the snapshot '{name}' was asked for; the store {self.url} has none of that name."
                f" `nocopy snapshots ls {self.url}` lists them"
            )
        return found

    def find(self, name: str) -> Skeleton | None:
        """The skeleton of a snapshot, unchecked; None if there is none.

        Raises:
            UsageError: no snapshot can have this name.
            SnapshotError: it is cut off, or the store cannot be reached.
        """
        data = self.objects.get(_key(name), LARGEST)
        return None if data is None else Skeleton(f"{self.url}#{name}", data)

    def verify(self, name: str, *, key: Verifier | None = None, sound: set[bytes] | None = None) -> None:
        """Read every chunk of a snapshot and compare digests.

        Args:
            name: the snapshot.
            key: who must have signed it.
            sound: digests of chunks that need no look; those that are found sound are added.

        Raises:
            SnapshotError: something is missing or damaged; see `read` as well.
        """
        checked, sound = self.read(name, key=key), set[bytes]() if sound is None else sound
        left = {d: n for d, n in chunks_of(checked).items() if d not in sound}
        for digest, _ in self._parallel(lambda part: self._chunk(name, *part), left.items()):
            sound.add(digest)

    # Moving

    def push(self, path: str | PathLike[str], name: str, *, progress: Progress | None = None) -> Pushed:
        """Put a snapshot file into the store; a snapshot of that name is replaced.

        Args:
            path: the file.
            name: letters, digits, dots, dashes and underscores, with slashes between.
            progress: called with (bytes done, bytes of all chunks).

        Raises:
            UsageError: no snapshot can have this name, or there is no such file.
            SnapshotError: the file is broken, or the store cannot be reached or refuses. The store has the
                snapshots that it had, and perhaps chunks that the next collection removes.
        """
        key = _key(name)
        with open_snapshot(path, verify="off") as snapshot:
            skeleton, parts = snapshot.skeleton(), snapshot.stored_chunks()
            if not self.exists():
                self.objects.put(MARK, MARKED)
            total, done, sent = sum(length for _, length in parts.values()), 0, 0
            with marked(self.objects, PUSHING, skeleton) as mark:
                self._wait_for_collections(mark)
                for nbytes, new in self._parallel(partial(self._send, snapshot), parts.items()):
                    done, sent = done + nbytes, sent + nbytes * new
                    mark.renew()
                    if progress is not None:
                        progress(done, total)
                mark.require()
                self.objects.put(key, skeleton)
        return Pushed(sent, total - sent)

    def _send(self, snapshot: Snapshot, part: tuple[bytes, tuple[int, int]]) -> tuple[int, bool]:
        """Write a chunk that is not there yet; returns its bytes, and whether it was written."""
        digest, (position, nbytes) = part
        found = self.objects.stat(_chunk_key(digest))
        if found is not None and found.nbytes == nbytes:
            return nbytes, False
        self.objects.put(_chunk_key(digest), snapshot.stored_bytes(position, nbytes, digest))
        return nbytes, True

    def pull(
        self,
        name: str,
        path: str | PathLike[str],
        *,
        key: Verifier | None = None,
        progress: Progress | None = None,
    ) -> Checked:
        """Make a file of a snapshot: the very bytes that were pushed, all of them verified.

        Args:
            name: the snapshot.
            path: the file; one that is there is replaced when everything has arrived.
            key: who must have signed it.
            progress: called with (bytes done, bytes of all chunks).

        Raises:
            SnapshotError: see `read`; or a chunk is missing or damaged, or the file cannot be written.
        """
        skeleton = self._skeleton(name)
        checked = check_file(skeleton, key)
        header, entries = checked.header, checked.entries
        digests = [entry.tobytes() for entry in entries["digest"]]
        lengths: list[int] = entries["stored"].tolist()
        places: list[int] = entries["position"].tolist()
        done, total = 0, sum(lengths)
        with Publication(path) as file:
            wanted = zip(digests, lengths, strict=True)
            found = self._parallel(lambda part: self._chunk(name, *part), wanted)
            for at, (_, data) in zip(places, found, strict=True):
                file.write(at, data)
                done += len(data)
                if progress is not None:
                    progress(done, total)
            file.write(header.table, skeleton.data[skeleton.head :])
            file.write(0, skeleton.data[: skeleton.head] + bytes(header.data - skeleton.head))
            file.commit()
        return checked

    def _chunk(self, name: str, digest: bytes, nbytes: int) -> tuple[bytes, bytes]:
        """The digest and the stored bytes of a chunk."""
        data = self.objects.get(_chunk_key(digest), CHUNK)
        if data is None:
            raise StoreError(
                f"the snapshot '{name}' needs the chunk {digest.hex()}; the store {self.url} does not have it"
            )
        if len(data) != nbytes or blake3(data).digest() != digest:
            raise SnapshotDamagedError(f"{self.url}#{name}", f"chunk {digest.hex()}")
        return digest, data

    def remove(self, name: str) -> None:
        """Forget a snapshot. Its chunks go with the next collection, if nobody else needs them.

        Raises:
            UsageError: no snapshot can have this name.
            StoreError: the store has no such snapshot, or cannot be reached.
        """
        self.require()
        if self.objects.stat(_key(name)) is None:
            raise StoreError(f"deleting '{name}' was asked for; the store {self.url} has no such snapshot")
        self.objects.delete([_key(name)])

    # What pushes and collections share

    def require(self) -> None:
        """Refuse to go on where there is no store.

        Raises:
            StoreError: there is none, or it cannot be reached.
        """
        if not self.exists():
            raise StoreError(
                f"a store of snapshots was looked for at {self.url}; there is none. Push one first"
            )

    def _wait_for_collections(self, mark: Mark) -> None:
        """Return when no collection is going on that could have missed `mark`.

        Raises:
            StoreError: one goes on for too long.
        """
        until = time.monotonic() + WAIT
        while any(mark.written - stat.modified < LEASE for stat in self.objects.list(COLLECTING)):
            if time.monotonic() > until:
                raise StoreError(
                    f"a collection of garbage goes on in the store {self.url} for longer than {WAIT:.0f} s."
                    f" Try again later; one that crashed is ignored after {LEASE / 60:.0f} minutes"
                )
            time.sleep(0.2)

    def _parallel(self, work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Results in order, a few requests at a time."""
        with ThreadPoolExecutor(THREADS, "store") as pool:
            try:
                yield from in_order(pool, work, items, 2 * THREADS)
            finally:
                pool.shutdown(cancel_futures=True)


def _is_name(text: str) -> bool:
    short = len(text) <= NAME_LENGTH and NAME.fullmatch(text) is not None
    return short and not any(part.endswith(SUFFIX) for part in text.split("/"))


def _key(name: str) -> str:
    if not _is_name(name):
        raise UsageError(
            f"a snapshot named {name!r} was asked for; a name has at most {NAME_LENGTH} letters, digits,"
            " dots, dashes and underscores, in parts between slashes that begin with a letter or digit and do"
            f" not end in {SUFFIX}"
        )
    return f"{SNAPSHOTS}{name}{SUFFIX}"


def _chunk_key(digest: bytes) -> str:
    text = digest.hex()
    return f"{CHUNKS}{text[:2]}/{text}"


def chunks_of(checked: Checked) -> dict[bytes, int]:
    """The chunks that a snapshot needs: digest and bytes of each, once."""
    digests = [entry.tobytes() for entry in checked.entries["digest"]]
    lengths: Sequence[int] = checked.entries["stored"].tolist()
    return dict(zip(digests, lengths, strict=True))
