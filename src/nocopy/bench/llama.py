"""A model to measure with: the shape of Llama 3.2 1B (1.24 B parameters), and numbers that mean nothing.

Speed does not depend on what the weights say, so they are noise of a sensible size. The file is written once,
into the cache directory, and stays there: 2.5 GB in bf16, 1.3 in Q8_0, 0.7 in Q4_0.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.session.session import Session
from nocopy.tape import Space, TapeBuilder, Tensor, blocks

LAYERS, WIDTH, HEADS, GROUPS, HEAD, HIDDEN, VOCABULARY = 16, 2048, 32, 8, 64, 8192, 128256
CONTEXT = 131072
SEED = 1
SIZE = 0.02
"""Standard deviation of the weights, about what a trained model has."""

METADATA: Mapping[str, object] = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": CONTEXT,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": HEAD,
    "llama.rope.freq_base": 500000.0,
    "llama.vocab_size": VOCABULARY,
    "tokenizer.ggml.model": "no_vocab",
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor's name and shape; the head is tied to the embedding."""
    yield "token_embd.weight", (VOCABULARY, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    for i in range(LAYERS):
        for name, shape in (
            ("attn_norm", (WIDTH,)),
            ("attn_q", (HEADS * HEAD, WIDTH)),
            ("attn_k", (GROUPS * HEAD, WIDTH)),
            ("attn_v", (GROUPS * HEAD, WIDTH)),
            ("attn_output", (WIDTH, HEADS * HEAD)),
            ("ffn_norm", (WIDTH,)),
            ("ffn_gate", (HIDDEN, WIDTH)),
            ("ffn_up", (HIDDEN, WIDTH)),
            ("ffn_down", (WIDTH, HIDDEN)),
        ):
            yield f"blk.{i}.{name}.weight", shape


def model_file(kind: GGMLType, folder: Path | None = None) -> Path:
    """Return the model with matrices of this type, which is made if it is not there.

    Args:
        kind: BF16, Q8_0 or Q4_0.
        folder: where it lies; the user's cache directory if left out.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = folder or cache / "nocopy" / "bench"
    path = folder / f"llama-1.24b-{kind.name.lower()}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        noise = _noise(kind)
        write_gguf(path, METADATA, [_tensor(name, shape, kind, noise) for name, shape in shapes()])
    return path


def _tensor(name: str, shape: tuple[int, ...], kind: GGMLType, noise: npt.NDArray[np.uint8]) -> TensorData:
    if len(shape) == 1:
        return TensorData.of(name, np.ones(shape, np.float32), GGMLType.F32)
    nbytes = shape[0] * shape[1] // kind.block_elements * kind.block_nbytes
    return TensorData(name, kind, shape, noise[:nbytes])


def _noise(kind: GGMLType) -> npt.NDArray[np.uint8]:
    """Bytes for the largest tensor; the smaller ones take as many of them as they need."""
    rng = np.random.default_rng(SEED)
    if kind is GGMLType.BF16:
        values = rng.standard_normal(VOCABULARY * WIDTH, np.float32)
        values *= np.float32(SIZE)
        return values.astype(DType.BF16.numpy).view(np.uint8)
    made: npt.NDArray[Any] = np.zeros(
        VOCABULARY * WIDTH // kind.block_elements, blocks.LAYOUTS[DType[kind.name]]
    )
    quants = made["qs"]
    quants[...] = rng.integers(0, 256, quants.shape, np.uint8).astype(quants.dtype)
    # Quants are spread evenly over their range: 2 ** bits / sqrt(12) is their deviation.
    bits = {GGMLType.Q8_0: 8, GGMLType.Q4_0: 4}[kind]
    made["d"] = SIZE * 12**0.5 / 2**bits
    return made.view(np.uint8)


@contextmanager
def session(device: Device, kind: GGMLType, context: int) -> Generator[Session]:
    """A session of this model on a device, in a memory of its own."""
    with ExitStack() as stack:
        model = open_model(model_file(kind))
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


def tokens(count: int) -> list[int]:
    """Token ids to feed; which ones they are does not matter."""
    return np.random.default_rng(SEED).integers(0, VOCABULARY, count).tolist()


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
