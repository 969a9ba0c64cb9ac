"""Vectors of texts from an embedding model; the pass and the pooling run on the device."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.device.protocol import Device, Pages
from nocopy.errors import UsageError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.models.architectures import ARCHITECTURES
from nocopy.models.config import Rope
from nocopy.models.forward import encoder
from nocopy.models.graph import Batch
from nocopy.models.model import Model
from nocopy.models.placement import place
from nocopy.tape import Space, Tape, Tensor, validate

TAPES = 32
"""Recorded passes to keep, one for each number of tokens."""


class Embedder:
    """An embedding model (BERT family) on a device.

    Memory, in bytes from the start: tokens, positions and last, i32 [context] each; frequencies, f32; the
    vector, f32 [width].

    Raises:
        UsageError: the model is not an embedding model.
    """

    def __init__(self, model: Model, device: Device, *, ledger: Ledger | None = None) -> None:
        c = model.config
        if not ARCHITECTURES[c.architecture].encoder:
            raise UsageError(
                f"embeddings were asked for of a {c.architecture} model, which generates text;"
                " use a BERT or nomic-bert model"
            )
        self.model, self.device, self.config = model, device, c
        self._placement = place(model, device, ledger)
        step = -(-c.context * 4 // 64) * 64
        self._arrays = [Tensor(Space.GUEST, i * step, (c.context,), DType.I32) for i in range(3)]
        pairs = len(c.rope.frequencies) if c.rope else 0
        self._frequencies = Tensor(Space.GUEST, 3 * step, (pairs,), DType.F32)
        self._out = Tensor(Space.GUEST, 3 * step + -(-pairs * 4 // 64) * 64, (c.width,), DType.F32)
        size = -(-(self._out.offset + 4 * c.width) // 65536) * 65536
        self._memory = LinearMemory(size, reserve=size, guard=0)
        self._guest = device.share(self._memory.address, size, ledger=ledger)
        self._scratch: Pages | None = None
        self._tapes: OrderedDict[int, Tape] = OrderedDict()
        if c.rope:
            self._view(self._frequencies)[...] = c.rope.frequencies

    def embed(
        self, tokens: list[int], *, normalize: bool = True, timeout: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the vector of one text: f32 [width].

        Args:
            tokens: with the model's own around them, as its tokenizer adds.
            normalize: divide by its length, so that a dot product is the cosine.
            timeout: seconds; None means no limit.

        Raises:
            UsageError: no tokens, or more than the model's context; the message names both lengths.
            DeadlineError: it took longer than `timeout`.
        """
        c, n = self.config, len(tokens)
        if not 0 < n <= c.context:
            raise UsageError(f"a text of {n} tokens was to be embedded; this model takes 1 to {c.context}")
        for tensor, values in zip(self._arrays, (tokens, np.arange(n), n - 1), strict=True):
            self._view(tensor)[:n] = values
        tape = self._tape(n)
        if self._scratch is None or self._scratch.nbytes < tape.sizes.get(Space.SCRATCH, 0):
            if self._scratch is not None:
                self._scratch.close()
            self._scratch = self.device.allocate(-(-tape.sizes[Space.SCRATCH] // 65536) * 65536)
        spaces = {
            Space.GUEST: self._guest,
            Space.WEIGHTS: self._placement.pages,
            Space.SCRATCH: self._scratch,
        }
        program = self.device.compile(tape, spaces)
        try:
            self.device.play(program, timeout=timeout)
        finally:
            program.close()
        vector: npt.NDArray[np.float32] = self._view(self._out).copy()
        return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-12)) if normalize else vector

    def work(self, n: int) -> int:
        """What a text of `n` tokens costs, in elements or multiply-adds."""
        return self._tape(n).work

    def _tape(self, n: int) -> Tape:
        if n in self._tapes:
            self._tapes.move_to_end(n)
            return self._tapes[n]
        tokens, positions, last = (Tensor(Space.GUEST, t.offset, (n,), DType.I32) for t in self._arrays)
        frequencies: dict[Rope, Tensor] = {self.config.rope: self._frequencies} if self.config.rope else {}
        batch = Batch(tokens, positions, last, frequencies, ((0, n, None),))
        g = encoder(self.config, self._placement.tensors, batch, self._out)
        spaces = {
            Space.GUEST: self._memory.size,
            Space.WEIGHTS: self._placement.pages.nbytes,
            Space.SCRATCH: g.scratch_bytes,
        }
        self._tapes[n] = validate(bytes(g.tape), spaces, work_limit=2**62)
        if len(self._tapes) > TAPES:
            self._tapes.popitem(last=False)
        return self._tapes[n]

    def _view(self, tensor: Tensor) -> npt.NDArray[Any]:
        return self._memory.view(tensor.shape, tensor.dtype, tensor.offset).numpy()

    def close(self) -> None:
        """Let go of the device's pages. Twice is allowed."""
        if self._scratch is not None:
            self._scratch.close()
        self._guest.close()
        self._placement.close()
        self._memory.close()
