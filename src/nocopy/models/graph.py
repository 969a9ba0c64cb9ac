"""Records a forward pass as a tape: weights by name, activations in scratch, a method for each step."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from nocopy.errors import ModelError
from nocopy.memory.dtype import DType
from nocopy.models.config import Config, Rope
from nocopy.models.kv import Cache
from nocopy.tape import Space, TapeBuilder, Tensor

ALIGNMENT = 64
"""Bytes that activations are aligned to: a cache line."""


@dataclass(frozen=True)
class Batch:
    """The rows of one pass.

    `tokens`, `positions` and `last` are i32 [rows]: the token, where it stands in its sequence, and the last
    cached token that it sees. `frequencies` are f32 tensors by rope. `spans` give the rows of each sequence
    and its cache; an encoder has no cache.
    """

    tokens: Tensor
    positions: Tensor
    last: Tensor
    frequencies: Mapping[Rope, Tensor]
    spans: tuple[tuple[int, int, Cache | None], ...]

    @property
    def rows(self) -> int:
        """Tokens in this pass, over all sequences."""
        return self.tokens.shape[0]


class Graph:
    """A tape under construction. Tensors are [rows, width] unless a method says otherwise.

    `wanted` of the batch's rows, the last ones, are wanted after the last layer; None for all. Of the others
    that layer makes keys and values only.
    """

    def __init__(
        self, config: Config, weights: Mapping[str, Tensor], batch: Batch, wanted: int | None = None
    ) -> None:
        self.config, self.weights, self.batch = config, weights, batch
        self._wanted = batch.rows if wanted is None else wanted
        self.tape = TapeBuilder()
        self.scratch_bytes = 0
        self._top = 0

    # Memory

    def new(self, *shape: int, dtype: DType = DType.F32) -> Tensor:
        """Return an activation; its bytes are used again after the enclosing `reusing()`."""
        tensor = Tensor(Space.SCRATCH, self._top, shape, dtype)
        nbytes = dtype.itemsize
        for size in shape:
            nbytes *= size
        self._top += -(-nbytes // ALIGNMENT) * ALIGNMENT
        self.scratch_bytes = max(self.scratch_bytes, self._top)
        return tensor

    @contextmanager
    def reusing(self) -> Generator[None]:
        """Free the activations that were made inside, at its end."""
        mark = self._top
        yield
        self._top = mark

    def weight(self, name: str) -> Tensor:
        """Return a weight.

        Raises:
            ModelError: the model has none of that name.
        """
        tensor = self.weights.get(name)
        if tensor is None:
            raise ModelError(
                f"the model has no tensor '{name}', which a {self.config.architecture} model needs;"
                " the file may be incomplete or of another architecture"
            )
        return tensor

    # Steps

    def embed(self, table: str, indices: Tensor) -> Tensor:
        """Look up rows of a table."""
        weight = self.weight(table)
        out = self.new(indices.shape[0], weight.shape[1])
        self.tape.gather(out, weight, indices)
        return out

    def linear(self, x: Tensor, name: str, out: Tensor | None = None) -> Tensor:
        """X @ weight.T, plus a bias if the model has one."""
        weight = self.weight(name + ".weight")
        out = out or self.new(x.shape[0], weight.shape[0])
        self.tape.matmul(out, x, weight.T)
        bias = self.weights.get(name + ".bias")
        if bias is not None:
            self.tape.binary("add", out, out, bias)
        return out

    def rmsnorm(self, x: Tensor, name: str) -> Tensor:
        """Root-mean-square norm over the last axis."""
        out = self.new(*x.shape)
        self.tape.rmsnorm(out, x, self.weight(name + ".weight"), self.config.eps)
        return out

    def layernorm(self, x: Tensor, name: str) -> Tensor:
        """Layer norm over the last axis, in place."""
        self.tape.layernorm(
            x, x, self.weight(name + ".weight"), self.weights.get(name + ".bias"), self.config.eps
        )
        return x

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """X += y, in place: the residual stream."""
        self.tape.binary("add", x, x, y)
        return x

    def multiply(self, x: Tensor, factor: float) -> Tensor:
        """X *= factor, in place."""
        scalar = self.new(1)
        self.tape.fill(scalar, factor)
        self.tape.binary("mul", x, x, scalar)
        return x

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """X = cap * tanh(x / cap), in place."""
        self.multiply(x, 1 / cap)
        self.tape.unary("tanh", x, x)
        return self.multiply(x, cap)

    def gated(self, gate: Tensor, up: Tensor, function: str) -> Tensor:
        """function(gate) * up."""
        out = self.new(*gate.shape)
        self.tape.glu(function, out, gate, up)
        return out

    def heads(self, x: Tensor, count: int) -> Tensor:
        """[rows, count * head] seen as [rows, count, head]."""
        n = x.shape[1] // count
        return Tensor(x.space, x.offset, (x.shape[0], count, n), x.dtype, (x.strides[0], n, 1))

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """x[:, start:stop], without a copy."""
        return Tensor(
            x.space, x.offset + start * x.dtype.itemsize, (x.shape[0], stop - start), x.dtype, x.strides
        )

    def rows(self, x: Tensor, start: int, stop: int) -> Tensor:
        """x[start:stop], without a copy."""
        step = x.strides[0] * x.dtype.itemsize
        return Tensor(x.space, x.offset + start * step, (stop - start, *x.shape[1:]), x.dtype, x.strides)

    def wanted(self, x: Tensor, layer: int) -> Tensor:
        """The rows of all that a layer goes on with, beyond its keys and values."""
        last = layer + 1 == self.config.layers
        return self.rows(x, x.shape[0] - self._wanted, x.shape[0]) if last else x

    def rotate(self, x: Tensor, layer: int) -> None:
        """Rotary positions on [rows, heads, head], in place; of fewer rows, on the batch's last."""
        rope, rows = self.config.rope_of(layer), self.batch.rows
        if rope is not None:
            frequencies = self.batch.frequencies[rope]
            positions = self.rows(self.batch.positions, rows - x.shape[0], rows)
            self.tape.rope(x, x, frequencies, positions, interleaved=rope.interleaved, scale=rope.scale)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Attention of [rows, heads, head] over each row's own sequence, whose cache k and v join first.

        Of fewer queries, those of the batch's last rows.
        """
        c, batch = self.config, self.batch
        out = self.new(q.shape[0], c.heads * c.head)
        heads, first = self.heads(out, c.heads), batch.rows - q.shape[0]
        for start, stop, cache in batch.spans:
            keys, values = self.rows(k, start, stop), self.rows(v, start, stop)
            if cache is not None:
                positions = self.rows(batch.positions, start, stop)
                self.tape.scatter(cache.rows(layer, 0), self._flat(keys), positions)
                self.tape.scatter(cache.rows(layer, 1), self._flat(values), positions)
                keys, values = cache.keys(layer), cache.values(layer)
            asked = min(max(start, first), stop)
            self.tape.attention(
                self.rows(heads, asked - first, stop - first),
                self.rows(q, asked - first, stop - first),
                keys,
                values,
                self.rows(batch.last, asked, stop),
                scale=c.attention_scale,
                softcap=c.attention_softcap,
                window=c.window(layer),
            )
        return out

    def _flat(self, x: Tensor) -> Tensor:
        """[rows, heads, head] with adjacent heads seen as [rows, heads * head]."""
        r, h, n = x.shape
        return Tensor(x.space, x.offset, (r, h * n), x.dtype, (x.strides[0], 1))
