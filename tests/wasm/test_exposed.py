"""A module whose globals, memories and tables are exported does what it did, and can be read and set."""

import pytest
import wasmtime
from hypothesis import given, settings
from hypothesis import strategies as st
from wasmtime import wat2wasm

from nocopy.errors import InvalidModuleError, MemoryLimitError, UsageError
from nocopy.wasm import Guest, HostFunction, Limits, Module, default_engine
from nocopy.wasm.cursor import Malformed
from nocopy.wasm.exposed import expose
from nocopy.wasm.sections import split
from nocopy.wasm.state import GlobalValue, State, TableValue
from tests.wasm import both_ways

MEMORY = '(memory (export "memory") 1)'
ALL = f"""(module (import "env" "host" (func $host)) {MEMORY} (memory $inner 3) (memory i64 1 2)
  (global $constant i32 (i32.const 1))
  (global $int (mut i32) (i32.const 7)) (global $long (export "long") (mut i64) (i64.const -2))
  (global $single (mut f32) (f32.const nan:0x12345)) (global $double (mut f64) (f64.const -nan:0x7))
  (global $vector (mut v128) (v128.const i64x2 1 -2))
  (type $number (func (result i32)))
  (table $calls 4 8 funcref) (elem (table $calls) (i32.const 1) func $one $two)
  (func $one (result i32) (i32.const 1)) (func $two (result i32) (i32.const 2))
  (func $late (result i32) (global.get $int)) (elem declare func $late $host)
  (func (export "put") (param i32) (table.set $calls (local.get 0) (ref.func $late)))
  (func (export "put_host") (table.set $calls (i32.const 0) (ref.func $host)))
  (func (export "more") (param i32) (result i32) (table.grow $calls (ref.func $two) (local.get 0)))
  (func (export "call") (param i32) (result i32) (call_indirect $calls (type $number) (local.get 0)))
  (func (export "set") (param i32 i64)
    (global.set $int (local.get 0)) (global.set $long (local.get 1))
    (i32.store8 $inner (i32.const 5) (i32.const 1)))
  (func $go (global.set $int (i32.const 42))) (start $go))"""
IMPORTS = {("env", "host"): HostFunction(lambda: None)}


@pytest.fixture
def guest():
    made = []

    def make(source=ALL, **kw):
        made.append(Guest(source, **{"imports": IMPORTS} | kw))
        return made[-1]

    yield make
    for each in made:
        each.close()


def value(state, index):
    return next(each.value for each in state.globals if each.index == index)


def test_every_mutable_global_is_read_bit_by_bit(guest):
    state = guest().read_state()
    assert [(each.index, each.type) for each in state.globals] == [
        (1, "i32"),
        (2, "i64"),
        (3, "f32"),
        (4, "f64"),
        (5, "v128"),
    ]
    assert value(state, 1) == (42).to_bytes(4, "little")
    assert value(state, 2) == (-2).to_bytes(8, "little", signed=True)
    assert value(state, 3) == (0x7F812345).to_bytes(4, "little")
    assert value(state, 4) == (0xFFF0000000000007).to_bytes(8, "little")
    assert value(state, 5) == (1).to_bytes(8, "little") + (-2).to_bytes(8, "little", signed=True)


def test_another_guest_takes_the_state_and_goes_on_from_there(guest):
    first, second = guest(), guest()
    first.call("set", 5, 6)
    first.call("put", 0)
    first.call("more", 2)
    second.write_state(first.read_state())
    assert second.read_state() == first.read_state()
    assert [second.call("call", i) for i in (0, 1, 2, 4, 5)] == [5, 1, 2, 2, 2]


def test_a_table_that_is_as_at_first_takes_no_space_in_the_state(guest):
    instance = guest()
    assert instance.read_state().tables == ()
    instance.call("put", 3)
    (table,) = instance.read_state().tables
    assert table.elements[1:3] == (1, 2)
    assert table.elements[0] is None


def test_a_host_function_in_a_table_has_a_number_too(guest):
    first, second = guest(), guest()
    first.call("put_host")
    second.write_state(first.read_state())
    assert second.read_state().tables[0].elements[0] == 0


def test_all_memories_are_there_by_index_exported_or_not(guest):
    instance = guest()
    instance.call("set", 0, 0)
    assert [memory.size >> 16 for memory in instance.memories] == [1, 3, 1]
    assert instance.memories[1].read(5, 1) == b"\1"
    assert instance.memory is instance.memories[0]


def test_reserved_names_are_never_shown(guest):
    assert guest().exports == ("memory", "long", "put", "put_host", "more", "call", "set")
    with pytest.raises(UsageError, match="nocopy:start"):
        guest().call("nocopy:start")


@pytest.mark.parametrize("name", ["nocopy:start", "nocopy:global:0", "nocopy:", "nocopy:7:functions"])
def test_a_module_may_use_names_like_the_reserved_ones(guest, name):
    source = f"""(module {MEMORY} (global (mut i32) (i32.const 3))
      (func $go (i32.store8 (i32.const 0) (i32.const 9)))
      (start $go) (func (export "{name}") (result i32) (i32.const 8)))"""
    instance = guest(source)
    assert instance.call(name) == 8
    assert instance.memory.read(0, 1) == b"\t"
    assert value(instance.read_state(), 0) == bytes((3, 0, 0, 0))


def test_a_module_with_nothing_hidden_is_left_alone():
    binary = bytes(wat2wasm(f'(module {MEMORY} (func (export "f")))'))
    assert expose(binary)[0] == binary


def test_sections_keep_their_order_and_indices_do_not_move():
    binary = bytes(wat2wasm(ALL))
    exposed, found = expose(binary)
    wasmtime.Module.validate(default_engine().wasmtime, exposed)
    before = {s.number: s.content for s in split(binary)}
    after = {s.number: s.content for s in split(exposed)}
    assert after.keys() == before.keys() - {8}
    assert all(after[number] == before[number] for number in after if number not in (4, 7, 9))
    assert all(
        after[number].endswith(before[number][1:]) or len(after[number]) > len(before[number])
        for number in after
    )
    assert found.start == "nocopy:start"


@pytest.mark.parametrize(
    ("what", "source"),
    [
        ("a mutable reference", f"(module {MEMORY} (global (mut externref) (ref.null extern)))"),
        ("a mutable reference", f"(module {MEMORY} (global (mut funcref) (ref.null func)))"),
        ("not to functions", f"(module {MEMORY} (table 1 externref))"),
    ],
)
def test_references_that_cannot_be_kept_are_refused_by_name(guest, what, source):
    instance = guest(source)
    with pytest.raises(UsageError, match=what):
        instance.read_state()


def test_an_empty_table_of_references_is_no_obstacle(guest):
    assert guest(f"(module {MEMORY} (table 0 externref))").read_state() == State((), ())


def test_state_of_another_module_is_refused(guest):
    state = guest().read_state()
    other = guest(f"(module {MEMORY} (global (mut i64) (i64.const 0)))")
    with pytest.raises(UsageError, match="the module's mutable ones are"):
        other.write_state(state)
    own = State((GlobalValue(0, "i64", bytes(8)),), (TableValue(0, (1,)),))
    with pytest.raises(UsageError, match="no such table"):
        other.write_state(own)


def test_a_table_beyond_its_limit_and_an_unknown_function_are_refused(guest):
    state = guest().read_state()
    with pytest.raises(MemoryLimitError, match="limit on table elements"):
        guest(limits=Limits(table_elements=5)).write_state(
            State(state.globals, (TableValue(0, (None,) * 6),))
        )
    with pytest.raises(UsageError, match="makes no reference to it"):
        guest().write_state(State(state.globals, (TableValue(0, (99, None, None, None)),)))
    with pytest.raises(UsageError, match="it has more"):
        guest().write_state(State(state.globals, (TableValue(0, ()),)))


def test_the_table_that_is_added_counts_for_no_limit(guest):
    assert guest(limits=Limits(table_elements=4)).call("call", 1) == 1
    with pytest.raises(MemoryLimitError, match="table limits"):
        guest(limits=Limits(table_elements=3))


def test_tables_filled_in_every_way_are_read(guest):
    source = f"""(module {MEMORY} (func $a) (func $b) (global $at i32 (i32.const 1))
      (table $filled 2 funcref (ref.func $b)) (table $typed 3 (ref null 0) (ref.func $a))
      (type (func)) (table $late 4 funcref) (elem (table $late) (global.get $at) func $a $b)
      (elem (table $late) (i32.const 0) funcref (ref.func $b)) (elem func $a) (table i64 1 funcref))"""
    exposed = expose(bytes(wat2wasm(source)))[1]
    assert [table.type for table in exposed.tables] == ["funcref", "reference", "funcref", "funcref"]
    assert [table.initial for table in exposed.tables] == [(1, 1), (0, 0, 0), None, (None,)]
    instance = guest(
        f"(module {MEMORY} (func $a) (global $at i32 (i32.const 1)) (table $t 2 funcref)"
        "(elem (table $t) (global.get $at) func $a))"
    )
    assert instance.read_state().tables == (TableValue(0, (None, 0)),)


BASE = bytes(wat2wasm(ALL))


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(8, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_are_read_or_refused_by_name(changes):
    binary = bytearray(BASE)
    for at, byte in changes:
        binary[at] = byte
    try:
        exposed, _ = expose(bytes(binary))
    except Malformed:
        return
    assert exposed.startswith(b"\0asm\1\0\0\0")


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(8, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_what_wasmtime_takes_is_taken_with_what_is_added_too(changes):
    """A module that Wasmtime finds valid is never refused by it for what was added."""
    binary = bytearray(BASE)
    for at, byte in changes:
        binary[at] = byte
    try:
        Module(bytes(binary), default_engine())
    except InvalidModuleError as error:
        try:
            wasmtime.Module.validate(default_engine().wasmtime, bytes(binary))
        except wasmtime.WasmtimeError:
            return
        if "shared memory" not in str(error):
            raise


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_no_bytes_after_the_header_crash_the_reader(data):
    try:
        expose(b"\0asm\1\0\0\0" + data)
    except Malformed:
        return


@pytest.mark.parametrize("announced", [1 << 31, (1 << 32) - 1])
def test_a_count_that_the_module_cannot_hold_costs_nothing(announced):
    from nocopy.wasm.sections import Section, join, write_number

    for number in (2, 4, 5, 6, 7, 9):
        with pytest.raises(Malformed, match="items are announced"):
            expose(join([Section(number, write_number(announced))]))


def test_programs_behave_the_same_with_everything_exported():
    """The comparison that the semantics tests make, with the rewritten module on our side."""
    source = both_ways.module("1 3", both_ways.GROW["i32"], both_ways.BULK["i32"], *both_ways.accesses("i32"))
    calls = [
        ("i64.store", 8, 77),
        ("grow", 1),
        ("init", 0, 0, 8),
        ("drop",),
        ("init", 0, 0, 1),
        ("i64.load", 8),
    ]
    assert both_ways.check(source, calls)[0] == ("returned", None)
