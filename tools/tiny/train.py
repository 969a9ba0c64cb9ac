"""Train the tiny model: a llama of 13.4 M parameters, on a GPU in some minutes.

    python tools/tiny/train.py CORPUS OUT [--steps N]

Reads what corpus.py wrote; writes OUT/model.npz (f16 weights under their GGUF names), OUT/loss.csv (step,
training loss, held-out loss, in nats a token) and OUT/training.json. The model is shaped like Llama: RMSNorm,
rotary positions in halves, grouped-query attention, SwiGLU, tied embeddings.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SHAPE = {
    "vocabulary": 6144, "width": 384, "layers": 7, "heads": 6, "groups": 2, "hidden": 1024, "context": 1024,
    "base": 10000.0, "eps": 1e-5,
}  # fmt: skip


class Block(nn.Module):
    """One layer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        w, head = SHAPE["width"], SHAPE["width"] // SHAPE["heads"]
        self.attn_norm = nn.RMSNorm(w, SHAPE["eps"])
        self.attn_q = nn.Linear(w, w, bias=False)
        self.attn_k = nn.Linear(w, SHAPE["groups"] * head, bias=False)
        self.attn_v = nn.Linear(w, SHAPE["groups"] * head, bias=False)
        self.attn_output = nn.Linear(w, w, bias=False)
        self.ffn_norm = nn.RMSNorm(w, SHAPE["eps"])
        self.ffn_gate = nn.Linear(w, SHAPE["hidden"], bias=False)
        self.ffn_up = nn.Linear(w, SHAPE["hidden"], bias=False)
        self.ffn_down = nn.Linear(SHAPE["hidden"], w, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x: [batch, tokens, width]; cos and sin: [tokens, head / 2]."""
        b, t, w = x.shape
        head = w // SHAPE["heads"]
        h = self.attn_norm(x)
        q = rotate(self.attn_q(h).view(b, t, -1, head).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(h).view(b, t, -1, head).transpose(1, 2), cos, sin)
        v = self.attn_v(h).view(b, t, -1, head).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.dropout(self.attn_output(y.transpose(1, 2).reshape(b, t, w)), self.dropout, self.training)
        h = self.ffn_norm(x)
        h = self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))
        return x + F.dropout(h, self.dropout, self.training)


class Tiny(nn.Module):
    """The whole model."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(SHAPE["vocabulary"], SHAPE["width"])
        self.blk = nn.ModuleList(Block(dropout) for _ in range(SHAPE["layers"]))
        self.output_norm = nn.RMSNorm(SHAPE["width"], SHAPE["eps"])
        head = SHAPE["width"] // SHAPE["heads"]
        f = SHAPE["base"] ** (-torch.arange(0, head, 2).float() / head)
        angle = torch.arange(SHAPE["context"]).float()[:, None] * f
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits: [batch, tokens, vocabulary]."""
        x = self.token_embd(tokens)
        cos, sin = self.cos[: tokens.shape[1]].to(x.dtype), self.sin[: tokens.shape[1]].to(x.dtype)
        for block in self.blk:
            x = block(x, cos, sin)
        return self.output_norm(x) @ self.token_embd.weight.T


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions: pairs are (i, i + head / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1).to(x.dtype)


def batches(ids: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Random windows: [size, context + 1]."""
    starts = torch.randint(len(ids) - SHAPE["context"] - 1, (size,), generator=generator)
    return torch.stack([ids[s : s + SHAPE["context"] + 1] for s in starts.tolist()])


def loss_of(model: nn.Module, window: torch.Tensor) -> torch.Tensor:
    logits = model(window[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


def train(corpus: Path, out: Path, steps: int, size: int, dropout: float, device: str) -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    draw = torch.Generator().manual_seed(1)
    data = {n: torch.from_numpy(np.load(corpus / f"{n}.npy").astype(np.int64)) for n in ("train", "held_out")}
    model = Tiny(dropout).to(device)
    compiled = torch.compile(model) if device == "cuda" else model
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=device == "cuda")
    warm = min(300, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * s / steps)))
    )
    checks = batches(data["held_out"], 64, torch.Generator().manual_seed(2)).to(device)
    started, rows, last = time.monotonic(), [], torch.zeros(())
    for step in range(steps + 1):
        if step % 200 == 0 or step == steps:
            held_out = evaluate(compiled, checks, device, size)
            rows.append((step, last.item() if rows else "", held_out))
            print(f"step {step} held out {held_out:.3f} after {time.monotonic() - started:.0f} s", flush=True)
        if step == steps:
            break
        with torch.autocast(device, torch.bfloat16):
            last = loss_of(compiled, batches(data["train"], size, draw).to(device))
        optimizer.zero_grad(set_to_none=True)
        last.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    write(model, out, rows, {"steps": steps, "tokens_per_step": size * SHAPE["context"], "dropout": dropout,
                             "seconds": round(time.monotonic() - started, 1)})  # fmt: skip


def evaluate(model: nn.Module, checks: torch.Tensor, device: str, size: int) -> float:
    """Mean loss on held-out windows, in nats a token."""
    model.eval()
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        losses = [loss_of(model, part).item() for part in checks.split(size)]
    model.train()
    return sum(losses) / len(losses)


def write(model: nn.Module, out: Path, rows: list, facts: dict) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {n: p.detach().cpu().numpy().astype(np.float16) for n, p in model.named_parameters()}
    np.savez(out / "model.npz", **weights)
    with (out / "loss.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "train", "held_out"), *rows])
    facts = {
        **SHAPE,
        "parameters": sum(w.size for w in weights.values()),
        **facts,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "torch": torch.__version__,
    }
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--batch", type=int, default=64, help="windows of 1024 tokens a step")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    a = parser.parse_args()
    train(a.corpus, a.out, a.steps, a.batch, a.dropout, a.device)


if __name__ == "__main__":
    main()
