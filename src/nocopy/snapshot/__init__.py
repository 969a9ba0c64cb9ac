"""Snapshots: a guest or a session as one file, and where such files are kept.

Interfaces, serve and the command line import this package; it imports session and what is below.
The invariant: nothing of a snapshot is used before it was checked, and a snapshot is never seen half written.
"""

from nocopy.snapshot.collect import collect
from nocopy.snapshot.location import open_store
from nocopy.snapshot.manifest import Manifest, MemoryState
from nocopy.snapshot.read import Snapshot, open_snapshot
from nocopy.snapshot.sign import PrivateKey, PublicKey, SharedSecret
from nocopy.snapshot.store import Store
from nocopy.snapshot.write import Written, write_snapshot

__all__ = [
    "Manifest",
    "MemoryState",
    "PrivateKey",
    "PublicKey",
    "SharedSecret",
    "Snapshot",
    "Store",
    "Written",
    "collect",
    "open_snapshot",
    "open_store",
    "write_snapshot",
]
