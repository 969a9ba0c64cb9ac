"""A passthrough guest with a model: calls by name, with Python's values where the guest has pointers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.model_imports import BIAS, GENERATION, generation_defaults
from nocopy.memory.dtype import DType
from tests.interfaces import passthrough

PAGE = 65536
TEXT, OUT, OPTIONS, NUMBER, BIASES = 0x1000, 0x8000, 0x800, 0x10, 0xC00
"""Where arguments lie, in the first page; sessions lie from the second on."""


class ModelGuest:
    """The guest, its model under the name "default", and its calls."""

    def __init__(
        self, device: Any, model: Any, *, memory64: bool = False, pages: int = 33, **kw: Any
    ) -> None:
        source = passthrough.text(memory64=memory64, pages=pages)
        self.guest = DeviceGuest(source, device=device, models={"default": model}, **kw)
        self.memory = self.guest.memory
        self.next = PAGE

    def __enter__(self) -> ModelGuest:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def call(self, name: str, *args: int) -> int:
        """Call any import."""
        return self.guest.call(name, *args)

    def ok(self, name: str, *args: int) -> int:
        """Call an import that must not fail."""
        result = self.call(name, *args)
        assert result >= 0, self.error
        return result

    @property
    def error(self) -> str:
        """What the last failed call was about."""
        return passthrough.last_error(self.guest)

    def put(self, data: str | bytes, at: int = TEXT) -> tuple[int, int]:
        """Write text; return where, and how long it is."""
        raw = data.encode() if isinstance(data, str) else data
        self.memory.write(at, raw)
        return at, len(raw)

    def open(self, name: str = "default") -> int:
        return self.ok("model_open", *self.put(name))

    def info(self, model: int) -> dict[str, Any]:
        size = self.ok("model_info", model, 0, 0)
        self.ok("model_info", model, OUT, size + 1)
        return json.loads(self.memory.read(OUT, size))

    def size(self, model: int, context: int, kv: DType = DType.F32) -> int:
        self.ok("session_size", model, context, kv, NUMBER)
        return int.from_bytes(self.memory.read(NUMBER, 8), "little")

    def session(self, model: int, context: int = 200, kv: DType = DType.F32) -> int:
        """A session in the next bytes that are free."""
        size = self.size(model, context, kv)
        self.next += size
        return self.ok("session_open", model, self.next - size, size, context, kv)

    def fork(self, session: int, size: int) -> int:
        self.next += size
        return self.ok("session_fork", session, self.next - size, size)

    def tokens(self, values: Sequence[int]) -> tuple[int, int]:
        self.memory.write(OUT, np.array(values, np.int32).tobytes())
        return OUT, len(values)

    def append(self, session: int, values: Sequence[int]) -> None:
        self.ok("session_append", session, *self.tokens(values))

    def logits(self, session: int) -> Any:
        count = self.ok("session_logits", session, NUMBER)
        return self.memory.view(count, "f32", int.from_bytes(self.memory.read(NUMBER, 8), "little")).numpy()

    def options(self, **changes: Any) -> int:
        """Write generation options; return where."""
        raw = np.zeros((), GENERATION)
        bias = changes.pop("logit_bias", {})
        if bias:
            self.memory.write(BIASES, np.array(list(bias.items()), BIAS).tobytes())
            changes |= {"biases": BIASES, "bias_count": len(bias)}
        for name, value in (generation_defaults() | changes).items():
            raw[name] = value
        self.memory.write(OPTIONS, raw.tobytes())
        return OPTIONS

    def option(self, name: str) -> Any:
        return np.frombuffer(self.memory.read(OPTIONS, GENERATION.itemsize), GENERATION)[0][name].item()

    def generate(self, session: int, most: int, **changes: Any) -> list[int]:
        """Generate with options; `keep=True` uses those that are in the memory."""
        if not changes.pop("keep", False):
            self.options(**changes)
        made = self.ok("session_generate", session, OPTIONS, OUT, most)
        return self.memory.view(made, "i32", OUT).numpy().tolist()

    def text(self, model: int, values: Sequence[int], flags: int = 1) -> bytes:
        at, count = self.tokens(values)
        size = self.ok("detokenize", model, at, count, TEXT, 4096, flags)
        return self.memory.read(TEXT, size)
