"""What crossing between a guest and the host costs, beside wasmtime-py's own way of doing it.

Every figure is the median over batches of the time per call. It includes the loop that calls: one of
WebAssembly, under 1 ns a turn, or one of Python, about 20 ns a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wasmtime

from nocopy import native
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.errors import DeviceUnavailableError
from nocopy.wasm import Guest, HostFunction, NativeFunction

SECONDS = 1.5  # for each case
# Calls in one batch. A batch of either side takes well under a millisecond, less than a slice of a busy
# machine's scheduler, so that the median is of batches that nobody interrupted.
CALLS = 500
PEER_CALLS = 25
NATIVE_CALLS = 50_000
GUEST = """(module
  (import "env" "add" (func $add (param i32 i32) (result i32)))
  (import "env" "version" (func $version (result i32)))
  (memory (export "memory") 1)
  (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1)))
  (func (export "adds") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (call $add (local.get $sum) (local.get $n)))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum))
  (func (export "versions") (param $n i32) (result i32) (local $sum i32)
    (loop $again
      (local.set $sum (i32.add (local.get $sum) (call $version)))
      (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
    (local.get $sum)))"""


def add(a: int, b: int) -> int:
    """A host function of two i32 arguments."""
    return a + b & 0x7FFFFFFF


def version() -> int:
    """A host function without arguments."""
    return 1


class Ordinary:
    """The same guest through wasmtime-py's own API."""

    def __init__(self) -> None:
        engine = wasmtime.Engine()
        self._store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
        i32 = wasmtime.ValType.i32
        linker.define_func("env", "add", wasmtime.FuncType([i32(), i32()], [i32()]), add)
        linker.define_func("env", "version", wasmtime.FuncType([], [i32()]), version)
        module = wasmtime.Module(engine, GUEST)
        self._exports = linker.instantiate(self._store, module).exports(self._store)

    def function(self, name: str) -> Callable[..., Any]:
        """An export, called as its users call it."""
        function, store = self._exports[name], self._store
        assert isinstance(function, wasmtime.Func)
        return lambda *args: function(store, *args)


def rows(*, progress: Progress = silent) -> list[Row]:
    """Time calls in both directions, in µs. The native one is missing if the native library was not built."""
    ordinary = Ordinary()
    python: dict[tuple[str, str], HostFunction | NativeFunction] = {
        ("env", "add"): HostFunction(add, ("i32", "i32"), ("i32",)),
        ("env", "version"): HostFunction(version, (), ("i32",)),
    }
    found: list[Row] = []
    with Guest(GUEST, imports=python) as guest:
        progress("guest to Python", 0)
        ours, peer = _times(guest.function("adds"), ordinary.function("adds"))
        found.append(row("guest -> Python function (i32, i32) -> i32", ours, "us", "wasmtime-py", peer))
        progress("Python to guest", 0.3)
        ours, peer = _times(_repeat(guest.function("add")), _repeat(ordinary.function("add")))
        found.append(row("Python -> guest function (i32, i32) -> i32", ours, "us", "wasmtime-py", peer))
    progress("guest to native code", 0.6)
    try:
        compiled = NativeFunction(native.address("nocopy_host_version"), 0, (), ("i32",))
    except DeviceUnavailableError:
        return found
    with Guest(GUEST, imports=python | {("env", "version"): compiled}) as guest:
        ours, peer = _times(guest.function("versions"), ordinary.function("versions"), calls=NATIVE_CALLS)
        found.append(row("guest -> native function () -> i32", ours, "us", "wasmtime-py", peer))
    return found


def _times(
    ours: Callable[[int], Any], peer: Callable[[int], Any], *, calls: int = CALLS
) -> tuple[float, float]:
    """Microseconds per call of two batch functions, which make as many calls as they are told."""

    def batch() -> None:
        ours(calls)

    def peer_batch() -> None:
        peer(PEER_CALLS)

    times = interleaved({"ours": batch, "peer": peer_batch}, seconds=SECONDS)
    return times["ours"] / calls * 1e6, times["peer"] / PEER_CALLS * 1e6


def _repeat(call: Callable[[int, int], Any]) -> Callable[[int], None]:
    """A batch of calls from Python."""

    def batch(count: int) -> None:
        for i in range(count):
            call(i, 2)

    return batch
