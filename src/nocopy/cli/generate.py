"""`nocopy generate`: a text goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nocopy.cli.choices import Json
from nocopy.cli.language import ModelOptions, SamplingOptions

if TYPE_CHECKING:
    from nocopy.session.completion import Completion
    from nocopy.session.language import LanguageModel


def generate(
    prompt: Annotated[str | None, Parameter(help="The text; left out, what stdin has.")] = None,
    /,
    *,
    p: Annotated[
        str | None,
        Parameter(
            name=["-p", "--prompt"], metavar="TEXT", help="The same, as an option.", allow_leading_hyphen=True
        ),
    ] = None,
    file: Annotated[
        str | None, Parameter(name=["-f", "--file"], metavar="FILE", help="The same, from a file.")
    ] = None,
    system: Annotated[
        str | None,
        Parameter(
            metavar="TEXT",
            help="Make the text a user's message, after this system message.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    echo: Annotated[bool, Parameter(help="Print the prompt first.")] = False,
    report: Annotated[
        bool, Parameter(name=["--report", "-v"], help="Then say on stderr how fast it was, and the seed.")
    ] = False,
    json: Json = False,
    model: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from itertools import chain

    from nocopy.cli.output import print_json
    from nocopy.cli.speed import describe, print_speed
    from nocopy.cli.stream import print_pieces

    text = find_prompt(prompt, p, file)
    asked, options = model or ModelOptions(), (sampling or SamplingOptions()).arguments()
    with asked.open() as language_model:
        chat = system is not None or asked.chat_template is not None
        completion = begin(language_model, text, system, options, chat=chat)
        try:
            if json:
                found = {"text": completion.text, "tokens": completion.tokens, "finish": completion.finish}
                print_json(found | {"prompt": text} | describe(language_model, completion))
            else:
                print_pieces(chain([text] if echo else [], completion))
        finally:
            if report:
                print_speed(language_model, completion)
    return 0


def begin(
    model: LanguageModel, text: str, system: str | None, options: dict[str, Any], *, chat: bool
) -> Completion:
    """The text as it is, with control tokens that it spells out; or as a conversation of one turn."""
    if not chat:
        return model.generate(text, parse_special=True, **options)
    messages = [{"role": "system", "content": system}] if system is not None else []
    return model.chat([*messages, {"role": "user", "content": text}], **options)


def find_prompt(*given: str | None) -> str:
    """The one prompt that was given: as an argument, as -p, in a file, or on stdin.

    Raises:
        UsageError: there are several or none.
    """
    import sys

    from nocopy.cli.language import read_stdin, read_text
    from nocopy.errors import UsageError

    argument, option, file = given
    if sum(value is not None for value in given) > 1:
        raise UsageError("several prompts were given; give one: as an argument, with -p, or with -f")
    if file is not None:
        return without_line_end(read_text("-f", file))
    found = argument if argument is not None else option
    if found is not None:
        return found
    if sys.stdin.isatty():
        raise UsageError("no text was given; write it after the verb, in quotes, or pipe it in")
    return without_line_end(read_stdin())


def without_line_end(text: str) -> str:
    """The text without the line end that editors and `echo` put after it."""
    return text.removesuffix("\n").removesuffix("\r")
