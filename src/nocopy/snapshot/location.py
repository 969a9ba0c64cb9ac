"""What a user writes to name a store, or a snapshot in one.

agents/                  a folder of this machine
file:///srv/agents       the same by URL
s3://bucket/agents       an object store; also gs:// and az://
s3://bucket/agents#alice the snapshot `alice` in it
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from nocopy.errors import UsageError
from nocopy.snapshot.objects import FolderObjects
from nocopy.snapshot.remote import SCHEMES, RemoteObjects
from nocopy.snapshot.store import Store


def is_url(text: str) -> bool:
    """Whether a text names something by URL rather than a path."""
    return "://" in text


def open_store(location: str) -> Store:
    """The store at a folder or a URL. It need not exist: the first push makes it.

    Raises:
        UsageError: no store can be there, or the package that reaches it is missing.
    """
    if not is_url(location):
        return Store(FolderObjects(Path(location)))
    parts = urlsplit(location)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return Store(FolderObjects(Path(unquote(parts.path))))
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in ("file", *SCHEMES))
        raise UsageError(f"the store {location} was asked for; a folder, or one of {known} can be a store")
    return Store(RemoteObjects(location.rstrip("/")))


def parse_location(text: str) -> tuple[str, str]:
    """Part STORE#NAME into the store and the name, which is empty where there is no #."""
    store, _, name = text.partition("#")
    return store, name
