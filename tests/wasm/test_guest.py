import gc
import weakref

import numpy as np
import pytest

from nocopy.errors import ClosedError, ExitError, MemoryLimitError, TrapError, UsageError
from nocopy.wasm import Guest, HostFunction, Limits, memory_creator

PAGE = 65536
SOURCE = """(module (memory (export "memory") 1 5)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "mixed") (param i32 i64 f32 f64) (result f64 i32)
    (f64.add (local.get 3) (f64.promote_f32 (local.get 2)))
    (i32.add (local.get 0) (i32.wrap_i64 (local.get 1))))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "size") (result i32) (memory.size))
  (func (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1)))
  (func (export "deep") (call $deeper))
  (func $deeper (call $deepest))
  (func $deepest (unreachable))
  (func (export "recurse") (call $again)) (func $again (call $again)))"""


def test_guest_and_host_see_the_same_bytes(guest):
    instance = guest(SOURCE)
    instance.call("store", 128, 0x11223344)
    assert instance.memory.read(128, 4) == b"\x44\x33\x22\x11"
    view = instance.memory.view(4, "i32", offset=256)
    view[...] = [1, 2, 3, -4]
    assert [instance.call("load", 256 + 4 * i) for i in range(4)] == [1, 2, 3, -4]


def test_arguments_and_results_of_every_type(guest):
    instance = guest(SOURCE)
    assert instance.call("mixed", 3, 4, 1.5, 2.25) == (3.75, 7)
    assert instance.call("add", 0xFFFFFFFF, 1) == 0
    assert instance.call("add", np.int64(2), np.uint8(3)) == 5


@pytest.mark.parametrize("args", [(1 << 32, 0), (-(1 << 31) - 1, 0), ("1", 0), (1.5, 0), (None, 0)], ids=repr)
def test_arguments_that_do_not_fit_are_refused(guest, args):
    with pytest.raises(UsageError, match="arguments of add"):
        guest(SOURCE).call("add", *args)


@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_another_number_of_arguments_is_refused(guest, args):
    instance = guest(SOURCE)
    with pytest.raises(UsageError, match="takes 2"):
        instance.call("add", *args)
    with pytest.raises(TypeError):
        instance.function("add")(*args)


def test_unknown_functions_name_the_known_ones(guest):
    with pytest.raises(UsageError, match="add, mixed, grow"):
        guest(SOURCE).call("sub")
    with pytest.raises(UsageError, match="'memory' was asked for"):
        guest(SOURCE).call("memory")


OTHERS = """(module (memory (export "memory") 1) (type $box (struct (field i32)))
  (func (export "v128") (result v128) (v128.const i64x2 0 0))
  (func (export "externref") (param externref))
  (func (export "funcref") (param funcref))
  (func (export "box") (param i32 (ref null $box)))
  (func (export "exnref") (param exnref))
  (global (export "g128") v128 (v128.const i64x2 0 0))
  (global (export "gbox") (ref null $box) (ref.null $box))
  (table (export "tbox") 1 (ref null $box))
  (tag (export "tag") (param i32)))"""


@pytest.mark.parametrize("name", ["v128", "externref", "funcref", "box", "exnref"])
def test_functions_of_other_than_numbers_are_refused(guest, name):
    """Wasmtime's C API aborts the process when it is asked what some of these types are."""
    with pytest.raises(UsageError, match="only i32, i64, f32 and f64"):
        guest(OTHERS).call(name)


@pytest.mark.parametrize("name", ["g128", "gbox", "tbox", "tag"])
def test_what_is_not_a_function_cannot_be_called(guest, name):
    with pytest.raises(UsageError, match="was asked for"):
        guest(OTHERS).call(name)


def test_a_trap_carries_its_kind_and_the_backtrace(guest):
    with pytest.raises(TrapError, match="unreachable") as caught:
        guest(SOURCE).call("deep")
    assert caught.value.trap == "unreachable_code_reached"[:11]
    assert "deepest" in caught.value.backtrace
    assert caught.value.backtrace.index("deepest") < caught.value.backtrace.index("deeper\n")


def test_endless_recursion_traps(guest):
    with pytest.raises(TrapError) as caught:
        guest(SOURCE).call("recurse")
    assert caught.value.trap == "stack_overflow"


def test_loads_outside_trap_and_the_guest_lives_on(guest):
    instance = guest(SOURCE)
    for address in (PAGE - 3, PAGE, 0xFFFFFFFC, -1):
        with pytest.raises(TrapError) as caught:
            instance.call("load", address)
        assert caught.value.trap == "memory_out_of_bounds"
    assert instance.call("load", PAGE - 4) == 0


def test_growth_by_the_guest_reaches_the_memory(guest):
    instance = guest(SOURCE)
    address = instance.memory.address
    assert instance.call("grow", 2) == 1
    assert (instance.memory.size, instance.memory.address, instance.memory.generation) == (
        3 * PAGE,
        address,
        1,
    )
    assert instance.call("grow", 3) == -1
    assert instance.memory.size == 3 * PAGE


def test_growth_by_the_host_reaches_the_guest(guest):
    instance = guest(SOURCE)
    instance.memory.grow(4 * PAGE)
    assert instance.call("size") == 4
    instance.call("store", 4 * PAGE - 4, 9)
    with pytest.raises(MemoryLimitError, match="maximum"):
        instance.memory.grow(6 * PAGE)
    with pytest.raises(UsageError, match="whole pages"):
        instance.memory.grow(4 * PAGE + 1)
    with pytest.raises(UsageError, match="never shrinks"):
        instance.memory.grow(PAGE)


def test_a_device_that_cannot_follow_refuses_growth(guest):
    class Device:
        def before(self, old, new):
            if new > 2 * PAGE:
                raise MemoryLimitError("out of pinned memory")

        def after(self, size):
            pass

    instance = guest(SOURCE)
    instance.memory.on_grow(Device())
    assert instance.call("grow", 1) == 1
    assert instance.call("grow", 1) == -1
    assert instance.call("size") == 2
    with pytest.raises(TrapError):
        instance.call("load", 2 * PAGE)


def test_closing_is_refused_while_a_device_holds_the_memory():
    instance = Guest(SOURCE)
    hold = instance.memory.hold("vulkan:0")
    with pytest.raises(UsageError, match="vulkan:0"):
        instance.close()
    assert instance.call("add", 1, 2) == 3
    hold.release()
    instance.close()


def test_the_memory_cannot_be_closed_under_the_guest(guest):
    instance = guest(SOURCE)
    with pytest.raises(UsageError, match="a running guest"):
        instance.memory.close()


def test_a_closed_guest_refuses_everything_and_arrays_live_on():
    instance = Guest(SOURCE)
    add, memory = instance.function("add"), instance.memory
    array = memory.view(4, "i32").numpy()
    array[:] = 5
    instance.close()
    instance.close()
    assert instance.closed
    assert memory.closed
    for use in (lambda: add(1, 2), lambda: instance.call("add", 1, 2), lambda: instance.memory, instance.run):
        with pytest.raises(ClosedError):
            use()
    assert np.all(array == 5)


def test_forgotten_guests_give_their_memory_back():
    gc.collect()
    before = memory_creator.alive()
    guests = [
        Guest(
            SOURCE.replace("(module", '(module (import "e" "f" (func))'),
            imports=lambda instance: {("e", "f"): HostFunction(lambda: instance.memory.size)},
            limits=Limits(deadline=10),
        )
        for _ in range(5)
    ]
    functions = [instance.function("add") for instance in guests]
    dead = weakref.ref(guests[0])
    del guests
    gc.collect()
    assert [add(1, i) for i, add in enumerate(functions)] == [1, 2, 3, 4, 5]
    del functions
    gc.collect()
    assert dead() is None
    assert memory_creator.alive() == before


def test_a_memory_outlives_a_forgotten_guest():
    memory = Guest(SOURCE).memory
    gc.collect()
    array = memory.view(4, "i32").numpy()
    array[:] = 7
    assert memory.read(0, 4) == b"\7\0\0\0"
    with pytest.raises(ClosedError):
        memory.grow(2 * PAGE)
    memory.close()
    assert array.sum() == 28


def test_run_returns_when_the_program_ends(guest):
    wat = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1) (func (export "_start") {}))"""
    guest(wat.format("")).run()
    guest(wat.format("(call $exit (i32.const 0))")).run()
    with pytest.raises(ExitError, match="status 7") as caught:
        guest(wat.format("(call $exit (i32.const 7))")).run()
    assert caught.value.status == 7


def test_run_without_start_is_a_usage_error(guest):
    with pytest.raises(UsageError, match="'_start'"):
        guest(SOURCE).run()


def test_a_reactor_is_initialised_before_it_is_used(guest):
    instance = guest(
        """(module (memory (export "memory") 1)
          (func (export "_initialize") (i32.store (i32.const 0) (i32.const 3)))
          (func (export "get") (result i32) (i32.load (i32.const 0))))"""
    )
    assert instance.call("get") == 3


def test_the_memory_is_not_there_before_it_is_made(guest):
    def imports(instance):
        with pytest.raises(UsageError, match="on_memory"):
            _ = instance.memory
        return {}

    guest(SOURCE, imports=imports)


def test_several_exported_memories_grow_on_their_own(guest):
    instance = guest(
        """(module (memory $a (export "memory") 1 9) (memory $b (export "b") 1 9)
          (func (export "grow") (result i32) (memory.grow $b (i32.const 2))))"""
    )
    assert instance.call("grow") == 1
    assert instance.memory.size == PAGE


def test_a_64_bit_memory_grows_past_4_gib_in_place(guest):
    instance = guest(
        """(module (memory (export "memory") i64 1)
          (func (export "grow") (param i64) (result i64) (memory.grow (local.get 0)))
          (func (export "store") (param i64 i64) (i64.store (local.get 0) (local.get 1)))
          (func (export "load") (param i64) (result i64) (i64.load (local.get 0))))"""
    )
    address = instance.memory.address
    assert instance.call("grow", 65536 + 10) == 1
    assert instance.memory.address == address
    top = (65536 + 11) * PAGE
    instance.call("store", top - 8, 77)
    assert instance.memory.view(1, "i32", offset=top - 8).numpy()[0] == 77
    with pytest.raises(TrapError):
        instance.call("load", top - 7)
    assert instance.call("grow", 1 << 40) == -1
