"""ONNX models through wasi-nn: our host beside ONNX Runtime in Python, and beside a host that copies.

All three run the same model in ONNX Runtime. An inference is: two elements of the input change, the model
runs, the output is where the caller wants it. In a guest that is one call into it and its three calls to the
host; in Python it is one `run_with_iobinding`, bound beforehand to arrays of NumPy's: nothing can do less.
Each peer takes turns with our host alone: eight copies leave nothing in the caches for whoever comes next.
All is made anew `TRIES` times, and the median counts: which physical pages a tensor gets moves a figure by a
tenth either way.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from nocopy.bench.copying_nn import CopyingNn
from nocopy.bench.onnx_models import CLASSES, IMAGE, identity, mobilenet
from nocopy.bench.result import Row, row
from nocopy.bench.roundtrip import case, program
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.errors import DeviceError
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.wasi_nn.grants import NnLimits
from nocopy.interfaces.wasi_nn.onnx_model import load_runtime
from nocopy.memory.linear import LinearMemory
from nocopy.wasm import Guest

SIZES = tuple(2**i for i in range(10, 27, 2))
SECONDS = 0.5  # for each case, peer and try
TRIES = 5
PYTHON, COPYING = "ONNX Runtime in Python", "a host that copies"


@dataclass(frozen=True)
class Case:
    """A model with one input and one output of f32."""

    name: str
    model: bytes
    shape: tuple[int, ...]
    outputs: int


def rows(*, progress: Progress = silent) -> list[Row]:
    """Time inferences; the unit is µs."""
    cases = [passing(n) for n in SIZES]
    cases.append(Case("MobileNetV2", mobilenet(), IMAGE, CLASSES))
    found: list[Row] = []
    for i, each in enumerate(cases):
        progress(each.name, i / len(cases))
        found += [
            row(each.name, ours * 1e6, "us", peer, seconds * 1e6)
            for peer, (ours, seconds) in middle([timed(each) for _ in range(TRIES)]).items()
        ]
    return found


def passing(nbytes: int) -> Case:
    """The model that passes a tensor of so many bytes on."""
    count = nbytes // 4
    return Case(f"identity, {case(nbytes)}", identity((count,)), (count,), count)


def middle(tries: Sequence[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """The try whose ratio is the median, by peer."""
    return {
        peer: sorted((t[peer] for t in tries), key=lambda pair: pair[1] / pair[0])[len(tries) // 2]
        for peer in tries[0]
    }


def timed(each: Case, seconds: float = SECONDS) -> dict[str, tuple[float, float]]:
    """Median seconds of our host and of a peer, by peer.

    Raises:
        DeviceError: they disagree.
    """
    with ExitStack() as stack:
        ours = stack.enter_context(open_ours("cpu"))
        copying, _ = stack.enter_context(open_copying(each))
        python = InPython(each)
        for guest in (ours, copying):
            prepare(guest, each)
        infer = inference(ours)
        pairs = {
            peer: interleaved({"nocopy": infer, peer: call}, seconds=seconds)
            for peer, call in ((PYTHON, python.infer), (COPYING, inference(copying)))
        }
        agree(each, python, ours, copying)
    return {peer: (times["nocopy"], times[peer]) for peer, times in pairs.items()}


def open_ours(device: str) -> DeviceGuest:
    """Start the program as a guest of ours."""
    return DeviceGuest(program("wasinn"), device=device, nn_limits=NnLimits(model_bytes=1 << 30))


def open_session(each: Case) -> Any:
    """A session of ONNX Runtime as everybody opens it."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    return runtime.InferenceSession(each.model, options, providers=["CPUExecutionProvider"])


class InPython:
    """The model in Python, its input and output bound once."""

    def __init__(self, each: Case) -> None:
        self.session = open_session(each)
        size = prod(each.shape)
        self.x = (np.arange(size) % 1021 / np.float32(1021)).astype(np.float32).reshape(each.shape)
        self.y = np.zeros(each.outputs, np.float32)
        self._flat, self._ticket = self.x.reshape(-1), np.float32(0)
        inside, outside = self.session.get_inputs()[0], self.session.get_outputs()[0]
        self.binding = self.session.io_binding()
        self.binding.bind_input(inside.name, "cpu", 0, np.float32, self.x.shape, self.x.ctypes.data)
        self.binding.bind_output(outside.name, "cpu", 0, np.float32, tuple(outside.shape), self.y.ctypes.data)

    def infer(self) -> None:
        """One inference."""
        self._ticket = 1 - self._ticket
        self._flat[0] = self._flat[-1] = self._ticket
        self.session.run_with_iobinding(self.binding)


@contextmanager
def open_copying(each: Case) -> Generator[tuple[Guest, CopyingNn]]:
    """Start the program as a guest of a host that copies."""
    host = CopyingNn(open_session(each))

    def keep(memory: LinearMemory) -> None:
        memory.pages.prefer_large()
        host.memory = memory

    with Guest(program("wasinn"), imports=host.functions(), on_memory=keep) as guest:
        yield guest, host


def prepare(guest: Guest, each: Case) -> None:
    """Load the model in a guest.

    Raises:
        DeviceError: the guest could not.
    """
    at: int = guest.call("room", len(each.model))
    guest.memory.write(at, each.model)
    guest.memory.write(guest.call("dimensions"), np.array(each.shape, np.uint32).tobytes())
    error = guest.call("prepare", at, len(each.model), len(each.shape), prod(each.shape), 4 * each.outputs)
    if error:
        raise DeviceError(f"a guest was to load {each.name}; {said(guest, error)}")


def inference(guest: Guest) -> Callable[[], None]:
    """A function that makes one inference in a guest. It raises DeviceError if the guest could not."""
    call = guest.function("infer")

    def infer() -> None:
        error = call()
        if error:
            raise DeviceError(f"an inference was asked for; {said(guest, error)}")

    return infer


def said(guest: Guest, error: int) -> str:
    """What the guest's last failed call was about, or at least its number."""
    why = guest.last_error if isinstance(guest, DeviceGuest) else ""
    return why or f"the guest answered {error}"


def output(guest: Guest, each: Case) -> Any:
    """A guest's output."""
    return guest.memory.view(each.outputs, "f32", guest.call("output_at")).numpy()


def agree(each: Case, python: InPython, *guests: Guest) -> None:
    """Have everybody infer on the same input and compare.

    Raises:
        DeviceError: they disagree.
    """
    contenders: Sequence[tuple[Callable[[], None], Callable[[], Any], Callable[[], float]]] = [
        (python.infer, lambda: python.y, lambda: float(python.x.reshape(-1)[0])),
        *[
            (
                inference(g),
                lambda g=g: output(g, each),
                lambda g=g: float(g.memory.view(1, "f32", g.call("input_at")).numpy()[0]),
            )
            for g in guests
        ],
    ]
    answers: list[Any] = []
    for infer, answer, ticket in contenders:
        infer()
        if ticket() != 1.0:  # the two elements change between 0 and 1
            infer()
        answers.append(np.array(answer()))
    for other in answers[1:]:
        if not np.allclose(answers[0], other, rtol=1e-5, atol=1e-6):
            raise DeviceError(f"inferences of {each.name} were compared; the answers differ")
