"""SentencePiece's BPE: pieces merge by score, what remains unknown is spelt in bytes.

The `tokenizers` library merges pairs by rank; SentencePiece merges by the score of the *result*, leftmost
first. The two differ where scores are equal or a piece has several spellings, so this is its own merge.
It stays fast because text is first cut wherever no piece of the vocabulary spans two neighbouring
characters (before nearly every space), and the pieces of such runs are remembered.
"""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
import numpy.typing as npt

from nocopy.models.vocabulary import TokenType, Vocabulary

SPACE: Final = "\u2581"
"""What a space is written as."""
CACHE_RUNS: Final = 65_536
CACHE_LENGTH: Final = 32
"""Runs up to this many characters are remembered; longer ones rarely come again."""


def spm_piece(text: str, kind: int) -> bytes:
    """Return the bytes that a token stands for."""
    if kind == TokenType.BYTE:
        return bytes([int(text[3:-1], 16)])
    if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
        return text.encode()
    return text.replace(SPACE, " ").encode()


class SPM:
    """Encodes text that holds no special tokens and whose leading space, if any, is already there."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        normal = vocabulary.of_type(TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
        scores = vocabulary.scores.tolist()
        self._ids = {vocabulary.texts[i]: i for i in normal if vocabulary.texts[i]}
        # Heaps give the smallest first, and the highest score comes first.
        self._costs = {text: -scores[i] for text, i in self._ids.items()}
        self._unused = {vocabulary.texts[i] for i in vocabulary.of_type(TokenType.UNUSED)}
        self._bytes = _byte_ids(vocabulary)
        self._unknown = vocabulary.special.get("unk")
        self._joined = np.unique(_pairs("\0".join(["", "", *self._ids])))  # of all tokens, NUL between them
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        text = text.replace(" ", SPACE)
        ids: list[int] = []
        for run in _cut(text, self._joined):
            known = self._cache.get(run)
            if known is None:
                known = self._encode_run(run)
                if len(run) <= CACHE_LENGTH:
                    if len(self._cache) >= CACHE_RUNS:
                        self._cache.clear()
                    self._cache[run] = known
            ids += known
        return ids

    def _encode_run(self, run: str) -> list[int]:
        ids: list[int] = []
        for piece in self._merge(run):
            found = self._ids.get(piece)
            if found is not None:
                ids.append(found)
                continue
            spelt = [self._bytes.get(byte, self._unknown) for byte in piece.encode()]
            ids += [token for token in spelt if token is not None]
        return ids

    def _merge(self, run: str) -> list[str]:
        """Merge neighbours, best score first and leftmost first among equals, until none can."""
        costs = self._costs
        pieces: list[str] = list(run)
        n = len(pieces)
        after, before = list(range(1, n + 1)), list(range(-1, n - 1))
        halves: dict[str, tuple[str, str]] = {}
        queue: list[tuple[float, int, str]] = []

        def offer(left: int, right: int) -> None:
            merged = pieces[left] + pieces[right]
            cost = costs.get(merged)
            if cost is not None:
                heapq.heappush(queue, (cost, left, merged))
                if merged in self._unused:
                    halves[merged] = pieces[left], pieces[right]

        for i in range(n - 1):
            offer(i, i + 1)
        while queue:
            _, left, merged = heapq.heappop(queue)
            right = after[left]
            # A piece that was merged away is "", and a stale pair no longer has this length.
            if not pieces[left] or right == n or len(pieces[left]) + len(pieces[right]) != len(merged):
                continue
            pieces[left], pieces[right] = merged, ""
            following = after[left] = after[right]
            if following < n:
                before[following] = left
                offer(left, following)
            if before[left] >= 0:
                offer(before[left], left)
        return self._without_unused([piece for piece in pieces if piece], halves)

    def _without_unused(self, pieces: list[str], halves: dict[str, tuple[str, str]]) -> list[str]:
        """Take apart pieces that may serve as a step of a merge but not as its result."""
        if not halves:
            return pieces
        stack, out = pieces[::-1], list[str]()
        while stack:
            piece = stack.pop()
            if piece in halves:
                stack += halves[piece][::-1]
            else:
                out.append(piece)
        return out


def _byte_ids(vocabulary: Vocabulary) -> dict[int, int]:
    return {int(vocabulary.texts[i][3:-1], 16): i for i in vocabulary.of_type(TokenType.BYTE)}


def _pairs(text: str) -> npt.NDArray[np.uint64]:
    """Each two neighbouring characters as one number: u64 [len(text) - 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)
    return points[:-1] << np.uint64(32) | points[1:]


def _cut(text: str, joined: npt.NDArray[np.uint64]) -> list[str]:
    """Cut text between neighbours that no token contains: no merge can ever reach across."""
    if len(text) < 2:
        return [text] if text else []
    pairs = _pairs(text)
    where = np.searchsorted(joined, pairs)
    spans = joined[np.minimum(where, len(joined) - 1)] == pairs
    cuts = [0, *(np.flatnonzero(~spans) + 1).tolist(), len(text)]
    return [text[cuts[i] : cuts[i + 1]] for i in range(len(cuts) - 1)]
