import ctypes
import gc
import mmap
import sys
from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nocopy.device import discovery, metal_memory
from nocopy.device.metal import MetalDevice
from nocopy.device.protocol import Mode
from nocopy.errors import (
    ClosedError,
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
from nocopy.tape.validate import Tape
from tests.device import test_conformance_language as language
from tests.device import test_conformance_sample as sampling
from tests.device.arena import Arena
from tests.device.metal_compiler import MetalSourceError, compile_for_cpu
from tests.device.metal_framework import PAGE, CompileOptions, Metal, MetalAbort, MTLSize, Objc
from tests.device.played import Spaces, random_record
from tests.tape.choices import Drawn

SIZE = 1 << 20


LANGUAGE = {
    "matmul": lambda arena: language.test_matmul_of_blocks(arena, DType.Q4_K, (5, 1, 6)),
    "matvec": lambda arena: language.test_matmul_of_blocks(arena, DType.Q6_K, (3, 1, 7)),
    "gather": lambda arena: language.test_gather_from_blocks(arena, DType.Q5_K),
    "rope": lambda arena: language.test_rope_in_place_of_any_position(arena, True),
    "scatter": language.test_scatter_encodes_q8_0_bit_for_bit,
    "scatter twice": lambda arena: language.test_scatter_to_the_same_row_twice_writes_one_of_the_rows(
        arena, DType.Q8_0
    ),
    "attention": lambda arena: language.test_attention_windows_and_softcaps(arena, DType.Q8_0, 32, 0.5),
    "attention of odd heads": lambda arena: language.test_attention_of_odd_heads(arena, 65),
    "attention over many tokens": lambda arena: language.test_attention_of_every_size(
        arena, DType.F16, (1, 4, 128, 700, 4)
    ),
    "glu": lambda arena: language.test_glu(arena, "gelu"),
    "penalize": sampling.test_recent_tokens_cost_once_each_by_their_sign_and_their_number,
    "sample": lambda arena: sampling.test_every_filter_alone_and_with_the_others(arena, 255),
    "sample equal scores": sampling.test_equal_scores_go_by_their_index,
    "sample what is no number": sampling.test_what_is_no_number_is_never_drawn,
    "sample with any part": sampling.test_filters_out_of_range_filter_nothing_or_all_but_one,
    "sample with any seed": sampling.test_seed_and_number_of_the_draw_are_64_bits_each,
}
"""Parts of the conformance suite that reach every branch of these kernels."""


class Mac:
    """A stand-in Mac."""

    def __init__(self) -> None:
        self.objc = Objc()
        self.metal = Metal(self.objc)

    def open(self) -> MetalDevice:
        return MetalDevice(self.metal, self.objc, page=PAGE)


@pytest.fixture
def mac() -> Mac:
    return Mac()


@pytest.fixture
def device(mac: Mac) -> Generator[MetalDevice]:
    device = mac.open()
    yield device
    device.close()


@pytest.fixture(scope="module")
def spaces() -> Generator[Spaces]:
    device = Mac().open()
    spaces = Spaces(device)
    yield spaces
    spaces.close()
    device.close()


class Host:
    """Host pages as an array of bytes."""

    def __init__(self, nbytes: int = SIZE) -> None:
        owner = mmap.mmap(-1, nbytes + PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(owner))
        self.address = start + -start % PAGE
        self.bytes = np.frombuffer(owner, np.uint8)[-start % PAGE :][:nbytes]

    def f32(self, offset: int, count: int) -> npt.NDArray[np.float32]:
        return self.bytes[offset : offset + 4 * count].view(np.float32)


def tensor(offset: int, *shape: int) -> Tensor:
    return Tensor(Space.GUEST, offset, shape, DType.F32)


def doubled(offset: int = 0, count: int = 64, size: int = SIZE) -> Tape:
    """A tape: the floats after x become x + x."""
    builder = TapeBuilder()
    builder.binary("add", tensor(offset + 4 * count, count), tensor(offset, count), tensor(offset, count))
    return builder.build({Space.GUEST: size})


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.data())
def test_every_record_means_what_the_tape_says(spaces: Spaces, data: st.DataObject) -> None:
    record, seed = random_record(Drawn(data.draw))
    assert not spaces.judge(record, seed)


@pytest.mark.parametrize("order", range(3))
def test_tiles_long_rows_and_large_k(device: MetalDevice, order: int) -> None:
    """More than one tile, all 256 lanes, and more than one batch of topk; for each order of threads."""
    host, rng = Host(), np.random.default_rng(order)
    pages = device.share(host.address, SIZE)
    x = host.f32(0, 30000)
    x[:] = rng.standard_normal(30000)
    builder, at = TapeBuilder(), 1 << 18
    builder.matmul(tensor(at, 130, 70), tensor(0, 130, 100), tensor(52000, 100, 70))
    builder.matmul(tensor(at + 40000, 2, 70), tensor(0, 2, 300), tensor(2400, 300, 70))
    builder.softmax(tensor(at + 50000, 3, 5000), tensor(0, 3, 5000))
    builder.layernorm(tensor(at + 120000, 3, 5000), tensor(0, 3, 5000))
    indices = Tensor(Space.GUEST, at + 200000, (2, 600), DType.I32)
    builder.topk(tensor(at + 190000, 2, 600), indices, tensor(0, 2, 5000))
    builder.argmax(Tensor(Space.GUEST, at + 240000, (3,), DType.I32), tensor(0, 3, 5000))
    device.play(device.compile(builder.build({Space.GUEST: SIZE}), {Space.GUEST: pages}))
    a, b = x[:13000].reshape(130, 100), x[13000:20000].reshape(100, 70)
    np.testing.assert_allclose(host.f32(at, 9100).reshape(130, 70), a @ b, rtol=1e-4, atol=1e-4)
    a, b = x[:600].reshape(2, 300), x[600:21600].reshape(300, 70)
    np.testing.assert_allclose(host.f32(at + 40000, 140).reshape(2, 70), a @ b, rtol=1e-4, atol=1e-4)
    rows = x[:15000].reshape(3, 5000)
    e = np.exp(rows - rows.max(-1, keepdims=True))
    np.testing.assert_allclose(
        host.f32(at + 50000, 15000).reshape(3, 5000), e / e.sum(-1, keepdims=True), rtol=1e-5
    )
    y = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(host.f32(at + 120000, 15000).reshape(3, 5000), y, rtol=1e-4, atol=1e-5)
    best = np.argsort(-rows[:2], -1, kind="stable")[:, :600]
    found = host.f32(at + 200000, 1200).view(np.int32).reshape(2, 600)
    assert (found == best).all()
    values = host.f32(at + 190000, 1200).reshape(2, 600)
    assert (values == np.take_along_axis(rows[:2], best, -1)).all()
    assert (host.f32(at + 240000, 3).view(np.int32) == rows.argmax(-1)).all()


def test_pages_are_mapped_and_counted_as_shared(device: MetalDevice) -> None:
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE, ledger=ledger)
    host.f32(0, 64)[:] = np.arange(64)
    device.play(device.compile(doubled(), {Space.GUEST: pages}))
    assert (host.f32(256, 64) == 2 * np.arange(64)).all()
    assert (ledger.shared, ledger.copied) == (SIZE, 0)
    assert device.info.mode is pages.mode is Mode.MAPPED
    assert pages.address == host.address != pages.device_address


def test_records_see_what_those_before_them_wrote(device: MetalDevice) -> None:
    host = Host()
    pages = device.share(host.address, SIZE)
    builder = TapeBuilder()
    builder.fill(tensor(0, 100), 1.0)
    for _ in range(10):
        builder.binary("add", tensor(0, 100), tensor(0, 100), tensor(0, 100))
    program = device.compile(builder.build({Space.GUEST: SIZE}), {Space.GUEST: pages})
    for _ in range(2):
        device.play(program)
        assert (host.f32(0, 100) == 1024).all()


def test_allocated_memory_is_zero(device: MetalDevice) -> None:
    host = Host()
    host.bytes[:] = 1
    spaces = {Space.GUEST: device.share(host.address, SIZE), Space.SCRATCH: device.allocate(4000)}
    builder = TapeBuilder()
    builder.copy(tensor(0, 1000), Tensor(Space.SCRATCH, 0, (1000,), DType.F32))
    device.play(device.compile(builder.build({Space.GUEST: SIZE, Space.SCRATCH: 4000}), spaces))
    assert not host.f32(0, 1000).any()
    assert host.f32(4000, 1).any()


def test_empty_tapes_play(device: MetalDevice) -> None:
    device.play(device.compile(TapeBuilder().build({}), {}))


@pytest.mark.parametrize("case", LANGUAGE)
def test_language_kernels_on_guarded_pages(device: MetalDevice, case: str) -> None:
    arena = Arena(device)
    LANGUAGE[case](arena)
    arena.close()


@pytest.mark.parametrize("refused", [False, True])
def test_ranges_are_placed_where_they_lie_or_copied(
    mac: Mac, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    device, hosts, ledger, told = mac.open(), [Host(), Host()], Ledger(), list[int]()
    guest = Host()
    pages = device.share(guest.address, SIZE)
    if refused:
        monkeypatch.setattr(metal_memory.Importer, "make", raise_refusal)
    for number, host in enumerate(hosts):
        host.f32(0, SIZE // 4)[:] = np.arange(SIZE // 4) + number
    ranges = [(host.address, SIZE) for host in hosts]
    weights, starts = device.place(ranges, ledger=ledger, progress=told.append)
    assert (ledger.shared, ledger.uploaded) == ((0, 2 * SIZE) if refused else (2 * SIZE, 0))
    assert told == ([SIZE, 2 * SIZE] if refused else [])
    builder = TapeBuilder()
    for number, start in enumerate(starts):
        source = Tensor(Space.WEIGHTS, start + 4000, (64,), DType.F32)
        builder.copy(tensor(256 * number, 64), source)
    spaces = {Space.GUEST: pages, Space.WEIGHTS: weights}
    device.play(device.compile(builder.build({Space.GUEST: SIZE, Space.WEIGHTS: 2 * SIZE}), spaces))
    assert (guest.f32(0, 128).reshape(2, 64) == np.arange(1000, 1064) + np.array([[0], [1]])).all()
    weights.close()
    device.close()


def raise_refusal(*_: object) -> None:
    raise DeviceError("refused")


def test_growing_follows_the_memory(device: MetalDevice) -> None:
    host, ledger = Host(), Ledger()
    pages = device.share(host.address, SIZE // 2, ledger=ledger)
    program = device.compile(doubled(size=SIZE // 2), {Space.GUEST: pages})
    pages.grow(SIZE)
    assert ledger.shared == SIZE
    host.f32(SIZE - 512, 64)[:] = 1
    device.play(device.compile(doubled(SIZE - 512), {Space.GUEST: pages}))
    assert (host.f32(SIZE - 256, 64) == 2).all()
    device.play(program)


def test_pages_larger_than_a_buffer_are_split(mac: Mac) -> None:
    mac.metal.max_buffer = 4 * PAGE
    device, host = mac.open(), Host()
    pages = device.share(host.address, SIZE)
    assert len(pages.chunks) == SIZE // (4 * PAGE)
    host.f32(4 * PAGE - 128, 64)[:] = 3
    device.play(device.compile(doubled(4 * PAGE - 128), {Space.GUEST: pages}))
    assert (host.f32(4 * PAGE + 128, 64) == 6).all()
    device.close()


def test_an_operand_larger_than_a_buffer_is_refused(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nocopy.device.chunks.ChunkedPages._contiguous", lambda self: False)
    mac.metal.max_buffer = 4 * PAGE
    device, host = mac.open(), Host()
    pages = device.share(host.address, SIZE)
    with pytest.raises(DeviceError, match=f"at most {4 * PAGE} bytes at once"):
        device.compile(doubled(count=2 * PAGE), {Space.GUEST: pages})
    device.play(device.compile(doubled(4 * PAGE - 128), {Space.GUEST: pages}))
    assert len(pages.windows) == 1
    device.close()


def test_closing_lets_go_of_every_buffer(mac: Mac) -> None:
    device, host = mac.open(), Host()
    pages, other = device.share(host.address, SIZE), device.share(host.address, SIZE)
    program = device.compile(doubled(), {Space.GUEST: pages})
    device.play(program)
    pages.grow(SIZE)
    assert len(mac.metal.buffers) == 3
    other.close()
    program.close()
    gc.collect()
    assert len(mac.metal.buffers) == 1
    device.close()
    gc.collect()
    assert not mac.metal.buffers
    assert not mac.objc.leaked


def test_buffers_would_leak_if_their_ownership_were_not_described(
    mac: Mac, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metal_memory, "OWNERSHIP", {})
    device, host = mac.open(), Host()
    device.share(host.address, SIZE)
    device.close()
    gc.collect()
    assert mac.metal.buffers
    assert mac.objc.leaked


# -- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("address", "nbytes"), [(4096, SIZE // 2), (0, PAGE + 4096), (0, 0)])
def test_sharing_what_is_not_whole_pages_is_refused(device: MetalDevice, address: int, nbytes: int) -> None:
    host = Host()
    with pytest.raises(UsageError, match=f"page size, {PAGE}"):
        device.share(host.address + address, nbytes)


def test_a_buffer_that_metal_moved_is_refused(mac: Mac) -> None:
    device, host = mac.open(), Host()
    mac.metal.moved = PAGE
    with pytest.raises(DeviceError, match="another host address"):
        device.share(host.address, SIZE // 2)
    device.close()


def test_what_metal_does_not_give_is_named(mac: Mac) -> None:
    device, host = mac.open(), Host()
    with pytest.raises(DeviceError, match=f"allocating {8 << 30} bytes .* has {4 << 30}"):
        device.allocate(8 << 30)
    pages = device.share(host.address, SIZE)
    mac.metal.most_threads = 128
    with pytest.raises(DeviceError, match=r"256 threads a group were asked for; .* allows 128"):
        device.compile(doubled(), {Space.GUEST: pages})
    mac.metal.most_threads = 256
    program = device.compile(doubled(), {Space.GUEST: pages})
    mac.metal.no_commands = True
    with pytest.raises(DeviceError, match="no command encoder"):
        device.play(program)
    device.close()


def test_source_that_metal_refuses_is_an_error_with_its_text(
    device: MetalDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = device.share(Host().address, SIZE)
    monkeypatch.setattr("nocopy.device.launches.kernel_code", lambda name, suffix: b"kernel void broken")
    with pytest.raises(DeviceError, match=r"compiling the kernel binary .* refuses the source"):
        device.compile(doubled(), {Space.GUEST: pages})


@pytest.mark.parametrize(("code", "error"), [(11, DeviceLostError), (3, DeviceLostError), (2, DeviceError)])
def test_a_failed_command_buffer_is_an_error(mac: Mac, code: int, error: type[DeviceError]) -> None:
    device, host = mac.open(), Host()
    program = device.compile(doubled(), {Space.GUEST: device.share(host.address, SIZE)})
    mac.metal.fail_next = code
    with pytest.raises(error, match=f"error {code}"):
        device.play(program)
    if error is DeviceLostError:
        with pytest.raises(DeviceLostError, match="was lost before"):
            device.play(program)
    else:
        device.play(program)
    device.close()


def test_a_tape_that_ends_too_late_is_complete_and_raises(device: MetalDevice) -> None:
    host = Host()
    program = device.compile(doubled(), {Space.GUEST: device.share(host.address, SIZE)})
    host.f32(0, 64)[:] = 4
    with pytest.raises(DeadlineError):
        device.play(program, timeout=1e-9)
    assert (host.f32(256, 64) == 8).all()


def test_closed_things_say_so(mac: Mac) -> None:
    device, host = mac.open(), Host()
    pages = device.share(host.address, SIZE)
    program, other = (device.compile(doubled(), {Space.GUEST: pages}) for _ in range(2))
    other.close()
    with pytest.raises(ClosedError):
        device.play(other)
    pages.close()
    with pytest.raises(ClosedError):
        device.play(program)
    with pytest.raises(ClosedError):
        device.compile(doubled(), {Space.GUEST: pages})
    device.close()
    device.close()
    with pytest.raises(ClosedError):
        device.share(host.address, SIZE)


def test_pages_of_another_device_are_refused(device: MetalDevice) -> None:
    host = Host()
    other = Mac().open()
    pages = other.share(host.address, SIZE)
    with pytest.raises(UsageError, match="another device"):
        device.compile(doubled(), {Space.GUEST: pages})
    other.close()


@pytest.mark.parametrize(
    ("attribute", "value", "reason"), [("present", False, "no Metal device"), ("family", 1, "Metal 3")]
)
def test_an_unfit_mac_says_why(mac: Mac, attribute: str, value: object, reason: str) -> None:
    setattr(mac.metal, attribute, value)
    with pytest.raises(DeviceUnavailableError, match=reason):
        mac.open()


@pytest.mark.skipif(sys.platform == "darwin", reason="Metal is here")
def test_probing_elsewhere_says_plainly_that_metal_is_a_part_of_macos() -> None:
    status = discovery.probe("metal")
    assert not status.available
    assert "Metal is a part of macOS" in status.reason
    assert "'vulkan'" in status.fix


# -- the stand-in is strict ---------------------------------------------------------------------------


def prepared(mac: Mac, source: str | None = None) -> tuple:
    """A device, a pipeline for `fill` and a buffer of one argument block."""
    from nocopy.device import launches

    device = mac.metal.MTLCreateSystemDefaultDevice()
    assert device
    options = CompileOptions.alloc().init()
    options.setPreprocessorMacros_({f"NOCOPY_CONSTANT_{i}": 1 for i in range(5)})
    options.setLanguageVersion_(Metal.MTLLanguageVersion3_0)
    options.setFastMathEnabled_(False)
    text = source or launches.kernel_code("fill", "metal").decode()
    library, _ = device.newLibraryWithSource_options_error_(text, options, None)
    state, _ = device.newComputePipelineStateWithFunction_error_(
        library.newFunctionWithName_("fill_kernel"), None
    )
    arguments = device.newBufferWithLength_options_(256, 0)
    with mac.objc.autorelease_pool():
        commands = device.newCommandQueue().commandBuffer()
    return device, state, arguments, commands


def test_stand_in_refuses_unaligned_pages_and_wrong_storage(mac: Mac) -> None:
    device, host = prepared(mac)[0], Host()
    make = device.newBufferWithBytesNoCopy_length_options_deallocator_

    def view(skip: int, length: int) -> memoryview:
        return memoryview((ctypes.c_char * length).from_address(host.address + skip))

    assert make(view(0, PAGE), PAGE, 0, None)
    for skip, length, options in ((4096, PAGE, 0), (0, PAGE + 4096, 0), (0, PAGE, 32)):
        with pytest.raises(MetalAbort):
            make(view(skip, length), length, options, None)
    mac.metal.max_buffer = PAGE
    assert make(view(0, 2 * PAGE), 2 * PAGE, 0, None) is None


def test_stand_in_refuses_a_dispatch_that_is_not_ready(mac: Mac) -> None:
    _, state, arguments, commands = prepared(mac)
    encoder = commands.computeCommandEncoder()
    one, many = MTLSize(1, 1, 1), MTLSize(256, 1, 1)
    dispatch = encoder.dispatchThreadgroups_threadsPerThreadgroup_
    with pytest.raises(MetalAbort, match="no pipeline state"):
        dispatch(one, many)
    encoder.setComputePipelineState_(state)
    with pytest.raises(MetalAbort, match="missing binding"):
        dispatch(one, many)
    with pytest.raises(MetalAbort, match="aligned"):
        encoder.setBuffer_offset_atIndex_(arguments, 8, 0)
    encoder.setBuffer_offset_atIndex_(arguments, 0, 0)
    with pytest.raises(MetalAbort, match="at most 1024"):
        dispatch(one, MTLSize(2048, 1, 1))
    with pytest.raises(MetalAbort, match="empty dispatch"):
        dispatch(MTLSize(0, 1, 1), many)
    with pytest.raises(MetalAbort, match="before endEncoding"):
        commands.commit()
    encoder.endEncoding()
    with pytest.raises(MetalAbort, match="encoder has ended"):
        dispatch(one, many)
    with pytest.raises(MetalAbort, match="not committed"):
        commands.waitUntilCompleted()
    commands.commit()
    with pytest.raises(MetalAbort, match="committed twice"):
        commands.commit()


def test_stand_in_refuses_an_address_that_was_not_declared(mac: Mac, monkeypatch: pytest.MonkeyPatch) -> None:
    from nocopy.device import metal

    device, host = mac.open(), Host()
    program = device.compile(doubled(), {Space.GUEST: device.share(host.address, SIZE)})
    monkeypatch.setattr(metal.MetalProgram, "resources", lambda self: [])
    with pytest.raises(MetalAbort, match="useResource"):
        device.play(program)


def test_stand_in_refuses_a_command_buffer_without_a_pool(mac: Mac) -> None:
    queue = prepared(mac)[0].newCommandQueue()
    with pytest.raises(MetalAbort, match="no pool"):
        queue.commandBuffer()


def test_stand_in_finds_threads_that_miss_a_barrier() -> None:
    source = """#include <metal_stdlib>
using namespace metal;
struct Args_0 { uint n; };
[[kernel]] void bad_kernel(uint3 t_0 [[thread_position_in_threadgroup]], Args_0 constant* a_0 [[buffer(0)]])
{
    if(t_0.x < 3U)
    {
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
}
"""
    library = compile_for_cpu(source)
    assert library.run(None, 1, 3) == 0
    assert library.run(None, 1, 4) == 1
    with pytest.raises(MetalSourceError, match="error:"):
        compile_for_cpu(source.replace("t_0.x", "t_0.q"))
