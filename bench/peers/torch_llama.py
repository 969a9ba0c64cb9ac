"""A plain llama in PyTorch: bf16, one sequence, a cache of fixed size. Each token is one CUDA graph.

`measure_graph` captures PyTorch's own kernels, `measure_compiled` those that `torch.compile` makes. Queries,
keys and values are one product, gate and up another; the argmax is fed again on the GPU, so that Python waits
once, after the last token. On a CPU nothing is captured.
"""

# torch says little about its types.
# pyright: standard

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from nocopy.models.load import open_model
from nocopy.models.model import Model

from .contender import Task, measured
from .weights import tensors

TYPES = ("bf16",)
MODE = "max-autotune-no-cudagraphs"


class Layer(nn.Module):
    """One block, with its keys and values: [groups, context, head]."""

    def __init__(self, model: Model, weights: dict[str, torch.Tensor], number: int, context: int) -> None:
        super().__init__()
        self.config = c = model.config

        def weight(*names: str) -> torch.Tensor:
            return torch.cat([weights[f"blk.{number}.{name}.weight"] for name in names])

        self.before, self.between = weight("attn_norm"), weight("ffn_norm")
        self.qkv, self.out = weight("attn_q", "attn_k", "attn_v"), weight("attn_output")
        self.gate_up, self.down = weight("ffn_gate", "ffn_up"), weight("ffn_down")
        self.keys = self.qkv.new_zeros(c.groups, context, c.head)
        self.values = torch.zeros_like(self.keys)

    def forward(
        self, x: torch.Tensor, at: torch.Tensor, turn: tuple[torch.Tensor, ...], reach: int
    ) -> torch.Tensor:
        """Feed rows that stand at these positions; `turn` is their rotation."""
        c = self.config
        qkv = F.linear(norm(x, self.before, c.eps), self.qkv).view(-1, c.heads + 2 * c.groups, c.head)
        q, k, v = qkv.transpose(0, 1).split([c.heads, c.groups, c.groups])
        q, k = rotated(q, *turn), rotated(k, *turn)
        self.keys.index_copy_(1, at, k)
        self.values.index_copy_(1, at, v)
        seen = self.look_back(q, at, reach) if reach else self.look_around(q, k, v)
        x = x + F.linear(seen, self.out)
        gate, up = F.linear(norm(x, self.between, c.eps), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)

    def look_around(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of a prompt to itself."""
        seen = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=True)
        return seen[0].transpose(0, 1).flatten(1)

    def look_back(self, q: torch.Tensor, at: torch.Tensor, reach: int) -> torch.Tensor:
        """Attention of one token to the first `reach` tokens; what is not written yet is masked."""
        c = self.config
        q = q.view(c.groups, c.heads // c.groups, c.head)
        scores = (q @ self.keys[:, :reach].transpose(1, 2)).float() * c.attention_scale
        later = torch.arange(reach, device=q.device) > at
        weights = scores.masked_fill(later, float("-inf")).softmax(-1).to(q.dtype)
        return (weights @ self.values[:, :reach]).view(1, -1)


class Llama(nn.Module):
    """The model; `forward` returns the likeliest next token, [1]."""

    def __init__(self, model: Model, device: str, context: int) -> None:
        super().__init__()
        self.config = model.config
        rope = self.config.rope
        assert rope is not None
        weights = tensors(model, device, torch.bfloat16)
        self.embedding, self.last = weights["token_embd.weight"], weights["output_norm.weight"]
        self.head = weights["output.weight"]
        layers = [Layer(model, weights, i, context) for i in range(self.config.layers)]
        self.layers = nn.ModuleList(layers)
        angles = torch.outer(torch.arange(context).float(), torch.tensor(rope.frequencies)).to(device)
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, reach: int = 0) -> torch.Tensor:
        """Feed a prompt, or one token that looks back at `reach` tokens."""
        x = F.embedding(tokens, self.embedding)
        turn = self.cos[positions], self.sin[positions]
        for layer in self.layers:
            x = layer(x, positions, turn, reach)
        return F.linear(norm(x[-1:], self.last, self.config.eps), self.head).argmax(-1)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMS norm."""
    return F.rms_norm(x, weight.shape, weight, eps)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of pairs (i, i + half) of x, [heads, tokens, head]."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)


class Runner:
    """A `Contender`.

    Args:
        llama: the model.
        task: its prompts are captured or compiled, other lengths are read as they are.
        compiled: compile before capturing.
    """

    version = str(torch.__version__)

    def __init__(self, llama: Llama, task: Task, *, compiled: bool) -> None:
        self.how = f'torch.compile(mode="{MODE}"), then a CUDA graph' if compiled else "a CUDA graph"
        self.llama, self.task, self.compiled = llama, task, compiled
        self.device = task.device
        self.token = torch.zeros(1, dtype=torch.long, device=self.device)
        self.position = torch.zeros(1, dtype=torch.long, device=self.device)
        self.drawn = torch.zeros(task.count, dtype=torch.long, device=self.device)
        self.made = torch.zeros(1, dtype=torch.long, device=self.device)
        self.readers: dict[int, tuple[torch.Tensor, Callable[[], Any]]] = {}
        self.steps: dict[int, Callable[[], Any]] = {}
        self.reach = 0

    def rewind(self) -> None:
        """To the beginning of the cache."""
        for word in (self.token, self.position, self.made):
            word.zero_()

    def read(self, prompt: Sequence[int]) -> None:
        """Forget everything, read a prompt, and wait until that is done."""
        length = len(prompt)
        if length not in self.readers:
            self.readers[length] = self._reader(length)
        self.reach = length + self.task.count
        if length in self.task.starts and self.reach not in self.steps:
            self.steps[self.reach] = self._stepper(self.reach)
        tokens, call = self.readers[length]
        tokens.copy_(torch.tensor(prompt))
        call()
        self.position.fill_(length)
        self.made.zero_()
        self._wait()

    def generate(self, count: int) -> list[int]:
        """The next greedy tokens, each fed again; the last one too."""
        for _ in range(count):
            self.steps[self.reach]()
        return self.drawn[:count].tolist()

    def _stepper(self, reach: int) -> Callable[[], Any]:
        call = self._compiled(MODE)

        def step() -> None:
            self.drawn.index_copy_(0, self.made, self.token)
            self.token.copy_(call(self.token, self.position, reach))
            self.position.add_(1)
            self.made.add_(1)

        return captured(step, self.device, self.rewind)

    def _compiled(self, mode: str) -> Callable[..., torch.Tensor]:
        return (
            torch.compile(self.llama, mode=mode, fullgraph=True, dynamic=False)
            if self.compiled
            else self.llama
        )

    def _reader(self, length: int) -> tuple[torch.Tensor, Callable[[], Any]]:
        tokens = torch.zeros(length, dtype=torch.long, device=self.device)
        positions = torch.arange(length, device=self.device)
        call = self._compiled("default") if length in self.task.prompts else self.llama

        def read() -> None:
            self.token.copy_(call(tokens, positions))

        if length in self.task.prompts:
            return tokens, captured(read, self.device, self.rewind)
        return tokens, read

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def captured(call: Callable[[], None], device: str, rewind: Callable[[], None]) -> Callable[[], Any]:
    """A call that replays what `call` launches; `rewind` undoes what trying it changed."""
    if device != "cuda":
        return call
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            rewind()
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    rewind()
    return graph.replay


@torch.inference_mode()
def measure(task: Task, *, compiled: bool) -> dict[str, Any]:
    """Time it."""
    model = open_model(task.path)
    return measured(Runner(Llama(model, task.device, task.context), task, compiled=compiled), task)


def measure_graph(task: Task) -> dict[str, Any]:
    """Time PyTorch's own kernels."""
    return measure(task, compiled=False)


def measure_compiled(task: Task) -> dict[str, Any]:
    """Time compiled ones."""
    return measure(task, compiled=True)
