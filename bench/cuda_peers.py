"""Decoding and prefilling on one GPU, beside other programs: llama.cpp, PyTorch, transformers and tinygrad.

python bench/cuda_peers.py [--types bf16 q8_0 q4_0] [--only NAME ...] [--json FILE] [--plot FILE]
python bench/cuda_peers.py --show FILE [--plot FILE]

All get the same GGUF file, of the shape of Llama 3.2 1B (1.24 B parameters) with noise for weights, one
sequence, greedy tokens, one program after another, each in a process of its own; times are wall-clock. A
program that is not installed or fails is named in the result with the reason. The floor is the time to read
the weights once, at the speed at which a kernel reads 4 GiB. `llama-bench` is found on PATH or through
NOCOPY_LLAMA_BENCH; PyTorch, transformers and tinygrad are imported. `--show` prints a result as Markdown.
`--device cpu --shape small` tries the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peers import report
from peers.contender import MissingError, Task

from nocopy.bench.cuda_read import read_bandwidth
from nocopy.bench.llama import LLAMA_1B, LLAMA_8B, Shape, model_file, read_a_token
from nocopy.bench.machine import describe
from nocopy.device import cuda
from nocopy.device.discovery import open_device
from nocopy.errors import Error
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model

CONTENDERS = {
    "nocopy": ("ours", "measure"),
    "llama.cpp": ("llama_cpp", "measure"),
    "PyTorch, compiled": ("torch_llama", "measure_compiled"),
    "PyTorch, CUDA graph": ("torch_llama", "measure_graph"),
    "tinygrad": ("tinygrad_llama", "measure"),
    "transformers": ("transformers_llama", "measure"),
}
"""Name: a module of `peers` and its function."""
SHAPES = {
    "1b": LLAMA_1B,
    "8b": LLAMA_8B,
    "small": Shape("llama-small", 2, 256, 4, 2, 64, 512, 1024, tied=True),
}
REASON = 400
"""Characters of what a failing program wrote last."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="1b", choices=tuple(SHAPES))
    parser.add_argument("--types", nargs="+", default=["bf16", "q8_0", "q4_0"])
    parser.add_argument("--only", nargs="+", default=list(CONTENDERS), choices=tuple(CONTENDERS))
    parser.add_argument("--count", type=int, default=128, help="greedy tokens")
    parser.add_argument(
        "--starts", type=int, nargs="+", default=[128, 896], help="tokens in the cache before"
    )
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 4096], help="tokens to read")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one program and type")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--show", type=Path, help="a result to print as Markdown; nothing is measured")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        chosen.out.write_text(json.dumps(measure(chosen.measure, task(chosen, chosen.types[0]))))
        return
    result = json.loads(chosen.show.read_text()) if chosen.show else run(chosen)
    print(report.markdown(result))
    if chosen.plot:
        report.draw(result, chosen.plot)


def task(chosen: argparse.Namespace, kind: str) -> Task:
    """What contenders are to do with one type."""
    shape = SHAPES[chosen.shape]
    path = model_file(GGMLType[kind.upper()], shape=shape)
    starts, prompts = tuple(chosen.starts), tuple(chosen.prompts)
    return Task(path, kind, chosen.device, shape.vocabulary, chosen.count, starts, prompts)


def measure(name: str, what: Task) -> dict[str, Any]:
    """One contender, in this process; `missing` says why there is nothing."""
    module, function = CONTENDERS[name]
    try:
        peer = import_module(f"peers.{module}")
        if what.kind not in peer.TYPES:
            raise MissingError(f"this script has it in {', '.join(peer.TYPES)} only")
        found: dict[str, Any] = getattr(peer, function)(what)
    except (ImportError, MissingError, Error) as e:
        return {"missing": str(e)}
    return found


def run(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all that was chosen, one after another."""
    result = begin(chosen)
    for kind in chosen.types:
        what = task(chosen, kind)
        with closing(open_model(what.path)) as model:
            nbytes = read_a_token(model)
        floor = {"bytes a token": nbytes}
        if result["read GB/s"]:
            floor["ms"] = round(nbytes / result["read GB/s"] / 1e6, 4)
        result["floor"][kind] = floor
        for name in chosen.only:
            print(f"{name}, {kind}", file=sys.stderr, flush=True)
            found = apart(name, kind, chosen.limit)
            if "missing" in found:
                result["missing"].append({"contender": name, "type": kind, "why": found["missing"]})
            else:
                result["measured"].append({"contender": name, **found})
            compare(result)
            if chosen.json:
                chosen.json.write_text(json.dumps(result, indent=1) + "\n")
    return result


def begin(chosen: argparse.Namespace) -> dict[str, Any]:
    """A result without measurements: the machine, and how fast it reads its memory."""
    with closing(open_device(chosen.device)) as device:
        rate = read_bandwidth(device.driver) / 1e9 if isinstance(device, cuda.CudaDevice) else 0.0
        machine = describe(device.info)
    return {
        "name": "cuda_peers",
        "device": chosen.device,
        "machine": machine,
        "model": SHAPES[chosen.shape].name,
        "tokens": chosen.count,
        "read GB/s": round(rate, 1),
        "floor": {},
        "measured": [],
        "missing": [],
    }


def apart(name: str, kind: str, limit: float) -> dict[str, Any]:
    """Measure a contender in a process of its own, which may fail or hang."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [
            sys.executable,
            __file__,
            *sys.argv[1:],
            "--measure",
            name,
            "--types",
            kind,
            "--out",
            str(out),
        ]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                _, said = process.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
                return {"missing": f"not done within {limit:.0f} s"}
        if process.returncode:
            said = " ".join(said.split())
            return {"missing": f"failed with status {process.returncode}: …{said[-REASON:]}"}
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def compare(result: dict[str, Any]) -> None:
    """Say of each contender how many of its first tokens are ours of the same type."""
    ours = {m["type"]: m["tokens"].split() for m in result["measured"] if m["contender"] == "nocopy"}
    for found in result["measured"]:
        drawn, wanted = found.get("tokens", "").split(), ours.get(found["type"])
        if drawn and wanted:
            pairs = zip(drawn, wanted, strict=True)
            found["agrees"] = next((i for i, (a, b) in enumerate(pairs) if a != b), len(wanted))


if __name__ == "__main__":
    main()
