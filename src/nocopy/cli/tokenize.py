"""`nocopy tokenize`: how a model cuts a text."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from nocopy.cli.choices import Json
from nocopy.cli.language import HubModel, ModelPath, Offline


def tokenize(
    text: Annotated[str | None, Parameter(help="The text; left out, what stdin has.")] = None,
    /,
    *,
    ids: Annotated[bool, Parameter(help="Print the ids alone, as a list.")] = False,
    show_count: Annotated[bool, Parameter(help="Print the number of tokens alone.")] = False,
    bos: Annotated[
        bool, Parameter(negative="--no-bos", help="Put the model's own tokens around the text.")
    ] = True,
    parse_special: Annotated[
        bool,
        Parameter(negative="--no-parse-special", help="Take control tokens that are written out as tokens."),
    ] = True,
    json: Json = False,
    model: ModelPath = None,
    hf: HubModel = None,
    offline: Offline = False,
) -> int:
    """See `app.VERBS`."""
    import sys

    from nocopy.cli.generate import find_prompt
    from nocopy.cli.language import locate
    from nocopy.cli.output import print_json
    from nocopy.models import load_tokenizer, open_files

    given = find_prompt(text, None, None)
    tokenizer = load_tokenizer(open_files(locate(model, hf, offline=offline)))
    tokens = tokenizer.encode(given, add_special=bos, parse_special=parse_special)
    if json:
        pieces = [tokenizer.piece(token) for token in tokens]
        shown = [{"id": t, "text": p.decode(errors="replace")} for t, p in zip(tokens, pieces, strict=True)]
        print_json({"count": len(tokens), "tokens": shown})
    elif show_count:
        sys.stdout.write(f"{len(tokens)}\n")
    elif ids:
        sys.stdout.write(f"{tokens}\n")
    else:
        sys.stdout.writelines(f"{t:6}  {_quoted(tokenizer.piece(t))}\n" for t in tokens)
    return 0


def _quoted(piece: bytes) -> str:
    """Text as Python writes it, or bytes where a character is cut in two."""
    try:
        return repr(piece.decode())
    except UnicodeDecodeError:
        return repr(piece)
