import ctypes
import mmap
import os
from collections.abc import Generator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.device import discovery, vulkan_api
from nocopy.device.chunks import ChunkedPages
from nocopy.device.protocol import Mode
from nocopy.device.vulkan import VulkanDevice
from nocopy.device.vulkan_api import TYPE_CPU, Candidate, Limits
from nocopy.errors import (
    ClosedError,
    CopyRefusedError,
    DeadlineError,
    DeviceError,
    DeviceLostError,
    DeviceUnavailableError,
    UsageError,
)
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.tape.builder import TapeBuilder
from nocopy.tape.record import Space, Tensor
from tests.device.played import Spaces, random_record
from tests.tape.choices import Drawn

SIZE = 1 << 20


def available() -> str:
    status = discovery.probe("vulkan")
    return "" if status.available else f"{status.reason}. {status.fix}"


pytestmark = pytest.mark.skipif(bool(available()), reason=available())


def open_validated(messages: list[str], *, allow_copy: bool = False) -> VulkanDevice:
    """Open with the validation layer on; NOCOPY_VALIDATION=0 does without, where the layer cannot be had."""
    if os.environ.get("NOCOPY_VALIDATION") == "0":
        return VulkanDevice(allow_copy=allow_copy)
    try:
        return VulkanDevice(allow_copy=allow_copy, validate=messages.append)
    except DeviceUnavailableError as e:
        if "VK_LAYER" not in e.reason:
            raise
        pytest.skip(f"{e.reason}; apt-get install vulkan-validationlayers")


@pytest.fixture(scope="module")
def device() -> Generator[VulkanDevice]:
    """A device whose validation layer must stay silent."""
    messages: list[str] = []
    device = open_validated(messages)
    yield device
    device.close()
    assert messages == []


@pytest.fixture
def own_device() -> Generator[VulkanDevice]:
    """A device that a test may break."""
    messages: list[str] = []
    device = open_validated(messages)
    yield device
    device.close()
    assert messages == []


@pytest.fixture(scope="module")
def spaces(device: VulkanDevice) -> Generator[Spaces]:
    spaces = Spaces(device)
    yield spaces
    spaces.close()


class Host:
    """Host pages as an array of bytes."""

    def __init__(self, nbytes: int = SIZE) -> None:
        unit = 65536
        self._owner = mmap.mmap(-1, nbytes + unit)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._owner))
        self.address = start + -start % unit
        self.bytes = np.frombuffer(self._owner, np.uint8)[-start % unit :][:nbytes]

    def f32(self, offset: int, count: int) -> npt.NDArray[np.float32]:
        return self.bytes[offset : offset + 4 * count].view(np.float32)


def tensor(offset: int, *shape: int, dtype: DType = DType.F32, strides: tuple[int, ...] = ()) -> Tensor:
    return Tensor(Space.GUEST, offset, shape, dtype, strides)


def doubled(offset: int = 0, count: int = 64, size: int = SIZE) -> Any:
    """A tape: the floats after x become x + x."""
    builder = TapeBuilder()
    x = tensor(offset, count)
    builder.binary("add", tensor(offset + 4 * count, count), x, x)
    return builder.build({Space.GUEST: size})


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data())
def test_every_record_means_what_the_tape_says(spaces: Spaces, data: st.DataObject) -> None:
    record, seed = random_record(Drawn(data.draw))
    assert not spaces.judge(record, seed)


def test_llvmpipe_is_software_at_the_same_pointer(device: VulkanDevice) -> None:
    if "llvmpipe" not in device.info.product:
        pytest.skip(f"this is {device.info.product}")
    host = Host()
    pages = device.share(host.address, SIZE)
    assert device.info.software
    assert device.info.mode is pages.mode is Mode.SAME_POINTER
    assert pages.address == pages.device_address == host.address
    pages.close()


def uploading(device: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a device treat mapped files as hardware does."""
    monkeypatch.setattr(VulkanDevice, "_import_all", lambda self, ranges: None)


def copied_from(device: VulkanDevice, weights: Any, start: int, count: int) -> npt.NDArray[np.float32]:
    """Floats of a placed space, copied out by a kernel."""
    host = Host()
    guest, builder = device.share(host.address, SIZE), TapeBuilder()
    builder.copy(tensor(0, count), Tensor(Space.WEIGHTS, start, (count,), DType.F32))
    spaces = {Space.GUEST: guest, Space.WEIGHTS: weights}
    program = device.compile(builder.build({Space.GUEST: SIZE, Space.WEIGHTS: weights.nbytes}), spaces)
    device.play(program)
    program.close()
    guest.close()
    return host.f32(0, count).copy()


def test_llvmpipe_reads_placed_pages_where_they_lie(device: VulkanDevice) -> None:
    if "llvmpipe" not in device.info.product:
        pytest.skip(f"this is {device.info.product}")
    host, ledger = Host(), Ledger()
    weights, starts = device.place([(host.address, SIZE)], ledger=ledger)
    assert weights.device_address == host.address
    assert weights.mode is Mode.SAME_POINTER
    assert (ledger.shared, ledger.copied) == (SIZE, 0)
    host.f32(4000, 8)[:] = 5
    assert (copied_from(device, weights, starts[0] + 4000, 8) == 5).all()
    weights.close()


def test_hardware_gets_its_own_copy_once(device: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    uploading(device, monkeypatch)
    monkeypatch.setattr("nocopy.device.vulkan_upload.STAGING_BYTES", 3 * SIZE // 16)
    hosts, ledger, told = [Host(), Host()], Ledger(), list[int]()
    for number, host in enumerate(hosts):
        host.bytes.view(np.float32)[:] = np.arange(SIZE // 4) + number
    ranges = [(host.address, SIZE) for host in hosts]
    weights, starts = device.place(ranges, ledger=ledger, progress=told.append)
    assert (ledger.shared, ledger.uploaded, ledger.staged) == (0, 2 * SIZE, 0)
    assert told[-1] == 2 * SIZE
    assert len(told) == 12
    assert weights.device_address != hosts[0].address
    for number, host in enumerate(hosts):
        host.bytes[:] = 0
        found = copied_from(device, weights, starts[number], SIZE // 8)
        assert (found == np.arange(SIZE // 8) + number).all()
    weights.close()


def test_a_driver_that_refuses_the_pages_of_a_file_gets_a_copy(
    device: VulkanDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise DeviceError("no")

    monkeypatch.setattr("nocopy.device.vulkan_memory.import_buffer", refuse)
    host, ledger = Host(), Ledger()
    weights, _ = device.place([(host.address, SIZE)], ledger=ledger)
    assert (ledger.shared, ledger.uploaded) == (0, SIZE)
    weights.close()


def test_an_uploaded_operand_across_two_buffers_is_uploaded_again(
    small_buffers: VulkanDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading(small_buffers, monkeypatch)
    limit, host, ledger = small_buffers._api.limits.buffer, Host(), Ledger()
    host.bytes.view(np.float32)[:] = np.arange(SIZE // 4)
    weights, _ = small_buffers.place([(host.address, SIZE)], ledger=ledger)
    monkeypatch.setattr(ChunkedPages, "_contiguous", lambda self: False)
    found = copied_from(small_buffers, weights, limit - 128, 64)
    assert (found == np.arange(64) + (limit - 128) // 4).all()
    assert SIZE < ledger.uploaded < 2 * SIZE
    weights.close()


def test_placing_more_than_there_is_names_both_sizes(
    device: VulkanDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploading(device, monkeypatch)
    with pytest.raises(DeviceError, match=rf"placing {1 << 60} bytes was asked for; .* has \d+"):
        device.place([(Host().address, 1 << 60)])


def test_sharing_counts_bytes_as_shared_and_copies_none(device: VulkanDevice) -> None:
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE, ledger=ledger)
    host.f32(0, 64)[:] = np.arange(64)
    program = device.compile(doubled(), {Space.GUEST: pages})
    device.play(program)
    assert (host.f32(256, 64) == 2 * np.arange(64)).all()
    assert (ledger.shared, ledger.copied) == (SIZE, 0)
    pages.close()


def test_records_see_what_those_before_them_wrote(device: VulkanDevice) -> None:
    host = Host()
    pages = device.share(host.address, SIZE)
    builder = TapeBuilder()
    builder.fill(tensor(0, 1000), 1.0)
    for _ in range(50):
        builder.binary("add", tensor(0, 1000), tensor(0, 1000), tensor(0, 1000, strides=(1,)))
        builder.clamp(tensor(4096, 1000), tensor(0, 1000), 0.0, 3.0)
        builder.copy(tensor(0, 1000), tensor(4096, 1000))
    program = device.compile(builder.build({Space.GUEST: SIZE}), {Space.GUEST: pages})
    for _ in range(3):
        device.play(program)
        assert (host.f32(0, 1000) == 3).all()
    pages.close()


def test_more_elements_than_one_launch_has_threads(device: VulkanDevice) -> None:
    count = 65535 * 256 + 1000
    host = Host(1 << 25)
    pages = device.share(host.address, 1 << 25)
    builder = TapeBuilder()
    builder.fill(tensor(0, count, dtype=DType.U8), 7.0)
    device.play(device.compile(builder.build({Space.GUEST: 1 << 25}), {Space.GUEST: pages}))
    assert (host.bytes[:count] == 7).all()
    assert (host.bytes[count:] == 0).all()
    pages.close()


def test_operands_lie_beyond_4_gib(device: VulkanDevice) -> None:
    size = 5 << 30
    host = Host(size)
    pages = device.share(host.address, size)
    offset = (4 << 30) + 4096
    host.f32(offset, 64)[:] = np.arange(64)
    device.play(device.compile(doubled(offset, size=size), {Space.GUEST: pages}))
    assert (host.f32(offset + 256, 64) == 2 * np.arange(64)).all()
    pages.close()


def test_empty_tapes_and_empty_records_play(device: VulkanDevice) -> None:
    builder = TapeBuilder()
    host = Host()
    pages = device.share(host.address, SIZE)
    device.play(device.compile(builder.build({}), {}))
    builder.fill(tensor(0, 0), 1.0)
    device.play(device.compile(builder.build({Space.GUEST: SIZE}), {Space.GUEST: pages}))
    assert not host.bytes.any()
    pages.close()


def test_allocated_memory_is_zero_and_keeps_what_kernels_write(device: VulkanDevice) -> None:
    host = Host()
    pages, scratch = device.share(host.address, SIZE), device.allocate(5000)
    assert scratch.nbytes == 5000
    inside = Tensor(Space.SCRATCH, 0, (1250,), DType.F32)
    spaces = {Space.GUEST: pages, Space.SCRATCH: scratch}
    sizes = {Space.GUEST: SIZE, Space.SCRATCH: 5000}
    host.f32(0, 1250)[:] = 5
    out, back = TapeBuilder(), TapeBuilder()
    out.copy(tensor(0, 1250), inside)
    out.fill(inside, 8.0)
    back.copy(tensor(0, 1250), inside)
    device.play(device.compile(out.build(sizes), spaces))
    assert (host.f32(0, 1250) == 0).all()
    device.play(device.compile(back.build(sizes), spaces))
    assert (host.f32(0, 1250) == 8).all()
    scratch.close()
    pages.close()


def test_allocating_more_than_there_is_names_both_sizes(device: VulkanDevice) -> None:
    with pytest.raises(DeviceError, match=rf"{1 << 60} bytes .* has \d+"):
        device.allocate(1 << 60)


def test_growing_follows_the_memory(device: VulkanDevice) -> None:
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE // 2, ledger=ledger)
    program = device.compile(doubled(size=SIZE // 2), {Space.GUEST: pages})
    before = pages.device_address
    pages.grow(SIZE)
    assert (pages.nbytes, ledger.shared) == (SIZE, SIZE)
    host.f32(SIZE - 512, 64)[:] = 1
    device.play(device.compile(doubled(SIZE - 512), {Space.GUEST: pages}))
    assert (host.f32(SIZE - 256, 64) == 2).all()
    host.f32(0, 64)[:] = 3
    if pages.device_address == before:
        device.play(program)
        assert (host.f32(256, 64) == 6).all()
    else:
        with pytest.raises(UsageError, match="compile the tape again"):
            device.play(program)
    pages.close()


def test_a_driver_that_refuses_to_import_twice_can_still_follow_growth(
    device: VulkanDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host()
    pages = device.share(host.address, SIZE // 2)
    make, live = type(pages.maker).make, [1]

    def once(self: Any, address: int, nbytes: int) -> Any:
        if live[0]:
            raise DeviceError("imported already")
        live[0] += 1
        return make(self, address, nbytes)

    destroy = type(pages.maker).destroy

    def gone(self: Any, chunk: Any) -> None:
        live[0] -= 1
        destroy(self, chunk)

    monkeypatch.setattr(type(pages.maker), "make", once)
    monkeypatch.setattr(type(pages.maker), "destroy", gone)
    pages.grow(SIZE)
    assert (pages.nbytes, live) == (SIZE, [1])
    pages.close()


def test_a_failed_growth_keeps_the_old_import(device: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE // 2, ledger=ledger)
    make = type(pages.maker).make

    def small(self: Any, address: int, nbytes: int) -> Any:
        if nbytes > SIZE // 2:
            raise DeviceError("too much")
        return make(self, address, nbytes)

    monkeypatch.setattr(type(pages.maker), "make", small)
    with pytest.raises(DeviceError, match="too much"):
        pages.grow(SIZE)
    assert (pages.nbytes, ledger.shared) == (SIZE // 2, SIZE // 2)
    host.f32(0, 64)[:] = 1
    device.play(device.compile(doubled(size=SIZE // 2), {Space.GUEST: pages}))
    assert (host.f32(256, 64) == 2).all()
    pages.close()


@pytest.fixture
def small_buffers(own_device: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> VulkanDevice:
    """A device whose buffers hold 64 KiB, at addresses that do not follow each other."""
    own_device._api.limits = Limits(65536, 4096)
    monkeypatch.setattr(ChunkedPages, "_contiguous", lambda self: False)
    return own_device


def test_an_operand_across_two_buffers_gets_one_of_its_own(small_buffers: VulkanDevice) -> None:
    host = Host()
    pages = small_buffers.share(host.address, SIZE)
    assert len(pages.chunks) == 16
    offset = 65536 - 128
    host.f32(offset, 64)[:] = np.arange(64)
    program = small_buffers.compile(doubled(offset), {Space.GUEST: pages})
    assert len(pages.windows) == 1
    small_buffers.play(program)
    assert (host.f32(offset + 256, 64) == 2 * np.arange(64)).all()
    assert small_buffers.compile(doubled(offset), {Space.GUEST: pages})
    assert len(pages.windows) == 1
    pages.close()


def test_an_operand_larger_than_a_buffer_is_refused(small_buffers: VulkanDevice) -> None:
    host = Host()
    pages = small_buffers.share(host.address, SIZE)
    with pytest.raises(DeviceError, match="at most 65536 bytes at once"):
        small_buffers.compile(doubled(count=32768), {Space.GUEST: pages})


# -- staged ----------------------------------------------------------------------------------------------


@pytest.fixture
def cannot_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """No driver has the extension."""
    monkeypatch.setattr(vulkan_api, "HOST_IMPORT", b"VK_EXT_not_there")


@pytest.mark.usefixtures("cannot_import")
def test_a_device_that_cannot_import_is_refused_unless_copies_are_allowed() -> None:
    with pytest.raises(CopyRefusedError, match="cannot import host pages"):
        VulkanDevice()


@pytest.mark.usefixtures("cannot_import")
def test_staged_pages_copy_what_the_tape_touches_and_count_it() -> None:
    messages: list[str] = []
    device = open_validated(messages, allow_copy=True)
    assert device.info.mode is Mode.STAGED
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE, ledger=ledger)
    assert ledger.shared == 0
    host.f32(0, 64)[:] = np.arange(64)
    program = device.compile(doubled(), {Space.GUEST: pages})
    for plays in (1, 2):
        device.play(program)
        assert (host.f32(256, 64) == 2 * np.arange(64)).all()
        assert ledger.staged == plays * (512 + 256)
    device.close()
    assert messages == []


@pytest.mark.usefixtures("cannot_import")
def test_staged_pages_keep_the_bytes_between_strided_results() -> None:
    messages: list[str] = []
    device = open_validated(messages, allow_copy=True)
    host = Host()
    pages = device.share(host.address, SIZE)
    host.f32(0, 64)[:] = 9
    builder = TapeBuilder()
    builder.fill(tensor(0, 32, strides=(2,)), 1.0)
    device.play(device.compile(builder.build({Space.GUEST: SIZE}), {Space.GUEST: pages}))
    assert host.f32(0, 64)[:-1].tolist() == [1, 9] * 31 + [1]
    spaces = Spaces(device)
    for seed in range(60):
        from tests.tape.choices import Seeded

        record, data = random_record(Seeded(seed))
        assert not spaces.judge(record, data)
    device.close()
    assert messages == []


# -- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "nbytes"), [(1, SIZE), (0, 100), (0, 0)])
def test_sharing_what_is_not_whole_pages_is_refused(device: VulkanDevice, address: int, nbytes: int) -> None:
    host = Host()
    with pytest.raises(UsageError, match="multiples of the page size"):
        device.share(host.address + address, nbytes)


def test_closed_things_say_so(own_device: VulkanDevice) -> None:
    host = Host()
    pages = own_device.share(host.address, SIZE)
    program = own_device.compile(doubled(), {Space.GUEST: pages})
    other = own_device.compile(doubled(), {Space.GUEST: pages})
    other.close()
    other.close()
    with pytest.raises(ClosedError):
        own_device.play(other)
    pages.close()
    pages.close()
    with pytest.raises(ClosedError):
        own_device.play(program)
    with pytest.raises(ClosedError):
        own_device.compile(doubled(), {Space.GUEST: pages})
    with pytest.raises(ClosedError):
        pages.grow(2 * SIZE)
    own_device.close()
    own_device.close()
    with pytest.raises(ClosedError):
        own_device.share(host.address, SIZE)
    with pytest.raises(ClosedError):
        own_device.play(program)


def test_pages_of_another_device_are_refused(device: VulkanDevice, own_device: VulkanDevice) -> None:
    host = Host()
    pages = own_device.share(host.address, SIZE)
    with pytest.raises(UsageError, match="another device"):
        device.compile(doubled(), {Space.GUEST: pages})


def test_a_tape_that_ends_too_late_is_complete_and_raises(device: VulkanDevice) -> None:
    host = Host()
    pages = device.share(host.address, SIZE)
    host.f32(0, 64)[:] = 4
    program = device.compile(doubled(), {Space.GUEST: pages})
    with pytest.raises(DeadlineError, match="within 1e-09 s"):
        device.play(program, timeout=1e-9)
    assert (host.f32(256, 64) == 8).all()
    device.play(program, timeout=60)
    pages.close()


class Library:
    """The driver's functions, some of them replaced."""

    def __init__(self, real: Any, **replaced: Any) -> None:
        self._real = real
        self.__dict__.update(replaced)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_a_lost_device_stays_lost(own_device: VulkanDevice) -> None:
    host = Host()
    pages = own_device.share(host.address, SIZE)
    program = own_device.compile(doubled(), {Space.GUEST: pages})
    api = own_device._api
    real = api.vk
    api.vk = Library(real, lib=Library(real.lib, vkQueueSubmit=lambda *_: -4))
    with pytest.raises(DeviceLostError, match="VK_ERROR_DEVICE_LOST"):
        own_device.play(program)
    api.vk = real
    with pytest.raises(DeviceLostError, match="was lost before"):
        own_device.play(program)
    api.lost = False  # it is not, so the fixture may close it


def test_a_kernel_that_hangs_is_given_up(own_device: VulkanDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nocopy.device.vulkan_commands.GRACE", 0.0)
    host = Host()
    pages = own_device.share(host.address, SIZE)
    program = own_device.compile(doubled(), {Space.GUEST: pages})
    api = own_device._api
    real = api.vk
    api.vk = Library(real, lib=Library(real.lib, vkWaitForFences=lambda *_: 2))
    with pytest.raises(DeviceLostError, match="still runs"):
        own_device.play(program, timeout=0.01)
    api.vk, api.lost = real, False
    assert real.lib.vkDeviceWaitIdle(api.device) == 0


@pytest.mark.parametrize(
    ("result", "name"), [(-2, "VK_ERROR_OUT_OF_DEVICE_MEMORY"), (-1000072003, "VK_ERROR")]
)
def test_out_of_memory_names_the_size(own_device: VulkanDevice, result: int, name: str) -> None:
    api = own_device._api
    real = api.vk
    api.vk = Library(real, lib=Library(real.lib, vkAllocateMemory=lambda *_: result))
    with pytest.raises(DeviceError, match=rf"importing {SIZE} bytes .*{name}"):
        own_device.share(Host().address, SIZE)
    api.vk = real


# -- finding a device ------------------------------------------------------------------------------------


def candidate(name: str, kind: int, *lacks: str, imports: bool = True) -> Candidate:
    return Candidate(None, name, kind, {}, lacks, 0, imports, Limits(1 << 30, 4096))


@pytest.mark.parametrize("allow_copy", [False, True])
def test_a_real_gpu_comes_before_the_cpu(allow_copy: bool) -> None:
    found = [candidate("llvmpipe", TYPE_CPU), candidate("integrated", 1), candidate("discrete", 2)]
    assert vulkan_api._choose(found, allow_copy).name == "discrete"


def test_a_gpu_that_must_copy_is_chosen_only_if_copies_are_allowed() -> None:
    found = [candidate("llvmpipe", TYPE_CPU), candidate("discrete", 2, imports=False)]
    assert vulkan_api._choose(found, False).name == "llvmpipe"
    assert vulkan_api._choose(found, True).name == "discrete"
    with pytest.raises(CopyRefusedError, match="discrete cannot import"):
        vulkan_api._choose(found[1:], False)


def test_devices_that_cannot_play_are_named_with_what_they_lack() -> None:
    found = [candidate("old", 2, "feature shaderInt64", "Vulkan 1.2 (it has 1.1)"), candidate("bare", 1, "x")]
    with pytest.raises(
        DeviceUnavailableError, match=r"old lacks feature shaderInt64, Vulkan 1.2 .*; bare lacks x"
    ):
        vulkan_api._choose(found, True)
    with pytest.raises(DeviceUnavailableError, match="apt-get install libvulkan1 mesa-vulkan-drivers"):
        vulkan_api._choose([], True)


@pytest.mark.parametrize(
    ("error", "fix"),
    [(OSError("no libvulkan"), "apt-get install"), (ImportError("no module"), "pip install vulkan")],
)
def test_a_missing_loader_says_how_to_get_it(
    error: Exception, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(vulkan_api, "import_module", fail)
    status = discovery.probe("vulkan")
    assert not status.available
    assert fix in status.fix
