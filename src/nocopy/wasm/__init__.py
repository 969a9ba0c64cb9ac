"""Link 3: Wasmtime guests whose linear memory lies in our pages.

It may import `memory` and `errors`; the packages that join guests with devices import it. The invariant:
every memory that a guest can reach is a `LinearMemory`, and nothing that a guest does, nor an exception in
a host function, crashes the process.
"""

from nocopy.wasm.engine import Engine, default_engine
from nocopy.wasm.guest import Guest, Imports
from nocopy.wasm.hostcall import HostFunction, NativeFunction
from nocopy.wasm.limits import Limits
from nocopy.wasm.module import Module
from nocopy.wasm.wasi import Dir, Wasi

__all__ = [
    "Dir",
    "Engine",
    "Guest",
    "HostFunction",
    "Imports",
    "Limits",
    "Module",
    "NativeFunction",
    "Wasi",
    "default_engine",
]
