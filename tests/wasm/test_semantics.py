"""WebAssembly's memory rules hold under our creator exactly as under Wasmtime's own: programs by hand."""

import pytest
import wasmtime

from nocopy.errors import Error
from nocopy.wasm import Guest
from tests.wasm.both_ways import (
    BULK,
    GROW,
    LOADS,
    OURS,
    PAGE,
    PLAIN,
    STORES,
    U32,
    U64,
    accesses,
    check,
    module,
)

# Loads and stores


@pytest.mark.parametrize("at", ["i32", "i64"])
@pytest.mark.parametrize("offset", [0, 1, 4, PAGE - 8, PAGE, U32])
def test_every_access_at_every_edge(at, offset):
    top = U32 if at == "i32" else U64
    addresses = {0, 1, 7, 8, PAGE // 2, top, top - 1, top - 7, top - offset, (top - offset + 1) & top}
    addresses |= {(PAGE - offset - n) & top for n in range(-2, 10)}
    calls = []
    for address in sorted(addresses):
        signed = address - (top + 1) if address > top >> 1 else address
        calls += [(op, signed, 0x1122334455667788 + i) for i, op in enumerate(STORES)]
        calls += [(op, signed) for op in LOADS]
    outcomes = check(module(f"{at} 1", *accesses(at, offset=offset)), calls)
    assert ("trapped", "memory_out_of_bounds") in outcomes


@pytest.mark.parametrize("offset", [U32 + 1, 1 << 33, 1 << 63, U64 - 8, U64])
def test_offsets_of_64_bits(offset):
    calls = [(op, a) for op in LOADS for a in (0, 1, 8, -1, -8, -(1 << 32), (1 << 63) - 1)]
    assert set(check(module("i64 1", *accesses("i64", offset=offset)), calls)) <= {
        ("trapped", "memory_out_of_bounds"),
        ("returned", 0),
    }


def test_unaligned_accesses_and_alignment_hints():
    calls = [("i64.store", a, 0x0102030405060708) for a in range(9)]
    calls += [(op, a) for op in LOADS for a in range(20)]
    check(module("1", *accesses("i32")), calls)
    check(module("1", *accesses("i32", align="align=1")), calls)


def test_bytes_are_little_endian():
    outcomes = check(
        module("1", *accesses("i32")),
        [("i32.store", 0, 0x04030201), ("i32.load8_u", 0), ("i32.load8_u", 3), ("i32.load16_u", 1)],
    )
    assert [value for _, value in outcomes] == [None, 1, 4, 0x0302]


def test_nan_payloads_pass_through_memory():
    check(module("1", *accesses("i32")), [("f32.store", 0, 0x7FA00001), ("f32.load", 0), ("i32.load", 0)])


def test_vectors():
    functions = (
        '(func (export "splat") (param i32 i32) (v128.store (local.get 0) (i32x4.splat (local.get 1))))'
        '(func (export "sum") (param i32) (result i32)'
        " (i32x4.extract_lane 3 (v128.load (local.get 0))))"
        '(func (export "lane") (param i32) (result i32)'
        " (i8x16.extract_lane_u 5 (v128.load8_lane 5 (local.get 0) (v128.const i64x2 0 0))))"
    )
    calls = [("splat", PAGE - n, n) for n in (15, 16, 17, 32)]
    calls += [("sum", PAGE - n) for n in (0, 15, 16, 17)] + [("lane", PAGE - 1), ("lane", PAGE)]
    check(module("1", functions), calls)


def test_atomics_on_a_memory_that_is_not_shared():
    functions = (
        '(func (export "add") (param i32 i32) (result i32)'
        " (i32.atomic.rmw.add (local.get 0) (local.get 1)))"
        '(func (export "wait") (result i32)'
        " (memory.atomic.wait32 (i32.const 0) (i32.const 0) (i64.const 0)))"
        '(func (export "notify") (result i32) (memory.atomic.notify (i32.const 0) (i32.const 1)))'
    )
    calls = [("add", 0, 3), ("add", 0, 4), ("add", 1, 1), ("add", PAGE, 1), ("add", PAGE - 4, 1)]
    check(module("1", functions), [*calls, ("wait",), ("notify",)])


# Size and growth


@pytest.mark.parametrize("at", ["i32", "i64"])
@pytest.mark.parametrize("limits", ["0", "0 0", "1", "1 1", "0 1", "1 5", "3 3", "2 10"])
def test_growth_within_and_beyond_the_maximum(at, limits):
    calls = [("size",), ("grow", 0), ("grow", 1), ("size",), ("i32.store", 0, 5), ("i32.load", PAGE)]
    calls += [("grow", 3), ("grow", 0), ("size",), ("grow", 100), ("grow", -1), ("grow", -(1 << 31))]
    calls += [("grow", 1), ("size",), ("i32.load", 4 * PAGE - 4), ("i32.load", 4 * PAGE - 3)]
    if limits in ("0", "1"):
        calls = [c for c in calls if c != ("grow", 100)]
    check(module(f"{at} {limits}", GROW[at], *accesses(at)), calls)


@pytest.mark.parametrize(
    ("at", "limits", "calls"),
    [
        ("i32", "0 65536", [("grow", 65537), ("grow", 65535), ("grow", 1), ("grow", 1), ("size",)]),
        ("i32", "1 65536", [("grow", 65535), ("grow", 1), ("size",)]),
        ("i64", "1 65536", [("grow", 65535), ("grow", 1), ("size",)]),
        ("i64", "1 0x1000000000000", [("grow", 1 << 47), ("grow", (1 << 48) - 1), ("grow", -1), ("size",)]),
    ],
)
def test_growth_to_the_end_of_the_address_space(at, limits, calls):
    """Compared without the contents, which nobody wrote; the accesses look at both ends."""
    source = f"(module (memory {at} {limits}) {GROW[at]} {' '.join(accesses(at))})"
    calls = [*calls, ("i32.load", -4), ("i32.load", -3), ("i64.load", (1 << 31) - 8), ("i64.store", -8, 1)]
    check(source, calls)


def test_new_pages_are_zero_and_old_ones_keep_their_content():
    calls = [("fill", 0, 0xAB, PAGE), ("grow", 2), ("i64.load", PAGE), ("i64.load", PAGE - 8)]
    calls += [("i64.load", 3 * PAGE - 8), ("fill", PAGE, 0xCD, 2 * PAGE), ("grow", 1), ("i64.load", 3 * PAGE)]
    check(module("1 8", GROW["i32"], BULK["i32"], *accesses("i32")), calls)


def test_growth_inside_a_function_is_seen_by_the_next_instruction():
    function = """(func (export "both") (param i32) (result i32)
      (i32.store (i32.mul (memory.grow (local.get 0)) (i32.const 65536)) (i32.const 77))
      (i32.load (i32.const 65536)))"""
    check(module("1 4", function), [("both", 1), ("both", 1), ("both", 9), ("both", 0)])


@pytest.mark.parametrize("size", ["65537", "0x100000000"])
def test_a_minimum_that_no_memory_can_have_is_not_valid(size):
    for engine in (PLAIN, OURS):
        with pytest.raises(wasmtime.WasmtimeError):
            wasmtime.Module(engine, module(size))
    with pytest.raises(Error):
        Guest(module(size))


@pytest.mark.parametrize("pages", ["0x800000000", "0xffffffffffff", "0x1000000000000"])
def test_a_minimum_that_this_machine_cannot_have_fails_to_start(pages):
    assert check(module(f"i64 {pages}")) == [("failed to start", "error")]


# Data segments and bulk memory


@pytest.mark.parametrize("at", ["i32", "i64"])
@pytest.mark.parametrize(
    "segments",
    [
        ['(data ({at}.const 0) "a")'],
        ['(data ({at}.const 0) "abc")', '(data ({at}.const 1) "XY")'],
        ['(data ({at}.const 65535) "a")'],
        ['(data ({at}.const 65536) "")'],
        ['(data ({at}.const 65537) "")'],
        ['(data ({at}.const 65535) "ab")'],
        ['(data ({at}.const 65536) "a")'],
        ['(data ({at}.const -1) "a")'],
        ['(data ({at}.const 0) "kept")', '(data ({at}.const 65536) "bad")', '(data ({at}.const 8) "not")'],
        ['(data "passive")', '(data ({at}.const 3) "active")'],
        ["(global $g {at} ({at}.const 40))", '(data (global.get $g) "at a global")'],
        ['(data (offset ({at}.add ({at}.const 2) ({at}.const 3))) "computed")'],
    ],
    ids=str,
)
def test_data_segments(at, segments):
    check(module(f"{at} 1", *(s.format(at=at) for s in segments)))


@pytest.mark.parametrize("limits", ["0", "0 0", "0 1"])
@pytest.mark.parametrize(
    "segment", ['(data (i32.const 0) "")', '(data (i32.const 0) "x")', '(data (i32.const 1) "")']
)
def test_data_segments_in_an_empty_memory(limits, segment):
    check(module(limits, segment))


def test_a_segment_that_does_not_fit_leaves_what_came_before():
    """The memory is imported, so it survives the module that failed to start."""
    source = """(module (import "p" "m" (memory 1)) (data (i32.const 0) "first") (data (i32.const 65536) "x")
      (data (i32.const 10) "never"))"""
    seen = []
    for engine in (PLAIN, OURS):
        store = wasmtime.Store(engine)
        store.set_epoch_deadline(1 << 40)
        text = '(module (memory (export "m") 1))'
        memory = wasmtime.Instance(store, wasmtime.Module(engine, text), []).exports(store)["m"]
        with pytest.raises(wasmtime.Trap):
            wasmtime.Instance(store, wasmtime.Module(engine, source), [memory])
        seen.append(bytes(memory.read(store, 0, 20)))
    assert seen[0] == seen[1] == b"first" + bytes(15)


@pytest.mark.parametrize("at", ["i32", "i64"])
def test_bulk_operations_at_every_edge(at):
    top = -1
    sizes = [0, 1, 5, PAGE - 1, PAGE, PAGE + 1, top]
    calls = [("init", 10, 0, 15), ("fill", 100, 0x5A, 50)]
    for a in (0, 1, 10, PAGE - 1, PAGE, PAGE + 1, top):
        calls += [("fill", a, a & 255, n) for n in sizes]
        calls += [("copy", a, b, n) for b in (0, 5, PAGE - 1, PAGE, PAGE + 1, top) for n in sizes]
        calls += [("init", a, s, n) for s in (0, 1, 14, 15, 16, top) for n in (0, 1, 2, 15, 16, top)]
    calls += [("drop",), ("init", 0, 0, 0), ("init", 0, 0, 1), ("init", 0, 1, 0), ("drop",)]
    check(module(f"{at} 1", BULK[at]), calls)


@pytest.mark.parametrize(("target", "source"), [(0, 1), (1, 0), (0, 0), (3, 10), (10, 3)])
def test_overlapping_copies(target, source):
    calls = [("init", 0, 0, 15), ("copy", target, source, 12)]
    check(module("1", BULK["i32"]), calls)


def test_a_bulk_operation_that_traps_writes_nothing():
    calls = [("fill", PAGE - 4, 1, 8), ("copy", PAGE - 4, 0, 8), ("init", PAGE - 4, 0, 8)]
    outcomes = check(module("1", BULK["i32"]), calls)
    assert outcomes == [("trapped", "memory_out_of_bounds")] * 3


def test_an_active_segment_counts_as_dropped():
    init = '(func (export "init") (param i32) (memory.init 0 (i32.const 0) (i32.const 0) (local.get 0)))'
    check(module("1", '(data (i32.const 0) "active")', init), [("init", 0), ("init", 1)])


# Several memories, imported memories, start functions


def test_copies_between_memories_of_both_address_types():
    source = """(module (memory $a (export "memory") 1 4) (memory $b (export "b") i64 1 4) (data $p "segment")
      (func (export "a_to_b") (param i64 i32 i32)
        (memory.copy $b $a (local.get 0) (local.get 1) (local.get 2)))
      (func (export "b_to_a") (param i32 i64 i32)
        (memory.copy $a $b (local.get 0) (local.get 1) (local.get 2)))
      (func (export "init_a") (memory.init $a $p (i32.const 0) (i32.const 0) (i32.const 7)))
      (func (export "init_b") (memory.init $b $p (i64.const 3) (i32.const 0) (i32.const 7)))
      (func (export "fill_b") (param i64 i32 i64) (memory.fill $b (local.get 0) (local.get 1) (local.get 2)))
      (func (export "grow_b") (param i64) (result i64) (memory.grow $b (local.get 0)))
      (func (export "load_b") (param i64) (result i32) (i32.load $b (local.get 0)))
      (func (export "size_a") (result i32) (memory.size $a)))"""
    calls = [("init_a",), ("a_to_b", 100, 2, 5), ("init_b",), ("b_to_a", 50, 3, 7), ("load_b", 100)]
    calls += [("a_to_b", PAGE - 3, 0, 4), ("b_to_a", 0, PAGE, 1), ("grow_b", 1), ("b_to_a", 0, PAGE, 1)]
    calls += [
        ("fill_b", PAGE - 1, 9, 2),
        ("size_a",),
        ("grow_b", 9),
        ("load_b", 2 * PAGE - 4),
        ("load_b", -1),
    ]
    check(source, calls)


def test_many_memories_do_not_touch_each_other():
    count = 12
    memories = " ".join(
        f'(memory $m{i} (export "{"memory" if i == 0 else f"m{i}"}") 1 3)' for i in range(count)
    )
    functions = " ".join(
        f'(func (export "w{i}") (param i32 i32) (i32.store $m{i} (local.get 0) (local.get 1)))'
        f'(func (export "g{i}") (result i32) (memory.grow $m{i} (i32.const 1)))'
        for i in range(count)
    )
    calls = [(f"w{i}", a, 1000 * i + a) for i in range(count) for a in (0, PAGE - 4, PAGE - 3, PAGE)]
    calls += [(f"g{i}",) for i in range(0, count, 2)] + [(f"w{i}", PAGE, i) for i in range(count)]
    check(f"(module {memories} {functions})", calls)


@pytest.mark.parametrize("limits", ["1", "0", "1 4", "2 2", "i64 1", "i64 1 9"])
def test_an_imported_memory_behaves_like_ones_own(limits):
    at = "i64" if "i64" in limits else "i32"
    source = f"""(module (import "env" "mem" (memory {limits})) (export "memory" (memory 0))
      (data ({at}.const 0) "") {GROW[at]} {BULK[at]} {" ".join(accesses(at))})"""
    calls = [("size",), ("grow", 1), ("i32.store", 0, 5), ("i32.load", PAGE), ("fill", 0, 3, PAGE), ("size",)]
    check(source, [*calls, ("grow", 9), ("copy", 7, 0, 9), ("i64.load", PAGE - 4)])


def test_an_imported_and_an_own_memory():
    source = """(module (import "env" "mem" (memory $i 1 2)) (memory $o (export "memory") 2 3)
      (export "imported" (memory $i)) (data (memory $i) (i32.const 5) "imported")
      (data (memory $o) (i32.const 9) "own")
      (func (export "copy") (memory.copy $i $o (i32.const 100) (i32.const 9) (i32.const 3)))
      (func (export "grow") (result i32 i32)
        (memory.grow $i (i32.const 1)) (memory.grow $o (i32.const 5))))"""
    check(source, [("copy",), ("grow",), ("grow",)])


@pytest.mark.parametrize(
    "body",
    [
        "(i32.store (i32.const 0) (i32.const 7))",
        "(drop (memory.grow (i32.const 1))) (i32.store (i32.const 65536) (i32.const 7))",
        "(i32.store (i32.const 65536) (i32.const 7))",
        "(i32.store (i32.const 8) (i32.load (i32.const 0)))",
        "unreachable",
        "(drop (i32.div_u (i32.const 1) (i32.const 0)))",
        "(call $go)",
    ],
)
def test_start_functions(body):
    source = module("1 3", '(data (i32.const 0) "data")', f"(func $go {body}) (start $go)", GROW["i32"])
    check(source, [("size",)])


def test_a_start_function_runs_after_all_segments():
    source = module(
        "1", "(func $go (i32.store (i32.const 0) (i32.const 0))) (start $go)", '(data (i32.const 0) "last?")'
    )
    check(source)


def test_globals_tables_and_calls_keep_working():
    source = module(
        "1",
        """(table 3 funcref) (elem (i32.const 0) $a $b) (global $g (mut i32) (i32.const 5))
        (func $a (result i32) (global.set $g (i32.add (global.get $g) (i32.const 1))) (global.get $g))
        (func $b (result i32) (i32.load (i32.const 0)))
        (func (export "call") (param i32) (result i32) (call_indirect (result i32) (local.get 0)))""",
    )
    check(source, [("call", 0), ("call", 0), ("call", 1), ("call", 2), ("call", 3)])
