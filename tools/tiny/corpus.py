"""The corpus of the tiny model: the Python standard library's own sources and docstrings (PSF licence).

    python tools/tiny/corpus.py OUT

Writes OUT/tokenizer.json (byte-level BPE), OUT/train.npy and OUT/held_out.npy (u16 token ids) and
OUT/corpus.json (what went in). One file in fifty is held out. Conversations about the library are made from
its docstrings, so that the model knows the form of a question and an answer.
"""

from __future__ import annotations

import ast
import json
import sys
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 6144
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
LARGEST = 400_000
"""Characters; larger files are tables, not programs."""


def sources() -> Iterator[tuple[str, str]]:
    """Every module of the standard library: its path and its text."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if "site-packages" in parts or "lib2to3" in parts or parts[0] in ("encodings", "pydoc_data"):
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if 0 < len(text) <= LARGEST:
            yield "/".join(parts), text


def conversations(name: str, text: str) -> Iterator[str]:
    """A question and its answer for every documented function and class of a module."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        doc = ast.get_docstring(node)
        if doc and len(doc) <= 1200:
            what = "does" if isinstance(node, ast.FunctionDef) else "is"
            verb = " do?" if what == "does" else "?"
            question = f"What {what} {module}.{node.name}{verb}"
            yield f"<|user|>{question}<|end|><|assistant|>{doc}<|end|>"


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    train: list[str] = []
    held_out: list[str] = []
    for name, text in sources():
        side = held_out if zlib.crc32(name.encode()) % 50 == 0 else train
        side.append(text)
        if "test" not in name:
            side.extend(conversations(name, text))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_gpt2(), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        train,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.save(str(out / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    counts: dict[str, int] = {}
    for side, texts in (("train", train), ("held_out", held_out)):
        ids = [i for e in tokenizer.encode_batch(texts) for i in (*e.ids, end)]
        np.save(out / f"{side}.npy", np.array(ids, np.uint16))
        counts[f"{side}_texts"], counts[f"{side}_tokens"] = len(texts), len(ids)
    facts = {"python": sys.version.split()[0], "vocabulary": VOCABULARY, **counts}
    (out / "corpus.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts))


def _gpt2() -> object:
    """GPT-2's way to cut text into words, which GGUF calls "gpt-2"."""
    from tokenizers import Regex

    return Regex(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


if __name__ == "__main__":
    main()
