"""The functions that a guest of wasi-nn calls: pointers in, an error number out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index as unchanged
from typing import TypeAlias

from nocopy.errors import DeadlineError, Error, NnError
from nocopy.interfaces.attachment import Attachment
from nocopy.interfaces.compute import Log, log_line
from nocopy.interfaces.wasi_nn.encoding import Dialect, Errno, Target, encoding_of
from nocopy.interfaces.wasi_nn.errors import errno_of
from nocopy.interfaces.wasi_nn.grants import NnGrants
from nocopy.interfaces.wasi_nn.imports import OLD_PARAMS, PARAMS, Abi, abi_of, needed_from
from nocopy.interfaces.wasi_nn.layout import LIST, U32, Records
from nocopy.interfaces.wasi_nn.protocol import Buffer, Context, Host, Source
from nocopy.interfaces.wasi_nn.seen import Input, Output, Seen
from nocopy.interfaces.wasi_nn.table import Table
from nocopy.memory.linear import LinearMemory
from nocopy.memory.quota import Quota
from nocopy.wasm import HostFunction

MAX_NAME = 4096
"""Bytes of a model's name."""
MAX_CONFIG = 1 << 20
"""Bytes of a model's options."""

HOT = frozenset({"set_input", "compute", "get_output"})
"""The calls of every inference: they return their number themselves, which saves a Python call each."""

Functions: TypeAlias = dict[tuple[str, str], HostFunction]


class Nn:
    """One guest's wasi-nn.

    A failing call returns an `Errno`, changes nothing, and the guest goes on. Only a deadline ends the guest.

    Args:
        grants: what the guest may use.
        attached: gives its memory on its device.
        on_error: gets what a failing call was about, which the interface itself cannot say.
        log: gets a level and a line, of what a guest should know or asked to be told.
        stdout: writes to the guest's stdout, and does not keep the guest alive.
    """

    def __init__(
        self,
        grants: NnGrants,
        *,
        attached: Callable[[], Attachment],
        on_error: Callable[[Error], None] = lambda _error: None,
        log: Log = log_line,
        stdout: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        self.grants, self.abi = grants, Abi(Dialect.SPEC, Records())
        self._attached, self._on_error, self._log, self._stdout = attached, on_error, log, stdout
        self._time_left: Callable[[], float | None] | None = None
        self._table: Table | None = None
        self._seen = Seen()
        self._filled: Callable[[int], int] = unchanged
        self.used = False
        """Whether the guest imports any of it."""

    # Linking

    def functions(
        self,
        guest: str,
        imports: Iterable[tuple[str, str, object]],
        time_left: Callable[[], float | None] | None = None,
    ) -> Functions:
        """The host functions for a guest's imports from these modules. Errors as in `abi_of`.

        Args:
            guest: the module's name, for messages.
            imports: all that it imports.
            time_left: gives the seconds until the call that is running in the guest must end, if it has a
                deadline; does not refer to the guest.
        """
        self._time_left = time_left
        needed = needed_from(imports)
        self.used = bool(needed)
        self.abi = abi_of(guest, needed, self.grants.dialect)
        self._filled = self.abi.records.filled if self.abi.records.old else unchanged
        return {(each.module, each.name): self._function(each.name) for each in needed}

    def _function(self, name: str) -> HostFunction:
        old = self.abi.records.old and name in OLD_PARAMS
        function = getattr(self, f"{name}_old" if old else name)
        params = (OLD_PARAMS if old else PARAMS)[name]
        call = function if name in HOT and not old else self._guarded(function)
        return HostFunction(call, ("u32",) * len(params), ("i32",))

    def _guarded(self, function: Callable[..., None]) -> Callable[..., int]:
        def call(*args: int) -> int:
            try:
                function(*args)
            except Error as error:
                return self._failed(error)
            return Errno.SUCCESS

        return call

    def _failed(self, error: Error) -> int:
        """The number for an error; a deadline ends the guest instead."""
        if isinstance(error, DeadlineError):
            raise error
        self._on_error(error)
        return errno_of(error)

    @property
    def table(self) -> Table:
        """What the guest has."""
        table = self._table
        if table is None:
            attached = self._attached()
            quota = Quota(self.grants.limits.bytes)
            host = Host(
                attached.memory,
                attached.grip,
                attached.limits,
                attached.ledger,
                quota,
                copy=self.grants.copy,
                time_left=self._time_left,
                log=self._log,
                stdout=self._stdout,
            )
            table = self._table = Table(host, self.grants)
        return table

    def close(self) -> None:
        """Forget the guest; what it had is closed with its grip."""
        self._table = None
        self._seen.clear()

    # Graphs

    def load(self, builders: int, count: int, encoding: int, target: int, graph: int) -> None:
        """Load a model from the guest's memory, in `count` parts."""
        table, memory, out = self._out(graph)
        parts = self.abi.records.parts(memory, builders, count)
        where = target_of(target)
        out(table.load(Source(parts=parts), encoding_of(encoding, self.abi.dialect), where))

    def load_old(self, builders: int, encoding: int, target: int, graph: int) -> None:
        """As `load`; the array is behind one more pointer."""
        memory = self.table.host.memory
        array, count = LIST.unpack(memory.read(builders, LIST.size))
        self.load(array, count, encoding, target, graph)

    def load_by_name(self, name: int, length: int, graph: int) -> None:
        """Load a model that the host granted."""
        table, memory, out = self._out(graph)
        out(table.load_by_name(text(memory, name, length)))

    def load_by_name_with_config(
        self, name: int, length: int, config: int, config_length: int, graph: int
    ) -> None:
        """As `load_by_name`, with options as JSON."""
        table, memory, out = self._out(graph)
        if config_length > MAX_CONFIG:
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"options of {config_length} bytes were given; at most {MAX_CONFIG} are taken",
            )
        options = memory.read(config, config_length)
        out(table.load_by_name(text(memory, name, length), options))

    def unload(self, graph: int) -> None:
        """Let go of a graph."""
        self._seen.clear()
        self.table.unload(graph)

    # Contexts

    def init_execution_context(self, graph: int, context: int) -> None:
        """Make a context."""
        table, _, out = self._out(context)
        out(table.init_execution_context(graph))

    def finalize_execution_context(self, context: int) -> None:
        """Let go of a context."""
        self._seen.clear()
        self.table.finalize(context)

    def set_input(self, context: int, index: int, tensor: int) -> int:
        """Use a tensor as an input."""
        try:
            seen = self._seen.inputs.get((context, index, tensor))
            if (
                seen is not None
                and seen.record.view.tobytes() == seen.record.data
                and seen.dimensions.view.tobytes() == seen.dimensions.data
            ):
                seen.context.set_input(index, seen.tensor)
            else:
                self._set_input(context, index, tensor)
        except Error as error:
            return self._failed(error)
        return 0

    def _set_input(self, context: int, index: int, tensor: int) -> None:
        table = self.table
        given, record, dimensions = self.abi.records.tensor(table.host.memory, tensor)
        found = table.active(context)
        found.set_input(index, given)
        self._seen.make_room()
        self._seen.inputs[context, index, tensor] = Input(found, given, record, dimensions)

    def compute(self, context: int) -> int:
        """Compute the outputs."""
        try:
            found = self._seen.active.get(context)
            if found is None:
                found = self.table.active(context)
                self._seen.make_room()
                self._seen.active[context] = found
            found.compute()
        except Error as error:
            return self._failed(error)
        return 0

    def get_output(self, context: int, index: int, out: int, size: int, written: int) -> int:
        """Write an output."""
        try:
            output = self._output(context, out, size, written)
            output.written[0] = self._filled(output.context.get_output(index, output.room))
        except Error as error:
            self._tell_needed(error, written)
            return self._failed(error)
        return 0

    def compute_single(self, context: int) -> None:
        """Compute a piece of the output."""
        self.table.active(context).compute_single()

    def fini_single(self, context: int) -> None:
        """End a computation in pieces."""
        self.table.context(context).fini_single()

    def get_output_old(self, context: int, index: int, out: int, size: int) -> None:
        """As `get_output`; the size is where it is told."""
        memory = self.table.host.memory
        (most,) = U32.unpack(memory.read(size, U32.size))
        self._fetch(lambda found, room: found.get_output(index, room), context, out, most, size)

    def get_output_single(self, context: int, index: int, out: int, size: int, written: int) -> None:
        """Write a piece of an output."""
        self._fetch(lambda found, room: found.get_output_single(index, room), context, out, size, written)

    # The guest's memory

    def _out(self, pointer: int) -> tuple[Table, LinearMemory, Callable[[int], None]]:
        """The table, the memory, and what writes a handle; checked before anything is made."""
        table = self.table
        memory = table.host.memory
        memory.check(pointer, U32.size)
        return table, memory, lambda handle: memory.write(pointer, U32.pack(handle))

    def _fetch(
        self, fetch: Callable[[Context, Buffer], int], context: int, out: int, size: int, written: int
    ) -> None:
        try:
            output = self._output(context, out, size, written)
            output.written[0] = self._filled(fetch(output.context, output.room))
        except NnError as error:
            self._tell_needed(error, written)
            raise

    def _output(self, context: int, out: int, size: int, written: int) -> Output:
        """The context, where its output goes, and where the guest is told how much it was."""
        output = self._seen.outputs.get((context, out, size, written))
        if output is None:
            table = self.table
            memory = table.host.memory
            room = self.abi.records.room(memory, out, size)
            told = memory.view(U32.size, "u8", written).buffer().cast("I")
            output = Output(table.context(context), room, told)
            self._seen.make_room()
            self._seen.outputs[context, out, size, written] = output
        return output

    def _tell_needed(self, error: Error, written: int) -> None:
        """As WasmEdge and WAMR do: a guest can ask again with enough room."""
        if isinstance(error, NnError) and error.needed is not None and error.needed < 1 << 32:
            self.table.host.memory.write(written, U32.pack(self._filled(error.needed)))


def target_of(number: int) -> Target:
    """The target of a number.

    Raises:
        NnError: there is none.
    """
    try:
        return Target(number)
    except ValueError:
        raise NnError(
            Errno.INVALID_ARGUMENT, f"the target {number} was asked for; there are 0 to {len(Target) - 1}"
        ) from None


def text(memory: LinearMemory, pointer: int, length: int) -> str:
    """A name.

    Raises:
        NnError: it is too long, or not UTF-8.
        UsageError: it does not lie in the memory.
    """
    if length > MAX_NAME:
        raise NnError(
            Errno.INVALID_ARGUMENT, f"a name of {length} bytes was given; at most {MAX_NAME} are taken"
        )
    try:
        return memory.read(pointer, length).decode()
    except UnicodeDecodeError as error:
        raise NnError(
            Errno.INVALID_ARGUMENT, f"a name was given that is not UTF-8: byte {error.start}, {error.reason}"
        ) from None
