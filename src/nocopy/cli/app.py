"""The verbs and how they are grouped. A verb's module is imported when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import App, Group, Parameter

from nocopy.cli import version
from nocopy.cli.status import MEANING

GUESTS = Group("Guests", sort_key=1)
LANGUAGE = Group("Language models", sort_key=2)
MACHINE = Group("This machine", sort_key=4)
SNAPSHOTS = Group("Snapshots", sort_key=3)
SHELL = Group("Shell", sort_key=5)
EVERYWHERE = Group("Everywhere", sort_key=9)


@dataclass(frozen=True)
class Verb:
    """A verb.

    `group` is where it is listed, the first paragraph of `help` is its line there, `examples` are commands
    and what they do. A verb with `verbs` does nothing itself; theirs are functions of its module.
    """

    group: Group
    help: str
    examples: tuple[tuple[str, str], ...]
    verbs: Mapping[str, str] = field(default_factory=dict[str, str])


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
            ("nocopy run --model default=m.gguf app.wasm", "it may open that model"),
            ("nocopy run --invoke add app.wasm 2 3", "call one function, print its result"),
        ),
    ),
    "freeze": Verb(
        GUESTS,
        """Run a guest to its checkpoint, or to its end, and write all that it is to a file.

The file has its memory, its sessions with language models and its module; `nocopy thaw` goes on from there,
in another process, on another device. Everything after GUEST goes to the guest.""",
        (
            ("nocopy freeze -o agent.nocopy app.wasm -v", "to its first checkpoint; -v goes to the guest"),
            ("nocopy freeze -o a.nocopy --at ready app.wasm", "to the checkpoint that it calls ready"),
            ("nocopy freeze -o a.nocopy --compress app.wasm", "smaller, to send it somewhere"),
        ),
    ),
    "thaw": Verb(
        GUESTS,
        """Go on with a guest that was frozen.

It goes on from its checkpoint, with the arguments and the environment that it had. Folders and models are
granted anew, by the names that it knows; a model must be the same one. The file may be thawed any number of
times.""",
        (
            ("nocopy thaw agent.nocopy", "on the best device here"),
            ("nocopy thaw --model default=m.gguf agent.nocopy", "it had that model open"),
            ("nocopy thaw --freeze-on-exit agent.nocopy agent.nocopy", "and write what became of it"),
            ("nocopy thaw --invoke next app.nocopy 3", "call one function of it"),
        ),
    ),
    "fork": Verb(
        GUESTS,
        """Go on several times with a guest that was frozen.

The clones share the memory that none of them has written. Each can tell which one it is; they run one after
the other.""",
        (
            ("nocopy fork agent.nocopy 8", "eight times"),
            ("nocopy fork -o clones agent.nocopy 8", "and write each to clones/0.nocopy, ..."),
        ),
    ),
    "demo": Verb(
        GUESTS,
        "A guest, a device, one memory: the idea in a few seconds.",
        (("nocopy demo", "on the best device here"), ("nocopy demo --device cpu", "on that one")),
    ),
    "generate": Verb(
        LANGUAGE,
        """Continue a text with a language model.

The text goes on as it is; with --system or --chat-template it is a user's message, which is answered. From a
file or a pipe, the line end after it is left off. Tokens appear as they come; Ctrl-C stops.""",
        (
            ('nocopy generate "def fibonacci(n):"', "with the model that comes with nocopy"),
            ('nocopy generate -m model.gguf -n 50 "Once"', "50 tokens, from a file"),
            ('nocopy generate -hf Qwen/Qwen3-0.6B-GGUF "Once"', "from the Hugging Face hub"),
            ("nocopy generate -s 1 --temp 0.2 --json < prompt.txt", "reproducibly, for a script"),
            ("nocopy generate -m model.gguf -j schema.json -f ask", "what comes fits a JSON schema"),
        ),
    ),
    "chat": Verb(
        LANGUAGE,
        """Talk with a language model.

Typed or piped: each line is a message, several lines stand between triple quotes or end in a backslash.
Lines that begin with a slash are commands: /help lists them. What the model has read once is not read again.
Ctrl-C stops an answer, Ctrl-D ends.""",
        (
            ("nocopy chat -hf Qwen/Qwen3-0.6B-GGUF", "type"),
            ('nocopy chat -m model.gguf -p "Why?"', "one question, one answer"),
            ("nocopy chat -m model.gguf < questions.txt", "a conversation from a file"),
            ('nocopy chat -m model.gguf --system "Be brief."', "told how to answer"),
        ),
    ),
    "embed": Verb(
        LANGUAGE,
        """Turn texts into vectors with an embedding model.

One JSON object a line, with the text and its vector; or a NumPy file.""",
        (
            ('nocopy embed -m bge.gguf "a cat" "a dog"', "two vectors, as JSON lines"),
            ("nocopy embed -m bge.gguf -f lines.txt -o vectors.npy", "one for each line, for NumPy"),
        ),
    ),
    "tokenize": Verb(
        LANGUAGE,
        "Show how a model cuts a text into tokens.",
        (
            ('nocopy tokenize -m model.gguf "Hello"', "ids and pieces"),
            ("nocopy tokenize -m model.gguf --show-count < book.txt", "how many there are"),
        ),
    ),
    "models": Verb(
        LANGUAGE,
        """List, show, fetch and delete models.

They are kept in the Hugging Face cache, which other programs use as well. HF_HOME, HF_HUB_CACHE, HF_TOKEN,
HF_ENDPOINT and HF_HUB_OFFLINE mean what they mean there.""",
        (
            ("nocopy models ls", "those on this machine"),
            ("nocopy models pull Qwen/Qwen3-0.6B-GGUF:Q8_0", "fetch one; what was interrupted goes on"),
            ("nocopy models show model.gguf", "its shape, types, tokenizer, memory"),
            ("nocopy models rm Qwen/Qwen3-0.6B-GGUF:Q8_0", "delete it; asks first"),
        ),
        verbs={
            "ls": "List the models on this machine.",
            "show": "Say what a model is.",
            "pull": "Fetch a model from the Hugging Face hub, or its newest version.",
            "rm": "Delete a model from the Hugging Face cache, or all of a repository.",
        },
    ),
    "snapshots": Verb(
        SNAPSHOTS,
        """List, show, verify, move and clean up snapshots.

A snapshot is a file, or STORE#NAME. A store is a folder, or an object store by URL: s3://, gs:// or az://,
with the credentials that the provider's own tools find in the environment. Snapshots of one agent share there
what did not change.""",
        (
            ("nocopy snapshots ls", "the snapshot files of this folder"),
            ("nocopy snapshots ls s3://bucket/agents", "those of a store"),
            ("nocopy snapshots show agent.snapshot", "its memories, sessions, digests"),
            ("nocopy snapshots show s3://bucket/agents#alice", "the same of one in a store"),
            ("nocopy snapshots verify agent.snapshot --key public.pem", "read all of it, check who signed"),
            ("nocopy snapshots verify s3://bucket/agents", "all of a store"),
            ("nocopy snapshots gc s3://bucket/agents", "free what no snapshot needs"),
            ("nocopy snapshots push agent.snapshot s3://bucket/agents#alice", "into a store"),
            ("nocopy snapshots pull s3://bucket/agents#alice", "back into a file"),
            ("nocopy snapshots rm s3://bucket/agents#alice", "forget it; gc frees the room"),
        ),
        verbs={
            "ls": "List the snapshots of a folder or a store.",
            "show": "Say what a snapshot is, without reading its pages.",
            "verify": "Read every byte and compare digests; the exit status is 1 if anything is damaged.",
            "gc": "Remove what no snapshot needs: chunks of a store, and what crashed writers have left.",
            "push": "Put a snapshot file into a store, which keeps what it has already.",
            "pull": "Make a file of a snapshot in a store: the bytes that were pushed, all of them verified.",
            "rm": "Forget a snapshot of a store.",
        },
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
        ('nocopy generate "def fibonacci(n):"', "continue a text, with the model that comes along"),
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
    if not _verb.verbs:
        app.command(
            f"nocopy.cli.{_name}:{_name}",
            name=_name,
            group=_verb.group,
            help=unwrapped(_verb.help),
            help_epilogue=epilogue(_verb.examples),
        )
        continue
    _several = App(
        name=_name, group=_verb.group, help=unwrapped(_verb.help), help_epilogue=epilogue(_verb.examples)
    )
    app.command(_several)
    for _part, _help in _verb.verbs.items():
        _own = tuple(e for e in _verb.examples if e[0].startswith(f"nocopy {_name} {_part}"))
        _several.command(f"nocopy.cli.{_name}:{_part}", name=_part, help=_help, help_epilogue=epilogue(_own))


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(group=EVERYWHERE, help="Show the traceback of an error.")] = False,
) -> int:
    """Hand the tokens to the verb. `--debug` was read from them before, by `entry`."""
    del debug
    return app(tokens) or 0
