"""The functions of Wasmtime's C API that its Python package binds but does not offer, or offers too slowly.

Pointers are plain integers here. The names and the order of the arguments are those of `wasmtime.h`.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_int64, c_size_t, c_ssize_t, c_uint8, c_uint64, c_void_p
from typing import Any, Final

import wasmtime
from wasmtime import _ffi as ffi  # pyright: ignore[reportPrivateUsage]

SLOT: Final = 16
"""Bytes from one value to the next in an argument array: `wasmtime_val_raw_t` is as large as a v128."""

Finalizer = ctypes.CFUNCTYPE(None, c_void_p)
EpochCallback = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, POINTER(c_uint64), POINTER(c_uint8))
NewMemory = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_void_p, c_size_t, c_size_t, c_size_t, c_size_t, c_void_p)
GetMemory = ctypes.CFUNCTYPE(c_size_t, c_void_p, POINTER(c_size_t), POINTER(c_size_t))
GrowMemory = ctypes.CFUNCTYPE(c_size_t, c_void_p, c_size_t)
Output = ctypes.CFUNCTYPE(c_ssize_t, c_void_p, c_void_p, c_size_t)

NO_FINALIZER: Final = Finalizer()


class LinearMemoryCallbacks(ctypes.Structure):
    """`wasmtime_linear_memory_t`."""

    _fields_ = [
        ("env", c_void_p),
        ("get_memory", GetMemory),
        ("grow_memory", GrowMemory),
        ("finalizer", Finalizer),
    ]
    env: Any
    get_memory: Any
    grow_memory: Any
    finalizer: Any


class MemoryCreatorCallbacks(ctypes.Structure):
    """`wasmtime_memory_creator_t`."""

    _fields_ = [("env", c_void_p), ("new_memory", NewMemory), ("finalizer", Finalizer)]


class Value(ctypes.Structure):
    """`wasmtime_val_t`: a type and the bits of a value, which lie on a multiple of 8 bytes."""

    _fields_ = [("kind", c_uint8), ("bits", c_uint64 * 3)]
    kind: int
    bits: Any


_dll: ctypes.CDLL = vars(ffi)["dll"]


def _bind(name: str, restype: Any, *argtypes: Any) -> Any:
    # Indexing gives a function object of our own; attribute access would share its types with wasmtime's
    # bindings.
    function: Any = _dll[name]
    function.restype = restype
    function.argtypes = argtypes
    return function


func_call_unchecked = _bind(
    "wasmtime_func_call_unchecked", c_void_p, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p
)
linker_define_func_unchecked = _bind(
    "wasmtime_linker_define_func_unchecked",
    c_void_p,
    *(c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_void_p, c_void_p, c_void_p, c_void_p),
)
linker_get = _bind(
    "wasmtime_linker_get", c_bool, c_void_p, c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_void_p
)
extern_delete = _bind("wasmtime_extern_delete", None, c_void_p)
config_host_memory_creator_set = _bind("wasmtime_config_host_memory_creator_set", None, c_void_p, c_void_p)
memorytype_is64 = _bind("wasmtime_memorytype_is64", c_bool, c_void_p)
engine_increment_epoch = _bind("wasmtime_engine_increment_epoch", None, c_void_p)
context_set_epoch_deadline = _bind("wasmtime_context_set_epoch_deadline", None, c_void_p, c_uint64)
store_epoch_deadline_callback = _bind(
    "wasmtime_store_epoch_deadline_callback", None, c_void_p, EpochCallback, c_void_p, c_void_p
)
store_limiter = _bind("wasmtime_store_limiter", None, c_void_p, c_int64, c_int64, c_int64, c_int64, c_int64)
trap_new = _bind("wasmtime_trap_new", c_size_t, c_char_p, c_size_t)
error_new = _bind("wasmtime_error_new", c_size_t, c_char_p)
wasi_config_set_stdin_bytes = _bind("wasi_config_set_stdin_bytes", None, c_void_p, c_void_p)
wasi_config_set_stdout_custom = _bind(
    "wasi_config_set_stdout_custom", None, c_void_p, Output, c_void_p, c_void_p
)
wasi_config_set_stderr_custom = _bind(
    "wasi_config_set_stderr_custom", None, c_void_p, Output, c_void_p, c_void_p
)
global_get = _bind("wasmtime_global_get", None, c_void_p, c_void_p, c_void_p)
global_set = _bind("wasmtime_global_set", c_void_p, c_void_p, c_void_p, c_void_p)
table_size = _bind("wasmtime_table_size", c_uint64, c_void_p, c_void_p)
table_get = _bind("wasmtime_table_get", c_bool, c_void_p, c_void_p, c_uint64, c_void_p)
table_set = _bind("wasmtime_table_set", c_void_p, c_void_p, c_void_p, c_uint64, c_void_p)
table_grow = _bind("wasmtime_table_grow", c_void_p, c_void_p, c_void_p, c_uint64, c_void_p, c_void_p)
byte_vec_new = _bind("wasm_byte_vec_new", None, c_void_p, c_size_t, c_char_p)


_valtype_equal = _bind("wasmtime_wasm_valtype_equal", c_bool, c_void_p, c_void_p)
_NUMBERS: Final = {
    "i32": wasmtime.ValType.i32(),
    "i64": wasmtime.ValType.i64(),
    "f32": wasmtime.ValType.f32(),
    "f64": wasmtime.ValType.f64(),
}


def type_name(kind: wasmtime.ValType) -> str:
    """i32, i64, f32, f64, or "other".

    Asking for the kind of a vector or of a reference to a GC type, as `str(kind)` does, aborts the process.
    """
    for name, number in _NUMBERS.items():
        if _valtype_equal(address(kind.ptr()), address(number.ptr())):
            return name
    return "other"


def address(pointer: Any) -> int:
    """The address that one of wasmtime's pointer objects holds."""
    return ctypes.cast(pointer, c_void_p).value or 0


def context(store: wasmtime.Store) -> int:
    """The address of a store's context."""
    return address(store._context())  # pyright: ignore[reportPrivateUsage]


def function_handle(function: wasmtime.Func) -> Any:
    """The `wasmtime_func_t` of a function; it is alive as long as the result is."""
    return function._func  # pyright: ignore[reportPrivateUsage]


def take_error(pointer: int) -> wasmtime.WasmtimeError:
    """Own the `wasmtime_error_t` at `pointer`. For an exit through WASI the result is an `ExitTrap`."""
    typed = ctypes.cast(pointer, POINTER(ffi.wasmtime_error_t))
    return wasmtime.WasmtimeError._from_ptr(typed)  # pyright: ignore


def take_trap(pointer: int) -> wasmtime.Trap:
    """Own the `wasm_trap_t` at `pointer`."""
    return wasmtime.Trap._from_ptr(ctypes.cast(pointer, POINTER(ffi.wasm_trap_t)))  # pyright: ignore
