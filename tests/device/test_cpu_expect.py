"""Pages that are made ready before they are touched."""

from __future__ import annotations

import mmap
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nocopy.device import cpu
from nocopy.device.cpu import CpuDevice
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.memory.pages import PAGE, map_file
from nocopy.tape import Space, TapeBuilder, Tensor
from tests.device.conftest import open_or_skip

open_or_skip("cpu").close()

PAGES = 8
MODERN = sys.platform == "linux" and tuple(map(int, platform.release().split(".")[:2])) >= (5, 14)
linux = pytest.mark.skipif(not MODERN, reason="the hint is taken by Linux 5.14 and newer")


@pytest.fixture(params=[1, 2, 4], ids="{} threads".format)
def device(request: pytest.FixtureRequest) -> Iterator[CpuDevice]:
    with closing(cpu.open_device(threads=request.param)) as device:
        yield device


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
def test_pages_to_read_are_mapped_and_stay_the_files(device: CpuDevice, memory: LinearMemory) -> None:
    assert not present(memory).any()
    device.expect([(memory.address, memory.size, False)])
    wait_until(lambda: bool(present(memory).all()))
    assert shared(memory).all()


@linux
def test_pages_to_write_become_the_memorys_own_with_what_they_held(
    device: CpuDevice, memory: LinearMemory
) -> None:
    before = memory.read(0, memory.size)
    device.expect(
        [(memory.address, 2 * PAGE, True), (memory.address + 2 * PAGE, memory.size - 2 * PAGE, False)]
    )
    # `before` has mapped every page, so only the change from shared to own tells that they are ready.
    wait_until(lambda: shared(memory).tolist() == [False] * 2 + [True] * (PAGES - 2))
    assert present(memory).all()
    assert memory.read(0, memory.size) == before


@linux
def test_a_player_of_one_thread_makes_pages_ready_at_once(memory: LinearMemory) -> None:
    with closing(cpu.open_device(threads=1)) as device:
        device.expect([(memory.address, memory.size, False)])
        assert present(memory).all()


def test_what_is_played_meanwhile_is_right(device: CpuDevice, memory: LinearMemory) -> None:
    with LinearMemory(memory.size) as target:
        spaces = {
            Space.GUEST: device.share(target.address, target.size),
            Space.WEIGHTS: device.share(memory.address, memory.size),
        }
        tape = TapeBuilder()
        elements = (memory.size // 4,)
        tape.copy(Tensor(Space.GUEST, 0, elements, DType.F32), Tensor(Space.WEIGHTS, 0, elements, DType.F32))
        program = device.compile(tape.build(dict.fromkeys(spaces, memory.size)), spaces)
        for _ in range(200):
            target.write(0, bytes(target.size))
            device.expect([(memory.address + i * PAGE, PAGE, i % 2 == 0) for i in range(PAGES)])
            device.play(program)
            assert target.read(0, target.size) == memory.read(0, memory.size)


@linux
def test_ranges_that_are_not_mapped_any_more_do_no_harm(device: CpuDevice, memory: LinearMemory) -> None:
    gone = LinearMemory(PAGE, reserve=PAGE, guard=0)
    address = gone.address
    gone.close()
    del gone
    device.expect([(address, PAGE, True), (memory.address, PAGE, True)])
    wait_until(lambda: bool(present(memory)[0] and not shared(memory)[0]))


def test_a_device_may_be_closed_before_pages_are_ready(memory: LinearMemory) -> None:
    for _ in range(50):
        with closing(cpu.open_device(threads=3)) as device:
            device.expect([(memory.address + i * PAGE, PAGE, False) for i in range(PAGES)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the child only calls the library
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_may_ask_as_often_as_it_likes(device: CpuDevice, memory: LinearMemory) -> None:
    device.expect([(memory.address, PAGE, False)])
    child = os.fork()
    if child == 0:
        for _ in range(1000):
            device.expect([(memory.address, PAGE, False)])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
