"""A guest.

One instance of a module, with its memory in our pages, its imports, its permissions and its limits.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeAlias

import wasmtime

from nocopy.errors import ClosedError, ExitError, InvalidModuleError, MemoryLimitError, UsageError
from nocopy.memory.linear import LinearMemory
from nocopy.memory.quota import Quota
from nocopy.wasm import capi, memory_creator
from nocopy.wasm.call import bind, disable
from nocopy.wasm.calls import Calls
from nocopy.wasm.engine import Engine, default_engine
from nocopy.wasm.guard import leave_room
from nocopy.wasm.hostcall import HostFunction, NativeFunction, define
from nocopy.wasm.limits import Clock, Limits
from nocopy.wasm.linking import MEMORY, failure, provide_memory, require_all
from nocopy.wasm.module import Module
from nocopy.wasm.state import State, Tables, check_freezable, read_globals, write_globals
from nocopy.wasm.wasi import MODULE as WASI_MODULE
from nocopy.wasm.wasi import Wasi, configure
from nocopy.wasm.wasi_poll import NAME as POLL
from nocopy.wasm.wasi_poll import poll_oneoff

Imports: TypeAlias = Mapping[tuple[str, str], HostFunction | NativeFunction]

_guests: weakref.WeakSet[Guest] = weakref.WeakSet()


class Guest:
    """One running instance of a WebAssembly module.

    One thread may be inside at a time; a host function may call the guest that called it.

    Args:
        source: a path, binary, text (see `read_source`), or a `Module` of the same engine.
        imports: host functions by (module, name), or a function that returns them and gets this guest, whose
            `memory` is there once they are called.
        wasi: what WASI grants; the default is nothing.
        limits: what the guest may use; the default is no limit.
        engine: the default is the process's.
        on_memory: called once with the memory, before any code of the guest runs and before `Guest`
        returns. The place     to import it into a device.
        restore: gets this guest once it has its memories, before `on_memory`, and makes it the one that was
            frozen. Its start function does not run then.

    Raises:
        UsageError: a path, type name or engine that does not fit.
        InvalidModuleError: not a valid core module, no exported memory, a shared memory, or an import that
            nothing provides.
        MemoryLimitError: it starts out larger than its limit, or than the system allows.
        TrapError: its data segments do not fit its memory, or its start function traps.
    """

    def __init__(
        self,
        source: str | bytes | bytearray | PathLike[str] | Module,
        *,
        imports: Imports | Callable[[Guest], Imports] | None = None,
        wasi: Wasi | None = None,
        limits: Limits | None = None,
        engine: Engine | None = None,
        on_memory: Callable[[LinearMemory], None] | None = None,
        restore: Callable[[Self], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        counted = self.limits.fuel is not None
        if isinstance(source, Module):
            engine = engine or source.engine
            if source.engine is not engine:
                raise UsageError(
                    "a module of one engine was given with another engine; compile it for that one"
                )
        self.engine = engine or default_engine(fuel=counted)
        if counted and not self.engine.fuel:
            raise UsageError("a fuel limit was given; the engine does not count fuel. Use Engine(fuel=True).")
        self.module = source if isinstance(source, Module) else Module(source, self.engine)
        self.quota = Quota(self.limits.memory)
        self._calls = Calls()
        self._functions: dict[str, Callable[..., Any]] = {}
        self._memory: LinearMemory | None = None
        self._memories: list[LinearMemory] = []
        self._keep: list[Any] = []
        self._closed = False
        self._store = self._make_store()
        self._clock = Clock(self._store, self.engine.ticker, self.limits, self._calls)
        self._wasi = wasi or Wasi()
        try:
            self._streams = configure(self._store, self._wasi, self._calls)
            given = imports(self) if callable(imports) else imports or {}
            self._instance = self._instantiate({**self._own_imports(), **given})
            self._memory = self._find_memory()
            if restore is not None:
                restore(self)
            if on_memory is not None:
                on_memory(self._memory)
            if restore is None:
                self._start()
        except BaseException:
            self._shut()
            raise
        _guests.add(self)

    # Making it

    def _make_store(self) -> wasmtime.Store:
        store = wasmtime.Store(self.engine.wasmtime)
        # The table of functions that `exposed.py` adds is under Wasmtime's limit as well.
        most = max(self.limits.table_elements, len(self.module.exposed.functions))
        capi.store_limiter(capi.address(store.ptr()), -1, most, -1, -1, -1)
        if self.engine.fuel:
            fuel = self.limits.fuel
            store.set_fuel((1 << 64) - 1 if fuel is None else fuel)
        return store

    def _check_tables(self) -> None:
        most = self.limits.table_elements
        for table in self.module.exposed.tables:
            if table.limits.minimum > most:
                raise MemoryLimitError(
                    f"{self.module.name} was to be started; table {table.index} has {table.limits.minimum}"
                    f" elements, which exceeds the table limits ({most}). Raise the limit."
                )

    def _instantiate(self, imports: Imports) -> wasmtime.Instance:
        self._check_tables()
        leave_room()
        linker = wasmtime.Linker(self.engine.wasmtime)
        linker.define_wasi()
        linker.allow_shadowing = True  # a host function of the caller's may stand in for one of WASI
        for (module, name), host in imports.items():
            self._keep.append(define(linker, module, name, host, self._calls))
        with memory_creator.owner(self.quota, self._calls):
            try:
                for module, name, kind in self.module.imports:
                    if isinstance(kind, wasmtime.MemoryType):
                        linker.define(self._store, module, name, provide_memory(self._store, kind))
                require_all(linker, self._store, self.module)
                instance = linker.instantiate(self._store, self.module.wasmtime)
            except (wasmtime.WasmtimeError, wasmtime.Trap) as error:
                raise failure(error, self._calls.take(), self.module.name) from None
        self._exports = instance.exports(self._store)
        return instance

    def _own_imports(self) -> Imports:
        """What stands in for functions of Wasmtime's WASI."""
        if not any(i[:2] == (WASI_MODULE, POLL) for i in self.module.imports):
            return {}
        stdin = self._wasi.stdin == "inherit"
        return {(WASI_MODULE, POLL): poll_oneoff(lambda: self.memory, self._clock, stdin=stdin)}

    def _find_memory(self) -> LinearMemory:
        """Find our pages behind the memory that the guest exports.

        By its address, which proves that they are one.
        """
        memories = [n for n, kind in self.module.exports.items() if isinstance(kind, wasmtime.MemoryType)]
        if not memories:
            raise InvalidModuleError(
                f"{self.module.name} was to be started; it exports no memory, so there is nothing to share. "
                f'Export one: (memory (export "{MEMORY}") 1), or link with --export-memory.'
            )
        name = MEMORY if MEMORY in memories else memories[0]
        for each in self.module.exposed.memories:
            self._memories.append(self._adopt(each.export))
        address = capi.address(self._exported_memory(name).data_ptr(self._store))
        return next(memory for memory in self._memories if memory.address == address)

    def _exported_memory(self, name: str) -> wasmtime.Memory:
        exported = self._exports[name]
        assert isinstance(exported, wasmtime.Memory)
        return exported

    def _adopt(self, name: str) -> LinearMemory:
        exported = self._exported_memory(name)
        memory = memory_creator.at(capi.address(exported.data_ptr(self._store)))
        if memory is None:
            raise AssertionError(f"Wasmtime made the memory {name} without our creator")

        # Wasmtime's memories are kept in a table of the process: a strong reference from there to the guest
        # would keep both for ever.
        guest = weakref.ref(self)

        def grow_through(size: int) -> None:
            owner = guest()
            assert owner is not None, "grow_through outlived the guest's store"
            owner._grow(exported, memory, size)

        memory.grow_through = grow_through
        return memory

    def _grow(self, exported: wasmtime.Memory, memory: LinearMemory, size: int) -> None:
        page = exported.page_size(self._store)
        delta, rest = divmod(size - memory.size, page)
        if delta < 0 or rest:
            raise UsageError(
                f"growing a guest's memory from {memory.size} to {size} bytes was asked for; it grows by "
                f"whole pages of {page} bytes and never shrinks"
            )
        leave_room()
        try:
            exported.grow(self._store, delta)
        except wasmtime.WasmtimeError as error:
            raise MemoryLimitError(
                f"growing a guest's memory to {size} bytes was asked for; its maximum is {memory.maximum} "
                f"bytes and its limit {self.limits.memory}: {error}"
            ) from None

    def _start(self) -> None:
        if self.module.exposed.start is not None:
            self._bind(self.module.exposed.start)()
        # A WASI reactor has no _start; its initialiser must run before anything else is called.
        if "_initialize" in self.module.exports and "_start" not in self.module.exports:
            self.call("_initialize")

    # What it holds

    @contextmanager
    def quiescent(self, what: str) -> Generator[None]:
        """Keep calls out while the block runs.

        Args:
            what: is asked for, for messages.

        Raises:
            ClosedError: the guest is closed.
            UsageError: a call is in progress.
        """
        if self._closed:
            raise ClosedError(f"{what} a closed guest was asked for; start the guest again")
        if self._calls.inside() or not self._calls.lock.acquire(blocking=False):
            raise UsageError(
                f"{what} a guest was asked for while a call of it is in progress; its stack cannot be kept."
                " Wait for the call to return."
            )
        try:
            yield
        finally:
            self._calls.lock.release()

    @property
    def memories(self) -> tuple[LinearMemory, ...]:
        """All its memories, by their index in the module; also those that it does not export."""
        return tuple(self._memories)

    def read_state(self) -> State:
        """What it holds besides its memories. It must be quiescent.

        Raises:
            UsageError: something that cannot be taken out of it; see `state.py`.
        """
        exposed = self.module.exposed
        check_freezable(exposed)
        tables = Tables(self._store, self._exports, exposed, self.limits.table_elements)
        return State(read_globals(self._store, self._exports, exposed), tables.read())

    def write_state(self, state: State) -> None:
        """Give a guest that was just made what another one of the same module held.

        Raises:
            UsageError: it is that of another module.
            MemoryLimitError: a table may not have so many elements.
        """
        exposed = self.module.exposed
        write_globals(self._store, self._exports, exposed, state.globals)
        if state.tables:
            Tables(self._store, self._exports, exposed, self.limits.table_elements).write(state.tables)

    # Using it

    @property
    def memory(self) -> LinearMemory:
        """The guest's memory: its export named "memory", or else its first one. Base fixed, size always
        present.

        Raises:
            ClosedError: the guest is closed.
            UsageError: the guest is still being made.
        """
        if self._closed:
            raise ClosedError("the memory of a closed guest was asked for; start the guest again")
        if self._memory is None:
            raise UsageError("the guest's memory was asked for before the guest had one; use on_memory")
        return self._memory

    @property
    def wasm_address(self) -> int:
        """Where Wasmtime itself says that the memory begins: evidence, the same as `memory.address`."""
        if self._closed:
            raise ClosedError("the memory of a closed guest was asked for; start the guest again")
        names = [n for n, kind in self.module.exports.items() if isinstance(kind, wasmtime.MemoryType)]
        name = MEMORY if MEMORY in names else names[0]
        return capi.address(self._exported_memory(name).data_ptr(self._store))

    @property
    def exports(self) -> tuple[str, ...]:
        """Names of what the module exports."""
        return tuple(self.module.exports)

    @property
    def stdout(self) -> bytes:
        """What the guest wrote to a captured stdout."""
        return bytes(self._streams[0].data)

    @property
    def stderr(self) -> bytes:
        """What the guest wrote to a captured stderr."""
        return bytes(self._streams[1].data)

    def write_stdout(self, data: bytes) -> None:
        """Write where the guest's own stdout goes, for a host function that the guest told to.

        Raises:
            MemoryLimitError: it is captured, and no more is.
            UsageError: it is inherited, and this process's stdout is closed.
        """
        where, stream = self._wasi.stdout, self._streams[0]
        if where == "inherit":
            try:
                while data:
                    data = data[os.write(1, data) :]
            except OSError as error:
                raise UsageError(
                    f"{len(data)} bytes were to be written to stdout: {error.strerror}"
                ) from error
        elif where != "discard" and stream.write(data) < 0:
            raise MemoryLimitError(
                f"{len(data)} bytes more were to be written to stdout; at most"
                f" {self._wasi.capture_limit} are captured"
            )

    @property
    def fuel(self) -> int | None:
        """Fuel left, None if it is not counted. Assign to refill."""
        return self._store.get_fuel() if self.limits.fuel is not None else None

    @fuel.setter
    def fuel(self, units: int) -> None:
        if self.limits.fuel is None:
            raise UsageError("fuel was given to a guest that does not count it; start it with Limits(fuel=…)")
        self._store.set_fuel(units)

    @property
    def closed(self) -> bool:
        """True after `close()`."""
        return self._closed

    def function(self, name: str) -> Callable[..., Any]:
        """Return an export as a Python function. Keep it to call it often: a call costs 1 to 3 us.

        Raises:
            ClosedError: the guest is closed.
            UsageError: no such function, or one that takes more than numbers.
        """
        if self._closed:
            raise ClosedError(f"the function {name} of a closed guest was asked for; start the guest again")
        function = self._functions.get(name)
        if function is None:
            if not isinstance(self.module.exports.get(name), wasmtime.FuncType):
                exports = self.module.exports.items()
                functions = [n for n, kind in exports if isinstance(kind, wasmtime.FuncType)]
                raise UsageError(
                    f"the function {name!r} was asked for; {self.module.name} exports "
                    f"{', '.join(functions) or 'none'}"
                )
            function = self._functions[name] = self._bind(name)
        return function

    def _bind(self, name: str) -> Callable[..., Any]:
        exported = self._exports[name]
        assert isinstance(exported, wasmtime.Func)
        timed = self.limits.deadline is not None
        return bind(
            name,
            exported,
            self._store,
            self._calls,
            begin=self._clock.begin if timed else None,
            end=self._clock.end if timed else None,
            keep=self,
        )

    def call(self, name: str, *args: float) -> Any:
        """Call an export; return None, a number, or a tuple of numbers.

        Raises:
            UsageError: no such function, arguments that do not fit, or another thread is inside the guest.
            TrapError: the guest trapped.
            DeadlineError: it ran longer than it may.
            FuelError: it used all its fuel.
            ExitError: it called proc_exit.
            BaseException: what a host function raised.
        """
        function = self.function(name)
        wanted = function.__code__.co_argcount
        if len(args) != wanted:
            raise UsageError(f"{name} was called with {len(args)} arguments; it takes {wanted}")
        return function(*args)

    def run(self) -> None:
        """Run a program: its `_start`. Ctrl-C ends it, even if it never calls the host.

        Errors as in `call`.
        """
        start = self.function("_start")
        try:
            with self._clock.interruptible():
                start()
        except ExitError as error:
            if error.status != 0:
                raise

    def close(self) -> None:
        """End the guest and give its memory up; closing again does nothing.

        Raises:
            UsageError: a device holds the memory, or the guest is running.
        """
        if self._closed:
            return
        if self._calls.inside():
            raise UsageError("closing a guest was asked for from one of its own calls; return from it first")
        if not self._calls.lock.acquire(blocking=False):
            raise UsageError(
                "closing a guest was asked for while another thread is inside it; wait for that call"
            )
        try:
            self._refuse_if_held()
            self._shut()
        finally:
            self._calls.lock.release()

    def _shut(self) -> None:
        """Delete the store; first make sure that no function that was handed out still reaches into it."""
        self._closed = True
        for function in self._functions.values():
            disable(function)
        self._functions.clear()
        self._clock.close()
        self._store.close()
        for memory in self._memories:
            if not memory.holders:  # at exit, or when it failed to start, a device may still hold it
                memory.close()

    def _refuse_if_held(self) -> None:
        holders = [owner for memory in self._memories for owner in memory.holders]
        owners = [owner for owner in holders if owner != memory_creator.GUEST]
        if owners:
            raise UsageError(
                f"closing a guest was asked for; its memory is held by: {', '.join(owners)}. "
                "Close that first."
            )

    def _shut_at_exit(self) -> None:
        # A daemon thread may be inside; its guest goes away with the process.
        if not self._closed and not self._calls.inside() and self._calls.lock.acquire(blocking=False):
            self._shut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    """Delete every store while Python can still run the callbacks that Wasmtime makes on the way."""
    for guest in tuple(_guests):
        guest._shut_at_exit()  # pyright: ignore[reportPrivateUsage]
