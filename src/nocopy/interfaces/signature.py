"""How an imported function is described, for the linker and for the C header."""

from __future__ import annotations

from dataclasses import dataclass

import wasmtime


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


def declared(kind: object) -> tuple[str, ...] | None:
    """The parameters of a function that returns one i32; None for anything else."""
    if not isinstance(kind, wasmtime.FuncType) or [str(r) for r in kind.results] != ["i32"]:
        return None
    return tuple(str(p) for p in kind.params)


def kind_text(kind: object) -> str:
    """A type, for messages."""
    if not isinstance(kind, wasmtime.FuncType):
        return f"a {type(kind).__name__.removesuffix('Type').lower()}"
    return f"({', '.join(map(str, kind.params))}) -> ({', '.join(map(str, kind.results))})"
