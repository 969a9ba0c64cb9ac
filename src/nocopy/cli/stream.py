"""Generated text to stdout, piece by piece."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

HARMLESS: Final = "\n\t"
VISIBLE: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in HARMLESS},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
}
"""Control characters and the signs that stand for them."""


def print_pieces(pieces: Iterable[str]) -> None:
    """Write text as it comes. A terminal gets signs for control characters, which could be commands to it,
    and a line end after the text, also when Ctrl-C ended it; a pipe gets the text as it is.
    """
    terminal, last = sys.stdout.isatty(), "\n"
    try:
        for piece in pieces:
            sys.stdout.write(piece.translate(VISIBLE) if terminal else piece)
            sys.stdout.flush()
            last = piece
    finally:
        if terminal and not last.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
