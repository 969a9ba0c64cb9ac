"""How a function of the import module `nocopy` is described, for the linker and for the C header."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Param:
    """One parameter. `kind` is "i32", or "ptr": i32, or i64 in a memory64 guest."""

    name: str
    kind: str
    c_type: str


@dataclass(frozen=True)
class Import:
    """One function that a guest may import; all return an i32: 0 or more, or a negative error code."""

    name: str
    params: tuple[Param, ...]
    doc: str

    def kinds(self, *, memory64: bool) -> tuple[str, ...]:
        """The Wasm types of the parameters."""
        return tuple("i64" if p.kind == "ptr" and memory64 else "i32" for p in self.params)
