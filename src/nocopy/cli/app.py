"""The verbs and how they are grouped. A verb's module is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cyclopts import App, Group, Parameter

from nocopy.cli import version
from nocopy.cli.status import MEANING

GUESTS = Group("Guests", sort_key=1)
MACHINE = Group("This machine", sort_key=2)
SHELL = Group("Shell", sort_key=3)
EVERYWHERE = Group("Everywhere", sort_key=9)


@dataclass(frozen=True)
class Verb:
    """A verb.

    `group` is where it is listed, the first paragraph of `help` is its line there, `examples` are commands
    and what they do.
    """

    group: Group
    help: str
    examples: tuple[tuple[str, str], ...]


VERBS = {
    "run": Verb(
        GUESTS,
        """Run a guest on a device.

GUEST is a .wasm or .wat file, a folder with one in it, or an example that comes with nocopy. Everything after
it
goes to the guest, whose exit status becomes this one's.""",
        (
            ("nocopy run examples/matmul", "a guest that comes with nocopy"),
            ("nocopy run --report examples/matmul", "and say which pointers, bytes and times"),
            ("nocopy run --device cpu app.wasm -v", "your own; -v goes to the guest"),
            ("nocopy run --dir data::/in --env LANG app.wasm", "it sees ./data as /in, and LANG"),
            ("nocopy run -W timeout=5s,max-memory=1GiB app.wasm", "it may not take more than that"),
            ("nocopy run --invoke add app.wasm 2 3", "call one function, print its result"),
        ),
    ),
    "demo": Verb(
        GUESTS,
        "A guest, a device, one memory: the idea in a few seconds.",
        (("nocopy demo", "on the best device here"), ("nocopy demo --device cpu", "on that one")),
    ),
    "prove": Verb(
        MACHINE,
        """Show that guest and device use the same bytes, and what that saves.

Measured here: the address of the guest's memory as the pages, the device and WebAssembly have it; what
sharing and copying 16 MiB cost in resident memory, each in a fresh process; a matrix product, element by
element; the round trip from guest to device and back, beside a host that copies. The exit status is 1 if the
evidence does not
hold.""",
        (
            ("nocopy prove", "on the best device here"),
            ("nocopy prove --plot proof.png", "and draw the round trips"),
            ("nocopy prove --device cpu --size 1MiB --json", "a short one, for a script"),
        ),
    ),
    "doctor": Verb(
        MACHINE,
        "Say what works here, and how to get the rest.",
        (("nocopy doctor", "for people"), ("nocopy doctor --json", "for a bug report")),
    ),
    "devices": Verb(
        MACHINE,
        "List the devices, and how each reaches the guest's memory.",
        (("nocopy devices", "for people"), ("nocopy devices --json", "for a script")),
    ),
    "bench": Verb(
        MACHINE,
        """Measure one thing beside its peer.

Both take turns, and medians are compared. A ratio above 1 always means that nocopy is better.""",
        (
            ("nocopy bench", "what can be measured"),
            ("nocopy bench roundtrip --device cpu", "one of them"),
            ("nocopy bench share --plot share.png", "with a picture"),
        ),
    ),
    "completion": Verb(
        SHELL,
        "Print or install the completion script of a shell.",
        (
            ("nocopy completion --install", "for the shell you are in"),
            ("nocopy completion zsh > _nocopy", "print it"),
        ),
    ),
}


def unwrapped(text: str) -> str:
    """One line for each paragraph: the screen decides where lines end."""
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in text.split("\n\n"))


def epilogue(examples: tuple[tuple[str, str], ...]) -> str:
    """The end of a help page."""
    width = max(len(command) for command, _ in examples)
    return "\n".join(["Examples:", "", *(f"    {command:{width}}  {says}" for command, says in examples)])


STATUSES = "Exit status:\n\n" + "\n".join(f"    {s.value:<3}  {meaning}" for s, meaning in MEANING.items())
FIRST = epilogue(
    (
        ("nocopy demo", "what it does, in a few seconds"),
        ("nocopy run examples/matmul", "run a guest on the best device here"),
        ("nocopy prove --plot proof.png", "the evidence that nothing is copied"),
        ("nocopy doctor", "what works here, and what would fix the rest"),
    )
)

app = App(
    name="nocopy",
    help="Run WebAssembly guests whose linear memory is the GPU's memory.",
    version=version,
    help_format="plaintext",
    help_epilogue=f"{FIRST}\n\n{STATUSES}",
    default_parameter=Parameter(negative=(), show_default=lambda value: value or None),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
app["--help"].group = EVERYWHERE
app["--version"].group = EVERYWHERE

for _name, _verb in VERBS.items():
    app.command(
        f"nocopy.cli.{_name}:{_name}",
        name=_name,
        group=_verb.group,
        help=unwrapped(_verb.help),
        help_epilogue=epilogue(_verb.examples),
    )


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(group=EVERYWHERE, help="Show the traceback of an error.")] = False,
) -> int:
    """Hand the tokens to the verb. `--debug` was read from them before, by `entry`."""
    del debug
    return app(tokens) or 0
