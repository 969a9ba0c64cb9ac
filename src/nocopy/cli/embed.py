"""`nocopy embed`: vectors of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nocopy.cli.choices import AllowCopy, DeviceName
from nocopy.cli.language import HubModel, ModelPath, Offline


def embed(
    *texts: Annotated[str, Parameter(help="The texts; left out, the lines of stdin.")],
    file: Annotated[
        str | None, Parameter(name=["-f", "--file"], metavar="FILE", help="Take the lines of a file.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            name=["-o", "--out"], metavar="FILE.npy", help="Write f32 [texts, width] there, not JSON lines."
        ),
    ] = None,
    normalize: Annotated[
        bool, Parameter(negative="--no-normalize", help="Make each vector of length 1.")
    ] = True,
    model: ModelPath = None,
    hf: HubModel = None,
    device: DeviceName = "auto",
    allow_copy: AllowCopy = False,
    offline: Offline = False,
) -> int:
    """See `app.VERBS`."""
    import json
    import sys

    import numpy as np

    from nocopy.cli.language import locate
    from nocopy.cli.progress import progress_bar
    from nocopy.session.language import LanguageModel

    check_out(out)
    lines = find_texts(texts, file)
    path = locate(model, hf, offline=offline)
    with LanguageModel(path, device=device, allow_copy=allow_copy) as language_model:
        if out is None:
            for text in lines:
                vector = language_model.embed(text, normalize=normalize)
                sys.stdout.write(json.dumps({"text": text, "embedding": vector.tolist()}) + "\n")
            return 0
        vectors = np.empty((len(lines), language_model.config.width), np.float32)
        with progress_bar("embed") as progress:
            for i, text in enumerate(lines):
                vectors[i] = language_model.embed(text, normalize=normalize)
                progress(f"{i + 1} of {len(lines)}", (i + 1) / len(lines))
        np.save(out, vectors)
    return 0


def check_out(out: Path | None) -> None:
    """Refuse a file that could not be written, before the work and not after it.

    Raises:
        UsageError: its name does not end in .npy, or its folder does not exist.
    """
    from nocopy.errors import UsageError

    if out is None:
        return
    if out.suffix != ".npy":
        raise UsageError(f"-o {out} was asked for; the name has to end in .npy")
    if not out.absolute().parent.is_dir():
        raise UsageError(f"-o {out} was asked for; the folder {out.absolute().parent} does not exist")


def find_texts(texts: tuple[str, ...], file: str | None) -> list[str]:
    """The texts that were given: as arguments, or a line each in a file or on stdin; empty lines are skipped.

    Raises:
        UsageError: there are none, or both arguments and a file.
    """
    import sys

    from nocopy.cli.language import read_stdin, read_text
    from nocopy.errors import UsageError

    if texts and file is not None:
        raise UsageError("texts and a file were given; give one of them")
    if texts:
        return list(texts)
    if file is None and sys.stdin.isatty():
        raise UsageError('no text was given; write some, such as nocopy embed "a cat" "a dog"')
    read = read_text("-f", file) if file is not None else read_stdin()
    lines = [line for line in read.splitlines() if line.strip()]
    if not lines:
        raise UsageError("texts were to be embedded; there is no line with text in it")
    return lines
