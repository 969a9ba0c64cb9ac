"""What a snapshot says of itself, in a bounded space, for `nocopy snapshots show`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, Final

from nocopy.cli.model_card import printable
from nocopy.cli.output import size

if TYPE_CHECKING:
    from nocopy.snapshot.check import Checked

SHOWN_BYTES: Final = 64
"""Bytes that are printed as they are, in base 16; of longer ones only the number."""


def as_json(checked: Checked) -> dict[str, Any]:
    """Everything that `show --json` prints."""
    from nocopy.snapshot.format import VERSION

    header = checked.header
    return {
        "version": VERSION,
        "digest": checked.content.hex(),
        "bytes": header.nbytes,
        "compressed": header.compressed,
        "signature": header.signature.name.lower(),
        "chunks": len(checked.entries),
        "stored_bytes": int(checked.entries["stored"].sum()),
        "manifest": plain(checked.manifest),
    }


def plain(value: Any) -> Any:
    """A value of the manifest as JSON: bytes in base 16 if they are few, else their number."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, bytes):
        return value.hex() if len(value) <= SHOWN_BYTES else {"nbytes": len(value)}
    return value


def rows(checked: Checked) -> Iterator[tuple[str, str]]:
    """The same for people: (what, value)."""
    header, manifest = checked.header, checked.manifest
    yield "kind", f"{manifest.kind}, format version 1"
    yield "digest", checked.content.hex()
    yield "file", size(header.nbytes) + (", compressed" if header.compressed else "")
    yield "signature", header.signature.name.lower().replace("_", "-")
    yield "generation", str(manifest.generation)
    if manifest.parent is not None:
        yield "thawed from", manifest.parent.hex()
    for what, text in (
        ("label", manifest.label),
        ("made by", manifest.created_by),
        ("device", manifest.device),
    ):
        if text:
            yield what, printable(text)
    if manifest.module is not None:
        name = "" if manifest.module.name is None else f"{printable(manifest.module.name)}, "
        yield "module", f"{name}{manifest.module.digest.hex()}"
    for index, memory in enumerate(manifest.memories):
        stored = int(checked.entries["stored"][checked.entries["memory"] == index].sum())
        name = f"memory {index}" if memory.name is None else f"memory {index}, {printable(memory.name)}"
        yield name, f"{size(memory.size)}, {size(stored)} in the file"
    yield "globals", str(len(manifest.globals))
    if manifest.tables:
        yield "tables", str(len(manifest.tables))
    for model in manifest.models:
        yield "model", f"{printable(model.name or '')} {model.digest.hex()}".strip()
    for session in manifest.sessions:
        tokens = f"{session.tokens.count} of {session.context} tokens, {printable(session.kv)}"
        yield "session", f"{tokens}, {size(session.nbytes)} of memory {session.memory}"
