"""Removes from a store the chunks that no snapshot needs.

Never one that a published snapshot needs, or one that is being pushed. A push first writes a mark with the
list of its chunks, then looks for collections, and waits while there is one; a collection first writes its
mark, then looks for pushes, and keeps what they list. Whichever mark was written first, one of the two sees
the other's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nocopy.snapshot.check import check_file
from nocopy.snapshot.marks import LEASE, Mark, marked
from nocopy.snapshot.skeleton import LARGEST, Skeleton
from nocopy.snapshot.store import CHUNKS, COLLECTING, PUSHING, Store, chunks_of

GRACE: Final = 24 * 3600.0
"""Seconds that a chunk which nobody needs is kept after it was written."""
BATCH: Final = 200
"""Chunks removed between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection did: chunks and bytes that were removed, and that were kept."""

    removed: int
    removed_nbytes: int
    kept: int
    kept_nbytes: int


def collect(store: Store, *, grace: float = GRACE) -> Collected:
    """Remove chunks that nobody needs and that are older than `grace` seconds.

    Marks that crashed pushes and collections have left go as well, an hour after they were renewed last.

    Raises:
        SnapshotError: a snapshot cannot be read, so that nobody knows what it needs; nothing was removed. Or
            the store cannot be reached; what was removed until then is gone.
    """
    objects = store.objects
    store.require()
    with marked(objects, COLLECTING, b"") as mark:
        needed, stale = _pushes(store, mark)
        for stored in store.names():  # after the pushes: one that has ended meanwhile has its name here
            found = store.find(stored.name)
            if found is not None:  # else it was removed meanwhile
                needed |= chunks_of(check_file(found, None)).keys()
        stale += [s.key for s in objects.list(COLLECTING) if mark.written - s.modified > LEASE]
        garbage: list[str] = []
        removed = kept = kept_nbytes = 0
        for stat in objects.list(CHUNKS):
            digest = _digest(stat.key)
            if digest is None or digest in needed or mark.written - stat.modified < grace:
                kept, kept_nbytes = kept + 1, kept_nbytes + stat.nbytes
            else:
                garbage.append(stat.key)
                removed += stat.nbytes
        for start in range(0, len(garbage), BATCH):
            mark.renew()
            mark.require()
            objects.delete(garbage[start : start + BATCH])
        objects.delete(stale)
    return Collected(len(garbage), removed + objects.clean(), kept, kept_nbytes)


def _pushes(store: Store, mark: Mark) -> tuple[set[bytes], list[str]]:
    """Digests that pushes in progress need, and the keys of marks that crashed ones have left."""
    needed: set[bytes] = set()
    stale: list[str] = []
    for stat in store.objects.list(PUSHING):
        if mark.written - stat.modified > LEASE:
            stale.append(stat.key)
            continue
        data = store.objects.get(stat.key, LARGEST)
        if data is not None:  # else it has ended: published, or given up
            needed |= chunks_of(check_file(Skeleton(f"{store.url}/{stat.key}", data), None)).keys()
    return needed, stale


def _digest(key: str) -> bytes | None:
    """The digest in a chunk's key; None if something else lies there, which is not ours to remove."""
    try:
        digest = bytes.fromhex(key.rsplit("/", 1)[1])
    except ValueError:
        return None
    return digest if len(digest) == 32 else None
