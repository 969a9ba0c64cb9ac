"""`nocopy chat`: a conversation, typed or piped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nocopy.cli.language import ModelOptions, SamplingOptions
from nocopy.errors import Error, UsageError

if TYPE_CHECKING:
    from nocopy.session.language import LanguageModel
    from nocopy.session.sampler import Sampling


def chat(
    *,
    prompt: Annotated[
        str | None,
        Parameter(
            name=["-p", "--prompt"],
            metavar="TEXT",
            help="Say this, print the answer, and end.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    system: Annotated[
        str | None,
        Parameter(
            metavar="TEXT", help="What the model is told before the conversation.", allow_leading_hyphen=True
        ),
    ] = None,
    history: Annotated[
        bool, Parameter(negative="--no-history", help="Remember typed lines for the next time.")
    ] = True,
    report: Annotated[
        bool, Parameter(name=["--report", "-v"], help="After each answer, say on stderr how fast it was.")
    ] = False,
    model: ModelOptions | None = None,
    sampling: SamplingOptions | None = None,
) -> int:
    """See `app.VERBS`."""
    from nocopy.cli.interrupt import interrupts_are_answered
    from nocopy.cli.lines import line_editing

    options = (sampling or SamplingOptions()).arguments()
    with ExitStack() as stack:
        language_model = stack.enter_context((model or ModelOptions()).open())
        conversation = Conversation(language_model, options, report)
        conversation.begin(system)
        if prompt is not None:
            conversation.say(prompt)
        elif not sys.stdin.isatty():
            converse(conversation, ask=False)
        else:
            stack.enter_context(interrupts_are_answered())
            stack.enter_context(line_editing(history=history))
            greet(language_model)
            converse(conversation, ask=True)
    return 0


@dataclass
class Conversation:
    """What was said so far, and the model that answers."""

    model: LanguageModel
    options: dict[str, Any]
    report: bool
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    def begin(self, system: str | None) -> None:
        """Forget everything, and tell the model something else, or nothing.

        Raises:
            UsageError: the model has no chat template.
            TemplateError: its template knows no system message.
        """
        messages = [{"role": "system", "content": system}] if system else []
        self.model.encode_chat(
            [*messages, {"role": "user", "content": "."}]
        )  # refuses before anything is typed
        self.messages = messages

    def say(self, text: str) -> None:
        """Say something and print the answer. A message that cannot be answered is taken back."""
        self.messages.append({"role": "user", "content": text})
        self.answer()

    def answer(self, sampling: Sampling | None = None) -> None:
        """Print the answer to the last message, and keep what was made of it even if Ctrl-C ends it."""
        from nocopy.cli.output import errors
        from nocopy.cli.speed import print_speed
        from nocopy.cli.stream import print_pieces

        said: list[str] = []
        complete = False
        options: dict[str, Any] = self.options | ({"sampling": sampling} if sampling else {})
        try:
            completion = self.model.chat(self.messages, **options)
            print_pieces(keeping(completion, said))
            complete = True
        finally:
            if said or complete:
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()
        if not sys.stdout.isatty():
            sys.stdout.write("\n")
            sys.stdout.flush()
        if completion.finish == "length":
            full = completion.session.length + 1 >= completion.session.context
            why = "the context is full; /clear begins again" if full else "-n tokens were made"
            errors().print(f"[dim]({why})[/]")
        if self.report:
            print_speed(self.model, completion)

    def regenerate(self) -> None:
        """Answer the last message again, with another seed."""
        if len(self.messages) < 2 or self.messages[-1]["role"] != "assistant":
            raise UsageError("another answer was asked for; there is none yet")
        before = list(self.messages)
        self.messages.pop()
        try:
            self.answer(replace(self.options["sampling"], seed=None))
        finally:
            if len(self.messages) < len(before):
                self.messages = before  # there is no other answer: the one there was stays

    def tokens(self) -> str:
        """How much of the context the conversation takes."""
        ids = self.model.encode_chat(self.messages) if self.messages else []
        return f"{len(self.messages)} messages, {len(ids)} of {self.model.context} tokens"


def keeping(pieces: Iterable[str], kept: list[str]) -> Iterator[str]:
    """The same pieces, each remembered in `kept` before it goes on."""
    for piece in pieces:
        kept.append(piece)
        yield piece


def greet(model: LanguageModel) -> None:
    """Say who answers, and how to end."""
    from rich.markup import escape

    from nocopy.cli.output import errors

    where = model.device.info.name
    errors().print(f"[bold]{escape(model.name)}[/] on {where}. [dim]/help lists commands, Ctrl-D ends.[/]")


def converse(conversation: Conversation, *, ask: bool) -> None:
    """Answer messages until there are no more. People are told of mistakes and go on; a pipe's end it."""
    from nocopy.cli.entry import complain
    from nocopy.cli.lines import read_message

    while True:
        try:
            message = read_message(ask=ask)
            if message.startswith("/"):
                if not command(conversation, message):
                    return
            elif message:
                conversation.say(message)
        except EOFError:
            if ask:
                sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            if not ask:
                raise
            sys.stderr.write("\n(stopped; Ctrl-D or /quit ends)\n")
        except Error as error:
            if not ask:
                raise
            complain(str(error))


def command(conversation: Conversation, line: str) -> bool:
    """Do what a line that begins with a slash says; False ends the conversation.

    Raises:
        UsageError: there is no such command.
    """
    from nocopy.cli.choices import suggestion
    from nocopy.cli.output import errors

    name, _, rest = line.partition(" ")
    if name in ("/quit", "/exit", "/bye"):
        return False
    if name not in COMMANDS:
        near = suggestion(name, COMMANDS)
        raise UsageError(f"the command {name} was given; there are {', '.join(COMMANDS)}.{near}")
    said = COMMANDS[name][1](conversation, rest.strip())
    if said:
        errors().print(said, markup=False)
    return True


def help_text(_conversation: Conversation, _rest: str) -> str:
    """The commands."""
    lines = [f"{name:9} {meaning}" for name, (meaning, _) in COMMANDS.items()]
    return "\n".join([*lines, '"""…"""   a message of several lines; so does \\ at the end of a line'])


def _clear(conversation: Conversation, _rest: str) -> str:
    first = conversation.messages[:1]
    kept = first[0]["content"] if first and first[0]["role"] == "system" else None
    conversation.begin(kept)
    return "A new conversation."


def _system(conversation: Conversation, rest: str) -> str:
    conversation.begin(rest)
    return "A new conversation, after that system message." if rest else "A new conversation, without one."


def _save(conversation: Conversation, rest: str) -> str:
    from nocopy.cli.output import size
    from nocopy.snapshot.session import freeze_session

    if not rest:
        raise UsageError("/save was given without a file; write /save FILE")
    done = freeze_session(conversation.model.own_session, rest, messages=conversation.messages)
    return f"{len(conversation.messages)} messages in {rest}, {size(done.nbytes)}."


def _load(conversation: Conversation, rest: str) -> str:
    from nocopy.snapshot.session import thaw_session

    if not rest:
        raise UsageError("/load was given without a file; write /load FILE")
    thawed = thaw_session(conversation.model, rest)
    conversation.model.adopt(thawed.session)
    conversation.messages = thawed.messages
    return f"{conversation.tokens()}; nothing is read again."


COMMANDS: dict[str, tuple[str, Callable[[Conversation, str], str | None]]] = {
    "/help": ("list these", help_text),
    "/clear": ("begin again; the system message stays", _clear),
    "/system": ("begin again, after another system message", _system),
    "/regen": ("another answer to the last message", lambda c, _: c.regenerate()),
    "/save": ("write the conversation to a FILE, the model's memory of it included", _save),
    "/load": ("go on with the conversation in a FILE", _load),
    "/tokens": ("how much of the context is used", lambda c, _: c.tokens()),
    "/quit": ("end; so does Ctrl-D", lambda _c, _r: None),
}
"""Commands, what they do, and the function that does it; it returns what to print."""
