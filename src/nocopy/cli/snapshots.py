"""`nocopy snapshots`: what snapshots there are, whether they are whole, and where they are kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nocopy.cli.choices import Json

if TYPE_CHECKING:
    from nocopy.snapshot.check import Checked
    from nocopy.snapshot.sign import Verifier
    from nocopy.snapshot.store import Store

Place = Annotated[
    str, Parameter(name="PLACE", help="A folder, or a store: a folder or URL such as s3://bucket/agents.")
]
Location = Annotated[str, Parameter(name="SNAPSHOT", help="A file, or STORE#NAME.")]
InStore = Annotated[str, Parameter(name="STORE#NAME", help="The store, and the snapshot's name in it.")]
Key = Annotated[
    Path | None,
    Parameter(
        name="--key",
        metavar="FILE",
        help="It must be signed by this key: an Ed25519 public key (PEM), or a file with a shared secret.",
    ),
]


def ls(place: Place = ".", /, *, json: Json = False) -> int:
    """List them. See `app.VERBS`."""
    from rich.text import Text

    from nocopy.cli.model_card import printable
    from nocopy.cli.output import console, print_json, size, table

    found = in_place(place)
    if json:
        print_json({"place": place, "snapshots": found})
        return 0
    rows = table("snapshot", "kind", "size", "memory", "when", right=("size", "memory"))
    for item in found:
        name = Text(printable(item["name"]))
        if "error" in item:
            rows.add_row(name, Text(item["error"], "red"), "", "", "")
        else:
            when = datetime.fromisoformat(item["written"]).astimezone().strftime("%Y-%m-%d %H:%M")
            rows.add_row(name, item["kind"], size(item["bytes"]), size(item["memory_bytes"]), when)
    console().print(rows)
    if not found:
        console().print(f"No snapshots in {place}.", soft_wrap=True, markup=False)
    return 0


def in_place(place: str) -> list[dict[str, Any]]:
    """A line for each snapshot of a store or a folder; broken ones say how.

    Raises:
        UsageError: there is no such folder.
        SnapshotError: the store cannot be reached.
    """
    from nocopy.errors import SnapshotError, SnapshotFileError

    def line(name: str, written: float, read: Callable[[], Checked]) -> dict[str, Any]:
        try:
            checked = read()
        except SnapshotError as error:
            kind = error.kind if isinstance(error, SnapshotFileError) else type(error).__name__
            return {"name": name, "error": kind}
        manifest = checked.manifest
        return {
            "name": name,
            "kind": manifest.kind,
            "bytes": checked.header.nbytes,
            "memory_bytes": sum(memory.size for memory in manifest.memories),
            "generation": manifest.generation,
            "written": datetime.fromtimestamp(written, UTC).isoformat(),
        }

    store = store_at(place)
    if store is not None:
        return [line(s.name, s.published, partial(store.read, s.name)) for s in store.names()]
    return [
        line(path.name, path.stat().st_mtime, lambda path=path: opened(path))
        for path in snapshot_files(place)
    ]


def opened(path: Path) -> Checked:
    """A snapshot file, checked, without its pages.

    Raises:
        SnapshotError: it is broken.
    """
    from nocopy.snapshot.read import open_snapshot

    with open_snapshot(path, verify="off") as snapshot:
        return snapshot.checked


def store_at(place: str) -> Store | None:
    """The store at a place; None for a folder that is none.

    Raises:
        UsageError: there can be no store.
        SnapshotError: it cannot be reached.
    """
    from nocopy.snapshot.location import is_url, open_store

    store = open_store(place)
    if is_url(place):
        store.require()
        return store
    return store if store.exists() else None


def snapshot_files(folder: str) -> list[Path]:
    """The files in a folder that begin as a snapshot does.

    Raises:
        UsageError: there is no such folder, or it cannot be read.
    """
    from nocopy.errors import UsageError
    from nocopy.snapshot.format import MAGIC

    def begins(path: Path) -> bool:
        if not os.access(path, os.R_OK):  # somebody else's file, whatever it is
            return False
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC

    try:
        return [p for p in sorted(Path(folder).iterdir()) if p.is_file() and begins(p)]
    except OSError as error:
        raise UsageError(f"the folder '{folder}' was asked for; {error.strerror}") from error


def show(location: Location, /, *, key: Key = None, json: Json = False) -> int:
    """Say what a snapshot is. See `app.VERBS`."""
    from rich.text import Text

    from nocopy.cli.output import console, print_json, table
    from nocopy.cli.snapshot_card import as_json, rows

    checked = read(location, verifier(key))
    if json:
        print_json(as_json(checked))
        return 0
    shown = table("", "")
    shown.show_header = False
    for name, value in rows(checked):
        shown.add_row(Text(name, "dim"), Text(value))
    console().print(shown)
    return 0


def read(location: str, key: Verifier | None) -> Checked:
    """A snapshot of a store or a file, checked, without its pages.

    Raises:
        UsageError: there is none.
        SnapshotError: it is broken, or not signed by `key`.
    """
    from nocopy.snapshot.location import open_store, parse_location
    from nocopy.snapshot.read import open_snapshot

    place, name = parse_location(location)
    if name:
        return open_store(place).read(name, key=key)
    with open_snapshot(location, verify="off", key=key) as snapshot:
        return snapshot.checked


def verifier(key: Path | None) -> Verifier | None:
    """The key of --key.

    Raises:
        UsageError: it cannot be used.
    """
    from nocopy.snapshot.keys import load_verifier

    return None if key is None else load_verifier(key)


def verify(
    place: Annotated[
        str, Parameter(name="PLACE", help="A file, STORE#NAME, or all of a folder or store.")
    ] = ".",
    /,
    *,
    key: Key = None,
    json: Json = False,
) -> int:
    """Read every byte and compare digests. See `app.VERBS`."""
    from rich.text import Text

    from nocopy.cli.model_card import printable
    from nocopy.cli.output import console, print_json
    from nocopy.cli.progress import progress_bar
    from nocopy.cli.status import Status
    from nocopy.errors import SnapshotError

    checks = verifications(place, verifier(key))
    results: list[dict[str, Any]] = []
    with progress_bar("verify") as bar:
        for number, (name, check) in enumerate(checks):
            bar(name, number / len(checks))
            try:
                check()
                results.append({"name": name, "sound": True})
            except SnapshotError as error:
                results.append({"name": name, "sound": False, "error": str(error)})
    sound = all(result["sound"] for result in results)
    if json:
        print_json({"place": place, "sound": sound, "snapshots": results})
    else:
        for result in results:
            said = ("sound", "green") if result["sound"] else (result["error"], "red")
            console().print(Text.assemble(printable(result["name"]), "  ", said), soft_wrap=True)
        if not results:
            console().print(f"No snapshots in {place}.", soft_wrap=True, markup=False)
    return Status.OK if sound else Status.FAILURE


def verifications(place: str, key: Verifier | None) -> list[tuple[str, Callable[[], None]]]:
    """What `verify` has to do: names, and functions that raise where something is wrong."""
    from nocopy.snapshot.location import open_store, parse_location
    from nocopy.snapshot.read import open_snapshot

    def check(path: Path) -> None:
        open_snapshot(path, key=key).close()

    base, name = parse_location(place)
    if name:
        store = open_store(base)
        return [(place, partial(store.verify, name, key=key))]
    if os.path.isfile(place):
        return [(place, partial(check, Path(place)))]
    found = store_at(place)
    if found is None:
        return [(path.name, partial(check, path)) for path in snapshot_files(place)]
    sound: set[bytes] = set()
    return [(s.name, partial(found.verify, s.name, key=key, sound=sound)) for s in found.names()]


def gc(
    place: Place = ".",
    /,
    *,
    grace: Annotated[
        str, Parameter(metavar="TIME", help="Keep chunks that nobody needs for this long: 30m, 24h.")
    ] = "24h",
    json: Json = False,
) -> int:
    """Remove what nobody needs. See `app.VERBS`."""
    from nocopy.cli.grants import parse_time
    from nocopy.cli.output import errors, print_json, size
    from nocopy.snapshot.collect import collect
    from nocopy.snapshot.objects import remove_leftovers

    seconds = parse_time(grace, "--grace")
    store = store_at(place)
    if store is None:
        snapshot_files(place)  # refuses what is no folder
        removed, freed = remove_leftovers(Path(place))
    else:
        done = collect(store, grace=seconds)
        removed, freed = done.removed, done.removed_nbytes
    if json:
        print_json({"place": place, "removed": removed, "bytes": freed})
    else:
        errors().print(f"{size(freed)} are free again.")
    return 0


def push(
    file: Annotated[Path, Parameter(help="A snapshot file.")], to: InStore, /, *, json: Json = False
) -> int:
    """Put a snapshot file into a store. See `app.VERBS`."""
    from nocopy.cli.output import errors, print_json, size
    from nocopy.cli.progress import byte_bar

    store, name = in_store(to)
    with byte_bar("push") as bar:
        done = store.push(file, name, progress=lambda now, total: bar(name, now, total))
    if json:
        print_json({"name": name, "store": store.url, "sent": done.sent, "shared": done.shared})
    else:
        errors().print(f"{size(done.sent)} sent; {size(done.shared)} were there already.")
    return 0


def pull(
    source: InStore,
    file: Annotated[Path | None, Parameter(help="What to write; the name's last part when left out.")] = None,
    /,
    *,
    key: Key = None,
    json: Json = False,
) -> int:
    """Make a file of a snapshot in a store. See `app.VERBS`."""
    from nocopy.cli.output import print_json
    from nocopy.cli.progress import byte_bar

    store, name = in_store(source)
    path = Path(f"{name.rsplit('/', 1)[-1]}.snapshot") if file is None else file
    with byte_bar("pull") as bar:
        done = store.pull(name, path, key=verifier(key), progress=lambda now, total: bar(name, now, total))
    if json:
        print_json({"name": name, "store": store.url, "path": str(path), "bytes": done.header.nbytes})
    else:
        sys.stdout.write(f"{path}\n")
    return 0


def rm(snapshot: InStore, /, *, json: Json = False) -> int:
    """Forget a snapshot of a store. See `app.VERBS`."""
    from nocopy.cli.output import errors, print_json

    store, name = in_store(snapshot)
    store.remove(name)
    if json:
        print_json({"deleted": name, "store": store.url})
    else:
        said = f"Forgot {name}; `nocopy snapshots gc {store.url}` frees what nobody else needs."
        errors().print(said, soft_wrap=True, markup=False)
    return 0


def in_store(location: str) -> tuple[Store, str]:
    """The store and the name of STORE#NAME.

    Raises:
        UsageError: it is something else.
    """
    from nocopy.errors import UsageError
    from nocopy.snapshot.location import open_store, parse_location

    place, name = parse_location(location)
    if not place or not name:
        raise UsageError(f"'{location}' was given; STORE#NAME is wanted, such as s3://bucket/agents#alice")
    return open_store(place), name
