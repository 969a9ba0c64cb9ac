"""Every defect of the format has a name; none costs more than the file is worth."""

import time
import tracemalloc
from pathlib import Path

import pytest

from nocopy.errors import ModelFileError
from nocopy.models.gguf import open_gguf
from nocopy.models.gguf_format import DEFECTS, LIMITS

BIG = 2**64 - 1


def read_whole(path):
    """Open a file and decode every value."""
    for value in open_gguf(path).metadata.values():
        if hasattr(value, "__iter__"):
            list(value)


def refused(path, kind):
    """Open a bad file: it must fail with this kind, quickly, and without allocating for what it claims."""
    start = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        read_whole(path)
    assert time.process_time() - start < 1
    assert caught.value.kind == kind, caught.value
    assert kind in DEFECTS
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError):
            read_whole(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + 2**20
    finally:
        tracemalloc.stop()


def build_cases(raw):  # noqa: PLR0915 - a list of files, each overwriting the last
    u32, u64, string, key, tensor = raw.u32, raw.u64, raw.string, raw.key, raw.tensor
    data = bytes(256)

    def array(kind, count, rest=b""):
        return key("k", 9, u32(kind) + u64(count) + rest)

    deep, empty = u32(9) + u64(1), u32(0) + u64(0)
    yield "magic", "magic", raw(magic=b"GGML")
    yield "magic of a short file", "magic", raw(magic=b"GG", version=0, name="short")
    yield "version 0", "version", raw(version=0)
    yield "version 1", "version", raw(version=1)
    yield "version 4", "version", raw(version=4)
    yield "big endian", "byte-order", raw(version=3 << 24)
    yield "number of tensors", "too-large", raw(tensor_count=BIG)
    yield "number of keys", "too-large", raw(key_count=BIG)
    yield "one key too many", "truncated", raw([key("a", 4, u32(1))], key_count=2)
    yield "one tensor too many", "truncated", raw(tensor_count=1)
    yield "length of a key", "too-large", raw([u64(BIG) + b"abc"])
    yield "length of a key past the end", "truncated", raw([u64(100) + b"abc"])
    yield "empty key", "key", raw([key("", 4, u32(1))])
    yield "key with a newline", "key", raw([key("a\nb", 4, u32(1))])
    yield "key that is not ASCII", "key", raw([key("ü", 4, u32(1))])
    long = key("k" * 65_535, 9, u32(9) + u64(16_384) + empty * 16_383 + u32(13))
    yield "element type under a long key", "type", raw([long])
    yield "same key twice", "duplicate-key", raw([key("a", 4, u32(1)), key("a", 5, u32(2))])
    yield "value type", "type", raw([key("a", 13, u32(1))])
    yield "value type, large", "type", raw([key("a", 2**32 - 1, u32(1))])
    yield "element type", "type", raw([array(13, 1)])
    yield "bool", "bool", raw([key("a", 7, b"\x02")])
    yield "bools", "bool", raw([array(7, 3, b"\0\1\x80")])
    yield "string is not UTF-8", "utf-8", raw([key("a", 8, string(b"\xc3\x28"))])
    yield "string ends inside a character", "utf-8", raw([key("a", 8, string("🦙".encode()[:3]))])
    yield "string in an array is not UTF-8", "utf-8", raw([array(8, 2, string("ok") + string(b"\xff"))])
    yield "length of a string", "too-large", raw([key("a", 8, u64(BIG))])
    yield "length of a string past the end", "truncated", raw([key("a", 8, u64(1000) + b"abc")])
    yield "number of strings", "too-large", raw([array(8, BIG)])
    yield "number of strings past the end", "truncated", raw([array(8, LIMITS["strings"][0])])
    yield "length of a string in an array", "truncated", raw([array(8, 1, u64(BIG))])
    yield "length that wraps a 64-bit sum", "truncated", raw([array(8, 2, u64(0) + u64(2**64 - 8))])
    yield "number of numbers", "truncated", raw([array(10, BIG)])
    yield "number of numbers that wraps", "truncated", raw([array(10, 2**61)])
    yield "number of arrays", "too-large", raw([array(9, BIG)])
    yield (
        "number of nested arrays",
        "too-large",
        raw([key("k", 9, u32(9) + u64(9000) + empty * 9000), key("j", 9, u32(9) + u64(9000) + empty * 9000)]),
    )
    yield "depth", "too-large", raw([key("k", 9, deep * 10_000)])
    yield "alignment 0", "alignment", raw([key("general.alignment", 4, u32(0))])
    yield "alignment 48", "alignment", raw([key("general.alignment", 4, u32(48))])
    yield "alignment, huge", "alignment", raw([key("general.alignment", 4, u32(2**31))])
    yield "alignment of another type", "alignment", raw([key("general.alignment", 8, string("32"))])
    yield "empty name", "name", raw([], [tensor("", [4], 0, 0)], data)
    yield "name that is not ASCII", "name", raw([], [tensor(b"\xff", [4], 0, 0)], data)
    yield "length of a name", "too-large", raw([], [tensor("n" * 256, [4], 0, 0)], data)
    yield (
        "same name twice",
        "duplicate-tensor",
        raw([], [tensor("a", [4], 0, 0), tensor("a", [4], 0, 32)], data),
    )
    yield "no dimension", "dimensions", raw([], [tensor("a", [], 0, 0)], data)
    yield "five dimensions", "dimensions", raw([], [tensor("a", [1] * 5, 0, 0)], data)
    yield "dimension 0", "dimensions", raw([], [tensor("a", [4, 0], 0, 0)], data)
    yield "rows that are no blocks", "dimensions", raw([], [tensor("a", [33], 8, 0)], data)
    yield "tensor type", "type", raw([], [tensor("a", [4], 99, 0)], data)
    yield "tensor type that was withdrawn", "type", raw([], [tensor("a", [32], 4, 0)], data)
    yield "product of dimensions wraps", "offset", raw([], [tensor("a", [2**32, 2**32], 0, 0)], data)
    yield "product wraps to a small number", "offset", raw([], [tensor("a", [2**63, 2, 1, 4], 0, 0)], data)
    yield "offset", "offset", raw([], [tensor("a", [4], 0, 2**63)], data)
    yield "offset that wraps", "offset", raw([], [tensor("a", [8], 0, 2**64 - 32)], data)
    yield "tensor longer than the file", "offset", raw([], [tensor("a", [65], 0, 0)], data)
    yield "no data", "offset", raw([], [tensor("a", [4], 0, 0)])
    yield "offset that is not aligned", "alignment", raw([], [tensor("a", [4], 0, 16)], data)
    yield "overlap", "overlap", raw([], [tensor("a", [16], 0, 0), tensor("b", [4], 0, 32)], data)
    yield "same place", "overlap", raw([], [tensor("a", [4], 0, 0), tensor("b", [4], 0, 0)], data)
    yield "overlap out of order", "overlap", raw([], [tensor("b", [4], 0, 32), tensor("a", [9], 0, 0)], data)


def test_every_defect_is_refused_by_name(raw_gguf):
    seen = set()
    count = 0
    for what, kind, path in build_cases(raw_gguf):
        print(what)  # shown by pytest when it fails
        refused(path, kind)
        seen.add(kind)
        count += 1
    assert count >= 55
    assert seen == set(DEFECTS) - {"split"}  # test_gguf.py has those


@pytest.mark.parametrize("step", [1, 7])
def test_every_truncation_is_refused(raw_gguf, step):
    keys = [
        raw_gguf.key("general.architecture", 8, raw_gguf.string("llama")),
        raw_gguf.key("words", 9, raw_gguf.u32(8) + raw_gguf.u64(3) + raw_gguf.string("a") * 3),
        raw_gguf.key("numbers", 9, raw_gguf.u32(4) + raw_gguf.u64(2) + bytes(8)),
    ]
    whole = raw_gguf(keys, [raw_gguf.tensor("t", [64], 0, 0)], bytes(256))
    open_gguf(whole)
    content = whole.read_bytes()
    for length in range(1, len(content), step):
        whole.write_bytes(content[:length])
        with pytest.raises(ModelFileError):
            open_gguf(whole)


def test_a_large_file_of_nothing_but_empty_strings_costs_no_more_than_its_size(raw_gguf):
    n = LIMITS["strings"][0]
    few = 200_000  # tracing makes each of them 20 times slower
    path = raw_gguf([raw_gguf.key("k", 9, raw_gguf.u32(8) + raw_gguf.u64(n) + bytes(8 * n))])
    start = time.process_time()
    open_gguf(path)
    assert time.process_time() - start < 2
    path = raw_gguf([raw_gguf.key("k", 9, raw_gguf.u32(8) + raw_gguf.u64(few) + bytes(8 * few))])
    tracemalloc.start(1)
    try:
        open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * path.stat().st_size
    finally:
        tracemalloc.stop()


def test_the_document_lists_every_defect_and_limit():
    text = (Path(__file__).parents[2] / "docs" / "gguf.md").read_text()
    for kind, meaning in DEFECTS.items():
        assert f"| `{kind}` | {meaning} |" in text
    for most, meaning in LIMITS.values():
        assert f"| {most:,} | {meaning} |" in text
