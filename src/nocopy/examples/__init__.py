"""The prebuilt examples: guests that ship with the package; the sources are in the repository's `examples/`.

The command line finds guests here; nothing else imports this package. The invariant: each module is what
`tools/build_examples.py` makes of the committed source.
"""

from __future__ import annotations

from pathlib import Path, PurePath

EXAMPLES = {
    "matmul": "two matrices, multiplied on the device and checked by the guest",
    "image": "a picture becomes a drawing: blur, ink the edges, resize",
    "mlp": "a trained classifier reads handwritten digits",
    "agent": "a language model uses tools that the guest implements (needs --model default=FILE)",
    "timetravel": "an agent that is forked at every line it writes (needs --model default=FILE)",
    "classify": "a convolutional network reads digits, through wasi-nn (needs -S nn and onnxruntime)",
    "search": "lines of text are found by their meaning, through wasi-nn (needs --nn-model minilm=FILE)",
}
"""Names, with what each one shows."""


def find(guest: str) -> Path | None:
    """The module of an example, named as in the repository: "examples/matmul", a path before it or not.

    Returns None if `guest` names no example.
    """
    path = PurePath(guest)
    if path.parent.name != "examples" or path.name not in EXAMPLES:
        return None
    return Path(__file__).with_name(f"{path.name}.wasm")
