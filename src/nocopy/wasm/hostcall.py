"""Host functions: what guests import. In Python (0.3 us a call) or native code (some ns).

Both go through Wasmtime's unchecked C API, which hands over a bare array of values. Nothing is allocated
and nothing is looked up: the code between the guest and the Python function is generated once for the
signature.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import wasmtime

from nocopy.errors import UsageError
from nocopy.wasm import capi
from nocopy.wasm.calls import Calls
from nocopy.wasm.guard import compile_function, cover_entry
from nocopy.wasm.values import Access, access, misfit, signature, views


@dataclass(frozen=True)
class HostFunction:
    """A Python function that a guest can import.

    It gets one number per parameter and returns one number, a tuple of them, or None. What it raises ends
    the guest and is raised again, the same object, from the call that entered the guest.

    Args:
        function: called on the thread that runs the guest.
        params: types by name: i32, u32, i64, u64, f32, f64. `u32` is an i32 read as unsigned.
        results: likewise.
    """

    function: Callable[..., Any]
    params: Sequence[str] = ()
    results: Sequence[str] = ()


@dataclass(frozen=True)
class NativeFunction:
    """A C function that a guest can import.

    Its type is `wasm_trap_t *f(void *env, wasmtime_caller_t *caller, void *values, size_t n)`: `values` holds
    the parameters, one every 16 bytes, and takes the results from its start; NULL means success.

    Args:
        address: of the function.
        env: the pointer it gets first; 0 for none.
        params: types by name, as in `HostFunction`.
        results: likewise.
        keep: anything that must live as long as the guest, such as the library and what `env` points to.
    """

    address: int
    env: int = 0
    params: Sequence[str] = ()
    results: Sequence[str] = ()
    keep: Any = field(default=None, repr=False, compare=False)


class _Views(dict[int, Any]):
    """The views of argument arrays by address: each lies on the stack, and the same few places come back.

    A view is only used while Wasmtime says that an array lies there.
    """

    MOST = 64  # addresses; a guest that recurses into the host uses one for each level

    def __init__(self, count: int, formats: Sequence[str]) -> None:
        super().__init__()
        self._count, self._formats = count, formats

    def __missing__(self, address: int) -> Any:
        if len(self) >= self.MOST:
            self.clear()
        found = views(address, self._count, self._formats)
        result: Any = found[0] if len(found) == 1 else found
        self[address] = result
        return result


def _source(code: Access, names: Sequence[str]) -> str:
    """Python source of the callback for one signature."""
    formats = ", ".join(f"v_{form}" for form in code.formats)
    if names:
        body = [f"{', '.join(names)} = result", *code.stores]
    else:
        body = ["if result is not None: raise TypeError"]
    lines = [
        "def host_function(env, caller, values):",
        "    try:",
        f"        {f'{formats} = views[values]' if formats else 'pass'}",
        f"        result = function({', '.join(code.loads)})",
        "        try:",
        *(f"            {line}" for line in body),
        "        except (TypeError, ValueError):",
        "            raise misfit(result) from None",
        "        return 0",
        "    except BaseException as error:",
        "        return fail(error)",
    ]
    return "\n".join(lines)


def python_callback(host: HostFunction, name: str, calls: Calls) -> Any:
    """The C callback that runs a Python function; native host functions can fall back to one.

    Args:
        host: what to run.
        name: for messages.
        calls: of the guest that will call it.

    Raises:
        UsageError: a type name that does not exist.
    """
    types = signature(host.params, host.results)

    def refuse(result: Any) -> UsageError:
        values = cast("tuple[Any, ...]", result) if isinstance(result, tuple) else (result,)
        return misfit(f"the host function {name} returned a result that does not fit", types.results, values)

    results = [f"r{i}" for i in range(len(types.results))]
    code = access(types.params, types.results, results)
    names = {
        "function": host.function,
        "misfit": refuse,
        "fail": calls.fail,
        "views": _Views(max(len(types.params), len(types.results)), code.formats),
    }
    callback = cover_entry(compile_function(_source(code, results), "host_function", names))
    # env, caller, values and their number are pointers and a size. The first two are not looked at, and a
    # byte of them is the cheapest to convert; the last is not even declared, which the calling conventions
    # of both architectures that Wasmtime supports allow (System V x86-64, AAPCS64).
    prototype = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_byte, ctypes.c_byte, ctypes.c_size_t)
    return prototype(callback)


def define(
    linker: wasmtime.Linker, module: str, name: str, host: HostFunction | NativeFunction, calls: Calls
) -> Any:
    """Define a host function in a linker; the result must live as long as anything that the linker
    instantiates.

    Raises:
        UsageError: a type name that does not exist, or the name twice.
    """
    types = signature(host.params, host.results)
    if isinstance(host, NativeFunction):
        callback, env, keep = host.address, host.env, host.keep
    else:
        keep = python_callback(host, f"{module}.{name}", calls)
        callback, env = capi.address(keep), 0
    encoded = (module.encode(), name.encode())
    kind = types.wasm()
    error = capi.linker_define_func_unchecked(
        capi.address(linker.ptr()),
        encoded[0],
        len(encoded[0]),
        encoded[1],
        len(encoded[1]),
        capi.address(kind.ptr()),
        callback,
        env,
        None,
    )
    if error:
        raise UsageError(f"the host function {module}.{name} was to be defined: {capi.take_error(error)}")
    return keep
