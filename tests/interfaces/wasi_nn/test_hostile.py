"""Whatever a guest hands to wasi-nn, it gets an error number and goes on; the host keeps nothing of it."""

from __future__ import annotations

import gc
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nocopy.errors import MemoryLimitError
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.grants import NnLimits
from nocopy.interfaces.wasi_nn.imports import MODULE, PARAMS
from nocopy.prove.residency import resident_bytes
from nocopy.wasm import Limits
from tests.interfaces.wasi_nn.nn_guest import (
    DIMS,
    NAME,
    OUT,
    PAGE,
    RECORD,
    NnGuest,
    built,
    identity,
    limits,
    model,
)

LAST = 2**32 - 1
TENSOR = struct.Struct("<IIB3xII")


@pytest.fixture
def g() -> Iterator[NnGuest]:
    with NnGuest(pages=2) as guest:
        yield guest


@pytest.fixture
def graph(g: NnGuest) -> int:
    return g.load(identity(64))


@pytest.fixture
def context(g: NnGuest, graph: int) -> int:
    return g.context(graph)


def outside(g: NnGuest, name: str, *args: int) -> None:
    g.refused(Errno.INVALID_ARGUMENT, "the memory has bytes", name, *args)


# Pointers and lengths

PLACES = [(65500 + PAGE, 64), (LAST, 0), (LAST, 1), (LAST - 63, 64), (2 * PAGE, 1), (0, LAST), (2**31, 2**31)]
"""Of a memory of two pages."""


@pytest.mark.parametrize(("at", "size"), PLACES)
def test_tensors_that_do_not_lie_in_the_memory(g: NnGuest, context: int, at: int, size: int) -> None:
    g.memory.write(DIMS, struct.pack("<I", size // 4))
    g.memory.write(RECORD, TENSOR.pack(DIMS, 1, 1, at, size // 4 * 4))
    assert g.call("set_input", context, 0, RECORD) == Errno.INVALID_ARGUMENT
    g.memory.write(RECORD, TENSOR.pack(at, size // 4, 1, 0, 64))
    assert g.call("set_input", context, 0, RECORD) == Errno.INVALID_ARGUMENT
    g.memory.write(DIMS, struct.pack("<I", 16))
    if size < 64:
        outside(g, "set_input", context, 0, at)


@pytest.mark.parametrize(("at", "size"), PLACES)
def test_outputs_that_do_not_lie_in_the_memory(g: NnGuest, context: int, at: int, size: int) -> None:
    array = np.arange(16, dtype=np.float32)
    g.set_input(context, 0, array)
    g.ok("compute", context)
    outside(g, "get_output", context, 0, at, size, OUT)
    outside(g, "get_output_single", context, 0, at, size, OUT)
    assert g.get_output(context, 0, 64) == array.tobytes()


@pytest.mark.parametrize(("at", "size"), PLACES)
def test_models_and_names_that_do_not_lie_in_the_memory(g: NnGuest, at: int, size: int) -> None:
    g.memory.write(RECORD, struct.pack("<II", at, size))
    outside(g, "load", RECORD, 1, 1, 0, OUT)
    if size <= 4096:
        outside(g, "load_by_name", at, size, OUT)
        outside(g, "load_by_name_with_config", NAME, 0, at, size, OUT)
        outside(g, "load_by_name_with_config", at, size, NAME, 0, OUT)


@pytest.mark.parametrize("at", [LAST, LAST - 3, 2 * PAGE, 2 * PAGE - 3])
def test_results_that_cannot_be_written(g: NnGuest, graph: int, context: int, at: int) -> None:
    table = g.guest._nn.table
    before = table.host.quota.used
    outside(g, "load", *g.parts(identity(64)), 1, 0, at)
    outside(g, "load_by_name", NAME, 0, at)
    outside(g, "init_execution_context", graph, at)
    g.set_input(context, 0, np.ones(16, np.float32))
    g.ok("compute", context)
    outside(g, "get_output", context, 0, g.room(64), 64, at)
    outside(g, "load", at, 1, 1, 0, OUT)
    assert table.host.quota.used == before


@pytest.mark.parametrize("count", [0, 17, 2**16, 2**29, LAST])
def test_models_in_too_many_parts(g: NnGuest, count: int) -> None:
    g.refused(Errno.INVALID_ARGUMENT, "1 to 16", "load", RECORD, count, 1, 0, OUT)


@pytest.mark.parametrize(
    "shape",
    [
        [2**31, 2**31],
        [2**32 - 1] * 8,
        [2**16, 2**16],
        [2**30, 4],
        [2**32 - 1],
        [0, 2**32 - 1],
        [2**32 - 1, 0],
        [16, 2**32 - 1, 0],
    ],
)
def test_shapes_that_overflow(g: NnGuest, shape: list[int]) -> None:
    context = g.context(g.load(model(["Neg"], "n")))
    for nbytes in (0, 64, (4 * int(np.prod(np.array(shape, np.uint32), dtype=np.uint32))) % 2**16):
        assert g.call("set_input", context, 0, g.tensor(PAGE, 1, shape, nbytes)) == Errno.INVALID_ARGUMENT
    assert g.call("compute", context) == Errno.INVALID_ARGUMENT


@pytest.mark.parametrize("rank", [65, 2**30, LAST])
def test_more_dimensions_than_anything_has(g: NnGuest, context: int, rank: int) -> None:
    record = g.tensor(PAGE, 1, [16], 64, rank=rank)
    g.refused(Errno.INVALID_ARGUMENT, "at most 64", "set_input", context, 0, record)


# Handles


def test_handles_that_name_nothing(g: NnGuest, graph: int, context: int) -> None:
    with NnGuest(pages=2) as other:
        foreign = other.load(identity(64))
        handles = [0, 1, LAST, 2**31, foreign, other.context(foreign)]
    for handle in handles:
        for name, *args in [
            ("set_input", 0, g.tensor(PAGE, 1, [16], 64)),
            ("compute",),
            ("get_output", 0, PAGE, 64, OUT),
            ("compute_single",),
            ("get_output_single", 0, PAGE, 64, OUT),
            ("fini_single",),
            ("finalize_execution_context",),
            ("init_execution_context", OUT),
            ("unload",),
        ]:
            g.refused(Errno.INVALID_ARGUMENT, "no such", name, handle, *args)
    g.refused(Errno.INVALID_ARGUMENT, "no such context", "compute", graph)
    g.refused(Errno.INVALID_ARGUMENT, "no such graph", "unload", context)


def test_unloading_while_contexts_are_in_use(g: NnGuest) -> None:
    array = np.arange(16, dtype=np.float32)
    for _ in range(50):
        graph = g.load(identity(64))
        contexts = [g.context(graph) for _ in range(3)]
        for context in contexts:
            g.set_input(context, 0, array)
            g.ok("compute", context)
        g.ok("unload", graph)
        for context in contexts[:2]:
            assert g.get_output(context, 0, 64) == array.tobytes()
            g.ok("finalize_execution_context", context)
        g.ok("finalize_execution_context", contexts[2])
        g.next = PAGE
    assert g.guest._nn.table.host.quota.used == 0


# Quotas

MILLION = """(module
  (import "wasi_ephemeral_nn" "load_by_name" (func $load (param i32 i32 i32) (result i32)))
  (import "wasi_ephemeral_nn" "init_execution_context" (func $init (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "m")
  (func (export "load") (result i32) (call $load (i32.const 0) (i32.const 1) (i32.const 16)))
  (func (export "fill") (param $n i32) (result i32) (local $made i32)
    (loop $again
      (if (i32.eqz (call $init (i32.load (i32.const 16)) (i32.const 32)))
        (then (local.set $made (i32.add (local.get $made) (i32.const 1)))))
      (local.set $n (i32.sub (local.get $n) (i32.const 1)))
      (br_if $again (local.get $n)))
    (local.get $made)))
"""


def test_a_million_contexts(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(identity(64))
    lines = list[str]()
    with DeviceGuest(
        MILLION, device="reference", nn_models={"m": path}, log=lambda _level, line: lines.append(line)
    ) as guest:
        assert guest.call("load") == Errno.SUCCESS
        most = NnLimits().contexts
        assert guest.call("fill", most + 1) == most
        gc.collect()
        before = resident_bytes()
        assert guest.call("fill", 1_000_000) == 0
        gc.collect()
        assert resident_bytes() - before < 4 << 20  # four bytes a context would show
        assert "Use one again" in guest.last_error
    assert len(lines) < 20


def test_quotas_of_graphs_and_bytes() -> None:
    raw = identity(64)
    with NnGuest(pages=2, nn_limits=limits(graphs=2, contexts=1, bytes=2 * len(raw))) as g:
        first, _ = g.load(raw), g.load(raw)
        g.refused(Errno.TOO_LARGE, "may have 2", "load", *g.parts(raw), 1, 0, OUT)
        g.ok("unload", first)
        first = g.load(raw)
        context = g.context(first)
        g.refused(Errno.TOO_LARGE, "may have 1", "init_execution_context", first, OUT)
        g.ok("finalize_execution_context", context)
        g.context(first)
    with NnGuest(pages=2, nn_limits=limits(bytes=len(raw) - 1)) as g:
        g.refused(Errno.TOO_LARGE, "more bytes", "load", *g.parts(raw), 1, 0, OUT)


def test_guests_bring_models_only_if_the_host_says_so(tmp_path: Path) -> None:
    raw = identity(64)
    path = tmp_path / "m.onnx"
    path.write_bytes(raw)
    with NnGuest(pages=2, nn_models={"m": path}, nn_limits=NnLimits()) as g:
        g.refused(Errno.UNSUPPORTED_OPERATION, "may bring none", "load", *g.parts(raw), 1, 0, OUT)
        g.infer(g.context(g.load_by_name("m")), [np.ones(16, np.float32)], [64])
    with NnGuest(pages=2, nn_limits=NnLimits(model_bytes=len(raw))) as g:
        first = g.load(raw)
        g.refused(Errno.TOO_LARGE, "has brought", "load", *g.parts(raw), 1, 0, OUT)
        g.ok("unload", first)
        g.load(raw)


def test_outputs_that_the_host_would_keep_count() -> None:
    raw = model(["Neg"], "n")
    with NnGuest(pages=8, nn_limits=limits(bytes=len(raw) + 4096)) as g:
        context = g.context(g.load(raw))
        g.set_input(context, 0, np.ones(1024, np.float32))
        g.ok("compute", context)
        g.set_input(context, 0, np.ones(1025, np.float32))
        g.refused(Errno.TOO_LARGE, "more bytes", "compute", context)
        g.set_input(context, 0, np.ones(1024, np.float32))
        g.ok("compute", context)


def test_a_model_that_wants_more_memory_than_there_is(g: NnGuest) -> None:
    from onnx import TensorProto, helper, numpy_helper

    huge = numpy_helper.from_array(np.array([1 << 40], np.int64), "huge")
    nodes = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    ports = [[(n, TensorProto.FLOAT, [4])] for n in "xy"]
    context = g.context(g.load(built(nodes, *ports, [huge])))
    g.set_input(context, 0, np.ones(4, np.float32))
    g.refused(Errno.RUNTIME_ERROR, "ONNX Runtime failed", "compute", context)


# Everything at once


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_crash_nothing_and_leave_nothing(seed: int) -> None:
    rng = random.Random(seed)
    raw = identity(64)
    with NnGuest(pages=2, limits=Limits(memory=1 << 22), nn_limits=limits(graphs=4, contexts=8)) as g:
        handles = [0, 1, LAST]
        parts = g.parts(raw)
        names = list(PARAMS)
        for _ in range(1500):
            name = rng.choice(names)
            numbers = [0, 1, 2, 16, 64, OUT, RECORD, DIMS, PAGE, 65500 + PAGE, 2 * PAGE, LAST, *handles]
            args = [rng.choice(numbers) for _ in PARAMS[name]]
            if rng.random() < 0.5:
                g.tensor(PAGE + 256, 1, [16], 64)
            if name == "load" and rng.random() < 0.5:
                args = [*parts, 1, 0, OUT]
            if name in {"set_input", "compute", "get_output"} and rng.random() < 0.7:
                args = [handles[-1], 0, RECORD if name == "set_input" else PAGE + 512, 64, OUT][: len(args)]
            try:
                if g.call(name, *args) == Errno.SUCCESS and args[-1] == OUT:
                    handles.append(g.u32())
            except MemoryLimitError:
                pytest.fail("a quota ended the guest")
        table = g.guest._nn.table
        assert table.host.quota.used <= NnLimits().bytes
    assert table.host.quota.used == 0


def test_a_guest_that_is_forgotten_lets_go_of_its_models(tmp_path: Path) -> None:
    import weakref

    path = tmp_path / "m.onnx"
    path.write_bytes(identity(64))
    g = NnGuest(pages=2, nn_models={"m": path})
    g.infer(g.context(g.load_by_name("m")), [np.ones(16, np.float32)], [64])
    table = g.guest._nn.table
    running = weakref.ref(next(iter(table._handles._kept.values())))
    del table
    g.guest.close()
    gc.collect()
    assert running() is None


def test_guests_share_a_model_that_the_host_granted(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(identity(64))
    grants = {"m": path}
    with NnGuest(pages=2, nn_models=grants) as a, NnGuest(pages=2, nn_models=grants) as b:
        sessions = [g.guest._nn.table._handles._kept[g.load_by_name("m")].graph.model.session for g in (a, b)]
        assert sessions[0] is sessions[1]


def test_the_module_is_called_as_published() -> None:
    assert MODULE == "wasi_ephemeral_nn"
