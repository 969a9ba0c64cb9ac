import pytest
from wasmtime import wat2wasm

from nocopy.errors import InvalidModuleError, MemoryLimitError, TrapError, UsageError
from nocopy.wasm import Engine, HostFunction, Module, default_engine
from nocopy.wasm.cursor import Cursor, Malformed
from nocopy.wasm.sections import Section, join, split, write_number

MEMORY = '(memory (export "memory") 1)'
PLAIN = f'(module {MEMORY} (func (export "one") (result i32) (i32.const 1)))'


@pytest.mark.parametrize(
    "kind", ["text", "text bytes", "binary", "bytearray", "wasm file", "wat file", "path string"]
)
def test_a_module_comes_from_text_bytes_or_a_file(guest, tmp_path, kind):
    binary = bytes(wat2wasm(PLAIN))
    wasm, wat = tmp_path / "a.wasm", tmp_path / "b.wat"
    wasm.write_bytes(binary)
    wat.write_text("  ;; a comment\n" + PLAIN)
    sources = {
        "text": PLAIN,
        "text bytes": PLAIN.encode(),
        "binary": binary,
        "bytearray": bytearray(binary),
        "wasm file": wasm,
        "wat file": wat,
        "path string": str(wasm),
    }
    assert guest(sources[kind]).call("one") == 1


def test_a_compiled_module_makes_many_guests(guest):
    module = Module(PLAIN, default_engine())
    first, second = guest(module), guest(module)
    assert first.memory.address != second.memory.address
    assert first.call("one") == second.call("one") == 1


def test_a_module_of_another_engine_is_refused(guest):
    with pytest.raises(UsageError, match="another engine"):
        guest(Module(PLAIN, Engine()), engine=Engine())


@pytest.mark.parametrize(
    "source", [b"", b"\x7fELF\2\1\1", b"hello", b"\0as", b"PK\3\4", b"\xff" * 100], ids=repr
)
def test_what_is_not_webassembly_says_so(guest, source):
    with pytest.raises(InvalidModuleError, match="not WebAssembly"):
        guest(source)


@pytest.mark.parametrize(
    "source",
    [
        b"\0asm\1\0\0\0\xff",
        b"\0asm\1\0\0\0\1\x7f",
        b"\0asm\2\0\0\0",
        b"\0asm\1\0\0\0\x08\x01\x00",
        b"\0asm\1\0\0\0\x08\xff\xff\xff\xff\xff\xff",
        b"(module (func (result i32)))",
        b"(modul)",
        b"(module",
        b"(\xff\xfe)",
    ],
    ids=repr,
)
def test_invalid_modules_are_refused(guest, source):
    with pytest.raises(InvalidModuleError):
        guest(source)


@pytest.mark.parametrize("source", ["(component)", b"\0asm\x0d\0\1\0"])
def test_components_are_refused_and_say_what_to_build(guest, source):
    with pytest.raises(InvalidModuleError, match="only core modules"):
        guest(source)


def test_a_file_that_is_not_there_is_a_usage_error(guest, tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        guest(tmp_path / "none.wasm")
    with pytest.raises(UsageError, match="directory"):
        guest(tmp_path)


def test_every_missing_import_is_named(guest):
    source = f"""(module (import "env" "there" (func)) (import "env" "gone" (func))
      (import "gl" "draw" (func))
      (import "env" "table" (table 1 funcref)) (import "env" "g" (global i32)) {MEMORY})"""
    with pytest.raises(InvalidModuleError, match=r"env\.gone, gl\.draw, env\.table, env\.g; nothing"):
        guest(source, imports={("env", "there"): HostFunction(lambda: None)})


@pytest.mark.parametrize("source", ["(module)", "(module (memory 1))"])
def test_a_module_that_exports_no_memory_is_refused_and_says_how(guest, source):
    with pytest.raises(InvalidModuleError, match="exports no memory"):
        guest(source)


def test_the_memory_named_memory_is_the_guests_or_else_the_first(guest):
    both = guest('(module (memory $a (export "other") 1) (memory $b (export "memory") 2))')
    assert both.memory.size == 2 * 65536
    only = guest('(module (memory 5) (memory $a (export "first") 3) (memory $b (export "second") 2))')
    assert only.memory.size == 3 * 65536


def test_a_guest_with_a_gc_heap_has_its_own_memory(guest):
    """Wasmtime makes the GC heap with our creator too, before the module's memory."""
    instance = guest(
        """(module (memory (export "memory") 1) (data (i32.const 0) "mine")
          (type $box (struct (field i32)))
          (func (export "box") (result i32) (struct.get $box 0 (struct.new $box (i32.const 7)))))"""
    )
    assert instance.memory.read(0, 4) == b"mine"
    assert instance.call("box") == 7


# The start function


START = f"""(module {MEMORY} (func $go (i32.store (i32.const 0) (i32.const 42))) (start $go)
  (func (export "other") (result i32) (i32.load (i32.const 0))))"""


def test_the_start_function_runs_once_after_the_memory_is_known(guest):
    seen = []
    instance = guest(START, on_memory=lambda memory: seen.append(memory.read(0, 4)))
    assert seen == [bytes(4)]
    assert instance.call("other") == 42
    assert instance.exports == ("memory", "other")


def test_a_start_function_that_traps_fails_the_guest(guest):
    with pytest.raises(TrapError, match="unreachable"):
        guest(f"(module {MEMORY} (func $go unreachable) (start $go))")


def test_an_imported_start_function_runs(guest):
    seen = []
    guest(
        f'(module (import "env" "go" (func $go)) {MEMORY} (start $go))',
        imports={("env", "go"): HostFunction(lambda: seen.append(1))},
    )
    assert seen == [1]


def test_an_error_in_on_memory_stops_the_guest_before_its_code(guest):
    def refuse(memory):
        raise MemoryLimitError("too large for the device")

    ran = []
    with pytest.raises(MemoryLimitError, match="too large for the device"):
        guest(
            f'(module (import "env" "go" (func $go)) {MEMORY} (start $go))',
            imports={("env", "go"): HostFunction(lambda: ran.append(1))},
            on_memory=refuse,
        )
    assert ran == []


def test_sections_survive_splitting_and_joining():
    binary = bytes(wat2wasm(START))
    assert join(split(binary)) == binary
    assert split(join([Section(0, b"\1a" + bytes(300))]))[0].content == b"\1a" + bytes(300)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 65535, (1 << 32) - 1])
def test_numbers_survive_encoding(value):
    cursor = Cursor(b"x" + write_number(value), 1)
    assert cursor.number() == value
    assert cursor.left == 0


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\xff\x7f"])
def test_numbers_that_do_not_end_or_fit_are_refused(data):
    with pytest.raises(Malformed):
        Cursor(data).number()


def test_sections_that_do_not_fit_are_refused():
    with pytest.raises(Malformed, match="5 bytes are needed"):
        split(b"\0asm\1\0\0\0\x01\x05ab")
