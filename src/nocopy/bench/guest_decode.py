"""Generating from inside a guest, beside the same engine from Python: what the sandbox costs a token.

Two llamas with random weights in Q8_0: one of 15 M parameters, so that what a call costs shows, and one of
1.24 B. Both sides draw greedily from the same logits, ask for as many tokens at once, and must draw the same.
A call costs the same whatever it asks for, so a guest that asks for an answer at once pays for it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from nocopy.bench.llama import model_file
from nocopy.bench.result import Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import interleaved
from nocopy.device.protocol import Device
from nocopy.errors import DeviceError
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.loaded import Loaded, keep_loaded
from nocopy.interfaces.model_imports import GENERATION, Generate, generation_defaults
from nocopy.memory.dtype import DType
from nocopy.models.ggml import GGMLType
from nocopy.models.gguf_writer import TensorData, write_gguf
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling

SECONDS = 8.0  # for each case, both sides together
CASES = (
    ("32 tokens, one call", 32, 32),
    ("32 tokens, a call each", 32, 1),
    ("240 tokens, one call", 240, 240),
)
"""How many tokens, and how many of them at once."""
PROMPT = (1, 2, 3, 4, 5, 6, 7, 8)
LAYERS, WIDTH, HEADS, GROUPS, HEAD, HIDDEN, VOCABULARY, CONTEXT = 4, 512, 8, 4, 64, 1376, 4096, 256
SAMPLING = Sampling(temperature=0)
NAME, SIZE, OPTIONS, INPUT, OUTPUT = 0, 16, 64, 1024, 4096
"""Where the guest has its arguments; its session lies from the second page on."""

GUEST = """(module
  (import "nocopy" "model_open" (func $open (param i32 i32) (result i32)))
  (import "nocopy" "session_size" (func $size (param i32 i32 i32 i32) (result i32)))
  (import "nocopy" "session_open" (func $session (param i32 i32 i32 i32 i32) (result i32)))
  (import "nocopy" "session_truncate" (func $truncate (param i32 i32) (result i32)))
  (import "nocopy" "session_append" (func $append (param i32 i32 i32) (result i32)))
  (import "nocopy" "session_generate" (func $generate (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1) (data (i32.const 0) "default")
  (func (export "open") (result i32) (call $open (i32.const 0) (i32.const 7)))
  (func (export "size") (param i32 i32 i32) (result i32)
    (call $size (local.get 0) (local.get 1) (local.get 2) (i32.const 16)))
  (func (export "session") (param i32 i32 i32 i32) (result i32)
    (drop (memory.grow (i32.shr_u (local.get 1) (i32.const 16))))
    (call $session (local.get 0) (i32.const 65536) (local.get 1) (local.get 2) (local.get 3)))
  (func (export "decode") (param $session i32) (param $prompt i32) (param $count i32) (param $step i32)
    (result i32) (local $made i32) (local $more i32)
    (drop (call $truncate (local.get $session) (i32.const 0)))
    (local.set $more (call $append (local.get $session) (i32.const 1024) (local.get $prompt)))
    (if (i32.lt_s (local.get $more) (i32.const 0)) (then (return (local.get $more))))
    (loop $again
      (local.set $more (call $generate (local.get $session) (i32.const 64)
        (i32.add (i32.const 4096) (i32.shl (local.get $made) (i32.const 2))) (local.get $step)))
      (if (i32.le_s (local.get $more) (i32.const 0)) (then (return (local.get $more))))
      (local.set $made (i32.add (local.get $made) (local.get $more)))
      (br_if $again (i32.lt_u (local.get $made) (local.get $count))))
    (local.get $made)))"""


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Time tokens after a short prompt, as `CASES` says; the unit is tokens a second.

    Raises:
        DeviceError: the two did not draw the same tokens.
    """
    found: list[Row] = []
    with TemporaryDirectory() as folder:
        small = Path(folder) / "model.gguf"
        write_gguf(small, metadata(), tensors())
        for i, (size, path) in enumerate((("15 M", small), ("1.24 B", model_file(GGMLType.Q8_0)))):
            progress(f"{size} parameters", i / 2)
            found += beside(device, path, size)
    return found


def beside(device: Device, path: Path, size: str) -> Iterator[Row]:
    """A row for each number of tokens that the guest asks for at once."""
    with (
        keep_loaded(path, device) as loaded,
        closing(Inside(device, path)) as inside,
        closing(Outside(loaded)) as outside,
    ):
        for case, count, step in CASES:
            times = interleaved(
                {
                    "guest": lambda count=count, step=step: inside.decode(count, step),
                    "python": lambda count=count, step=step: outside.decode(count, step),
                },
                seconds=SECONDS,
            )
            if inside.tokens(count) != outside.tokens:
                raise DeviceError("guest and Python drew other tokens from the same model")
            ours, peer = (count / times[name] for name in ("guest", "python"))
            yield row(f"{size}, {case}", ours, "1/s", "the engine from Python", peer)


class Inside:
    """The guest; it reads a prompt, up to 768 tokens, before it generates.

    Args:
        device: an open device.
        path: the model.
        context: of its session.
        prompt: tokens.
    """

    def __init__(
        self, device: Device, path: Path, *, context: int = CONTEXT, prompt: Sequence[int] = PROMPT
    ) -> None:
        self._prompt = len(prompt)
        self.guest = DeviceGuest(GUEST, device=device, models={"default": path})
        memory = self.guest.memory
        options = np.zeros((), GENERATION)
        for name, value in generation_defaults().items():
            options[name] = value
        options["temperature"], options["flags"] = 0, Generate.IGNORE_END
        memory.write(OPTIONS, options.tobytes())
        memory.write(INPUT, np.array(prompt, np.int32).tobytes())
        model = self._call("open")
        self._call("size", model, context, DType.F16)
        size = int.from_bytes(memory.read(SIZE, 8), "little")
        self.session = self._call("session", model, size, context, DType.F16)

    def decode(self, count: int, step: int) -> None:
        """Generate, `step` tokens a call."""
        self._call("decode", self.session, self._prompt, count, step)

    def tokens(self, count: int) -> list[int]:
        """What was drawn last."""
        found: list[int] = self.guest.memory.view(count, "i32", OUTPUT).numpy().tolist()
        return found

    def _call(self, name: str, *args: int) -> int:
        result: int = self.guest.call(name, *args)
        if result < 0:
            raise DeviceError(f"the benchmark's guest called {name}; it failed: {self.guest.last_error}")
        return result

    def close(self) -> None:
        """End the guest."""
        self.guest.close()


class Outside:
    """The same engine from Python. Arguments as for `Inside`."""

    def __init__(self, loaded: Loaded, *, context: int = CONTEXT, prompt: Sequence[int] = PROMPT) -> None:
        self._session, self._prompt = OwnSession(loaded.engine, context=context, kv=DType.F16), prompt
        self.tokens: list[int] = []
        """What was drawn last."""

    def decode(self, count: int, step: int) -> None:
        """Generate, with a sampler for each `step` tokens: what a guest's call is."""
        session = self._session
        session.truncate(0)
        session.append(self._prompt)
        self.tokens = []
        while len(self.tokens) < count:
            sampler = Sampler(SAMPLING)
            for made in range(step):
                token = session.draw(sampler, step - made)
                sampler.accept([token])
                self.tokens.append(token)
                session.append([token])

    def close(self) -> None:
        """Let go of everything."""
        self._session.close()


def metadata() -> dict[str, object]:
    """The model's shape."""
    return {
        "general.architecture": "llama",
        "llama.context_length": CONTEXT,
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": HIDDEN,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": GROUPS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "no_vocab",
    }


def tensors(kind: GGMLType = GGMLType.Q8_0) -> Iterator[TensorData]:
    """Seeded random weights, the matrices of this type."""
    random = np.random.default_rng(0)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm": (WIDTH,),
            f"blk.{i}.attn_q": (HEADS * HEAD, WIDTH),
            f"blk.{i}.attn_k": (GROUPS * HEAD, WIDTH),
            f"blk.{i}.attn_v": (GROUPS * HEAD, WIDTH),
            f"blk.{i}.attn_output": (WIDTH, HEADS * HEAD),
            f"blk.{i}.ffn_norm": (WIDTH,),
            f"blk.{i}.ffn_gate": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_up": (HIDDEN, WIDTH),
            f"blk.{i}.ffn_down": (WIDTH, HIDDEN),
        }
    for name, shape in shapes.items():
        if len(shape) == 1:
            yield TensorData.of(f"{name}.weight", np.ones(shape, np.float32), GGMLType.F32)
        else:
            values = random.normal(0, 0.05, shape).astype(np.float32)
            yield TensorData.of(f"{name}.weight", values, kind)
