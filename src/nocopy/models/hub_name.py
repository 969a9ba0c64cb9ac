"""Names of models on the Hugging Face hub, `user/repo[:QUANT]`, and which file of a repository one means."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from nocopy.errors import UsageError
from nocopy.models.gguf import PART_NAME

NAME: Final = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?::(?P<quant>[\w.-]+))?", re.ASCII)
QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|FP?16|FP?32|MXFP4\w*))(?=[-./]|$)", re.IGNORECASE
)
"""How files name their type, between separators: Q4_K_M, UD-Q4_K_XL, IQ2_XS, bf16, F32, MXFP4_MOE."""
PREFERRED: Final = ("Q4_K_M", "Q8_0", "Q4_0", "Q5_K_M", "Q6_K", "BF16", "F16", "F32")
"""What is taken, in this order, when a name says nothing; then the first by name."""
BESIDE: Final = re.compile(r"(^|/)(mmproj|imatrix|mtp-)[^/]*$|imatrix\.gguf$", re.IGNORECASE)
"""GGUF files that lie beside a model and are none."""


@dataclass(frozen=True)
class HubName:
    """A repository, and the quantisation that is wanted ("" for the preferred one)."""

    repo: str
    quant: str = ""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `user/repo` or `user/repo:QUANT`.

        Raises:
            UsageError: it is neither.
        """
        found = NAME.fullmatch(text)
        if found is None or any(part in (".", "..") for part in found["repo"].split("/")):
            raise UsageError(
                f"the model {text!r} was asked for; models of the hub are named USER/REPO or USER/REPO:QUANT,"
                " such as Qwen/Qwen3-0.6B-GGUF:Q8_0"
            )
        return cls(found["repo"], found["quant"] or "")

    def __str__(self) -> str:
        return f"{self.repo}:{self.quant}" if self.quant else self.repo

    def choose(self, files: Collection[str]) -> str | None:
        """The GGUF file that is meant, of paths in the repository; None if it has none at all.

        Of a split model it is the first part.

        Raises:
            UsageError: none is of the wanted quantisation; the message names those there are.
        """
        models = model_files(files)
        wanted = self.quant.upper()
        fitting = [file for file in models if wanted in ("", quant_of(file))]
        if models and not fitting:
            there = ", ".join(sorted({quant_of(file) for file in models} - {""})) or "files that name none"
            raise UsageError(f"the model {self} was asked for; {self.repo} has {there}")
        return min(fitting, key=lambda file: preference(quant_of(file)), default=None)


def preference(quant: str) -> int:
    """Where a type stands among those that are taken when a name says nothing; less is better."""
    return PREFERRED.index(quant) if quant in PREFERRED else len(PREFERRED)


def model_files(files: Iterable[str]) -> list[str]:
    """The GGUF models among paths of a repository, in order; of a split one the first part."""
    return sorted(f for f in files if f.endswith(".gguf") and not BESIDE.search(f) and part_number(f) == 1)


def part_number(file: str) -> int:
    """Which part of a split model a file is, from 1; a whole one is its own first."""
    found = PART_NAME.fullmatch(file)
    return int(found["number"]) if found else 1


def parts_of(file: str) -> list[str]:
    """All files of a model, of which `file` is the first."""
    found = PART_NAME.fullmatch(file)
    if found is None:
        return [file]
    return [f"{found['stem']}-{i + 1:05}-of-{found['count']}.gguf" for i in range(int(found["count"]))]


def quant_of(file: str) -> str:
    """The type that a file's name states, in capitals; "" if it states none."""
    found = QUANT.findall(file.removesuffix(".gguf"))
    return found[-1].upper().replace("FP", "F") if found else ""
