"""The vocabulary of a GGUF model: tokens, their types, and which of them mean something special."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from nocopy.errors import TokenizerError
from nocopy.models.metadata import Metadata

PREFIX: Final = "tokenizer.ggml."


class TokenType(IntEnum):
    """What a token is, numbered as GGUF numbers it."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_KEYS: Final[dict[str, tuple[str, ...]]] = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id", "separator_token_id"),  # the first is how the format spells it
    "pad": ("padding_token_id",),
    "cls": ("cls_token_id",),
    "mask": ("mask_token_id",),
}
"""Roles of special tokens and the metadata keys, after `tokenizer.ggml.`, that name them."""

END_TEXTS: Final = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>",
    "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>",
    "<end_of_utterance>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<|fim_pad|>", "<|repo_name|>", "<|fim_repo|>", "<|file_sep|>",
})  # fmt: skip
"""Tokens that end a generation wherever they occur; many files name only one of them in their keys."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id.

    `types` is i32 [n] of TokenType; `scores` f32 [n], zeros if the file has none. `special` maps the roles
    of `SPECIAL_KEYS` to ids. `end_ids` end a generation.
    """

    texts: list[str]
    types: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    special: dict[str, int]
    end_ids: frozenset[int]
    ids: dict[str, int] = field(repr=False)

    def of_type(self, *types: TokenType) -> list[int]:
        """Ids of all tokens of these types, in order."""
        return np.flatnonzero(np.isin(self.types, types)).tolist()


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read the vocabulary of a GGUF model.

    Raises:
        MetadataError: the tokens are missing, or a key has another type or length.
        TokenizerError: a token text comes twice, or a special id is outside the vocabulary.
    """
    texts = list(metadata.strings(PREFIX + "tokens"))
    n = len(texts)
    ids = {text: i for i, text in enumerate(texts) if text}
    if len(ids) != n - texts.count(""):
        twice = next(text for i, text in enumerate(texts) if text and ids[text] != i)
        raise TokenizerError(f"the vocabulary of '{metadata.source}' has the token {twice!r} more than once")
    types = np.full(n, TokenType.NORMAL, np.int32)
    if metadata.has(PREFIX + "token_type"):
        types = metadata.array(PREFIX + "token_type", count=n).astype(np.int32)
    scores = np.zeros(n, np.float32)
    if metadata.has(PREFIX + "scores"):
        scores = metadata.array(PREFIX + "scores", count=n).astype(np.float32)
        if np.isnan(scores).any():
            raise TokenizerError(f"the vocabulary of '{metadata.source}' has a score that is not a number")
    special = _special_ids(metadata, n)
    ends = {ids[text] for text in END_TEXTS if text in ids}
    types[list(ends)] = TokenType.CONTROL
    ends |= {special[role] for role in ("eos", "eot", "eom") if role in special}
    if {"<|return|>", "<|call|>", "<|end|>"} <= ids.keys():
        ends.discard(ids["<|end|>"])  # in the harmony format it ends a message, not the turn
    return Vocabulary(texts, types, scores, special, frozenset(ends), ids)


def _special_ids(metadata: Metadata, count: int) -> dict[str, int]:
    special: dict[str, int] = {}
    for role, names in SPECIAL_KEYS.items():
        for name in names:
            if not metadata.has(PREFIX + name):
                continue
            value = metadata.integer(PREFIX + name)
            if not 0 <= value < count:
                raise TokenizerError(f"'{PREFIX}{name}' is {value}; the vocabulary has {count} tokens")
            special[role] = value
    return special
