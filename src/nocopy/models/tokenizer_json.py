"""The tokenizer of a Hugging Face folder: tokenizer.json, run by the library that wrote it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from tokenizers import Tokenizer as Library

from nocopy.errors import ModelFileError, TokenizerError, UnsupportedModelError, UsageError
from nocopy.models.huggingface import JSON_LIMIT, read_json
from nocopy.models.tokenizer import Tokenizer, TokenizerParts
from nocopy.models.tokenizer_bpe import byte_level_piece
from nocopy.models.vocabulary import END_TEXTS

ROLES: Final[dict[str, str]] = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unk": "unk_token",
    "sep": "sep_token",
    "pad": "pad_token",
    "cls": "cls_token",
    "mask": "mask_token",
}
"""Roles of special tokens and their keys in tokenizer_config.json."""
KINDS: Final = {"BPE": "bpe", "WordPiece": "wordpiece", "Unigram": "unigram"}


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a token's text becomes bytes, read from the file's decoder."""

    byte_level: bool = False
    space: str = ""
    byte_fallback: bool = False
    continuation: str = ""
    strip_space: bool = False

    def piece(self, text: str) -> bytes:
        """Return the bytes of a token that is not an added one."""
        if self.byte_level:
            return byte_level_piece(text)
        if self.byte_fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        if self.continuation:
            known = text.startswith(self.continuation)
            return (text[len(self.continuation) :] if known else " " + text).encode()
        return (text.replace(self.space, " ") if self.space else text).encode()


def load_folder_tokenizer(path: str | Path) -> Tokenizer:
    """Build the tokenizer of a model folder.

    Args:
        path: the folder; it holds tokenizer.json and usually tokenizer_config.json.

    Raises:
        UsageError: there is no tokenizer.json.
        ModelFileError: a file is too large or not JSON.
        TokenizerError: the library refuses it.
        UnsupportedModelError: it decodes in a way that is not known here.
    """
    path = Path(path)
    library = _load(path / "tokenizer.json")
    config = _optional(path / "tokenizer_config.json")
    added = library.get_added_tokens_decoder()
    special = _special(library, config)
    decoding = read_decoder(json.loads(library.decoder.__getstate__()) if library.decoder else None)
    special_ids = frozenset(token for token, entry in added.items() if entry.special)
    prefix, suffix = _added_around(library, special, config)

    lock = threading.Lock()  # the library takes the switch as state, and threads may share a tokenizer

    def encode(text: str, parse_special: bool) -> list[int]:
        with lock:
            library.encode_special_tokens = not parse_special
            return library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def piece(token: int) -> bytes:
        if token in added:
            return added[token].content.encode()
        return decoding.piece(library.id_to_token(token) or "")

    model = type(library.model).__name__
    return Tokenizer(
        TokenizerParts(
            kind="spm" if model == "BPE" and decoding.byte_fallback else KINDS.get(model, model.lower()),
            size=max(library.get_vocab(with_added_tokens=True).values()) + 1,
            encode=encode,
            piece=piece,
            lookup=library.token_to_id,
            special=special,
            special_ids=special_ids,
            end_ids=_end_ids(path, library, special, added.keys()),
            prefix=prefix,
            suffix=suffix,
            strip_space=decoding.strip_space,
        )
    )


def read_decoder(config: dict[str, Any] | None) -> Decoding:
    """Read a decoder's description, as the library states it.

    Raises:
        UnsupportedModelError: a decoder, or a combination, that is not known here.
    """
    steps: list[dict[str, Any]] = []

    def flatten(step: dict[str, Any]) -> None:
        if step.get("type") == "Sequence":
            for inner in step["decoders"]:
                flatten(inner)
        else:
            steps.append(step)

    flatten(config or {"type": "Fuse"})
    found: dict[str, Any] = {}
    for step in steps:
        read = DECODERS.get(step["type"])
        if read is None:
            raise UnsupportedModelError(
                f"the tokenizer decodes with {step['type']!r}; known are {', '.join(DECODERS)} and Sequence"
            )
        found |= read(step)
    return Decoding(**found)


def _replace(step: dict[str, Any]) -> dict[str, Any]:
    pattern = step["pattern"].get("String")
    if step["content"] != " " or not pattern:
        raise UnsupportedModelError(
            f"the tokenizer's decoder replaces {step['pattern']} by {step['content']!r};"
            " only spaces are known"
        )
    return {"space": pattern}


def _metaspace(step: dict[str, Any]) -> dict[str, Any]:
    return {"space": step["replacement"], "strip_space": step.get("prepend_scheme", "always") != "never"}


def _strip(step: dict[str, Any]) -> dict[str, Any]:
    return {"strip_space": step["content"] == " " and step["start"] > 0}


DECODERS: Final[dict[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "ByteLevel": lambda _step: {"byte_level": True},
    "ByteFallback": lambda _step: {"byte_fallback": True},
    "Fuse": lambda _step: {},
    "Replace": _replace,
    "Metaspace": _metaspace,
    "Strip": _strip,
    "WordPiece": lambda step: {"continuation": step["prefix"], "strip_space": True},
}


def _load(path: Path) -> Library:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"the tokenizer '{path}' was asked for; {error.strerror}") from error
    if size > JSON_LIMIT:
        raise ModelFileError(str(path), "too-large", f"it has {size} bytes; {JSON_LIMIT} are accepted")
    try:
        library = Library.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"the tokenizer '{path}' cannot be used: {error}") from error
    # A file may ask for padding or truncation; a session decides about lengths itself.
    library.no_padding()
    library.no_truncation()
    return library


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(value: Any) -> str | None:
    """A token is written as its text or as an object that holds it."""
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("content")
    return value if isinstance(value, str) else None


def _special(library: Library, config: dict[str, Any]) -> dict[str, int]:
    special: dict[str, int] = {}
    for role, key in ROLES.items():
        text = _text(config.get(key))
        token = library.token_to_id(text) if text else None
        if token is not None:
            special[role] = token
    return special


def _added_around(
    library: Library, special: dict[str, int], config: dict[str, Any]
) -> tuple[list[int], list[int]]:
    """Ask the file's post-processor what it puts around a text; then the configuration's two flags."""
    plain = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a", add_special_tokens=True).ids
    starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    at = starts[0] if starts else 0
    prefix, suffix = whole[:at], whole[at + len(plain) :]
    if config.get("add_bos_token") is True and "bos" in special and special["bos"] not in prefix:
        prefix = [special["bos"], *prefix]
    if config.get("add_eos_token") is True and "eos" in special and special["eos"] not in suffix:
        suffix = [*suffix, special["eos"]]
    return prefix, suffix


def _end_ids(path: Path, library: Library, special: dict[str, int], added: Any) -> frozenset[int]:
    """Collect the tokens that end a generation: configured ones, the eos, and those known by their text."""
    ends = {special["eos"]} if "eos" in special else set[int]()
    configured: Any = _optional(path / "generation_config.json").get("eos_token_id")
    if configured is None:
        configured = _optional(path / "config.json").get("eos_token_id")
    values = cast(list[Any], configured) if isinstance(configured, list) else [configured]
    ends |= {value for value in values if isinstance(value, int)}
    known = {library.token_to_id(text) for text in END_TEXTS}
    return frozenset(ends | {token for token in known if token is not None and token in added})
