"""Programs that the CUDA device starts behind the one that plays, without a GPU."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nocopy.device import cuda
from nocopy.device.protocol import Program
from nocopy.errors import ClosedError, DeadlineError, DeviceLostError
from nocopy.memory.dtype import DType
from nocopy.tape import Space, TapeBuilder
from tests.device.cuda_emulation import EmulatedDriver, device, driver, emulated, library  # noqa: F401
from tests.device.cuda_tapes import PAGE, host_pages, tape_of, tensor


class Bench:
    """One f32 in a page, and programs that change it."""

    def __init__(self, device: cuda.CudaDevice) -> None:
        self.device, self.memory = device, host_pages(PAGE)
        self.values = self.memory.view(np.float32)
        self.pages = device.share(self.memory.ctypes.data, PAGE)

    def times(self, factor: int) -> Program:
        """Multiplies the number with what lies behind it at the place `factor`."""
        self.values[factor] = factor

        def build(tape: TapeBuilder) -> None:
            x, y = tensor(0, 1), tensor(4 * factor, 1, dtype=DType.F32)
            tape.binary("mul", x, x, y)

        return self.device.compile(tape_of(build, {Space.GUEST: PAGE}), {Space.GUEST: self.pages})


@pytest.fixture
def bench(device: cuda.CudaDevice) -> Bench:
    found = Bench(device)
    found.values[0] = 1
    return found


def test_what_follows_is_started_once_and_waited_for_when_it_is_played(
    bench: Bench, driver: EmulatedDriver
) -> None:
    two, three, five = (bench.times(n) for n in (2, 3, 5))
    assert bench.device.info.follows
    bench.device.play(two, then=three)
    assert bench.values[0] == 2
    assert driver.running
    bench.device.play(three, then=five)
    assert bench.values[0] == 6
    bench.device.play(five)
    assert bench.values[0] == 30
    assert not driver.running
    assert driver.launched == ["binary"] * 3


def test_another_play_lets_what_follows_end_first(bench: Bench, driver: EmulatedDriver) -> None:
    two, three, five = (bench.times(n) for n in (2, 3, 5))
    bench.device.play(two, then=three)
    bench.device.play(five)
    assert bench.values[0] == 30
    bench.device.play(three)  # anew: it is no longer what follows
    assert bench.values[0] == 90


def test_a_program_follows_itself(bench: Bench) -> None:
    two = bench.times(2)
    for _ in range(3):
        bench.device.play(two, then=two)
    bench.device.play(two)
    assert bench.values[0] == 16


def test_after_settling_nothing_plays_and_what_followed_is_played_anew(
    bench: Bench, driver: EmulatedDriver
) -> None:
    two, three = bench.times(2), bench.times(3)
    bench.device.play(two, then=three)
    bench.device.settle()
    assert not driver.running
    assert bench.values[0] == 6
    bench.device.play(three)
    assert bench.values[0] == 18


@pytest.mark.parametrize("use", ["allocate", "near", "compile", "close program", "close pages"])
def test_whatever_else_is_asked_of_the_device_waits_for_what_follows(
    bench: Bench, driver: EmulatedDriver, use: str
) -> None:
    device, two, three = bench.device, bench.times(2), bench.times(3)
    uses: dict[str, Callable[[], object]] = {
        "allocate": lambda: device.allocate(64),
        "near": lambda: device.near(bench.memory.ctypes.data, PAGE),
        "compile": lambda: bench.times(7),
        "close program": three.close,
        "close pages": bench.pages.close,
    }
    device.play(two, then=three)
    uses[use]()
    assert not driver.running
    assert bench.values[0] == 6


def test_a_closed_program_does_not_follow(bench: Bench) -> None:
    two, three = bench.times(2), bench.times(3)
    three.close()
    with pytest.raises(ClosedError, match="the program is closed"):
        bench.device.play(two, then=three)
    assert bench.values[0] == 1


def test_a_deadline_stops_what_follows_too(bench: Bench, driver: EmulatedDriver) -> None:
    two, three = bench.times(2), bench.times(3)
    driver.endless = "until asked"
    with pytest.raises(DeadlineError):
        bench.device.play(two, timeout=0.01, then=three)
    driver.endless = False
    assert not driver.running
    bench.values[0] = 1
    bench.device.play(three)
    assert bench.values[0] == 3


def test_what_follows_and_does_not_end_makes_the_device_lost(driver: EmulatedDriver) -> None:
    bench = Bench(emulated(driver))
    two, three = bench.times(2), bench.times(3)
    bench.device.play(two, then=three)
    driver.endless = True
    with pytest.raises(DeviceLostError, match="does not end"):
        bench.device.settle()
    with pytest.raises(ClosedError):
        bench.device.play(three)
    bench.values[0] = 7  # still mapped


def test_what_is_copied_before_and_after_a_play_follows_nothing(driver: EmulatedDriver) -> None:
    driver.refuse = {"register"}
    bench = Bench(emulated(driver, allow_copy=True))
    bench.values[0] = 1
    two, three = bench.times(2), bench.times(3)
    bench.device.play(two, then=three)
    assert bench.values[0] == 2
    assert not driver.running
    bench.device.play(three)
    assert bench.values[0] == 6
    bench.device.close()
