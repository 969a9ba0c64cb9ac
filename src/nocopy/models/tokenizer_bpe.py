"""Byte-level BPE: every byte is written as a printable character, words merge by rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from nocopy.errors import TokenizerError
from nocopy.models.pretokenizers import PreTokenizer


def _alphabet() -> dict[int, int]:
    """Map code points to bytes: printable Latin-1 stands for itself, other bytes for U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: byte for byte in printable} | {0x100 + i: byte for i, byte in enumerate(others)}


BYTE_OF: Final = _alphabet()


def byte_level_piece(text: str) -> bytes:
    """Return the bytes that a byte-level token stands for; a token outside the alphabet is its own text."""
    try:
        return bytes([BYTE_OF[ord(char)] for char in text])
    except KeyError:
        return text.encode()


class BPE:
    """Encodes text that holds no special tokens.

    Args:
        ids: token text to id.
        merges: "LEFT RIGHT", best first.
        rules: how text is cut into words.

    Raises:
        TokenizerError: a merge is not two tokens of the vocabulary.
    """

    def __init__(self, ids: dict[str, int], merges: Sequence[str], rules: PreTokenizer) -> None:
        pairs: list[tuple[str, str]] = []
        for index, merge in enumerate(merges):
            left, space, right = merge.partition(" ")
            if not (left and space and right) or " " in right:
                raise TokenizerError(f"merge {index} of the vocabulary is {merge!r}; it must be two tokens")
            pairs.append((left, right))
        try:
            model = models.BPE(vocab=ids, merges=pairs, ignore_merges=rules.ignore_merges)
        except Exception as error:  # the library has no exception type of its own
            raise TokenizerError(f"the vocabulary's merges do not fit its tokens: {error}") from error
        self._tokenizer = Tokenizer(model)
        if rules.nfc:
            self._tokenizer.normalizer = normalizers.NFC()
        cuts = [pre_tokenizers.Split(Regex(regex), behavior="isolated") for regex in rules.regexes]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        # The batch function is the one that leaves out character offsets, which cost twice the encoding.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
