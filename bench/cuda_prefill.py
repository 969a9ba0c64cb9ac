"""Prompts on a CUDA device: tokens a second, arithmetic a second, and what each kind of launch takes.

python bench/cuda_prefill.py [--type bf16 q8_0 q4_0] [--length 512 4096] [--rows N] [--no-library]
    [--kernels] [--json FILE]

The model has the shape of Llama 3.2 1B (1.24 B parameters) and noise for weights; the cache is f16. A
prompt's time is wall-clock time from Python until the logits after its last token are in host pages, the
median of seven. Its arithmetic is that of the layers' products, the head's one row, and attention to earlier
tokens. The matrix rate is that of cuBLASLt's product of two 8192 x 8192 bf16 matrices into f32 in the same
process; with `--no-library` it is our kernels'. `--rows` sets how many rows a pass takes. With `--kernels`
the launches of one pass of a kind are played in a graph of their own, without what is between them.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cuda_decode import open_gpu

from nocopy.bench import llama
from nocopy.device import cuda
from nocopy.device.cuda_blas import WORKSPACE_BYTES, BlasLaunch, Product
from nocopy.device.cuda_launch import AnyLaunch, Branch
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.session.session import Session
from nocopy.tape import Space, TapeBuilder, Tensor, validate

SIDE = 8192
REPEAT = 7
LAUNCHES = 150
"""Of a kind that are timed at once, so that waiting for their end is a small part of it."""
rows: list[dict[str, Any]] = []


def row(case: str, value: float, unit: str) -> None:
    rows.append({"case": case, "value": round(value, 3), "unit": unit})
    print(f"{case:72} {value:12.3f} {unit}", flush=True)


def seconds(call: Callable[[], Any], repeat: int = REPEAT) -> float:
    times: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def work(length: int) -> int:
    """Multiply-adds of a prompt, twice."""
    shape = llama.LLAMA_1B
    products = length * shape.multiply_adds + shape.width * shape.vocabulary
    seen = length * (length + 1) // 2
    return 2 * (products + shape.layers * seen * 2 * shape.heads * shape.head)


def matrix_rate(device: cuda.CudaDevice) -> float:
    """Operations a second of a large product of noise: by the library, or by our kernels without it."""
    driver, n, times = device.driver, SIDE, 10
    with LinearMemory(2 * n * n) as memory:
        noise = memory.view(n * n, "bf16").numpy()
        noise[:] = np.random.default_rng(1).standard_normal(n * n, np.float32).astype(DType.BF16.numpy)
        weights, _ = device.place([(memory.address, memory.size)])
        del noise
    scratch, out = device.allocate(4 * n * n), device.allocate(4 * n * n)
    if device.info.details["products"].startswith("cuBLASLt"):
        w = weights.device_address
        product = Product(n, n, n, DType.BF16, w, n, w, n, out.device_address, n, 1.0)
        with driver.current():
            room = driver.allocate(WORKSPACE_BYTES)
            call, free = device._blas.launcher(product, room, driver.stream)  # type: ignore[union-attr]
            start, free_graph = driver.graph([call] * times)

            def play() -> None:
                driver.check(start(), "starting")
                driver.wait(None)

            play()
            taken = seconds(play)
            for each in (free_graph, free, lambda: driver.free(room)):
                each()
    else:
        w, a = Tensor(Space.WEIGHTS, 0, (n, n), DType.BF16), Tensor(Space.SCRATCH, 0, (n, n), DType.F32)
        spaces = {Space.WEIGHTS: weights, Space.SCRATCH: scratch, Space.GUEST: out}
        sizes = {space: pages.nbytes for space, pages in spaces.items()}
        once, tape = TapeBuilder(), TapeBuilder()
        once.copy(a, w)
        for _ in range(times):
            tape.matmul(Tensor(Space.GUEST, 0, (n, n), DType.F32), a, w.T)
        programs = [device.compile(validate(bytes(t), sizes, work_limit=2**62), spaces) for t in (once, tape)]
        for program in programs:
            device.play(program)
        taken = seconds(lambda: device.play(programs[1]))
        for program in programs:
            program.close()
    for pages in (out, scratch, weights):
        pages.close()
    return 2 * n**3 * times / taken


def names_of(launch: Any) -> str:
    if isinstance(launch, BlasLaunch):
        p = launch.product
        return f"cuBLASLt {p.m}x{p.n}x{p.k}{' twice' if p.count > 1 else ''}{' added' if p.add else ''}"
    return f"{launch.shape.kernel} in {launch.grid} blocks"


def kernel_rows(device: cuda.CudaDevice, session: Session, taken: int) -> None:
    """What each kind of launch of one pass takes on the GPU."""
    engine, driver = session.engine, device.driver
    found: dict[str, list[Callable[[], int]]] = defaultdict(list)
    starts_of = device._starts

    def recorded(launches: list[AnyLaunch], *rest: Any) -> Iterator[Callable[[], int]]:
        for launch in launches:
            if not isinstance(launch, Branch):
                found[names_of(launch)] += starts_of([launch], *rest)
        return starts_of(launches, *rest)

    device._starts = recorded  # type: ignore[method-assign, assignment]
    program = engine.compile(engine.tape(session.region, taken, logits=True), session.pages, session.near)
    device._starts = starts_of  # type: ignore[method-assign]
    with driver.current():
        for name, starts in found.items():
            times = -(-LAUNCHES // len(starts))
            start, free = driver.graph(times * starts)

            def play(start: Callable[[], int] = start) -> None:
                driver.check(start(), "starting")
                driver.wait(None)

            play()
            row(f"{taken} rows: {len(starts):3} x {name}", 1e3 * seconds(play, 10) / times, "ms in all")
            free()
    device.play(program)
    whole = 1e3 * seconds(lambda: device.play(program), 10)
    row(f"{taken} rows: {sum(map(len, found.values())):3} launches, the whole pass", whole, "ms in all")
    program.close()


def measure(device: cuda.CudaDevice, kind: GGMLType, chosen: argparse.Namespace, rate: float) -> None:
    model = open_model(llama.model_file(kind))
    engine = Engine(model, device)
    if chosen.rows:
        engine.step = chosen.rows
        region = Region(engine.config, 0, engine.config.context, engine.chunk, DType.F16)
        nbytes = max(engine.record(region, engine.step).scratch_bytes, engine.scratch.nbytes)
        engine.scratch.close()
        engine.scratch = device.allocate(-(-nbytes // 65536) * 65536)
    context = max(chosen.length)
    memory = LinearMemory(Region(engine.config, 0, context, engine.chunk, DType.F16).nbytes)
    pages = device.share(memory.address, memory.size)
    session = Session(engine, memory, pages, context=context)
    name = kind.name.lower()
    for length in chosen.length:
        prompt = llama.tokens(length)

        def read(prompt: list[int] = prompt) -> None:
            session.truncate(0)
            session.append(prompt)

        read()  # compiles
        taken = seconds(read)
        speed = work(length) / taken
        row(f"{name}: {length} tokens in passes of {session.step}", 1e3 * taken, "ms")
        row(f"{name}: {length} tokens", length / taken, "tokens/s")
        row(f"{name}: {length} tokens, arithmetic", speed / 1e12, "TFLOP/s")
        row(f"{name}: {length} tokens, of the matrix rate", speed / rate, "")
    if chosen.kernels:
        kernel_rows(device, session, min(context, session.step))
    session.close()
    pages.close()
    memory.close()
    engine.close()
    model.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--type", nargs="*", default=["bf16", "q8_0", "q4_0"])
    parser.add_argument("--length", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--no-library", action="store_true")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    device = open_gpu(library=not chosen.no_library)
    print(device.info.product, device.info.details["products"], flush=True)
    rate = matrix_rate(device)
    row(f"a product of {SIDE} x {SIDE} bf16 matrices", rate / 1e12, "TFLOP/s")
    for name in chosen.type:
        measure(device, GGMLType[name.upper()], chosen, rate)
    device.close()
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
