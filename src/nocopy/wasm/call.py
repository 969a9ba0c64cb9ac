"""Calls from Python into a guest: one object per exported function, with its buffers and its code made once.

Wasmtime's own wrapper looks the type up and boxes every value on each call, 24 to 37 us; this costs 1 to 3.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import wasmtime

from nocopy.errors import ClosedError, UsageError
from nocopy.wasm import capi
from nocopy.wasm.calls import Calls
from nocopy.wasm.guard import compile_function, leave_room
from nocopy.wasm.traps import convert
from nocopy.wasm.values import Access, Signature, access, misfit, signature, views


def signature_of(name: str, kind: wasmtime.FuncType) -> Signature:
    """The signature of an exported function.

    Raises:
        UsageError: it takes or returns a vector or a reference, which do not cross.
    """
    params = [capi.type_name(t) for t in kind.params]
    results = [capi.type_name(t) for t in kind.results]
    try:
        return signature(params, results)
    except UsageError:
        raise UsageError(
            f"calling {name} was asked for; it is ({', '.join(params)}) -> ({', '.join(results)}), and only "
            "i32, i64, f32 and f64 cross between Python and a guest. Export a function of numbers."
        ) from None


def _source(names: Sequence[str], code: Access, *, timed: bool) -> str:
    """Python source of the function that calls an export of this signature."""
    result = ", ".join(code.loads) or "None"
    arguments = f"({', '.join(names)}{',' if names else ''})"
    enter = ["failed = enter(context, function, values, count, trap_at)"]
    if timed:
        enter = ["begin()", "try:", f"    {enter[0]}", "finally:", "    end()"]
    lines = [
        f"def call({', '.join(names)}):",
        "    if not acquire(False): raise busy()",
        "    try:",
        "        try:",
        *(f"            {line}" for line in code.stores or ["pass"]),
        "        except (TypeError, ValueError):",
        f"            raise misfit({arguments}) from None",
        "        leave_room()",
        *(f"        {line}" for line in enter),
        "        if failed or trap.value or calls.error is not None: raise finish(failed)",
        f"        return {result}",
        "    except BaseException:",
        "        discard()",  # a signal handler may have raised before a trap was looked at
        "        raise",
        "    finally:",
        "        release()",
    ]
    return "\n".join(lines)


def disable(call: Callable[..., Any]) -> None:
    """Make a function from `bind` raise ClosedError from now on; its store is about to go away."""

    def closed(*_args: Any) -> NoReturn:
        raise ClosedError(f"calling {call.__name__} of a closed guest was asked for; start the guest again")

    # The generated code's own globals: replacing what it calls costs the calls before nothing.
    getattr(call, "__globals__")["enter"] = closed  # noqa: B009


def bind(
    name: str,
    function: wasmtime.Func,
    store: wasmtime.Store,
    calls: Calls,
    *,
    begin: Callable[[], None] | None = None,
    end: Callable[[], None] | None = None,
    keep: Any = None,
) -> Callable[..., Any]:
    """Return a Python function that calls an export.

    It takes one number per parameter and returns None, a number, or a tuple of numbers. It raises what
    `convert` makes of a trap, `UsageError` for arguments that do not fit or a guest that another thread is
    in, and TypeError for another number of arguments.

    Args:
        name: for messages.
        function: of `store`.
        store: of the guest.
        calls: the guest's record.
        begin: called before WebAssembly is entered, if given; then `end` is called after it was left.
        end: see `begin`.
        keep: what must live as long as the function, such as the callbacks that the guest can reach.
    """
    types = signature_of(name, function.type(store))
    arguments = [f"a{i}" for i in range(len(types.params))]
    code = access(types.results, types.params, arguments)
    count = max(len(types.params), len(types.results))
    values = (ctypes.c_byte * (capi.SLOT * max(count, 2)))()
    handle = capi.function_handle(function)
    trap = ctypes.c_void_p()

    def busy() -> UsageError:
        return UsageError(
            f"calling {name} was asked for while another thread is inside the guest; a guest runs one thread "
            "at a time. Wait for the other call, or make a guest per thread."
        )

    def refuse(given: tuple[Any, ...]) -> UsageError:
        return misfit(f"arguments of {name}{types}", types.params, given)

    def finish(failed: int | None) -> BaseException:
        pending, trapped = calls.take(), trap.value
        trap.value = None
        if failed:
            return convert(capi.take_error(failed), pending)
        if trapped:
            return convert(capi.take_trap(trapped), pending)
        return pending or AssertionError("nothing failed")

    def discard() -> None:
        calls.take()
        if trap.value:
            capi.take_trap(trap.value).close()
            trap.value = None

    names = {
        "discard": discard,
        "leave_room": leave_room,
        "acquire": calls.lock.acquire,
        "release": calls.lock.release,
        "begin": begin,
        "end": end,
        "busy": busy,
        "misfit": refuse,
        "finish": finish,
        "enter": capi.func_call_unchecked,
        "calls": calls,
        "trap": trap,
        "trap_at": ctypes.addressof(trap),
        "context": capi.context(store),
        "function": ctypes.addressof(handle),
        "values": ctypes.addressof(values),
        "count": count,
        "keep": (handle, values, function, store, keep),
    }
    for form, view in zip(code.formats, views(ctypes.addressof(values), count, code.formats), strict=True):
        names[f"v_{form}"] = view
    call = compile_function(_source(arguments, code, timed=begin is not None), "call", names)
    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"Call the guest's export {name}{types}."
    return call
