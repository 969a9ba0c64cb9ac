"""Finding special tokens in text: they are cut out before anything else looks at it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that text may hold literally.

    `always` ones are found in any text; the others only where special tokens are asked for, so that a
    user's text cannot forge the end of a turn. `lstrip` and `rstrip` swallow the white space beside it.
    """

    id: int
    text: str
    always: bool
    lstrip: bool = False
    rstrip: bool = False


class SpecialTokens:
    """Cuts text at special tokens, the longest first where several begin at one place."""

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._tokens = {token.text: token for token in tokens if token.text}
        self._every = _pattern(self._tokens)
        self._always = _pattern(text for text, token in self._tokens.items() if token.always)

    def split(self, text: str, *, parse_special: bool) -> Iterator[str | int]:
        """Yield pieces of text, never empty, and ids of special tokens, in order."""
        pattern = self._every if parse_special else self._always
        start, strip = 0, False
        for match in pattern.finditer(text) if pattern else ():
            token = self._tokens[match.group()]
            before = text[start : match.start()]
            before = before.lstrip() if strip else before
            before = before.rstrip() if token.lstrip else before
            if before:
                yield before
            yield token.id
            start, strip = match.end(), token.rstrip
        rest = text[start:].lstrip() if strip else text[start:]
        if rest:
            yield rest


Trie: TypeAlias = dict[str, "Trie"]


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Compile a regex that matches the longest of some texts.

    It is a trie, not a plain alternation: a vocabulary may have thousands of special tokens, and a plain
    one tries each of them at each place of the text.
    """
    root: Trie = {}
    for text in texts:
        node = root
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return re.compile(_alternatives(root)) if root else None


def _alternatives(node: Trie) -> str:
    branches: list[str] = []
    for char, child in node.items():
        if char:
            run = re.escape(char)
            while len(child) == 1 and "" not in child:
                char, child = next(iter(child.items()))  # noqa: PLW2901 - follow a run of only children
                run += re.escape(char)
            branches.append(run + (_alternatives(child) if child.keys() != {""} else ""))
    body = "|".join(branches)
    if "" in node:
        return f"(?:{body})?"
    return f"(?:{body})" if len(branches) > 1 else body
