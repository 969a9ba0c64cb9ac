"""What a module may import from `nocopy`, and what is said when it imports something else."""

from __future__ import annotations

import pytest

from nocopy.errors import InvalidModuleError, UsageError
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.imports import IMPORTS
from nocopy.wasm import HostFunction, Module, default_engine
from tests.interfaces import passthrough

MEMORY = '(memory (export "memory") 1)'


def linked(text: str, **kw: object) -> None:
    DeviceGuest(f"(module {text} {MEMORY})", device="reference", **kw).close()


def test_an_unknown_import_is_named_with_what_there_is() -> None:
    with pytest.raises(
        InvalidModuleError, match=r"imports nocopy\.teleport; .* has version, describe, submit"
    ) as e:
        linked('(import "nocopy" "teleport" (func))')
    assert "nocopy.h" in str(e.value)


@pytest.mark.parametrize("name", [i.name for i in IMPORTS])
def test_another_type_is_refused_with_both(name: str) -> None:
    with pytest.raises(InvalidModuleError, match=rf"nocopy\.{name} as \(f32\) -> \(i32\); it is \("):
        linked(f'(import "nocopy" "{name}" (func (param f32) (result i32)))')
    with pytest.raises(InvalidModuleError, match=rf"nocopy\.{name} as \(\) -> \(\)"):
        linked(f'(import "nocopy" "{name}" (func))')


@pytest.mark.parametrize(
    ("kind", "text"),
    [("(global i32)", "a global"), ("(table 1 funcref)", "a table"), ("(memory 1)", "a memory")],
)
def test_what_is_no_function_is_refused(kind: str, text: str) -> None:
    with pytest.raises(InvalidModuleError, match=rf"nocopy\.submit as {text}"):
        linked(f'(import "nocopy" "submit" {kind})')


def test_a_module_may_import_nothing() -> None:
    with DeviceGuest(f"(module {MEMORY})", device="reference") as guest:
        assert guest.pages is not None
        assert guest.pages.address == guest.memory.address


def test_a_module_without_memory_is_refused() -> None:
    with pytest.raises(InvalidModuleError, match="memory"):
        DeviceGuest("(module)", device="reference")


def test_other_unknown_imports_are_named() -> None:
    with pytest.raises(InvalidModuleError, match=r"env\.print"):
        linked('(import "env" "print" (func))')


def test_the_host_may_provide_more() -> None:
    seen: list[int] = []
    imports = {("env", "print"): HostFunction(seen.append, ("i32",))}
    text = '(import "env" "print" (func $p (param i32))) (func (export "f") (call $p (i32.const 7)))'
    with DeviceGuest(f"(module {text} {MEMORY})", device="reference", imports=imports) as guest:
        guest.call("f")
    assert seen == [7]


def test_a_start_function_may_submit() -> None:
    """The memory is imported before any code of the guest runs."""
    text = """(import "nocopy" "submit" (func $submit (param i32 i32) (result i32)))
        (global $code (export "code") (mut i32) (i32.const 1))
        (func $start (global.set $code (call $submit (i32.const 0) (i32.const 0))))
        (func (export "get") (result i32) (global.get $code)) (start $start)"""
    with DeviceGuest(f"(module {text} {MEMORY})", device="reference") as guest:
        assert guest.call("get") == 0


def test_one_module_for_many_guests() -> None:
    module = Module(passthrough.text(), default_engine())
    guests = [DeviceGuest(module, device="reference") for _ in range(3)]
    assert len({g.memory.address for g in guests}) == 3
    for guest in guests:
        assert guest.call("submit", 0, 0) == 0
        guest.close()


@pytest.mark.parametrize("source", [b"", b"\x7fELF", b"\0asm\1\0\0\0\xff", "(module"])
def test_what_is_not_wasm_is_refused(source: bytes | str) -> None:
    with pytest.raises(InvalidModuleError):
        DeviceGuest(source, device="reference")


def test_a_missing_file_or_device_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"nowhere\.wasm"):
        DeviceGuest("nowhere.wasm", device="reference")
    with pytest.raises(UsageError, match="abacus"):
        DeviceGuest(passthrough.text(), device="abacus")
