"""What is written is what another reader finds, and what comes back."""

import ctypes
import os
import stat
import struct
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.errors import ClosedError, SnapshotWriteError, UsageError
from nocopy.memory import LinearMemory
from nocopy.memory.pages import map_file
from nocopy.snapshot import Manifest, MemoryState, SharedSecret, open_snapshot, write_snapshot
from nocopy.snapshot.format import ENTRY
from tests.snapshot import independent_reader
from tests.snapshot.made import (
    BLOCK,
    PAGE,
    contents,
    full_manifest,
    manifest_of,
    memory_with,
    stored_file,
    thawed,
)

patterns = st.lists(
    st.integers(0, 40).flatmap(
        lambda pages: st.tuples(st.just(pages), st.sets(st.integers(0, max(pages - 1, 0)), max_size=pages))
    ),
    min_size=0,
    max_size=3,
)


@given(patterns, st.booleans(), st.booleans())
def test_memories_come_back_as_they_were(tmp_path, shapes, compress, signed):
    memories = [memory_with(pages, filled, i) for i, (pages, filled) in enumerate(shapes)]
    path, key = tmp_path / "a.snapshot", SharedSecret(b"a secret of 16 b") if signed else None
    manifest = manifest_of(*memories, generation=5)
    written = write_snapshot(path, manifest, memories, compress=compress, signer=key)

    found = independent_reader.read(path, secret=key.secret if key else None)
    assert found.memories == [contents(memory) for memory in memories]
    assert found.content_digest == written.digest
    assert written.nbytes == path.stat().st_size
    assert written.stored == PAGE * sum(len(filled) for _, filled in shapes)
    for verify in ("eager", "lazy", "off"):
        with open_snapshot(path, verify=verify, key=key) as snapshot:
            assert snapshot.manifest == manifest
            assert snapshot.digest == written.digest
            for index, memory in enumerate(memories):
                copy = thawed(snapshot, index)
                assert copy.read(0, copy.size) == memory.read(0, memory.size)
            snapshot.verify()
            assert snapshot.verified


@given(st.integers(0, 3), st.sampled_from([(), (3,), (3, *range(32, 70)), tuple(range(32 * 10))]))
def test_a_manifest_of_any_length_is_followed_by_its_pages(tmp_path, letters, filled):
    """Pages are written before the length of the manifest is known, and again if that leads elsewhere."""
    memory, path = memory_with(320, filled), tmp_path / "a.snapshot"
    low = len(write_manifest(tmp_path, memory, 0))
    for length in (0, PAGE - 128 - low + letters - 1, PAGE):
        manifest = manifest_of(memory, label="x" * length)
        written = write_snapshot(path, manifest, [memory])
        assert stored_file(path)["data"] == -(-(128 + low + length) // PAGE) * PAGE
        assert independent_reader.read(path).memories == [contents(memory)]
        assert written.stored == PAGE * len(filled)
        with open_snapshot(path) as snapshot:
            assert snapshot.manifest == manifest


def write_manifest(folder: Path, memory: LinearMemory, letters: int) -> bytes:
    write_snapshot(folder / "m", manifest_of(memory, label="x" * letters), [memory])
    return (folder / "m").read_bytes()[128 : 128 + stored_file(folder / "m")["manifest"]]


@given(st.lists(st.integers(0, 40 * PAGE), max_size=8))
def test_nothing_outside_of_the_ranges_that_hold_anything_is_kept(tmp_path, ends):
    memory, path = memory_with(40, range(40)), tmp_path / "a.snapshot"
    ends = sorted(ends)[: len(ends) // 2 * 2]
    ranges = list(zip(ends[::2], ends[1::2], strict=True))
    write_snapshot(path, manifest_of(memory), [memory], held=[ranges])
    kept = {page for start, end in ranges for page in range(start // PAGE, -(-end // PAGE)) if start < end}
    (found,) = independent_reader.read(path).memories
    assert found == {page: memory.read(page * PAGE, PAGE) for page in kept}
    open_snapshot(path).close()


stretches = st.lists(
    st.tuples(st.integers(0, 150), st.integers(1, 90)).map(lambda s: range(s[0], s[0] + s[1])), max_size=5
).map(lambda found: {page for pages in found for page in pages})
"""Pages in long runs, so that there are blocks of 2 MiB: 32 pages."""


@given(st.sets(st.integers(0, 60)) | stretches)
def test_neighbours_in_memory_are_neighbours_in_the_file(tmp_path, filled):
    memory = memory_with(240, filled)
    path = tmp_path / "a.snapshot"
    written = write_snapshot(path, manifest_of(memory), [memory])
    positions = independent_reader.read(path).positions[0]
    assert all(position % PAGE == 0 for position in positions.values())
    first_of_blocks = {p for p in range(0, 240, 32) if all(p + i in filled for i in range(32))}
    assert all(positions[p] % BLOCK == 0 for p in first_of_blocks)
    assert all(
        positions[p + 1] == positions[p] + PAGE
        for p in positions
        if p + 1 in positions and p + 1 not in first_of_blocks
    )
    assert written.nbytes < 2 * written.stored + 2 * PAGE
    with open_snapshot(path) as snapshot:
        runs = snapshot.memory(0)
    found = {
        run.offset // PAGE + i: run.position + i * PAGE for run in runs for i in range(run.nbytes // PAGE)
    }
    assert found == positions
    for a, b in pairwise(runs):
        after = a.offset + a.nbytes
        assert after < b.offset or (after == b.offset and b.position > a.position + a.nbytes)


@given(st.lists(stretches, min_size=1, max_size=2))
def test_blocks_come_back_where_they_were(tmp_path, filled):
    memories = [memory_with(240, pages, i) for i, pages in enumerate(filled)]
    path = tmp_path / "a.snapshot"
    write_snapshot(path, manifest_of(*memories), memories)
    assert independent_reader.read(path).memories == [contents(memory) for memory in memories]
    with open_snapshot(path) as snapshot:
        for index, memory in enumerate(memories):
            assert thawed(snapshot, index).read(0, memory.size) == memory.read(0, memory.size)


@pytest.mark.skipif(not hasattr(os, "SEEK_HOLE"), reason="the system does not tell holes")
def test_padding_takes_no_room_on_the_disk(tmp_path):
    memory = memory_with(96, range(20, 96))
    written = write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    assert written.nbytes > 96 * PAGE
    assert (tmp_path / "a").stat().st_blocks * 512 <= (76 + 2) * PAGE


def test_every_field_of_the_manifest_comes_back(tmp_path):
    memories = [memory_with(3, [1]), memory_with(20, [0, 19])]
    manifest = full_manifest(*memories)
    write_snapshot(tmp_path / "a", manifest, memories)
    with open_snapshot(tmp_path / "a") as snapshot:
        assert snapshot.manifest == manifest
    assert independent_reader.read(tmp_path / "a").manifest["label"] == manifest.label


def test_the_same_memory_makes_the_same_file(tmp_path):
    memory = memory_with(40, [1, 2, 30])
    first = write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    second = write_snapshot(tmp_path / "b", manifest_of(memory), [memory])
    assert first == second
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_zero_pages_take_no_room(tmp_path):
    memory = memory_with(65536, [7, 65535])  # 4 GiB
    written = write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    assert written.stored == 2 * PAGE
    assert written.nbytes == 3 * PAGE + 2 * ENTRY.itemsize + 32


def test_a_page_that_became_zero_again_is_left_out(tmp_path):
    memory = memory_with(4, [0, 1, 2, 3])
    memory.write(PAGE, bytes(PAGE))
    memory.write(2 * PAGE, bytes(PAGE - 1) + b"\1")
    assert write_snapshot(tmp_path / "a", manifest_of(memory), [memory]).stored == 3 * PAGE


def mapped_at_once(address: int, nbytes: int) -> int:
    """Read a range; how many bytes of it are mapped in pieces of 2 MiB of a file, by the system's count."""
    np.frombuffer((ctypes.c_ubyte * nbytes).from_address(address), np.uint8)[:: 1 << 12].sum()
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split(" ", 1)[0]
        if "-" in head:
            inside = address <= int(head.split("-")[0], 16) < address + nbytes
        elif inside and head == "FilePmdMapped:":
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counts are Linux's")
def test_blocks_are_mapped_at_once_where_the_system_can(tmp_path):
    """A plain file shows whether it can: ext4 and others since Linux 6.16, if memory is not in pieces."""
    memory, fresh = memory_with(256, range(256)), LinearMemory(256 * PAGE)
    (tmp_path / "plain").write_bytes(memory.read(0, 256 * PAGE))
    with open(tmp_path / "plain", "rb") as file:
        map_file(file.fileno(), 0, fresh.address, 256 * PAGE)
    if mapped_at_once(fresh.address, 256 * PAGE) < 256 * PAGE:
        pytest.skip("this system does not keep files in pieces of 2 MiB")
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    with open_snapshot(tmp_path / "a", verify="off") as snapshot:
        copy = thawed(snapshot)
    assert mapped_at_once(copy.address, copy.size) >= 192 * PAGE
    copy.write(3 * PAGE, b"written")
    assert copy.read(0, copy.size)[3 * PAGE + 7 :] == memory.read(0, memory.size)[3 * PAGE + 7 :]
    assert copy.read(0, 3 * PAGE) == memory.read(0, 3 * PAGE)


def test_thawed_memory_is_private(tmp_path):
    memory = memory_with(2, [0, 1])
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory])
    before = path.read_bytes()
    with open_snapshot(path) as snapshot:
        one, other = thawed(snapshot, 0), thawed(snapshot, 0)
    one.write(0, b"changed")
    assert other.read(0, 2 * PAGE) == memory.read(0, 2 * PAGE)
    assert path.read_bytes() == before


def test_a_thawed_memory_can_be_frozen_again_untouched(tmp_path):
    """Pages that were mapped but never touched are not zero, whatever the page tables say."""
    memory = memory_with(40, [3, 4, 39])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    with open_snapshot(tmp_path / "a") as snapshot:
        copy = thawed(snapshot, 0)
    write_snapshot(tmp_path / "b", manifest_of(memory), [copy])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_memory_outlives_its_file(tmp_path):
    memory = memory_with(2, [1])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    with open_snapshot(tmp_path / "a") as snapshot:
        copy = thawed(snapshot, 0)
    (tmp_path / "a").unlink()
    assert copy.read(0, copy.size) == memory.read(0, memory.size)


def test_a_memory_in_crumbs_does_not_use_up_the_process_mappings(tmp_path):
    memory = memory_with(2300, range(0, 2300, 2))
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    with open_snapshot(tmp_path / "a", verify="off") as snapshot:
        copy = LinearMemory(memory.size)
        placed = snapshot.map_into(0, copy.address)
    assert (sum(run.nbytes for run in placed.mapped), placed.read) == (1024 * PAGE, 126 * PAGE)
    assert np.array_equal(np.frombuffer(copy.buffer(), np.uint8), np.frombuffer(memory.buffer(), np.uint8))


def test_compression_makes_text_small_and_noise_no_larger(tmp_path):
    memory = memory_with(32, range(16))
    memory.write(16 * PAGE, b"Once upon a time. " * (16 * PAGE // 18))
    plain = write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    packed = write_snapshot(tmp_path / "b", manifest_of(memory), [memory], compress=True)
    assert packed.stored == plain.stored
    assert packed.nbytes < plain.nbytes - 15 * PAGE
    assert packed.nbytes > 16 * PAGE


def test_only_the_owner_may_read_a_snapshot(tmp_path):
    write_snapshot(tmp_path / "a", manifest_of(), [])
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_progress_ends_at_everything(tmp_path):
    memory = memory_with(40, range(30))
    for compress in (False, True):
        seen = []
        write_snapshot(
            tmp_path / "a",
            manifest_of(memory),
            [memory],
            compress=compress,
            progress=lambda *n, seen=seen: seen.append(n),
        )
        assert seen[-1] == (30 * PAGE, 30 * PAGE)
        assert seen == sorted(seen)


def test_a_file_that_stands_in_the_way_is_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    write_snapshot(tmp_path / "a", manifest_of(), [])
    open_snapshot(tmp_path / "a").close()
    assert os.listdir(tmp_path) == ["a"]


def test_the_header_says_what_docs_say(tmp_path):
    memory = memory_with(20, [0, 19])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    header = stored_file(tmp_path / "a")
    assert header["data"] == PAGE
    assert header["table"] == 3 * PAGE
    assert header["entries"] == 2
    assert struct.unpack_from("<I", (tmp_path / "a").read_bytes(), 64) == (PAGE,)


# What cannot be done


def test_memories_must_be_those_of_the_manifest(tmp_path):
    with pytest.raises(UsageError, match="manifest says"):
        write_snapshot(tmp_path / "a", Manifest("guest", (MemoryState(PAGE),)), [memory_with(2, [])])
    with pytest.raises(UsageError, match=r"sessions|kind"):
        write_snapshot(tmp_path / "a", Manifest("animal", ()), [])
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "why"), [("missing/a", "No such file"), (".", "directory"), ("a\0b", "null")]
)
def test_a_place_that_cannot_be_written(tmp_path, name, why):
    with pytest.raises(SnapshotWriteError, match=why):
        write_snapshot(f"{tmp_path}/{name}", manifest_of(), [])
    assert not os.listdir(tmp_path)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    memory = memory_with(4, [0])
    for compress in (False, True):
        with pytest.raises(KeyboardInterrupt):
            write_snapshot(
                tmp_path / "a", manifest_of(memory), [memory], compress=compress, progress=interrupt
            )
    assert not os.listdir(tmp_path)


def test_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name in ("missing", "fifo", ".", "a\0b"):
        with pytest.raises(UsageError, match="was asked for"):
            open_snapshot(f"{tmp_path}/{name}")
    with pytest.raises(UsageError, match="verify"):
        open_snapshot(tmp_path / "missing", verify="perhaps")  # type: ignore[arg-type]


def test_a_closed_snapshot_refuses(tmp_path):
    memory = memory_with(1, [0])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    snapshot = open_snapshot(tmp_path / "a")
    snapshot.close()
    snapshot.close()
    with pytest.raises(ClosedError):
        snapshot.map_into(0, memory.address)


def test_a_memory_that_is_not_there(tmp_path):
    memory = memory_with(1, [0])
    write_snapshot(tmp_path / "a", manifest_of(memory), [memory])
    write_snapshot(tmp_path / "b", manifest_of(memory), [memory], compress=True)
    with open_snapshot(tmp_path / "a") as plain, open_snapshot(tmp_path / "b") as packed:
        for index in (-1, 1):
            with pytest.raises(UsageError, match="it has 1"):
                plain.map_into(index, memory.address)
        with pytest.raises(UsageError, match="compressed"):
            packed.memory(0)
