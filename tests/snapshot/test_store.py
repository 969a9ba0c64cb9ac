"""Stores, in a folder and in an object store that speaks S3."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from nocopy.errors import (
    SnapshotDamagedError,
    SnapshotError,
    SnapshotSignatureError,
    SnapshotWriteError,
    StoreError,
    UsageError,
)
from nocopy.snapshot import SharedSecret, Store, collect, open_snapshot, open_store, write_snapshot
from nocopy.snapshot import store as store_module
from nocopy.snapshot.location import parse_location
from nocopy.snapshot.marks import LEASE, marked
from nocopy.snapshot.objects import FolderObjects
from nocopy.snapshot.store import CHUNKS, COLLECTING, PUSHING, SNAPSHOTS
from tests.snapshot import independent_reader
from tests.snapshot.made import BLOCK, PAGE, contents, manifest_of, memory_with

CHUNK = 16 * PAGE
SECRET = SharedSecret(bytes(range(16)))


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch):
    """A store that nothing was pushed to yet."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    server = request.getfixturevalue("s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return open_store(f"s3://agents/{tmp_path.name}")


@pytest.fixture
def folder_store(tmp_path):
    return open_store(str(tmp_path / "store"))


def snapshot_file(path: Path, pages=range(40), seed=0, **options) -> Path:
    memory = memory_with(40, pages, seed)
    write_snapshot(path, manifest_of(memory), [memory], **options)
    return path


def keys(store: Store, prefix: str) -> set[str]:
    return {stat.key for stat in store.objects.list(prefix)}


# Pushing and pulling


@pytest.mark.parametrize(
    "options", [{}, {"compress": True}, {"signer": SECRET}], ids=["plain", "zstd", "signed"]
)
def test_what_is_pulled_is_what_was_pushed(store, tmp_path, options):
    path = snapshot_file(tmp_path / "a", pages=[0, 1, 20, 39], **options)
    seen = []
    store.push(path, "alice/monday", progress=lambda *n: seen.append(n))
    store.pull("alice/monday", tmp_path / "b", progress=lambda *n: seen.append(n))
    assert (tmp_path / "b").read_bytes() == path.read_bytes()
    assert {done for done, total in seen if done == total}
    store.verify("alice/monday", key=options.get("signer"))
    assert store.read("alice/monday").manifest == open_and_close(path).manifest
    assert keys(store, PUSHING) == set()


def open_and_close(path):
    with open_snapshot(path) as snapshot:
        return snapshot


def test_snapshots_share_what_did_not_change(store, tmp_path):
    memory = memory_with(80, range(80))
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    first = store.push(tmp_path / "a", "a")
    assert (first.sent, first.shared) == (80 * PAGE, 0)
    memory.write(20 * PAGE, b"a token more")
    write_snapshot(tmp_path / "b", manifest_of(memory), [memory])
    second = store.push(tmp_path / "b", "b")
    assert (second.sent, second.shared) == (CHUNK, 80 * PAGE - CHUNK)
    assert sum(stat.nbytes for stat in store.objects.list(CHUNKS)) == 80 * PAGE + CHUNK
    for name in ("a", "b"):
        store.pull(name, tmp_path / "c")
        assert (tmp_path / "c").read_bytes() == (tmp_path / name).read_bytes()


def test_the_same_chunk_twice_in_a_memory_is_kept_once(store, tmp_path):
    memory = memory_with(64, [])
    for at in range(0, 64 * PAGE, 8):
        memory.write(at, b"repeated") if at % PAGE < 8 else None
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    assert store.push(tmp_path / "a", "a").sent == CHUNK
    store.pull("a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_another_reader_understands_what_was_pulled(store, tmp_path):
    memory = memory_with(40, [3, 30])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    store.push(tmp_path / "a", "a")
    store.pull("a", tmp_path / "b")
    assert independent_reader.read(tmp_path / "b").memories == [contents(memory)]


def test_snapshots_are_listed_by_name(store, tmp_path):
    path = snapshot_file(tmp_path / "a", pages=[])
    for name in ("b", "a/2", "a/1"):
        store.push(path, name)
    assert [stored.name for stored in store.names()] == ["a/1", "a/2", "b"]
    assert all(abs(stored.published - time.time()) < 600 for stored in store.names())
    store.remove("a/2")
    assert [stored.name for stored in store.names()] == ["a/1", "b"]


def test_a_name_can_be_pushed_again(store, tmp_path):
    store.push(snapshot_file(tmp_path / "a", seed=1), "agent")
    store.push(snapshot_file(tmp_path / "b", seed=2), "agent")
    store.pull("agent", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_signature_is_asked_for(store, tmp_path):
    store.push(snapshot_file(tmp_path / "a", pages=[1], signer=SECRET), "a")
    store.pull("a", tmp_path / "b", key=SECRET)
    with pytest.raises(SnapshotSignatureError):
        store.pull("a", tmp_path / "c", key=SharedSecret(bytes(16)))
    assert not (tmp_path / "c").exists()


# Collecting garbage


def test_a_collection_removes_what_nobody_needs(store, tmp_path):
    store.push(snapshot_file(tmp_path / "a", seed=1), "a")
    kept = keys(store, CHUNKS)
    store.push(snapshot_file(tmp_path / "b", pages=range(20), seed=1), "b")
    store.push(snapshot_file(tmp_path / "c", seed=3), "c")
    store.remove("c")
    store.remove("b")
    done = collect(store, grace=0)
    assert keys(store, CHUNKS) == kept
    assert (done.removed, done.removed_nbytes) == (4, 44 * PAGE)
    assert (done.kept, done.kept_nbytes) == (3, 40 * PAGE)
    store.verify("a")
    assert collect(store, grace=0).removed == 0
    assert keys(store, COLLECTING) == set()


def test_young_chunks_are_kept(store, tmp_path):
    store.push(snapshot_file(tmp_path / "a"), "a")
    store.remove("a")
    assert collect(store).removed == 0
    assert collect(store, grace=0).removed == 3


def test_what_is_being_pushed_is_kept(store, tmp_path):
    path = snapshot_file(tmp_path / "a")
    store.push(path, "a")
    store.remove("a")
    with open_snapshot(path) as snapshot, marked(store.objects, PUSHING, snapshot.skeleton()):
        assert collect(store, grace=0).removed == 0
    assert collect(store, grace=0).removed == 3


def test_a_push_waits_for_a_collection(store, tmp_path):
    path = snapshot_file(tmp_path / "a", pages=[1])
    store.push(path, "first")
    with ThreadPoolExecutor(1) as pool:
        with marked(store.objects, COLLECTING, b""):
            pushing = pool.submit(store.push, path, "second")
            until = time.monotonic() + 60
            while not keys(store, PUSHING) and time.monotonic() < until:
                time.sleep(0.02)
            assert [stored.name for stored in store.names()] == ["first"]
            assert not pushing.done()
        pushing.result(60)
    assert [stored.name for stored in store.names()] == ["first", "second"]


def test_a_push_does_not_wait_for_ever(store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "WAIT", 0.3)
    path = snapshot_file(tmp_path / "a", pages=[1])
    store.push(path, "first")
    with marked(store.objects, COLLECTING, b""), pytest.raises(StoreError, match="Try again later"):
        store.push(path, "second")
    assert keys(store, PUSHING) == set()


def test_marks_of_crashed_programs_do_not_count(folder_store, tmp_path):
    path = snapshot_file(tmp_path / "a")
    folder_store.push(path, "a")
    folder_store.remove("a")
    with open_snapshot(path) as snapshot:
        folder_store.objects.put(f"{PUSHING}old", snapshot.skeleton())
    folder_store.objects.put(f"{COLLECTING}old", b"")
    for kind in (PUSHING, COLLECTING):
        long_ago = time.time() - LEASE - 60
        os.utime(Path(folder_store.url) / kind / "old", (long_ago, long_ago))
    folder_store.push(snapshot_file(tmp_path / "b", pages=[1], seed=5), "b")
    assert collect(folder_store, grace=0).removed == 3
    assert keys(folder_store, PUSHING) | keys(folder_store, COLLECTING) == set()


def test_pushes_and_collections_at_the_same_time(store, tmp_path):
    """Every snapshot that was published stays whole, while names come and go and garbage is collected."""
    files = [snapshot_file(tmp_path / f"{i}", pages=range(i, 40, 4), seed=i) for i in range(3)]
    store.push(files[0], "start")
    stop = threading.Event()

    def collect_all_the_time():
        while not stop.is_set():
            collect(store, grace=0)

    def come_and_go(index):
        for _ in range(4):
            store.push(files[index], f"agent{index}")
            store.verify(f"agent{index}")
            store.remove(f"agent{index}")
        store.push(files[index], f"agent{index}")

    with ThreadPoolExecutor(4) as pool:
        collecting = pool.submit(collect_all_the_time)
        agents = [pool.submit(come_and_go, index) for index in range(3)]
        try:
            for agent in agents:
                agent.result(120)
        finally:
            stop.set()
        collecting.result(120)
    for stored in store.names():
        store.verify(stored.name)
    assert [stored.name for stored in store.names()] == ["agent0", "agent1", "agent2", "start"]


def test_nothing_is_removed_when_a_snapshot_cannot_be_read(folder_store, tmp_path):
    folder_store.push(snapshot_file(tmp_path / "a"), "a")
    folder_store.push(snapshot_file(tmp_path / "b", seed=2), "b")
    before = keys(folder_store, CHUNKS)
    damage(Path(folder_store.url) / SNAPSHOTS / "a.snapshot", 200)
    with pytest.raises(SnapshotError, match="#a"):
        collect(folder_store, grace=0)
    assert keys(folder_store, CHUNKS) == before
    assert keys(folder_store, COLLECTING) == set()


def test_what_is_not_ours_stays(folder_store, tmp_path):
    folder_store.push(snapshot_file(tmp_path / "a"), "a")
    (Path(folder_store.url) / SNAPSHOTS / "an odd one.snapshot").write_text("no snapshot")
    assert [stored.name for stored in folder_store.names()] == ["a"]
    stranger = Path(folder_store.url) / CHUNKS / "readme.txt"
    stranger.write_text("not a chunk")
    collect(folder_store, grace=0)
    assert stranger.exists()


def test_leftovers_of_crashed_writers_go(folder_store, tmp_path):
    folder_store.push(snapshot_file(tmp_path / "a"), "a")
    (Path(folder_store.url) / CHUNKS / ".nocopy-0000000000000000.tmp").write_bytes(b"half a chunk")
    assert collect(folder_store).removed_nbytes == 12


# What goes wrong


class Failing(FolderObjects):
    """Fails at the n-th write or look, as a network does."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.left = at
        self.lock = threading.Lock()

    def count(self) -> None:
        with self.lock:
            self.left -= 1
            if self.left == 0:
                raise StoreError("the network is gone")

    def put(self, key, data):
        self.count()
        super().put(key, data)

    def stat(self, key):
        self.count()
        return super().stat(key)


def test_a_push_that_is_interrupted_anywhere_changes_no_snapshot(tmp_path):
    old, new = snapshot_file(tmp_path / "old", seed=1), snapshot_file(tmp_path / "new", seed=2)
    published, at = False, 0
    while not published:
        at += 1
        root = tmp_path / f"store{at}"
        Store(FolderObjects(root)).push(old, "agent")
        try:
            Store(Failing(root, at)).push(new, "agent")
            published = True
        except StoreError as error:
            assert "network" in str(error)  # noqa: PT017
        store = Store(FolderObjects(root))
        store.pull("agent", tmp_path / "found")
        assert (tmp_path / "found").read_bytes() == (new if published else old).read_bytes()
        collect(store, grace=0)
        store.verify("agent")
    assert at > 10


def damage(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_damage_in_the_store_is_found(folder_store, tmp_path):
    folder_store.push(snapshot_file(tmp_path / "a"), "a")
    root = Path(folder_store.url)
    chunk = next(iter(sorted(keys(folder_store, CHUNKS))))
    damage(root / chunk, 1000)
    with pytest.raises(SnapshotDamagedError, match=chunk.rsplit("/", 1)[1]):
        folder_store.verify("a")
    with pytest.raises(SnapshotDamagedError):
        folder_store.pull("a", tmp_path / "b")
    (root / chunk).unlink()
    with pytest.raises(StoreError, match="does not have it"):
        folder_store.pull("a", tmp_path / "b")
    (root / chunk).write_bytes(bytes(CHUNK + 1))
    with pytest.raises(StoreError, match="at most"):
        folder_store.pull("a", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    folder_store.push(tmp_path / "a", "a")  # one of another size is written anew
    folder_store.verify("a")


def test_a_skeleton_that_was_changed_is_refused(folder_store, tmp_path):
    folder_store.push(snapshot_file(tmp_path / "a", pages=[1], signer=SECRET), "a")
    path = Path(folder_store.url) / SNAPSHOTS / "a.snapshot"
    sound = path.read_bytes()
    for at in range(0, len(sound), 3):
        path.write_bytes(sound)
        damage(path, at)
        with pytest.raises(SnapshotError):
            folder_store.read("a")
    for length in range(0, len(sound), 7):
        path.write_bytes(sound[:length])
        with pytest.raises(SnapshotError):
            folder_store.read("a")
    path.write_bytes(sound + b"\0")
    with pytest.raises(SnapshotError):
        folder_store.read("a")


def test_a_damaged_file_does_not_reach_the_store(folder_store, tmp_path):
    path = snapshot_file(tmp_path / "a")
    damage(path, BLOCK + 5 * PAGE)  # all of its first 32 pages are there: a block
    with pytest.raises(SnapshotDamagedError):
        folder_store.push(path, "a")
    assert folder_store.names() == []


def test_what_is_not_there_is_said(store, tmp_path):
    for ask in (store.names, lambda: store.pull("a", tmp_path / "b"), lambda: collect(store)):
        with pytest.raises(StoreError, match="there is none"):
            ask()
    store.push(snapshot_file(tmp_path / "a", pages=[]), "a")
    pull, remove, verify = partial(store.pull, path=tmp_path / "b"), store.remove, store.verify
    for ask in (partial(pull, "b"), partial(remove, "b"), partial(verify, "b")):
        with pytest.raises(StoreError, match="'b'"):
            ask()


def test_a_store_of_another_version_is_left_alone(folder_store, tmp_path):
    folder_store.objects.put("nocopy-store.json", b'{"format":"nocopy store","version":2}\n')
    with pytest.raises(StoreError, match="not known here"):
        folder_store.push(snapshot_file(tmp_path / "a", pages=[]), "a")


@pytest.mark.parametrize(
    "name",
    ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "a b", "é", "a.snapshot", "a.snapshot/b", "a" * 201],
)
def test_names_that_no_snapshot_can_have(folder_store, tmp_path, name):
    with pytest.raises(UsageError, match="a name has"):
        folder_store.push(snapshot_file(tmp_path / "a", pages=[]), name)
    assert not Path(folder_store.url).exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    store = open_store(str(tmp_path / "file" / "store"))
    with pytest.raises((StoreError, SnapshotWriteError), match="File exists"):
        store.push(snapshot_file(tmp_path / "a", pages=[]), "a")


# Locations


def test_locations():
    assert parse_location("s3://bucket/agents#alice/1") == ("s3://bucket/agents", "alice/1")
    assert parse_location("folder") == ("folder", "")
    assert open_store("file:///srv/my%20agents").url == "/srv/my agents"
    assert open_store("relative/folder").url == "relative/folder"
    for url in ("http://host/x", "ftp://host/x", "file://elsewhere/x"):
        with pytest.raises(UsageError, match="can be a store"):
            open_store(url)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch, s3):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"s3://agents/x: reading .* Check the address"):
        open_store("s3://agents/x").names()


def test_credentials_that_are_wrong(monkeypatch, s3):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"credentials"):
        open_store("s3://agents/x").names()


def test_http_must_be_allowed(monkeypatch, s3):
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError):
        open_store("s3://agents/x").names()


def test_without_the_library_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['obstore'] = None\n"
        "from nocopy.snapshot import open_store\n"
        "open_store('.')\n"
        "try: open_store('s3://a/b')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("UsageError")
    assert "pip install 'nocopy[store]'" in said
