"""One guest's graphs and contexts: handles, names, quotas, and who outlives whom."""

from __future__ import annotations

from dataclasses import dataclass

from nocopy.device.protocol import Pages
from nocopy.errors import MemoryLimitError, NnError, UsageError
from nocopy.interfaces.handles import Handles
from nocopy.interfaces.wasi_nn.backends import backend, detect
from nocopy.interfaces.wasi_nn.encoding import Encoding, Errno, Target
from nocopy.interfaces.wasi_nn.grants import NnGrants
from nocopy.interfaces.wasi_nn.protocol import Context, Graph, Host, Source


@dataclass
class Loaded:
    """A graph. It stays until the guest has unloaded it and finalised its contexts."""

    graph: Graph
    charged: int = 0
    """Bytes of the quota that its parts took."""
    name: tuple[str, bytes] | None = None
    """The name and options by which it was loaded."""
    contexts: int = 0
    unloaded: bool = False


@dataclass
class Running:
    """A context and its graph."""

    loaded: Loaded
    context: Context


class Table:
    """What one guest has of wasi-nn. It is closed with the guest's grip on the device.

    It refers to nobody who refers to it.
    """

    def __init__(self, host: Host, grants: NnGrants) -> None:
        self.host, self.grants = host, grants
        self._handles = Handles()
        self._named: dict[tuple[str, bytes], int] = {}
        self._graphs = self._contexts = self._brought = 0
        self._closing: list[Loaded] = []
        host.grip.dependents.append(self)

    # Graphs

    def load(self, source: Source, encoding: Encoding, target: Target) -> int:
        """Load what the guest holds; return its handle. Errors as the backend's.

        Raises:
            MemoryLimitError: a quota is used up.
        """
        nbytes = sum(part.nbytes for part in source.parts)
        self._check_graphs()
        most = self.grants.limits.model_bytes
        if not most:
            raise NnError(
                Errno.UNSUPPORTED_OPERATION,
                f"a model of {nbytes} bytes was to be loaded from the guest's memory; it may bring none."
                " Have the host grant it by name, or allow a guest that you trust to bring models: -S nn,"
                " NnLimits(model_bytes=...)",
            )
        if self._brought + nbytes > most:
            raise MemoryLimitError(
                f"a model of {nbytes} bytes was to be loaded from the guest's memory; it may bring {most},"
                f" and has brought {self._brought}. Have the host grant it by name, or raise the limit."
            )
        self.host.quota.charge(nbytes)
        try:
            if encoding is Encoding.AUTODETECT:
                encoding = detect(source)
            graph = backend(encoding)(source, target, b"", self.host)
        except BaseException:
            self.host.quota.refund(nbytes)
            raise
        self._brought += nbytes
        return self._add(Loaded(graph, nbytes))

    def load_by_name(self, name: str, config: bytes = b"") -> int:
        """Load what the host granted; the same handle as long as it is loaded with the same options.

        Raises:
            NnError: nothing was granted under this name.
            MemoryLimitError: a quota is used up.
        """
        known = self._named.get((name, config))
        if known is not None:
            return known
        grant = self.grants.models.get(name)
        if grant is None:
            names = ", ".join(map(repr, self.grants.models)) or "none"
            raise NnError(
                Errno.NOT_FOUND, f"the model {name!r} was asked for; this guest was granted {names}"
            )
        self._check_graphs()
        graph = backend(grant.encoding)(grant.source, grant.target, config, self.host)
        handle = self._add(Loaded(graph, name=(name, config)))
        self._named[name, config] = handle
        return handle

    def _check_graphs(self) -> None:
        if self._graphs >= self.grants.limits.graphs:
            raise MemoryLimitError(
                f"one more graph was asked for; this guest may have {self.grants.limits.graphs}. Unload one."
            )

    def _add(self, loaded: Loaded) -> int:
        self._graphs += 1
        return self._handles.add(loaded)

    def unload(self, handle: int) -> None:
        """Let go of a graph; its contexts still give what they have computed.

        Raises:
            UsageError, ClosedError: there is no such graph, or no more.
        """
        loaded = self._handles.get(handle, Loaded, "graph")
        self._handles.remove(handle)
        if loaded.name is not None:
            del self._named[loaded.name]
        loaded.unloaded = True
        if loaded.contexts:
            self._closing.append(loaded)
        else:
            self._end(loaded)

    def _end(self, loaded: Loaded) -> None:
        with self.host.grip.turn(None):
            self._close_graph(loaded)

    def _close_graph(self, loaded: Loaded) -> None:
        """Give a graph back, on the device's turn."""
        self._graphs -= 1
        self._brought -= loaded.charged
        self.host.quota.refund(loaded.charged)
        loaded.graph.close()

    # Contexts

    def init_execution_context(self, graph: int) -> int:
        """Return the handle of a new context.

        Raises:
            UsageError, ClosedError: there is no such graph, or no more.
            MemoryLimitError: a quota is used up.
        """
        loaded = self._handles.get(graph, Loaded, "graph")
        if self._contexts >= self.grants.limits.contexts:
            raise MemoryLimitError(
                f"one more context was asked for; this guest may have {self.grants.limits.contexts}."
                " Use one again, or finalise one."
            )
        handle = self._handles.add(Running(loaded, loaded.graph.context()))
        loaded.contexts += 1
        self._contexts += 1
        return handle

    def context(self, handle: int) -> Context:
        """The context that a handle names. Errors as in `Handles.get`."""
        return self._handles.get(handle, Running, "context").context

    def active(self, handle: int) -> Context:
        """As `context`, for calls that need the graph.

        Raises:
            UsageError: the graph was unloaded.
        """
        running = self._handles.get(handle, Running, "context")
        if running.loaded.unloaded:
            raise UsageError(f"context {handle} was asked for; its graph is unloaded. Load it again.")
        return running.context

    def finalize(self, handle: int) -> None:
        """Let go of a context. Errors as in `Handles.get`."""
        running = self._handles.get(handle, Running, "context")
        self._handles.remove(handle)
        self._contexts -= 1
        with self.host.grip.turn(None):
            running.context.close()
        loaded = running.loaded
        loaded.contexts -= 1
        if loaded.unloaded and not loaded.contexts:
            self._closing.remove(loaded)
            self._end(loaded)

    # What the grip tells

    def moved(self, pages: Pages | None) -> None:
        """See `Dependent`: nothing here is compiled over the guest's memory."""

    def close(self) -> None:
        """See `Dependent`."""
        for running in self._handles.every(Running):
            running.context.close()
        for loaded in (*self._handles.every(Loaded), *self._closing):
            self._close_graph(loaded)
        self._handles, self._closing = Handles(), []
        self._named.clear()
