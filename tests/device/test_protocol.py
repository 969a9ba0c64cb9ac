"""What `device/protocol.py` promises besides results: refusals, ownership, closing, deadlines."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from nocopy.device.discovery import MODULES, open_device, probe
from nocopy.device.protocol import Device, Mode
from nocopy.errors import (
    ClosedError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DeviceUnavailableError,
    Error,
    UsageError,
)
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape import Space, Tape, TapeBuilder, Tensor, validate
from tests.device.conftest import open_or_skip
from tests.device.region import PAGE, Region

F32, I32 = DType.F32, DType.I32


@pytest.fixture
def fresh(device_name: str) -> Iterator[Device]:
    """A device that the test may close."""
    device = open_or_skip(device_name)
    yield device
    device.close()


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region(16 * PAGE)
    yield region
    region.close()


def doubling(nbytes: int) -> Tape:
    """Adds the first four floats of the guest space to themselves."""
    tape, x = TapeBuilder(), Tensor(Space.GUEST, 0, (4,), F32)
    tape.binary("add", x, x, x)
    return tape.build({Space.GUEST: nbytes})


def assert_plays(device: Device, region: Region) -> None:
    x = region.bytes[:16].view(np.float32)
    x[:] = (1, 2, 3, 4)
    pages = device.share(region.address, region.nbytes)
    program = device.compile(doubling(region.nbytes), {Space.GUEST: pages})
    device.play(program)
    assert x.tolist() == [2, 4, 6, 8]
    program.close()
    pages.close()


def test_a_device_describes_itself(device: Device, device_name: str):
    info = device.info
    assert info.name == device_name
    assert info.product
    assert isinstance(info.mode, Mode)
    assert info.memory_bytes >= 0
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in info.details.items())


def test_near_memory_stands_in_for_host_pages_until_it_is_flushed(fresh: Device, region: Region):
    """Where host pages are as near as memory of the device's own, there is none."""
    ledger = Ledger()
    near = fresh.near(region.address + 64, 4096, ledger=ledger)
    if near is None:
        assert fresh.info.name != "cuda"
        return
    region.bytes[:] = 7
    region.bytes[64:80].view(np.float32)[:] = (1, 2, 3, 4)
    near.reload(0, 16)
    tape, x = TapeBuilder(), Tensor(Space.KV, 0, (4,), F32)
    tape.binary("add", x, x, x)
    fresh.play(fresh.compile(tape.build({Space.KV: near.nbytes}), {Space.KV: near}))
    assert region.bytes[64:80].view(np.float32).tolist() == [1, 2, 3, 4]
    near.flush(0, 16)
    assert region.bytes[64:80].view(np.float32).tolist() == [2, 4, 6, 8]
    assert (region.bytes[:64] == 7).all()
    assert (region.bytes[80:] == 7).all()
    other = fresh.near(region.address + 8192, 4096)
    assert other is not None
    other.copy(near, 16)
    other.flush(4, 16)
    assert region.bytes[8192:8196].tolist() == [7] * 4
    assert region.bytes[8196:8208].view(np.float32).tolist() == [4, 6, 8]
    assert (ledger.uploaded, ledger.downloaded) == (16, 16)
    with pytest.raises(UsageError, match="4096"):
        near.flush(0, 4097)
    near.close()
    with pytest.raises(ClosedError):
        near.flush(0, 16)


def test_probe_says_what_opening_does(device_name: str):
    status = probe(device_name)
    assert status.name == device_name
    if status.available:
        assert status.product
        assert status.mode in set(Mode)
        assert (status.reason, status.fix) == ("", "")
    else:
        with pytest.raises(DeviceUnavailableError) as caught:
            open_device(device_name, allow_copy=True)
        assert (caught.value.name, caught.value.reason) == (device_name, status.reason)
        assert status.reason
        assert status.fix


def test_an_unknown_device_is_named():
    with pytest.raises(UsageError, match="'gpu' was asked for; there are auto, metal, cuda"):
        open_device("gpu")


def test_auto_opens_hardware_before_its_imitation():
    device = open_device("auto")
    assert device.info.name in MODULES
    assert not device.info.software
    device.close()


def test_pages_say_where_they_are(device: Device, region: Region):
    pages = device.share(region.address, region.nbytes)
    assert (pages.address, pages.nbytes, pages.mode) == (region.address, region.nbytes, device.info.mode)
    if pages.mode is Mode.SAME_POINTER:
        assert pages.device_address == region.address
    pages.close()


@pytest.mark.parametrize(
    ("shift", "nbytes"),
    [(1, PAGE), (64, PAGE), (0, PAGE - 1), (0, PAGE + 4), (0, 0), (0, -PAGE), (PAGE // 2, PAGE // 2)],
)
def test_sharing_what_is_not_whole_pages_is_refused(device: Device, region: Region, shift: int, nbytes: int):
    ledger = Ledger()
    with pytest.raises(UsageError, match="multiples of the page size"):
        device.share(region.address + shift, nbytes, ledger=ledger)
    assert ledger == Ledger()


def test_sharing_is_counted_once_and_playing_copies_nothing(device: Device, region: Region):
    ledger = Ledger()
    pages = device.share(region.address, region.nbytes, ledger=ledger)
    program = device.compile(doubling(region.nbytes), {Space.GUEST: pages})
    for _ in range(3):
        device.play(program)
    program.close()
    pages.close()
    assert ledger.shared == region.nbytes
    assert (ledger.staged > 0) == (device.info.mode is Mode.STAGED)
    assert ledger.uploaded == ledger.downloaded == 0


def test_allocated_memory_is_zero(device: Device, region: Region):
    region.bytes[:] = 0xA5
    nbytes = region.nbytes
    pages, scratch = device.share(region.address, nbytes), device.allocate(nbytes)
    assert scratch.nbytes == nbytes
    tape = TapeBuilder()
    everything = [Tensor(space, 0, (nbytes // 4,), I32) for space in (Space.GUEST, Space.SCRATCH)]
    tape.copy(*everything)
    spaces = {Space.GUEST: pages, Space.SCRATCH: scratch}
    program = device.compile(tape.build(dict.fromkeys(spaces, nbytes)), spaces)
    device.play(program)
    assert not region.bytes.any()
    for thing in (program, scratch, pages):
        thing.close()


def test_allocating_too_much_names_the_size(device: Device, region: Region):
    with pytest.raises(DeviceError, match=str(2**60)):
        device.allocate(2**60)
    assert_plays(device, region)


def test_compiling_without_a_space_names_it(device: Device):
    with pytest.raises(UsageError, match="needs 16 bytes of space guest; 0 are there"):
        device.compile(doubling(PAGE), {})


def test_compiling_for_a_space_that_is_too_small_names_both_sizes(device: Device, region: Region):
    pages = device.share(region.address, PAGE)
    tape = TapeBuilder()
    tape.fill(Tensor(Space.GUEST, PAGE, (4,), F32), 1.0)
    with pytest.raises(UsageError, match=f"needs {PAGE + 16} bytes of space guest; {PAGE} are there"):
        device.compile(tape.build({Space.GUEST: 2 * PAGE}), {Space.GUEST: pages})
    pages.close()


def test_an_empty_tape_plays_on_no_space(device: Device):
    program = device.compile(validate(b"", {}), {})
    device.play(program)
    program.close()


def test_a_closed_program_does_not_play(device: Device, region: Region):
    pages = device.share(region.address, region.nbytes)
    program = device.compile(doubling(region.nbytes), {Space.GUEST: pages})
    program.close()
    program.close()
    with pytest.raises(ClosedError):
        device.play(program)
    pages.close()
    assert_plays(device, region)


def test_a_program_does_not_play_on_closed_pages(device: Device, region: Region):
    region.bytes[:] = 7
    pages = device.share(region.address, region.nbytes)
    program = device.compile(doubling(region.nbytes), {Space.GUEST: pages})
    pages.close()
    pages.close()
    with pytest.raises(ClosedError):
        device.play(program)
    assert (region.bytes == 7).all()
    program.close()
    assert_plays(device, region)


def test_a_program_is_not_compiled_for_closed_pages(device: Device, region: Region):
    pages = device.share(region.address, region.nbytes)
    pages.close()
    with pytest.raises(ClosedError):
        device.compile(doubling(region.nbytes), {Space.GUEST: pages})


def test_a_closed_device_does_nothing(fresh: Device, region: Region):
    pages = fresh.share(region.address, region.nbytes)
    program = fresh.compile(doubling(region.nbytes), {Space.GUEST: pages})
    fresh.close()
    fresh.close()
    for use in (
        lambda: fresh.play(program),
        lambda: fresh.share(region.address, region.nbytes),
        lambda: fresh.allocate(PAGE),
        lambda: fresh.compile(doubling(region.nbytes), {Space.GUEST: pages}),
    ):
        with pytest.raises(ClosedError):
            use()
    program.close()  # what the device closed may be closed again
    pages.close()


@pytest.mark.parametrize("order", ["program pages device", "pages program device", "device pages program"])
def test_things_may_be_closed_in_any_order(fresh: Device, region: Region, order: str):
    pages = fresh.share(region.address, region.nbytes)
    things = {"device": fresh, "pages": pages}
    things["program"] = fresh.compile(doubling(region.nbytes), {Space.GUEST: pages})
    fresh.play(things["program"])
    for name in order.split():
        things[name].close()
    region.bytes[:] = 1  # the pages are the owner's alone again


def test_two_devices_of_a_kind_do_not_disturb_each_other(fresh: Device, device_name: str, region: Region):
    other = open_or_skip(device_name)
    assert_plays(other, region)
    other.close()
    assert_plays(fresh, region)


def test_pages_are_shared_again_after_they_were_closed(device: Device, region: Region):
    for _ in range(5):
        assert_plays(device, region)


def test_regions_are_shared_side_by_side(device: Device):
    regions = [Region(PAGE) for _ in range(4)]
    shared = [device.share(r.address, r.nbytes) for r in regions]
    tape = TapeBuilder()
    for space in Space:
        tape.fill(Tensor(space, 0, (4,), I32), int(space))
    program = device.compile(tape.build(dict.fromkeys(Space, PAGE)), dict(zip(Space, shared, strict=True)))
    device.play(program)
    for space, r in zip(Space, regions, strict=True):
        assert r.bytes[:16].view(np.int32).tolist() == [int(space)] * 4
        assert not r.bytes[16:].any()
    program.close()
    for pages, r in zip(shared, regions, strict=True):
        pages.close()
        r.close()


def test_a_deadline_ends_a_long_tape_or_it_ends_by_itself(fresh: Device, region: Region):
    """Whichever it is, soon; and the device then either plays on or says that it is lost."""
    tape, x = TapeBuilder(), Tensor(Space.GUEST, 0, (PAGE,), F32)
    for _ in range(3000):
        tape.unary("tanh", x, x)
    pages = fresh.share(region.address, region.nbytes)
    program = fresh.compile(tape.build({Space.GUEST: region.nbytes}), {Space.GUEST: pages})
    start, ended = time.monotonic(), None
    try:
        fresh.play(program, timeout=0.002)
    except Error as e:
        ended = e
    assert ended is None or isinstance(ended, DeadlineError)
    assert time.monotonic() - start < 30
    program.close()
    pages.close()
    try:
        assert_plays(fresh, region)
    except DeviceLostError:
        assert ended is not None
        fresh.close()
        again = open_or_skip(fresh.info.name)
        assert_plays(again, region)
        again.close()


def test_a_tape_that_is_fast_enough_meets_its_deadline(device: Device, region: Region):
    pages = device.share(region.address, region.nbytes)
    program = device.compile(doubling(region.nbytes), {Space.GUEST: pages})
    device.play(program, timeout=60.0)
    program.close()
    pages.close()
