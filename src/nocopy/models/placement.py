"""Puts a model's weights where a device reads them: in place if it shares host pages, else uploaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from nocopy.device.protocol import Device, Pages
from nocopy.errors import UnsupportedModelError
from nocopy.memory.ledger import Ledger
from nocopy.models.ggml import DTYPES
from nocopy.models.model import Model
from nocopy.tape import Space, Tensor


@dataclass(frozen=True)
class Placement:
    """The weights space of a device, and each weight's place in it."""

    pages: Pages
    tensors: Mapping[str, Tensor]

    def close(self) -> None:
        """Let go of the pages."""
        self.pages.close()


def place(
    model: Model, device: Device, ledger: Ledger | None = None, progress: Callable[[int], None] | None = None
) -> Placement:
    """Make a model's weights reachable for a device.

    Args:
        model: an open model.
        device: where it will be played.
        ledger: counts the bytes as shared, or as uploaded on a device with memory of its own.
        progress: called with the bytes done so far while uploading.

    Raises:
        UnsupportedModelError: a weight has a type that no kernel reads.
        DeviceError: the device has too little memory; the message names both sizes.
    """
    pages, starts = device.place(weight_ranges(model), ledger=ledger, progress=progress)
    return Placement(pages, tensors_at(model, starts))


def weight_ranges(model: Model) -> list[tuple[int, int]]:
    """The host bytes that hold a model's weights, (address, bytes): its files, and what was made of them."""
    files = model.weights.files
    return [(f.address, f.mapped_nbytes) for f in files] + [(c.address, c.size) for c in model.constants]


def tensors_at(model: Model, starts: Sequence[int]) -> dict[str, Tensor]:
    """Each weight as an operand, where `weight_ranges` begin at these bytes of the weights space.

    Raises:
        UnsupportedModelError: a weight has a type that no kernel reads.
    """
    files = model.weights.files
    tensors: dict[str, Tensor] = {}
    for name in model.weights:
        weight = model.weights[name]
        if weight.type not in DTYPES:
            raise UnsupportedModelError(
                f"the weight '{name}' is {weight.type.name}; kernels read {', '.join(t.name for t in DTYPES)}"
            )
        at = starts[weight.file] + weight.offset
        tensors[name] = Tensor(Space.WEIGHTS, at, weight.shape, DTYPES[weight.type])
    for number, memory in enumerate(model.constants, start=len(files)):
        for name, view in model.derived.items():
            if view.memory is memory:
                at = starts[number] + view.offset
                tensors[name] = Tensor(Space.WEIGHTS, at, view.shape, view.dtype)
    return tensors
