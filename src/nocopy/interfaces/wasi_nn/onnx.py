"""ONNX models through ONNX Runtime: inputs are read where the guest has them, outputs written where it wants.

`set_input` binds nothing yet: it checks, and keeps where the bytes are. The model runs

- in `compute`, into memory of ONNX Runtime's, the first time that inputs have these shapes, or if the model
  is one whose run can fail or change by its data. `get_output` copies then: the ledger counts it as staged;
- else in `get_output`, straight into the guest's buffer. `onnx_ops` says why the guest cannot tell.
"""

from __future__ import annotations

import ctypes
import json
import math
import threading
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.errors import DeadlineError, MemoryLimitError, NnError
from nocopy.interfaces.grip import rest
from nocopy.interfaces.wasi_nn.encoding import Errno, Target
from nocopy.interfaces.wasi_nn.held import Held
from nocopy.interfaces.wasi_nn.onnx_model import (
    CUDA,
    OnnxModel,
    Port,
    load_runtime,
    one_line,
    shared_model,
)
from nocopy.interfaces.wasi_nn.protocol import Buffer, Host, Source, Tensor
from nocopy.models import Model


def open_graph(source: Source, target: Target, config: bytes, host: Host) -> OnnxGraph:
    """See `protocol.OpenGraph`."""
    if config.strip() and json_object(config):
        raise NnError(Errno.INVALID_ARGUMENT, "options were given with an ONNX model; it has none")
    given = source.files or source.parts
    if len(given) != 1:
        raise NnError(
            Errno.INVALID_ARGUMENT, f"an ONNX model in {len(given)} parts was to be loaded; it is one file"
        )
    if source.parts:
        raw = source.parts[0].read()  # ONNX Runtime keeps the weights; the guest may go on and free its own
        host.ledger.uploaded += len(raw)
        return OnnxGraph(OnnxModel(raw, "from the guest", target), host)
    file = source.files[0]
    if isinstance(file, Model):
        raise NnError(Errno.INVALID_ENCODING, "a language model was granted as ONNX; grant it as ggml")
    return OnnxGraph(shared_model(Path(file), target), host)


def json_object(config: bytes) -> dict[str, Any]:
    """A model's options.

    Raises:
        NnError: not a JSON object.
    """
    try:
        found: Any = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise NnError(Errno.INVALID_ARGUMENT, f"options were given that are not JSON: {error}") from None
    if not isinstance(found, dict):
        raise NnError(Errno.INVALID_ARGUMENT, "options were given that are not a JSON object")
    return found  # pyright: ignore[reportUnknownVariableType]


class OnnxGraph:
    """A model that one guest has loaded."""

    def __init__(self, model: OnnxModel, host: Host) -> None:
        self.model, self.host = model, host

    def context(self) -> OnnxContext:
        """See `Graph`."""
        return OnnxContext(self.model, self.host)

    def close(self) -> None:
        """See `Graph`."""
        del self.model


GONE = (
    "an output was fetched again after inputs were set anew; it was written to the guest and is not kept."
    " Fetch it before, or let the host copy: --wasi-nn-copy, nn_copy=True."
)


class State(Enum):
    """Where a context is between `compute` and `get_output`."""

    NEW = "nothing was computed"
    WAITING = "the model runs when an output is fetched"
    DONE = "the model has run"


NEW, WAITING, DONE = State
"""An attribute of an enumeration costs more to look up."""


class OnnxContext:
    """See `Context`."""

    __slots__ = (
        "_again",
        "_bound",
        "_charged",
        "_gone",
        "_held",
        "_host",
        "_io",
        "_model",
        "_outputs",
        "_play",
        "_ready",
        "_shapes",
        "_state",
        "_written",
    )

    def __init__(self, model: OnnxModel, host: Host) -> None:
        self._model, self._host = model, host
        self._play: Callable[[Any], None] = model.session.run_with_iobinding
        self._held: list[Held | None] = [None] * len(model.inputs)
        self._bound: list[object] = [None] * len(model.inputs)
        self._io: Any = None
        self._state = NEW
        self._ready = False
        """The outputs' shapes for the inputs that are set are known, and the model may run later."""
        self._shapes: list[tuple[int, ...]] = []
        """Those shapes."""
        self._again: tuple[int, Buffer, int] | None = None
        """The output, its place and its bytes, if the next inference is bound to all the same as the last."""
        self._outputs: list[Any] = []
        """Those that ONNX Runtime has; None for one that was written to the guest."""
        self._written: object = None
        """Which output is bound to which bytes of the guest's memory."""
        self._gone = ""
        """Why outputs that ONNX Runtime does not have cannot be had by running again; "" if they can."""
        self._charged = 0

    # Inputs

    def set_input(self, index: int, tensor: Tensor) -> None:
        """See `Context`."""
        old = self._held[index] if index < len(self._held) else None
        if old is not None and old.given is tensor and not old.copied:
            if self._state is not WAITING and not self._gone:
                self._gone = GONE
            else:
                self._settle()
            old.sample = old.look()
            return
        held = Held(fitting(find(self._model.inputs, index, "input"), tensor), tensor, self._host)
        self._settle()
        if old is not None:
            old.close()
        self._held[index] = held
        self._ready, self._again = False, None

    def _settle(self) -> None:
        """Make outputs independent of the inputs, which are about to change."""
        if self._state is WAITING:
            try:
                self._compute_now(self._inputs())
            except (NnError, MemoryLimitError) as error:
                self._gone = str(error)
        elif not self._gone:
            self._gone = GONE

    def _inputs(self) -> list[Held]:
        missing = [p.name for p, h in zip(self._model.inputs, self._held, strict=True) if h is None]
        if missing:
            raise NnError(
                Errno.INVALID_ARGUMENT,
                f"a computation was asked for; no input was set for {', '.join(missing)}",
            )
        return [held for held in self._held if held is not None]

    # Computing

    def compute(self) -> None:
        """See `Context`."""
        if not self._ready:
            held = self._inputs()
            shapes = self._model.output_shapes(tuple(h.tensor.shape for h in held))
            if shapes is None or not self._model.can_wait or self._host.copy:
                self._compute_now(held)
                return
            self._ready, self._shapes = True, shapes
        self._drop()
        self._state = WAITING

    def _compute_now(self, held: list[Held]) -> None:
        """Run into memory of ONNX Runtime's."""
        self._drop()
        self._again = None
        io = self._bind(held)
        for port in self._model.outputs:
            io.bind_output(port.name, "cpu")
        self._run(io)
        outputs = list(io.get_outputs())
        io.clear_binding_outputs()
        self._written = None
        nbytes = sum(size_of(p, o) for p, o in zip(self._model.outputs, outputs, strict=True))
        self._host.quota.charge(nbytes)
        self._outputs, self._charged, self._state = outputs, nbytes, DONE
        if all(p.element is not None for p in self._model.outputs):
            shapes = [tuple(o.shape()) for o in outputs]
            self._model.learn(tuple(h.tensor.shape for h in held), shapes)

    def _bind(self, held: list[Held]) -> Any:
        if self._io is None:
            self._io = self._model.session.io_binding()
        device, shift = self._place()
        for index, (port, each) in enumerate(zip(self._model.inputs, held, strict=True)):
            address = each.address()
            in_guest = address == each.tensor.data.address
            where = (device, address + shift) if in_guest else ("cpu", address)
            if port.kind == "tensor(bool)":
                check_bools(address, each.nbytes)
            key = (where, each.tensor.shape)
            if self._bound[index] != key:
                assert port.element is not None
                self._io.bind_input(port.name, where[0], 0, port.element.number, each.tensor.shape, where[1])
                self._bound[index] = key
            if self._model.provider == CUDA and where[0] == "cpu":
                self._host.ledger.uploaded += each.nbytes
        return self._io

    def _place(self) -> tuple[str, int]:
        """Where ONNX Runtime finds the guest's memory: a device, and what to add to the CPU's addresses."""
        grip = self._host.grip
        if self._model.provider == CUDA and grip.name == "cuda" and grip.pages is not None:
            return "cuda", grip.pages.device_address - self._host.memory.address
        return "cpu", 0

    def _run(self, io: Any) -> None:
        try:
            if self._host.time_left is None:
                self._play(io)
            else:
                self._play_until(io)
        except DeadlineError:
            raise
        except Exception as error:
            raise NnError(
                Errno.RUNTIME_ERROR, f"a computation was asked for; ONNX Runtime failed: {one_line(error)}"
            ) from None

    def _play_until(self, io: Any) -> None:
        until = self._host.until
        if until is None:
            self._play(io)
        else:
            run_until(self._model.session, io, until)

    def compute_single(self) -> None:
        """See `Context`: ONNX models do not compute in pieces."""
        raise not_in_pieces()

    # Outputs

    def get_output(self, index: int, out: Buffer) -> int:
        """See `Context`."""
        again = self._again
        if again is not None and self._state is WAITING and again[0] == index and again[1] is out:
            same = True
            for held in self._held:
                same = same and held is not None and held.look() == held.sample
            if same:
                self._run(self._io)
                self._outputs, self._state = [None], DONE
                return again[2]
        port = find(self._model.outputs, index, "output")
        if self._state is NEW:
            raise NnError(
                Errno.RUNTIME_ERROR, self._gone or "an output was fetched before anything was computed"
            )
        if port.element is None:
            raise unsupported(port)
        if self._state is WAITING or self._outputs[index] is None:
            if self._gone:
                raise NnError(Errno.RUNTIME_ERROR, self._gone)
            return self._write(index, port, out)
        value = self._outputs[index]
        nbytes = size_of(port, value)
        out.require(nbytes)
        ctypes.memmove(out.address, value.data_ptr(), nbytes)
        self._host.ledger.staged += nbytes
        return nbytes

    def _write(self, index: int, port: Port, out: Buffer) -> int:
        """Run into the guest's own buffer."""
        assert port.element is not None
        shape = self._shapes[index]
        nbytes = math.prod(shape) * port.element.itemsize
        out.require(nbytes)
        held = self._inputs()
        start, stop = out.offset, out.offset + nbytes
        if any(each.overlaps(start, stop) for each in held) or out.address % port.element.itemsize:
            self._compute_now(held)
            return self.get_output(index, out)
        io = self._bind(held)
        device, shift = self._place()
        key = (index, device, out.address + shift, shape)
        if self._written != key or len(self._model.outputs) > 1:
            for i, other in enumerate(self._model.outputs):
                if i == index:
                    io.bind_output(port.name, device, 0, port.element.number, shape, out.address + shift)
                else:
                    io.bind_output(other.name, "cpu")
            self._written = key
        self._run(io)
        if self._model.provider == CUDA and device == "cpu":
            self._host.ledger.downloaded += nbytes
        self._keep_others(index, io)
        self._state = DONE
        if self._model.repeats and not any(each.copied for each in held):
            self._again = index, out, nbytes
        return nbytes

    def _keep_others(self, index: int, io: Any) -> None:
        self._drop_outputs()
        if len(self._model.outputs) == 1:
            self._outputs = [None]
            return
        outputs = list(io.get_outputs())
        outputs[index] = None
        nbytes = sum(
            size_of(p, o) for p, o in zip(self._model.outputs, outputs, strict=True) if o is not None
        )
        self._host.quota.charge(nbytes)
        self._outputs, self._charged = outputs, nbytes

    def get_output_single(self, index: int, out: Buffer) -> int:
        """See `Context`: ONNX models do not compute in pieces."""
        del index, out
        raise not_in_pieces()

    def fini_single(self) -> None:
        """See `Context`: ONNX models do not compute in pieces."""
        raise not_in_pieces()

    # Ending

    def _drop(self) -> None:
        """Forget what was computed."""
        self._drop_outputs()
        self._state, self._gone = NEW, ""

    def _drop_outputs(self) -> None:
        if self._charged:
            self._host.quota.refund(self._charged)
        self._outputs, self._charged = [], 0

    def close(self) -> None:
        """See `Context`."""
        self._drop()
        for held in self._held:
            if held is not None:
                held.close()
        self._held, self._io = [], None


def find(ports: list[Port], index: int, what: str) -> Port:
    """The input or output of a number.

    Raises:
        NnError: there is none.
    """
    if index >= len(ports):
        raise NnError(
            Errno.INVALID_ARGUMENT, f"{what} {index} was asked for; the model has {len(ports)}, from 0 on"
        )
    return ports[index]


def fitting(port: Port, tensor: Tensor) -> Tensor:
    """The tensor as the model takes it: one element may be given as [1] for a scalar.

    Raises:
        NnError: the model takes other tensors.
    """
    tensor.require_whole()
    if port.element is None:
        raise unsupported(port)
    if tensor.type is not port.element.given:
        raise NnError(
            Errno.INVALID_ARGUMENT,
            f"a tensor of {tensor.type.name} was given for the input {port.name!r}; it takes {port.kind},"
            f" given as {port.element.given.name}",
        )
    if port.shape is None:
        return tensor
    if port.shape == () and tensor.shape == (1,):
        return Tensor(tensor.type, (), tensor.data)
    fits = len(tensor.shape) == len(port.shape) and all(
        want is None or want == n for want, n in zip(port.shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in port.shape)
        raise NnError(
            Errno.INVALID_ARGUMENT,
            f"a tensor of shape {list(tensor.shape)} was given for the input {port.name!r}; it takes"
            f" [{wanted}]",
        )
    return tensor


def size_of(port: Port, value: Any) -> int:
    """Bytes of an output; 0 for one that cannot cross."""
    return math.prod(value.shape()) * port.element.itemsize if port.element is not None else 0


def check_bools(address: int, nbytes: int) -> None:
    """Refuse bytes that are no truth values: C++ may do anything with them.

    Raises:
        NnError: some are neither 0 nor 1.
    """
    given: npt.NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_ubyte * nbytes).from_address(address))
    if nbytes and given.max() > 1:
        raise NnError(
            Errno.INVALID_ARGUMENT, "a tensor of truth values was given with bytes other than 0 and 1"
        )


def run_until(session: Any, io: Any, until: float) -> None:
    """Run a model, and end it when its time is up.

    Raises:
        DeadlineError: it was.
    """
    options: Any = load_runtime().RunOptions()
    late = threading.Timer(rest(until) or 0, setattr, (options, "terminate", True))
    late.start()
    try:
        session.run_with_iobinding(io, options)
    except Exception:
        if time.monotonic() >= until:
            raise DeadlineError(
                "a model ran until the deadline of the guest's call. Raise it, or use a smaller model."
            ) from None
        raise
    finally:
        late.cancel()


def unsupported(port: Port) -> NnError:
    """The error for a type that does not cross."""
    return NnError(
        Errno.UNSUPPORTED_OPERATION,
        f"{port.name!r} of the model was asked for; it is a {port.kind}, which wasi-nn cannot carry",
    )


def not_in_pieces() -> NnError:
    """The error for WasmEdge's functions of one token."""
    return NnError(
        Errno.UNSUPPORTED_OPERATION,
        "an output in pieces was asked for; an ONNX model computes at once: use compute and get_output",
    )
