"""Token ids to text, one at a time: bytes are exact, text appears as soon as its UTF-8 is complete."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    """Turns a stream of tokens into text.

    A character whose bytes are spread over several tokens comes out with its last byte. Bytes that can
    never become UTF-8 come out as U+FFFD; `push_bytes` gives them as they are.

    Args:
        piece: the bytes of a token.
        strip_space: leave out one space at the very start, for vocabularies that put one before every text.
    """

    def __init__(self, piece: Callable[[int], bytes], *, strip_space: bool) -> None:
        self._piece = piece
        self._strip = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push_bytes(self, token: int) -> bytes:
        """Return the bytes that a token adds. Do not mix with `push` in one stream.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        raw = self._piece(token)
        if self._strip and raw:
            self._strip = False
            return raw.removeprefix(b" ")
        return raw

    def push(self, token: int) -> str:
        """Return the text that is complete now; "" while a character is still open.

        Raises:
            TokenizerError: the id is outside the vocabulary.
        """
        return self._decoder.decode(self.push_bytes(token))

    def finish(self) -> str:
        """End the stream: what is left of an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
