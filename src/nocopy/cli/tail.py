"""Finds where the guest's own arguments begin, so that no option of theirs is taken for one of ours.

Wasmtime's rule: `nocopy run [OPTIONS] GUEST [ARGS]...`, and everything after GUEST belongs to the guest,
`--help` and `--` included.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def command_index(tokens: Sequence[str]) -> int | None:
    """Where the verb stands: the first token that is not an option."""
    return next((i for i, token in enumerate(tokens) if not token.startswith("-")), None)


def guest_index(tokens: Sequence[str], valued: Collection[str]) -> int | None:
    """Where GUEST stands among the tokens after `run`; None if there is none.

    Args:
        tokens: what follows `run`.
        valued: the options that take a value, such as "--device" and "-W".
    """
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token == "--":
            return i + 1 if i + 1 < len(tokens) else None
        if not token.startswith("-") or token == "-":
            return i
        i += 2 if token in valued else 1
    return None
