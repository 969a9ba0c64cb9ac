"""The traps that Wasmtime lays for a custom memory creator, each in a process of its own."""

import pytest

RAW_ENGINE = """
import ctypes, wasmtime
from nocopy.wasm import capi, memory_creator
config = wasmtime.Config()
config.memory_init_cow = {cow}
capi.config_host_memory_creator_set(capi.address(config.ptr()), ctypes.addressof(memory_creator.CREATOR))
engine = wasmtime.Engine(config)
store = wasmtime.Store(engine)
"""

DATA = '(module (memory (export "memory") 1) (data (i32.const 7) "seven"))'


def test_data_segments_with_copy_on_write_initialisation_abort_the_process(python):
    """Why the engine turns it off. When this fails, Wasmtime has fixed its issue 10740."""
    program = RAW_ENGINE.format(cow=True) + f"wasmtime.Instance(store, wasmtime.Module(engine, {DATA!r}), [])"
    done = python(program)
    assert done.returncode < 0, done.stderr


def test_data_segments_work_in_our_engine(python):
    done = python(
        f"from nocopy.wasm import Guest\nwith Guest({DATA!r}) as g: print(g.memory.read(5, 9))",
    )
    assert (done.returncode, done.stdout.strip()) == (0, r"b'\x00\x00seven\x00\x00'"), done.stderr


def test_a_memory_that_the_host_makes_bypasses_the_creator(python):
    """Why an imported memory comes from a provider module."""
    program = RAW_ENGINE.format(cow=False) + (
        "memory = wasmtime.Memory(store, wasmtime.MemoryType(wasmtime.Limits(1, 2)))\n"
        "print(memory_creator.alive(), memory_creator.at(capi.address(memory.data_ptr(store))))"
    )
    assert python(program).stdout.split() == ["0", "None"]


def test_an_imported_memory_lies_in_our_pages(python):
    program = (
        "from nocopy.wasm import Guest\n"
        'with Guest(\'(module (import "env" "memory" (memory 1 3)) (export "memory" (memory 0)) '
        '(data (i32.const 0) "mine") '
        '(func (export "grow") (result i32) (memory.grow (i32.const 2))))\') as g:\n'
        "    print(g.memory.read(0, 4), g.call('grow'), g.memory.size)"
    )
    done = python(program)
    assert done.stdout.strip() == "b'mine' 1 196608", done.stderr


@pytest.mark.parametrize(
    "memory", ['(memory (export "memory") 1 2 shared)', '(import "env" "memory" (memory 1 2 shared))']
)
def test_shared_memories_are_refused_and_say_why(python, memory):
    export = "" if "export" in memory else '(export "memory" (memory 0))'
    program = (
        "from nocopy.wasm import Guest\nfrom nocopy.errors import InvalidModuleError\n"
        f"try: Guest('(module {memory} {export})')\n"
        "except InvalidModuleError as error: print(error)"
    )
    done = python(program)
    assert "for several threads" in done.stdout, done.stderr


def test_a_shared_memory_that_is_not_exported_is_refused_too(python):
    program = (
        "from nocopy.wasm import Guest\nfrom nocopy.errors import InvalidModuleError\n"
        "try: Guest('(module (memory (export \"memory\") 1) (memory 1 2 shared))')\n"
        "except InvalidModuleError as error: print(error)"
    )
    done = python(program)
    assert "shared memory" in done.stdout, done.stderr


def test_values_lie_16_bytes_apart(python):
    """A host function of each mixture of types sees every argument and returns every result."""
    program = """
from nocopy.wasm import Guest, HostFunction
seen = []
def host(*args):
    seen.append(args)
    return args[1], args[0], args[3], args[2]
types = ("i32", "i64", "f32", "f64")
wat = '''(module
  (import "env" "host" (func $host (param i32 i64 f32 f64) (result i64 i32 f64 f32)))
  (memory (export "memory") 1)
  (func (export "through") (param i32 i64 f32 f64) (result i64 i32 f64 f32)
    (call $host (local.get 0) (local.get 1) (local.get 2) (local.get 3))))'''
with Guest(wat, imports={("env", "host"): HostFunction(host, types, ("i64", "i32", "f64", "f32"))}) as guest:
    result = guest.call("through", -7, 1 << 40, 1.5, 2.25)
assert seen == [(-7, 1 << 40, 1.5, 2.25)], seen
assert result == (1 << 40, -7, 2.25, 1.5), result
"""
    done = python(program)
    assert done.returncode == 0, done.stderr


def test_the_base_does_not_move_when_the_guest_grows(python):
    program = """
from nocopy.wasm import Guest
with Guest('''(module (memory (export "memory") 1)
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "store") (param i32 i32) (i32.store (local.get 0) (local.get 1))))''') as guest:
    address, size = guest.memory.address, guest.memory.size
    for pages in (1, 10, 100, 1000):
        guest.call("store", size - 4, pages)
        guest.call("grow", pages)
        assert guest.memory.address == address
        assert guest.memory.size == size + pages * 65536
        assert guest.memory.read(size - 4, 4) == pages.to_bytes(4, "little")
        size = guest.memory.size
"""
    done = python(program)
    assert done.returncode == 0, done.stderr


def test_a_process_that_ends_with_open_guests_ends_quietly(python):
    program = """
from nocopy.wasm import Guest, HostFunction, Limits
keep = [Guest('(module (import "e" "f" (func)) (memory (export "memory") 1))',
              imports={("e", "f"): HostFunction(lambda: None)}, limits=Limits(deadline=5)) for _ in range(3)]
views = [guest.memory.view(4, "f32").numpy() for guest in keep]
cycle = [keep[0]]; cycle.append(cycle)
"""
    done = python(program)
    assert (done.returncode, done.stderr) == (0, "")
