"""Of pages that are shared copy-on-write, a device that pins imports only what its programs use."""

# ruff: noqa: F811 (fixtures are imported)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import nocopy
from nocopy.device import cuda
from nocopy.device.chunks import Chunk
from nocopy.device.protocol import Mode, OnDemand
from nocopy.device.ranges import BLOCK, RangedPages, blocks
from nocopy.device.vulkan import VulkanDevice
from nocopy.errors import DeviceError
from nocopy.interfaces.host import DeviceGuest
from nocopy.memory import Ledger, LinearMemory
from nocopy.tape import TapeBuilder
from tests.device.conftest import open_or_skip
from tests.device.cuda_emulation import EmulatedDriver, device, driver, library  # noqa: F401
from tests.interfaces import passthrough


class Piece:
    def __init__(self, address: int) -> None:
        self.device_address, self.mapped = address + (1 << 40), 0


class Maker:
    """Imports to addresses of its own, and refuses to import anything twice."""

    limit, alignment, product = 1 << 30, 4096, "a strict GPU"

    def __init__(self) -> None:
        self.held: dict[Piece, tuple[int, int]] = {}

    def make(self, address: int, nbytes: int) -> Piece:
        for start, stop in self.held.values():
            if address < stop and start < address + nbytes:
                raise DeviceError("imported twice")
        piece = Piece(address)
        self.held[piece] = address, address + nbytes
        return piece

    def destroy(self, chunk: Chunk) -> None:
        assert isinstance(chunk, Piece)
        del self.held[chunk]


def pages(maker: Maker, log: list[object], ledger: Ledger | None = None) -> RangedPages:
    on_demand = OnDemand(lambda a, b: log.append((a // BLOCK, b // BLOCK)), lambda: log.append("moved"))
    return RangedPages(maker, 1 << 30, 64 * BLOCK, Mode.MAPPED, True, ledger, on_demand=on_demand)


def test_blocks_are_whole_in_order_and_apart() -> None:
    ranges = [(5 * BLOCK, 5 * BLOCK + 1), (1, 2), (BLOCK, BLOCK + 3), (5 * BLOCK + 7, 6 * BLOCK + 1)]
    assert blocks(ranges, 64 * BLOCK) == [(0, 2 * BLOCK), (5 * BLOCK, 7 * BLOCK)]
    assert blocks([(100, 200)], 4096) == [(0, 4096)]


def test_only_what_is_needed_is_imported_and_that_once() -> None:
    maker, log, ledger = Maker(), list[object](), Ledger()
    ranged = pages(maker, log, ledger)
    assert maker.held == {}
    ranged.reach([(3 * BLOCK + 5, 3 * BLOCK + 9), (10 * BLOCK, 12 * BLOCK)])
    ranged.reach([(3 * BLOCK, 4 * BLOCK)])
    assert log == [(3, 4), (10, 12)]
    assert ledger.shared == 3 * BLOCK
    assert ranged.resolve(10 * BLOCK + 7, 12 * BLOCK) == (1 << 30) + (1 << 40) + 10 * BLOCK + 7
    ranged.close()
    assert maker.held == {}


def test_an_operand_across_two_imports_joins_them_and_says_that_addresses_moved() -> None:
    maker, log, ledger = Maker(), list[object](), Ledger()
    ranged = pages(maker, log, ledger)
    ranged.reach([(0, BLOCK), (2 * BLOCK, 3 * BLOCK)])
    ranged.reach([(BLOCK // 2, 2 * BLOCK + 1)])
    assert log[-2:] == [(0, 3), "moved"]
    assert ranged.generation == 1
    assert ledger.shared == 3 * BLOCK
    assert len(maker.held) == 1


def test_an_operand_larger_than_an_import_is_refused() -> None:
    maker = Maker()
    maker.limit = 2 * BLOCK
    with pytest.raises(DeviceError, match="at most 131072 bytes at once"):
        pages(maker, []).reach([(0, 3 * BLOCK)])


def test_what_a_memory_owns_is_what_it_held_and_the_rest_stays_shared(tmp_path: Path) -> None:
    with DeviceGuest(passthrough.text(pages=8), device="cpu") as guest:
        guest.memory.write(0, bytes(range(1, 251)) * 2000)
        guest.freeze(tmp_path / "g")
    with nocopy.thaw(tmp_path / "g", device="cpu") as thawed:
        memory = thawed.memory
        whole = memory.read(0, memory.size)
        (borrowed,) = memory.borrowed
        assert borrowed == (0, 8 * BLOCK)
        assert memory.own(2 * BLOCK, 3 * BLOCK) == BLOCK
        assert memory.own(2 * BLOCK, 3 * BLOCK) == 0
        assert memory.read(0, memory.size) == whole
        assert memory.borrowed == [(0, 2 * BLOCK), (3 * BLOCK, 8 * BLOCK)]


def test_a_thawed_guest_on_cuda_has_only_the_ranges_pinned_that_its_tapes_touch(
    device: cuda.CudaDevice, driver: EmulatedDriver, tmp_path: Path
) -> None:
    with DeviceGuest(passthrough.text(pages=64), device=device) as guest:
        guest.memory.write(0, b"\1" * (64 * BLOCK))
        assert sum(driver.registered.values()) == 64 * BLOCK
        guest.freeze(tmp_path / "g")
    with nocopy.thaw(tmp_path / "g", device=device) as thawed:
        assert driver.registered == {}
        tape = TapeBuilder()
        tape.fill(thawed.memory.view(16, "f32", 5 * BLOCK + 64), 3.0)
        thawed.play(tape)
        assert driver.registered == {thawed.memory.address + 5 * BLOCK: BLOCK}
        assert thawed.ledger.shared == BLOCK
        assert thawed.memory.borrowed == [(0, 5 * BLOCK), (6 * BLOCK, 64 * BLOCK)]
        assert thawed.memory.view(16, "f32", 5 * BLOCK + 64).numpy().tolist() == [3.0] * 16
        assert thawed.memory.read(5 * BLOCK, 64) == b"\1" * 64
        assert thawed.memory.read(4 * BLOCK, 3 * BLOCK).count(1) == 3 * BLOCK - 64
        assert thawed.call("grow", 2) == 64
        tape = TapeBuilder()
        tape.copy(thawed.memory.view(16, "f32", 65 * BLOCK), thawed.memory.view(16, "f32", 5 * BLOCK + 64))
        thawed.play(tape)
        assert thawed.memory.view(16, "f32", 65 * BLOCK).numpy().tolist() == [3.0] * 16
        assert sum(driver.registered.values()) == 2 * BLOCK
    assert driver.registered == {}


def test_a_gpu_that_pins_plays_over_imports_that_join_and_grow(tmp_path: Path) -> None:
    """The Vulkan device of this machine, told that it pins: its imports are real ones."""
    vulkan = open_or_skip("vulkan")
    assert isinstance(vulkan, VulkanDevice)
    vulkan._info = replace(vulkan.info, pins=True)  # pyright: ignore[reportPrivateUsage]
    with DeviceGuest(passthrough.text(pages=16), device=vulkan) as guest:
        guest.memory.view(16 * BLOCK // 4, "f32").numpy()[:] = 1.0
        guest.freeze(tmp_path / "g")
    with nocopy.thaw(tmp_path / "g", device=vulkan) as thawed:
        memory, pages = thawed.memory, thawed.pages
        assert isinstance(pages, RangedPages)
        assert pages.buffers() == []

        def double(offset: int, count: int) -> None:
            tape = TapeBuilder()
            x = memory.view(count, "f32", offset)
            tape.binary("add", x, x, x)
            thawed.play(tape)
            assert x.numpy().tolist() == [expected * 2 for expected in before]

        for offset, count, imports in (
            (BLOCK, 8, 1),
            (3 * BLOCK + 16, 8, 2),
            (BLOCK + 64, 2 * BLOCK // 4 + 100, 1),  # over both
            (BLOCK, 8, 1),  # the first tape again, which was compiled for the import that went
            (9 * BLOCK, 4, 2),
        ):
            before = memory.view(count, "f32", offset).numpy().tolist()
            double(offset, count)
            assert len(pages.buffers()) == imports
        assert memory.borrowed == [(0, BLOCK), (4 * BLOCK, 9 * BLOCK), (10 * BLOCK, 16 * BLOCK)]
        assert thawed.ledger.shared == 4 * BLOCK
        assert thawed.call("grow", 1) == 16
        before = [0.0] * 4
        double(16 * BLOCK, 4)
        assert thawed.ledger.copied == 0
    vulkan.close()


def test_new_pages_are_refused_while_a_device_holds_the_memory(tmp_path: Path) -> None:
    memory = LinearMemory(BLOCK)
    hold = memory.hold("a device")
    with pytest.raises(nocopy.errors.UsageError, match="held by: a device"):
        memory.refill(lambda _address: ())
    hold.release()
    memory.write(0, b"x")
    memory.refill(lambda _address: ())
    assert memory.read(0, 1) == b"\0"
    memory.close()
