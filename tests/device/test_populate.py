"""Pages that are made ready before they are touched."""

from __future__ import annotations

import mmap
import os
import platform
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nocopy import native
from nocopy.memory.linear import LinearMemory
from nocopy.memory.pages import PAGE, map_file
from tests.device.conftest import open_or_skip

open_or_skip("cpu").close()

PAGES = 8
MODERN = sys.platform == "linux" and tuple(map(int, platform.release().split(".")[:2])) >= (5, 14)
linux = pytest.mark.skipif(not MODERN, reason="the hint is taken by Linux 5.14 and newer")


@pytest.fixture
def memory(tmp_path: Path) -> LinearMemory:
    """A memory that is a file's pages."""
    (tmp_path / "file").write_bytes(bytes(range(1, 1 + PAGES)) * PAGE)
    made = LinearMemory(PAGES * PAGE, reserve=PAGES * PAGE, guard=0)
    with (tmp_path / "file").open("rb") as file:
        map_file(file.fileno(), 0, made.address, made.size)
    return made


def entries(memory: LinearMemory) -> np.ndarray:
    """What the kernel says of each page: bit 63, it is in the page tables; bit 61, it is a file's."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        raw = os.pread(file.fileno(), 8 * PAGES, memory.address // mmap.PAGESIZE * 8)
    return np.frombuffer(raw, np.uint64)


def present(memory: LinearMemory) -> np.ndarray:
    return entries(memory) >> np.uint64(63) == 1


def shared(memory: LinearMemory) -> np.ndarray:
    return entries(memory) >> np.uint64(61) & np.uint64(1) == 1


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(10_000):
        if true():
            return
        time.sleep(0.001)
    raise AssertionError("it never came to be")


@linux
def test_pages_to_read_are_mapped_and_stay_the_files(memory: LinearMemory) -> None:
    assert not present(memory).any()
    native.populate((memory.address, memory.size, False))
    wait_until(lambda: bool(present(memory).all()))
    assert shared(memory).all()


@linux
def test_pages_to_write_become_the_memorys_own_with_what_they_held(memory: LinearMemory) -> None:
    before = memory.read(0, memory.size)
    native.populate(
        (memory.address, 2 * PAGE, True), (memory.address + 2 * PAGE, memory.size - 2 * PAGE, False)
    )
    # `before` has mapped every page, so only the change from shared to own tells that the thread has run.
    wait_until(lambda: shared(memory).tolist() == [False] * 2 + [True] * (PAGES - 2))
    assert present(memory).all()
    assert memory.read(0, memory.size) == before


@linux
def test_whoever_asks_may_take_part(memory: LinearMemory) -> None:
    for _ in range(200):
        native.populate(*((memory.address + i * PAGE, PAGE, False) for i in range(PAGES)))
        native.populate_rest()
    wait_until(lambda: bool(present(memory).all()))
    assert shared(memory).all()


@linux
def test_ranges_that_are_not_mapped_any_more_do_no_harm(memory: LinearMemory) -> None:
    gone = LinearMemory(PAGE, reserve=PAGE, guard=0)
    address = gone.address
    gone.close()
    del gone
    native.populate((address, PAGE, True), (memory.address, PAGE, True))
    wait_until(lambda: bool(present(memory)[0] and not shared(memory)[0]))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only calls the library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_ask_as_often_as_it_likes(memory: LinearMemory) -> None:
    native.populate((memory.address, PAGE, False))
    ask, rest = native.library().nocopy_populate, native.library().nocopy_populate_rest
    wanted = struct.pack("@3Q", memory.address, PAGE, 0)
    child = os.fork()
    if child == 0:
        for _ in range(1000):
            ask(wanted, 1)
            rest()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
