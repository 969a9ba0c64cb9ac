"""Whatever a file holds, opening it gives the snapshot that was written, or an error that has a name."""

import os
import random
import struct
import tracemalloc

import numpy as np
import pytest

from nocopy.errors import SnapshotDamagedError, SnapshotError, SnapshotFileError
from nocopy.snapshot import SharedSecret, open_snapshot, write_snapshot
from nocopy.snapshot.format import DEFECTS
from tests.snapshot import independent_reader
from tests.snapshot.made import (
    BLOCK,
    PAGE,
    full_manifest,
    manifest_of,
    memory_with,
    reseal,
    stored_file,
    thawed,
)

MUTANTS = 5000  # of each of the two kinds below
SLACK = 1 << 20
"""Bytes that opening may allocate beyond the file's size: objects of the manifest, NumPy's temporaries."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sound files of each sort: plain and compressed, with and without a signature."""
    folder = tmp_path_factory.mktemp("sound")
    memories = [memory_with(18, [0, 17]), memory_with(2, [])]
    memories[1].write(PAGE, b"the same again " * 4000)
    found = []
    for compress in (False, True):
        for signer in (None, SharedSecret(bytes(16))):
            path = folder / f"{compress}-{signer is None}"
            write_snapshot(path, full_manifest(*memories), memories, compress=compress, signer=signer)
            found.append((path.read_bytes(), stored_file(path)))
    return found


def mutate(data: bytes, header: dict[str, int], rng: random.Random) -> bytes:
    """Break a file somewhere: mostly where its numbers are, since most of its bytes are pages."""
    changed = bytearray(data)
    regions = [
        (0, 128),
        (128, 128 + header["manifest"]),
        (header["table"], header["trailer"]),
        (header["trailer"], len(data)),
        (0, len(data)),
    ]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        low, high = rng.choice(regions)
        at = rng.randrange(low, high)
        match rng.randrange(8):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.randrange(256)
            case 2:
                width = rng.choice((1, 4, 8))
                value = rng.choice((0, 1, 2**31, 2**32 - 1, 2**48, 2**63, 2**64 - 1, len(data), PAGE))
                changed[at : at + width] = (value & (256**width - 1)).to_bytes(width, "little")
            case 3:
                del changed[at : at + rng.choice((1, 8, 64, PAGE))]
            case 4:
                changed[at:at] = rng.randbytes(rng.choice((1, 8, 64)))
            case 5:
                del changed[at:]
            case 6:
                changed += rng.randbytes(rng.choice((1, 64, PAGE)))
            case _:
                other, span = rng.randrange(low, high), rng.choice((1, 8, 64))
                changed[at : at + span] = changed[other : other + span]
        if len(changed) != len(data):
            break
    return bytes(changed)


def overwrite(path, data: bytes) -> None:
    """Replace a file's bytes. Not through length 0: ext4 then waits for the disk."""
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.write(data)
        file.truncate()


def outcome(path) -> str:
    """Open it, put every memory somewhere, and say what became of it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        with open_snapshot(path) as snapshot:
            assert tracemalloc.get_traced_memory()[1] - before < os.path.getsize(path) + SLACK
            for index, memory in enumerate(snapshot.manifest.memories):
                if memory.size <= 1 << 22:
                    thawed(snapshot, index)
        return "opened"
    except SnapshotFileError as error:
        found = error.kind
    except SnapshotError as error:
        found = type(error).__name__
    assert tracemalloc.get_traced_memory()[1] - before < os.path.getsize(path) + SLACK
    assert found in {*DEFECTS, "SnapshotDamagedError"}
    return found


@pytest.fixture
def traced():
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_mutated_files_are_refused(tmp_path, files, traced):
    rng, path, seen = random.Random(1), tmp_path / "a", set()
    for _ in range(MUTANTS):
        data, header = rng.choice(files)
        mutant = mutate(data, header, rng)
        overwrite(path, mutant)
        found = outcome(path)
        assert (found == "opened") == (mutant == data), found
        seen.add(found)
    assert seen >= {"magic", "version", "header", "truncated", "too-large", "SnapshotDamagedError"}


def test_mutated_files_with_right_digests_are_refused_or_read_as_the_document_says(tmp_path, files, traced):
    """Somebody with bad intentions computes the digests anew; what is inside must still make sense."""
    rng, path, seen = random.Random(2), tmp_path / "a", set()
    for _ in range(MUTANTS):
        data, header = rng.choice(files)
        mutant = reseal(mutate(data, header, rng))
        overwrite(path, mutant)
        found = outcome(path)
        seen.add(found)
        if found == "opened":
            independent_reader.read(path)
    assert seen >= {"opened", "manifest", "table", "compression", "header", "truncated"}


def test_mutated_files_with_blocks(tmp_path):
    """As both tests above; fewer, because such a file has 4 MiB."""
    memory, path, rng = memory_with(64, range(5, 64)), tmp_path / "a", random.Random(4)
    write_snapshot(path, manifest_of(memory), [memory])
    data, header, seen = path.read_bytes(), stored_file(path), set()
    for number in range(300):
        mutant = mutate(data, header, rng)
        mutant = reseal(mutant) if number % 2 else mutant
        overwrite(path, mutant)
        try:
            open_snapshot(path).close()
        except SnapshotError as error:
            seen.add(getattr(error, "kind", "damaged"))
        else:
            assert number % 2 or mutant == data
            independent_reader.read(path)
    assert seen >= {"header", "table", "damaged", "truncated"}


def test_no_bit_of_a_file_can_change(tmp_path):
    """Every bit outside the pages, and some in them."""
    memory = memory_with(3, [1])
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory], signer=SharedSecret(bytes(16)))
    data, header = path.read_bytes(), stored_file(path)
    places = {*range(128 + header["manifest"]), *range(header["table"], len(data))}
    places |= set(random.Random(3).sample(range(len(data)), 200))
    for at in sorted(places):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        overwrite(path, changed)
        with pytest.raises(SnapshotError):
            open_snapshot(path)


def test_every_length_but_the_right_one_is_refused(tmp_path):
    memory = memory_with(1, [])
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory], compress=True)
    data = path.read_bytes()
    for length in [*range(len(data)), len(data) + 1]:
        overwrite(path, (data + b"\0")[:length])
        with pytest.raises(SnapshotFileError) as refused:
            open_snapshot(path)
        assert refused.value.kind == "truncated"


def entry_changed(data: bytes, header: dict[str, int], index: int, at: int, code: str, value: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(code, changed, header["table"] + 64 * index + at, value)
    return reseal(changed)


@pytest.mark.parametrize(
    ("index", "at", "code", "value", "why"),
    [
        (0, 0, "<Q", 5, "no multiple"),
        (0, 0, "<Q", 2**63, "outside its memory"),
        (1, 0, "<Q", 0, "does not come after"),
        (0, 8, "<Q", 2 * PAGE, "does not follow"),
        (0, 8, "<Q", 2**64 - PAGE, "does not follow"),
        (1, 8, "<Q", PAGE, "does not follow"),
        (0, 16, "<I", PAGE, "cannot have"),
        (0, 16, "<I", 2**32 - 1, "cannot have"),
        (0, 20, "<I", 0, "no or unknown pages"),
        (0, 20, "<I", 0x10001, "no or unknown pages"),
        (1, 20, "<I", 0b100, "page outside its memory"),
        (1, 24, "<I", 2, "names a memory"),
        (0, 24, "<I", 1, "does not come after"),
        (0, 28, "<I", 1, "must be zero"),
    ],
)
def test_a_chunk_that_cannot_be(tmp_path, index, at, code, value, why):
    memories = [memory_with(18, [0, 1, 17]), memory_with(18, [])]
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(*memories), memories)
    overwrite(path, entry_changed(path.read_bytes(), stored_file(path), index, at, code, value))
    for verify in ("eager", "lazy", "off"):
        with pytest.raises(SnapshotFileError, match=why) as refused:
            open_snapshot(path, verify=verify)
        assert refused.value.kind == "table"


@pytest.mark.parametrize(("page", "wanted"), [(0, BLOCK), (32, 2 * BLOCK)])
def test_a_block_that_is_out_of_its_place(tmp_path, page, wanted):
    """Everything else about such a file would be right: chunks that follow one another, and their digests."""
    memory = memory_with(page + 32, range(page + 32))
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory])
    header, index = stored_file(path), page // 16
    data = path.read_bytes()
    assert struct.unpack_from("<Q", data, header["table"] + 64 * index + 8) == (wanted,)
    for moved in (PAGE, -PAGE, BLOCK):
        overwrite(path, entry_changed(data, header, index, 8, "<Q", wanted + moved))
        with pytest.raises(SnapshotFileError, match="does not follow") as refused:
            open_snapshot(path, verify="off")
        assert refused.value.kind == "table"


def test_padding_that_is_not_zero_is_found_with_the_pages(tmp_path):
    memory = memory_with(64, range(5, 64))  # pages 5 to 31, padding, a block
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory])
    data, first = path.read_bytes(), PAGE + 27 * PAGE
    for at in (first, BLOCK - 1):
        changed = bytearray(data)
        changed[at] = 1
        overwrite(path, changed)
        with pytest.raises(SnapshotFileError, match="padding") as refused:
            open_snapshot(path)
        assert refused.value.kind == "table"
        with open_snapshot(path, verify="lazy") as snapshot, pytest.raises(SnapshotFileError):
            snapshot.verify()


def test_a_frame_that_claims_too_much_is_not_unpacked(tmp_path):
    """zstd's own decompressor allocates what the frame says."""
    import zstandard

    memory = memory_with(1, [])
    memory.write(0, b"a" * PAGE)
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory], compress=True)
    data, header = path.read_bytes(), stored_file(path)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    start, end = header["data"], header["table"]
    made = bytearray(data[:start] + bomb + data[end:])
    struct.pack_into("<3Q", made, 40, start + len(bomb), header["trailer"] + len(bomb) - (end - start), 1)
    struct.pack_into("<Q", made, 16, len(made))
    struct.pack_into("<I", made, start + len(bomb) + 16, len(bomb))
    overwrite(path, reseal(made))
    tracemalloc.start()
    try:
        with open_snapshot(path) as snapshot, pytest.raises(SnapshotFileError) as refused:
            thawed(snapshot)
        assert refused.value.kind == "compression"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", ["manifest", "table", "trailer"])
def test_a_file_that_was_sound_when_it_was_opened_before_is_looked_at_again(tmp_path, part):
    memory = memory_with(40, range(40))
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory, label="first"), [memory])
    with open_snapshot(path, verify="off") as snapshot:
        assert snapshot.manifest.label == "first"
    data, places = bytearray(path.read_bytes()), stored_file(path) | {"manifest": 200}
    data[places[part]] ^= 1
    overwrite(path, data)
    with pytest.raises(SnapshotDamagedError):
        open_snapshot(path, verify="off")
    write_snapshot(path, manifest_of(memory, label="other"), [memory])
    with open_snapshot(path, verify="off") as snapshot:
        assert snapshot.manifest.label == "other"


# When pages are looked at


@pytest.fixture
def damaged(tmp_path):
    """A file with one wrong bit in the last page."""
    memory = memory_with(40, range(40))
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory])
    data = bytearray(path.read_bytes())
    data[stored_file(path)["table"] - 1] ^= 1
    overwrite(path, data)
    return path


def test_eager_looks_before_anything_is_used(damaged):
    with pytest.raises(SnapshotDamagedError, match="chunk at 0x200000 of memory 0"):
        open_snapshot(damaged)


def test_lazy_finds_damage_in_the_background(damaged):
    with open_snapshot(damaged, verify="lazy") as snapshot:
        memory = thawed(snapshot)
        with pytest.raises(SnapshotDamagedError):
            snapshot.verify()
        with pytest.raises(SnapshotDamagedError):
            snapshot.check()
        assert not snapshot.verified
        memory.close()


def test_off_looks_when_it_is_asked_to(damaged):
    with open_snapshot(damaged, verify="off") as snapshot:
        snapshot.check()
        with pytest.raises(SnapshotDamagedError):
            snapshot.verify()


def resident_pages(path) -> int:
    """Pages of a file that are in the page cache."""
    import ctypes
    import mmap

    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        count = -(-len(mapped) // mmap.PAGESIZE)
        view = np.frombuffer(mapped, np.uint8)
        flags = (ctypes.c_ubyte * count)()
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mincore(ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(len(mapped)), flags) == 0
        del view
        mapped.close()
    return sum(flag & 1 for flag in flags)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise to empty the page cache")
def test_thawing_without_verification_reads_no_page(tmp_path):
    memory = memory_with(256, range(256))
    path = tmp_path / "a"
    write_snapshot(path, manifest_of(memory), [memory])
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert resident_pages(path) == 0
    with open_snapshot(path, verify="off") as snapshot:
        copy = thawed(snapshot)
    copy.close()
    assert resident_pages(path) < 256 * PAGE // 4096 // 4  # the table's neighbours were read ahead


def test_a_file_that_becomes_shorter_is_an_error_not_a_signal(tmp_path):
    memory = memory_with(40, range(40))
    for compress in (False, True):
        write_snapshot(tmp_path / "a", manifest_of(memory), [memory], compress=compress)
        with open_snapshot(tmp_path / "a", verify="off") as snapshot:
            os.truncate(tmp_path / "a", PAGE + 5)
            with pytest.raises(SnapshotFileError) as refused:
                snapshot.verify()
            assert refused.value.kind == "truncated"
