"""Runs a program three ways: plain Wasmtime; our engine through Wasmtime's own Python API; a `Guest`.

The second runs it with everything exported that `exposed.py` exports, as a `Guest` does.
Results, traps, failures to start, and every byte of every exported memory must agree.
"""

import ctypes
import hashlib

import wasmtime

from nocopy.errors import InvalidModuleError, MemoryLimitError, TrapError
from nocopy.wasm import Guest, default_engine
from nocopy.wasm.exposed import expose

PAGE = 65536
U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF


def plain_engine():
    config = wasmtime.Config()
    config.epoch_interruption = True
    return wasmtime.Engine(config)


PLAIN, OURS = plain_engine(), default_engine().wasmtime


def digest(address, size):
    return size, hashlib.blake2b((ctypes.c_char * size).from_address(address)).hexdigest()


def kind_of(error):
    """The trap's name, or "error" for another failure."""
    if isinstance(error, wasmtime.Trap):
        return error.trap_code.name.lower()
    if isinstance(error, TrapError):
        return error.trap
    return "error"


def through_wasmtime(engine, binary, calls, only=None):
    """Start and call a module through Wasmtime's Python API; a provider module gives it its memories.

    Returns the outcomes, and the digests of all exported memories or of those that are named.
    """
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1 << 40)
    linker = wasmtime.Linker(engine)
    module = wasmtime.Module(engine, binary)
    outcomes = []
    try:
        for wanted in module.imports:
            limits, wide = wanted.type.limits, "i64" if wanted.type.is_64 else "i32"
            most = "" if limits.max is None else limits.max
            text = f'(module (memory (export "m") {wide} {limits.min} {most}))'
            provider = wasmtime.Instance(store, wasmtime.Module(engine, text), [])
            linker.define(store, wanted.module, wanted.name, provider.exports(store)["m"])
        exports = linker.instantiate(store, module).exports(store)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        return [("failed to start", kind_of(error))], {}
    for name, *args in calls:
        try:
            result = exports[name](store, *args)
            outcomes.append(("returned", tuple(result) if isinstance(result, list) else result))
        except wasmtime.Trap as error:
            outcomes.append(("trapped", kind_of(error)))
    memories = {
        name: digest(ctypes.addressof(item.data_ptr(store).contents), item.data_len(store))
        for name, item in exports.items()
        if isinstance(item, wasmtime.Memory) and (only is None or name in only)
    }
    return outcomes, memories


def as_guest(binary, calls):
    outcomes = []
    try:
        guest = Guest(binary)
    except (TrapError, InvalidModuleError, MemoryLimitError) as error:
        return [("failed to start", kind_of(error))], {}
    with guest:
        for name, *args in calls:
            try:
                outcomes.append(("returned", guest.call(name, *args)))
            except TrapError as error:
                outcomes.append(("trapped", error.trap))
        memory = digest(guest.memory.address, guest.memory.size)
    return outcomes, memory


def check(source, calls=()):
    """Run both ways and compare; return the outcomes of the calls."""
    binary = bytes(wasmtime.wat2wasm(source))
    wanted, memories = through_wasmtime(PLAIN, binary, calls)
    exposed, added = expose(binary)
    if added.start is not None:  # the caller's to call; a `Guest` does
        exposed = binary
    found, more = through_wasmtime(OURS, exposed, calls, only=memories)
    assert (found, more) == (wanted, memories)
    if 'export "memory"' in source:
        found, memory = as_guest(binary, calls)
        assert found == wanted
        assert not memories or memory == memories["memory"]
    return wanted


def module(memory, *functions):
    return f'(module (memory (export "memory") {memory}) {" ".join(functions)})'


def accesses(at, *, offset=0, align=""):
    """Load and store functions of every width; `at` is the address type."""
    place = f"offset={offset} {align} (local.get 0)"
    out = []
    for value, loads, stores in [
        ("i32", ["load", "load8_s", "load8_u", "load16_s", "load16_u"], ["store", "store8", "store16"]),
        (
            "i64",
            ["load", "load8_s", "load8_u", "load16_s", "load16_u", "load32_s", "load32_u"],
            ["store", "store8", "store16", "store32"],
        ),
        ("f32", ["load"], ["store"]),
        ("f64", ["load"], ["store"]),
    ]:
        for op in loads:
            bits = {"f32": "(i32.reinterpret_f32 {})", "f64": "(i64.reinterpret_f64 {})"}.get(value, "{}")
            result = {"f32": "i32", "f64": "i64"}.get(value, value)
            body = bits.format(f"({value}.{op} {place})")
            out.append(f'(func (export "{value}.{op}") (param {at}) (result {result}) {body})')
        out += [
            f'(func (export "{value}.{op}") (param {at} i64) ({value}.{op} {place} {STORED[value]}))'
            for op in stores
        ]
    return out


STORED = {
    "i32": "(i32.wrap_i64 (local.get 1))",
    "i64": "(local.get 1)",
    "f32": "(f32.reinterpret_i32 (i32.wrap_i64 (local.get 1)))",
    "f64": "(f64.reinterpret_i64 (local.get 1))",
}
LOADS = ["i32.load", "i32.load8_s", "i32.load8_u", "i32.load16_s", "i32.load16_u", "i64.load", "i64.load8_s"]
LOADS += [
    "i64.load8_u",
    "i64.load16_s",
    "i64.load16_u",
    "i64.load32_s",
    "i64.load32_u",
    "f32.load",
    "f64.load",
]
STORES = ["i32.store", "i32.store8", "i32.store16", "i64.store", "i64.store8", "i64.store16", "i64.store32"]
STORES += ["f32.store", "f64.store"]

GROW = {
    at: (
        f'(func (export "grow") (param {at}) (result {at}) (memory.grow (local.get 0)))'
        f'(func (export "size") (result {at}) (memory.size))'
    )
    for at in ("i32", "i64")
}
BULK = {
    at: f"""(data $p "passive segment") (func (export "drop") (data.drop $p))
      (func (export "fill") (param {at} i32 {at})
        (memory.fill (local.get 0) (local.get 1) (local.get 2)))
      (func (export "copy") (param {at} {at} {at})
        (memory.copy (local.get 0) (local.get 1) (local.get 2)))
      (func (export "init") (param {at} i32 i32)
        (memory.init $p (local.get 0) (local.get 1) (local.get 2)))"""
    for at in ("i32", "i64")
}
