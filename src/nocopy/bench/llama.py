"""Models to measure with: the shapes of Llama 3.2 1B and Llama 3.1 8B, and numbers that mean nothing.

Speed does not depend on what the weights say, so they are noise of a sensible size. A file is written once,
into the cache directory, and stays there: for 1.24 B parameters 2.5 GB in bf16, 1.3 in Q8_0, 0.7 in Q4_0; for
8.03 B parameters 16 GB in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.models.load import open_model
from nocopy.models.model import Model
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.session.session import Session
from nocopy.tape import Space, TapeBuilder, Tensor, blocks

CONTEXT = 131072
SEED = 1
SIZE = 0.02
"""Standard deviation of the weights, about what a trained model has."""
BLOCK = 32
"""Elements of a block of Q8_0 and Q4_0; larger ones count as several."""
STEP = 16 << 20
"""Bytes of a cache that are filled at a time."""
NOISE_BLOCKS = 2**20 - 3
"""Blocks of noise that are made; tensors repeat them. A prime, so that no two rows of a tensor are equal."""


@dataclass(frozen=True)
class Shape:
    """A llama: `name` is its file's; a `tied` one has the embedding for a head."""

    name: str
    layers: int
    width: int
    heads: int
    groups: int
    head: int
    hidden: int
    vocabulary: int
    tied: bool

    @property
    def multiply_adds(self) -> int:
        """For one token, without the head, which only the last token of a prompt needs."""
        products = 2 * self.heads * self.head + 2 * self.groups * self.head + 3 * self.hidden
        return self.layers * self.width * products

    def metadata(self) -> dict[str, object]:
        """What its file says of it."""
        return {
            "general.architecture": "llama",
            "llama.block_count": self.layers,
            "llama.context_length": CONTEXT,
            "llama.embedding_length": self.width,
            "llama.feed_forward_length": self.hidden,
            "llama.attention.head_count": self.heads,
            "llama.attention.head_count_kv": self.groups,
            "llama.attention.layer_norm_rms_epsilon": 1e-5,
            "llama.rope.dimension_count": self.head,
            "llama.rope.freq_base": 500000.0,
            "llama.vocab_size": self.vocabulary,
            "tokenizer.ggml.model": "no_vocab",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape."""
        yield "token_embd.weight", (self.vocabulary, self.width)
        yield "output_norm.weight", (self.width,)
        if not self.tied:
            yield "output.weight", (self.vocabulary, self.width)
        for i in range(self.layers):
            for name, shape in (
                ("attn_norm", (self.width,)),
                ("attn_q", (self.heads * self.head, self.width)),
                ("attn_k", (self.groups * self.head, self.width)),
                ("attn_v", (self.groups * self.head, self.width)),
                ("attn_output", (self.width, self.heads * self.head)),
                ("ffn_norm", (self.width,)),
                ("ffn_gate", (self.hidden, self.width)),
                ("ffn_up", (self.hidden, self.width)),
                ("ffn_down", (self.width, self.hidden)),
            ):
                yield f"blk.{i}.{name}.weight", shape


LLAMA_1B = Shape("llama-1.24b", 16, 2048, 32, 8, 64, 8192, 128256, tied=True)
LLAMA_8B = Shape("llama-8.03b", 32, 4096, 32, 8, 128, 14336, 128256, tied=False)


@dataclass(frozen=True)
class Mix:
    """Matrices of two types, as llama.cpp's quantisation chooses them for the names that end in M
    (`llama-quant.cpp`): the head, and values and the second half of some layers' feed-forward, are of the
    better one.
    """

    name: str
    most: GGMLType
    better: GGMLType

    def of(self, tensor: str, shape: Shape) -> GGMLType:
        """A matrix' type."""
        if tensor == ("token_embd.weight" if shape.tied else "output.weight"):
            return self.better
        if not tensor.endswith(("attn_v.weight", "ffn_down.weight")):
            return self.most
        layer, eighth = int(tensor.split(".")[1]), shape.layers // 8
        better = layer < eighth or layer >= 7 * shape.layers // 8 or (layer - eighth) % 3 == 2
        return self.better if better else self.most


Q4_K_M = Mix("Q4_K_M", GGMLType.Q4_K, GGMLType.Q6_K)
Q5_K_M = Mix("Q5_K_M", GGMLType.Q5_K, GGMLType.Q6_K)


def model_file(kind: GGMLType | Mix, folder: Path | None = None, shape: Shape = LLAMA_1B) -> Path:
    """Return the model with matrices of this type, which is made if it is not there.

    Args:
        kind: of floats or of blocks, or of which blocks.
        folder: where it lies; the user's cache directory if left out.
        shape: the model's.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = folder or cache / "nocopy" / "bench"
    path = folder / f"{shape.name}-{kind.name.lower()}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        largest = max(prod(dims) for _, dims in shape.tensors())
        kinds = {name: kind.of(name, shape) if isinstance(kind, Mix) else kind for name, _ in shape.tensors()}
        noise = {
            k: np.resize(_noise(k), largest // k.block_elements * k.block_nbytes) for k in {*kinds.values()}
        }
        tensors = [_tensor(name, dims, kinds[name], noise[kinds[name]]) for name, dims in shape.tensors()]
        write_gguf(path, shape.metadata(), tensors)
    return path


def _tensor(name: str, shape: tuple[int, ...], kind: GGMLType, noise: npt.NDArray[np.uint8]) -> TensorData:
    if len(shape) == 1:
        return TensorData.of(name, np.ones(shape, np.float32), GGMLType.F32)
    nbytes = shape[0] * shape[1] // kind.block_elements * kind.block_nbytes
    return TensorData(name, kind, shape, noise[:nbytes])


def _noise(kind: GGMLType) -> npt.NDArray[np.uint8]:
    """As many elements as `NOISE_BLOCKS` have, as bytes."""
    rng = np.random.default_rng(SEED)
    dtype = DType[kind.name]
    if dtype.block == 1:
        values = rng.standard_normal(NOISE_BLOCKS * BLOCK, np.float32)
        values *= np.float32(SIZE)
        return values.astype(dtype.numpy).view(np.uint8)
    made: npt.NDArray[Any] = np.zeros(NOISE_BLOCKS * BLOCK // dtype.block, blocks.LAYOUTS[dtype])
    for name in sorted(set(made.dtype.names or ()) - {"d", "dmin"}):
        made[name] = rng.integers(0, 256, made[name].shape, np.uint8).astype(made[name].dtype)
    if dtype.block == BLOCK:
        # Quants are spread evenly over their range: 2 ** bits / sqrt(12) is their deviation.
        made["d"] = SIZE * 12**0.5 / 2 ** {DType.Q8_0: 8, DType.Q4_0: 4}[dtype]
        return made.view(np.uint8)
    scales = {"d": 1.0}
    if "dmin" in (made.dtype.names or ()):
        scales["dmin"] = {DType.Q4_K: 7.5, DType.Q5_K: 15.5}[dtype]  # half of the largest quant is taken away
    for name, scale in scales.items():
        made[name] = scale
    each = SIZE / blocks.decode(made[:1000], dtype).std()
    for name, scale in scales.items():
        made[name] = each * scale
    return made.view(np.uint8)


@contextmanager
def session(device: Device, kind: GGMLType, context: int, shape: Shape = LLAMA_1B) -> Generator[Session]:
    """A session of this model on a device, in a memory of its own."""
    with open_session(device, model_file(kind, shape=shape), context) as made:
        yield made


@contextmanager
def open_session(device: Device, path: Path, context: int) -> Generator[Session]:
    """A session of any model on a device, in a memory of its own."""
    with ExitStack() as stack:
        model = open_model(path)
        stack.callback(model.close)
        engine = Engine(model, device)
        stack.callback(engine.close)
        nbytes = Region(engine.config, 0, context, engine.chunk, DType.F16).nbytes
        memory = stack.enter_context(LinearMemory(nbytes))
        pages = device.share(memory.address, memory.size)
        stack.callback(pages.close)
        made = Session(engine, memory, pages, context=context)
        stack.callback(made.close)
        yield made


def fill_with_noise(session: Session, length: int) -> None:
    """Have an empty session remember so many tokens that it never read: no time depends on what they were."""
    cache = session.region.cache
    nbytes, noise = length * cache.token_bytes, np.random.default_rng(SEED)
    for at in range(0, nbytes, STEP):
        values = noise.standard_normal(min(STEP, nbytes - at) // 2, np.float32).astype(np.float16)
        session.memory.view(len(values), "f16", session.region.home + at).numpy()[:] = values
    fed = tokens(length + 1, session.engine.config.vocabulary)
    session.tokens.extend(fed[:length])
    session.reload()
    session.append(fed[length:])
    session.truncate(length)


def read_a_token(model: Model) -> int:
    """Bytes of weights that decoding one token reads: an embedding that is not the head is looked up only."""
    tied = "output.weight" not in model.weights
    return model.weights.nbytes - (0 if tied else model.weights["token_embd.weight"].nbytes)


def tokens(count: int, vocabulary: int = LLAMA_1B.vocabulary) -> list[int]:
    """Token ids to feed; which ones they are does not matter."""
    return np.random.default_rng(SEED).integers(0, vocabulary, count).tolist()


def bandwidth(device: Device) -> float:
    """Bytes per second at which the device reads memory that it shares: a sum over 256 MiB of f32."""
    nbytes, lines = 1 << 28, 1 << 14
    with LinearMemory(nbytes + 65536) as memory:
        memory.view(nbytes // 4, "f32", 65536).numpy()[...] = 1  # pages never written are one page of zeros
        pages = device.share(memory.address, memory.size)
        tape = TapeBuilder()
        x = Tensor(Space.GUEST, 65536, (lines, nbytes // 4 // lines), DType.F32)
        tape.reduce("sum", Tensor(Space.GUEST, 0, (lines,), DType.F32), x)
        program = device.compile(tape.build({Space.GUEST: pages.nbytes}), {Space.GUEST: pages})
        taken = interleaved({"read": lambda: device.play(program)}, seconds=1)["read"]
        program.close()
        pages.close()
    return nbytes / taken
