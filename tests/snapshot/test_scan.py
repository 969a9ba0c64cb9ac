import ctypes
import itertools
import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.memory import LinearMemory
from nocopy.memory.pages import map_file
from nocopy.snapshot import mappings
from nocopy.snapshot.mappings import anonymous_ranges
from nocopy.snapshot.scan import nonzero_pages, runs, touched

PAGE = 65536
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the page map is Linux's")


@given(st.dictionaries(st.integers(0, 29), st.integers(0, PAGE - 1), max_size=30))
def test_one_byte_anywhere_makes_a_page_count(places):
    memory = LinearMemory(30 * PAGE, reserve=30 * PAGE, guard=0)
    for page, at in places.items():
        memory.write(page * PAGE + at, b"\x80")
    assert set(np.flatnonzero(nonzero_pages(memory.address, memory.size)).tolist()) == set(places)


@given(st.lists(st.booleans(), max_size=40))
def test_runs_cover_what_is_true(mask):
    found = runs(np.array(mask, np.bool_))
    assert [i for first, end in found for i in range(first, end)] == [
        i for i, true in enumerate(mask) if true
    ]
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


@linux
def test_pages_that_were_never_touched_are_not_looked_at():
    memory = LinearMemory(1 << 30)
    memory.write(300 << 20, b"x")
    mask = touched(memory.address, memory.size)
    assert mask[(300 << 20) // PAGE]
    assert mask.sum() <= 64  # a huge page, if the system uses them, is 32
    found = nonzero_pages(memory.address, memory.size)
    assert np.flatnonzero(found).tolist() == [(300 << 20) // PAGE]
    assert touched(memory.address, memory.size).sum() <= 64


@linux
@pytest.mark.parametrize("shared", [False, True])
def test_pages_of_a_file_count_though_nobody_touched_them(tmp_path, shared):
    (tmp_path / "a").write_bytes(bytes(PAGE) + b"x" * PAGE)
    with open(tmp_path / "a", "r+b") as file:
        access = mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY
        mapped = mmap.mmap(file.fileno(), 0, access=access)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert anonymous_ranges(address, address + 2 * PAGE) == []
    assert nonzero_pages(address, 2 * PAGE).tolist() == [False, True]


@linux
def test_older_systems_say_the_same_in_another_way(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * PAGE)
    memory = LinearMemory(64 * PAGE, reserve=80 * PAGE)
    with open(tmp_path / "a", "rb") as file:
        for page in (3, 40, 63):
            map_file(file.fileno(), 0, memory.address + page * PAGE, PAGE)
    first, last = memory.address + PAGE + 4096, memory.address + 63 * PAGE
    asked = anonymous_ranges(first, last)
    monkeypatch.setattr(mappings, "PROCMAP_QUERY", 0x6699)  # no such call
    assert covered(anonymous_ranges(first, last)) == covered(asked)
    pages = {(at - memory.address) // PAGE for at in covered(asked)}
    assert pages == set(range(1, 63)) - {3, 40}


def covered(ranges):
    return {at for start, end in ranges for at in range(start, end, 4096)}


@linux
def test_where_the_system_does_not_say_every_page_is_looked_at(monkeypatch):
    memory = LinearMemory(20 * PAGE)
    memory.write(3 * PAGE, b"x")
    monkeypatch.setattr("nocopy.snapshot.scan.PAGEMAP", "/proc/self/missing")
    assert touched(memory.address, memory.size).all()
    assert np.flatnonzero(nonzero_pages(memory.address, memory.size)).tolist() == [3]


def test_no_page_at_all():
    assert nonzero_pages(LinearMemory(0).address, 0).tolist() == []
