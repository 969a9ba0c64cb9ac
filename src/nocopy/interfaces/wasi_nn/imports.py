"""What the modules `wasi_ephemeral_nn` and `wasi_nn` provide, and how a guest's imports tell its dialect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nocopy.errors import InvalidModuleError
from nocopy.interfaces.signature import declared, kind_text
from nocopy.interfaces.wasi_nn.encoding import Dialect
from nocopy.interfaces.wasi_nn.layout import Records

MODULE: Final = "wasi_ephemeral_nn"
OLD_MODULE: Final = "wasi_nn"
MODULES: Final = (MODULE, OLD_MODULE)

PARAMS: Final = {
    "load": ("builders", "builders_len", "encoding", "target", "graph"),
    "load_by_name": ("name", "name_len", "graph"),
    "load_by_name_with_config": ("name", "name_len", "config", "config_len", "graph"),
    "init_execution_context": ("graph", "context"),
    "set_input": ("context", "index", "tensor"),
    "compute": ("context",),
    "get_output": ("context", "index", "out", "out_len", "written"),
    "compute_single": ("context",),
    "get_output_single": ("context", "index", "out", "out_len", "written"),
    "fini_single": ("context",),
    "unload": ("graph",),
    "finalize_execution_context": ("context",),
}
"""Every function and its parameters: i32, and so is the result, an `Errno`."""
OLD_PARAMS: Final = {
    "load": ("builders", "encoding", "target", "graph"),
    "get_output": ("context", "index", "out", "size"),
}
"""Those that WAMR's module `wasi_nn` has with other parameters."""
WASMEDGE: Final = frozenset(
    {
        "compute_single",
        "get_output_single",
        "fini_single",
        "unload",
        "finalize_execution_context",
        "load_by_name_with_config",
    }
)
"""Those of WasmEdge. WAMR has the last of them too, but a guest that imports it was made for WasmEdge."""


class Needed(NamedTuple):
    """A function that a guest imports."""

    module: str
    name: str
    kind: object


class Abi(NamedTuple):
    """How one guest uses the interface."""

    dialect: Dialect
    records: Records


def abi_of(guest: str, needed: Sequence[Needed], dialect: Dialect | None) -> Abi:
    """Find out.

    Args:
        guest: the module's name, for messages.
        needed: all its imports from these modules.
        dialect: what the host says; None means by the imports.

    Raises:
        InvalidModuleError: an import that is unknown or has another type.
    """
    variants = {each: _variant(guest, each) for each in needed}
    old = _is_old(guest, variants)
    if dialect is None:
        if any(each.name in WASMEDGE for each in needed):
            dialect = Dialect.WASMEDGE
        elif any(each.module == OLD_MODULE for each in needed):
            dialect = Dialect.WAMR
        else:
            dialect = Dialect.SPEC
    return Abi(dialect, Records(old))


def _variant(guest: str, each: Needed) -> bool | None:
    """Whether the import has WAMR's older parameters; None if it has the same in both.

    Raises:
        InvalidModuleError: it has neither.
    """
    if each.name not in PARAMS:
        raise InvalidModuleError(
            f"{guest} imports {each.module}.{each.name}; that module has {', '.join(PARAMS)}."
            " Build the guest with other bindings."
        )
    params, old = declared(each.kind), OLD_PARAMS.get(each.name)
    if params == ("i32",) * len(PARAMS[each.name]):
        return None if old is None else False
    if old is not None and each.module == OLD_MODULE and params == ("i32",) * len(old):
        return True
    raise InvalidModuleError(
        f"{guest} imports {each.module}.{each.name} as {kind_text(each.kind)}; it takes"
        f" {len(PARAMS[each.name])} i32 and returns one. Pointers are 32-bit in wasi-nn."
    )


def _is_old(guest: str, variants: dict[Needed, bool | None]) -> bool:
    """Whether the guest lays out records as WAMR's `wasi_nn` does.

    Raises:
        InvalidModuleError: it does both.
    """
    known = {old for old in variants.values() if old is not None}
    if len(known) > 1:
        raise InvalidModuleError(
            f"{guest} imports functions of {OLD_MODULE} with old and with new parameters;"
            " build it with bindings of one version"
        )
    if known:
        return known.pop()
    return bool(variants) and all(each.module == OLD_MODULE for each in variants)


def needed_from(imports: Iterable[tuple[str, str, object]]) -> list[Needed]:
    """Those of a module's imports that are from here."""
    return [Needed(*each) for each in imports if each[0] in MODULES]
