"""The tokenizer that sessions, guests and the command line use, whatever file it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nocopy.errors import TokenizerError
from nocopy.models.detokenizer import Detokenizer


@dataclass(frozen=True)
class TokenizerParts:
    """What a loader found; `Tokenizer` puts it to work.

    `encode(text, parse_special)` gives ids without the added ones. `piece(id)` gives a token's bytes;
    `special_ids` are those that are not text. `prefix` and `suffix` go around a whole text. `special` maps
    roles ("bos", "eos", "eot", "unk", "pad", "sep", "cls", "mask") to ids; `end_ids` end a generation.
    """

    kind: str
    size: int
    encode: Callable[[str, bool], list[int]]
    piece: Callable[[int], bytes]
    lookup: Callable[[str], int | None]
    special: Mapping[str, int]
    special_ids: frozenset[int]
    end_ids: frozenset[int]
    prefix: Sequence[int]
    suffix: Sequence[int]
    strip_space: bool


class Tokenizer:
    """Text to token ids and back.

    `kind` is "bpe", "spm" or "wordpiece". Ids are 0 to `size` - 1.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self.kind = parts.kind
        self.size = parts.size
        self.special: Mapping[str, int] = parts.special
        self.special_ids = parts.special_ids
        self.end_ids = parts.end_ids
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Cut text into tokens.

        Args:
            text: any text; lone surrogates are refused.
            add_special: put the model's own tokens (bos, eos, [CLS], [SEP]) around it, as the model says.
            parse_special: take control tokens that are written out, such as "<|im_end|>", as tokens. Leave
                it off for text that a user wrote.

        Raises:
            TokenizerError: the text cannot be written as UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"a text of {len(text)} characters was to be tokenised; the one at {error.start} is a lone"
                " surrogate, which is not text; remove it"
            ) from error
        ids = self._parts.encode(text, parse_special)
        return [*self._parts.prefix, *ids, *self._parts.suffix] if add_special else ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Turn the tokens of a whole text back into it; what is not UTF-8 becomes U+FFFD.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        return self.decode_bytes(ids, skip_special=skip_special).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """Turn the tokens of a whole text back into its bytes, exactly.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        stream = self.stream(continues=False, skip_special=skip_special)
        return b"".join(map(stream.push_bytes, ids))

    def stream(self, *, continues: bool = True, skip_special: bool = True) -> Detokenizer:
        """Start turning tokens into text one at a time.

        Args:
            continues: the tokens follow others, so a space at their start is text. False for a whole text.
            skip_special: leave out tokens that are not text; else they appear as they are written.
        """
        hidden = self.special_ids if skip_special else frozenset[int]()
        strip = self._parts.strip_space and not continues
        return Detokenizer(lambda token: b"" if token in hidden else self.piece(token), strip_space=strip)

    def piece(self, token: int) -> bytes:
        """Return the bytes of one token; special ones as they are written.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        found = self._pieces.get(token)
        if found is None:
            if not 0 <= token < self.size:
                raise TokenizerError(
                    f"token {token} was asked for; the vocabulary has ids 0 to {self.size - 1}"
                )
            found = self._pieces[token] = self._parts.piece(token)
        return found

    def pieces(self) -> list[bytes]:
        """The bytes of every token, by id."""
        return [self.piece(token) for token in range(self.size)]

    def token_id(self, text: str) -> int | None:
        """The id of the token that the vocabulary writes so; None if there is none."""
        return self._parts.lookup(text)
