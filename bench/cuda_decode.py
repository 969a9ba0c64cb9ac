"""Decoding and prefilling on a CUDA device: tokens a second, and where the time goes, kernel by kernel.

python bench/cuda_decode.py [--shape 1b|8b] [--type bf16|f16|q8_0|q4_0|q4_k|q5_k|q6_k|q4_k_m|q5_k_m]
    [--context N] [--tokens N] [--prefill N ...] [--after N ...] [--no-kernels] [--check N] [--launches N]
    [--json FILE]
python bench/cuda_decode.py --show FOLDER --plot FILE

The model has the shape of Llama 3.2 1B (1.24 B parameters) or of Llama 3.1 8B (8.03 B; 16 GB in bf16 in the
cache directory, $XDG_CACHE_HOME), and noise for weights. Decoding is wall-clock time from Python, twice: one
play a token, its logits read in host pages; and greedily, tokens fed ahead on the GPU as `Session.likeliest`
does. The floor is the time to read the weights once, at the speed at which a kernel reads 4 GiB; the share is
the floor over the time. For passes of more rows a kernel's row is the median time of all launches of
its kind in one pass, played by themselves, so that weights come from memory and not from a cache.
`--after` says how many tokens there are before the greedy ones. `--check N` compares N greedy tokens with
those of the cpu device; `--launches N` N of them, fed ahead, with those of the same GPU where no pass is one
kernel, whose time is then measured too.
"""

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
from peers import report

from nocopy.bench.cuda_read import read_bandwidth
from nocopy.bench.llama import LLAMA_1B, LLAMA_8B, Q4_K_M, Q5_K_M, model_file, read_a_token
from nocopy.device import cuda
from nocopy.device.cuda_blas import BlasLaunch
from nocopy.device.cuda_compile import Compiler, cache_directory
from nocopy.device.cuda_driver import Driver
from nocopy.device.cuda_launch import Branch, plan
from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device
from nocopy.errors import DeviceUnavailableError
from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import LinearMemory
from nocopy.models.ggml import GGMLType
from nocopy.models.load import open_model
from nocopy.models.model import Model
from nocopy.session.engine import Engine
from nocopy.session.region import Region
from nocopy.session.session import Session
from nocopy.tape import Space, Tape, validate
from nocopy.tape.ops import BY_CODE

PAGE = 65536
TYPES = {kind.lower(): GGMLType[kind] for kind in ("BF16", "F16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K")}
MIXES = {mix.name.lower(): mix for mix in (Q4_K_M, Q5_K_M)}
SHAPES = {"1b": LLAMA_1B, "8b": LLAMA_8B}
CHECKED_PROMPT = 41
"""Tokens of the prompt after which greedy ones are compared."""
rows: list[dict[str, Any]] = []


def row(case: str, value: float, unit: str) -> None:
    rows.append({"case": case, "value": round(value, 3), "unit": unit})
    print(f"{case:64} {value:12.3f} {unit}", flush=True)


def open_gpu(*, library: bool = True) -> cuda.CudaDevice:
    """Open the GPU, with cuBLASLt if it is there and wanted; or say why there is none."""
    try:
        if library:
            return cuda.open_device()
        driver = Driver()
        return cuda.CudaDevice(driver, Compiler(driver.capability, cache_directory()))
    except DeviceUnavailableError as e:
        raise SystemExit(str(e)) from e


def milliseconds(call: Callable[[], Any], repeat: int) -> float:
    times: list[float] = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


class Opened:
    """A session on a device, and all that it needs, closed in order."""

    def __init__(self, model: Model, device: Device, context: int, kv: DType, ledger: Ledger) -> None:
        self.engine = Engine(model, device, ledger=ledger)
        nbytes = Region(self.engine.config, 0, context, self.engine.chunk, kv).nbytes
        self.memory = LinearMemory(-(-nbytes // PAGE) * PAGE)
        self.pages = device.share(self.memory.address, self.memory.size)
        self.session = Session(self.engine, self.memory, self.pages, context=context, kv=kv)

    def close(self) -> None:
        """Close them all but the model and the device."""
        self.session.close()
        self.pages.close()
        self.memory.close()
        self.engine.close()


def greedy(session: Session, prompt: list[int], count: int) -> list[int]:
    session.truncate(0)
    session.append(prompt)
    found = [int(session.logits.argmax())]
    while len(found) < count:
        session.append(found[-1:])
        found.append(int(session.logits.argmax()))
    return found


def kinds(tape: Tape, multiprocessors: int) -> dict[str, bytes]:
    """The records of a tape by what they launch: op, kernel and dims."""
    groups: dict[str, bytes] = defaultdict(bytes)
    for record in tape.records:
        launches = plan(record.tobytes(), {}, 0, multiprocessors).launches
        if launches:
            op = BY_CODE[int(record["opcode"])]
            dims = "x".join(str(d) for d in record["dims"][: len(op.dims)])
            kernels = "+".join(
                "cublasLt" if isinstance(launch, BlasLaunch) else launch.shape.kernel
                for launch in launches
                if not isinstance(launch, Branch)
            )
            groups[f"{kernels} {dims}"] += record.tobytes()
    return groups


def kernel_rows(opened: Opened, device: cuda.CudaDevice, rows_at_once: int) -> None:
    """What each kind of launch of one pass takes, beyond starting and waiting for nothing."""
    engine, session = opened.engine, opened.session
    tape = engine.tape(session.region, rows_at_once, logits=True)
    pages = {Space.GUEST: opened.pages, Space.WEIGHTS: engine.placement.pages, Space.SCRATCH: engine.scratch}
    if session.near is not None:
        pages[Space.KV] = session.near
    sizes = {space: p.nbytes for space, p in pages.items()}

    def taken(records: bytes) -> float:
        program = device.compile(validate(records, sizes, work_limit=2**62), pages)
        device.play(program)
        found = 1e3 * milliseconds(lambda: device.play(program), 20)
        program.close()
        return found

    groups = kinds(tape, device.driver.multiprocessors)
    nothing = taken(next(r for name, r in groups.items() if name.startswith("rmsnorm"))[:256])
    for name, records in groups.items():
        count = len(records) // 256
        row(f"{rows_at_once} rows: {count:3} x {name}", max(taken(records) - nothing, 0.0) / count, "us each")
    row(f"{rows_at_once} rows: the whole pass", taken(bytes(tape)), "us")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="1b", choices=tuple(SHAPES))
    parser.add_argument("--type", default="bf16", choices=(*TYPES, *MIXES))
    parser.add_argument("--kv", default="f16", choices=("f16", "q8_0"))
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prefill", type=int, nargs="*", default=[64, 512])
    parser.add_argument("--after", type=int, nargs="+", default=[128, 896])
    parser.add_argument("--no-kernels", action="store_true", help="leave out the time of each kernel")
    parser.add_argument("--check", type=int, default=0)
    parser.add_argument("--launches", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path, help="a folder of results to draw; nothing is measured")
    parser.add_argument("--plot", type=Path)
    chosen = parser.parse_args()
    if chosen.show:
        if not chosen.plot:
            parser.error("--show draws into the file of --plot, which is missing")
        report.draw_decode(
            {kind: chosen.show / f"cuda_decode-{kind}.json" for kind in (*TYPES, *MIXES)}, chosen.plot
        )
        return
    device = open_gpu()
    model = open_model(model_file((TYPES | MIXES)[chosen.type], shape=SHAPES[chosen.shape]))
    ledger, kv = Ledger(), DType[chosen.kv.upper()]
    start = time.perf_counter()
    print(device.info.product, flush=True)
    opened = Opened(model, device, chosen.context, kv, ledger)
    seconds = time.perf_counter() - start
    row("upload", ledger.uploaded / 1e9 / seconds, "GB/s")
    session, longest = opened.session, max([*chosen.after, *chosen.prefill, CHECKED_PROMPT])
    prompt = np.random.default_rng(1).integers(0, model.config.vocabulary, longest).tolist()
    for length in chosen.prefill:
        session.append(prompt[:length])  # the first compiles
        session.truncate(0)
        ms = milliseconds(lambda n=length: (session.truncate(0), session.append(prompt[:n])), 5)
        row(f"prefill {length}", 1e3 * length / ms, "tokens/s")
    session.append([1])
    ms = milliseconds(lambda: session.append([1]), chosen.tokens)
    row(f"decode after {session.length} tokens, context {session.context}", 1e3 / ms, "tokens/s")
    floor = read_a_token(model) / read(device) / 1e6
    row("weights read once at that speed", floor, "ms")
    for start, taken in decode_ahead(session, prompt, chosen.after, chosen.tokens):
        row(f"greedy, fed ahead, after {start} tokens", taken, "ms a token")
        row("share of the memory's speed", 100 * floor / taken, "%")
    for length in () if chosen.no_kernels else chosen.prefill:
        kernel_rows(opened, device, length)
    if chosen.check:
        check(opened, model, prompt[:CHECKED_PROMPT], chosen.check, chosen.context, kv)
    found = fed_ahead(session, prompt[:CHECKED_PROMPT], chosen.launches) if chosen.launches else []
    opened.close()
    device.close()
    if chosen.launches:
        check_launches(found, model, prompt, chosen, kv)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1) + "\n")


def decode_ahead(
    session: Session, prompt: list[int], after: list[int], count: int
) -> Iterator[tuple[int, float]]:
    """Greedy tokens after so many others: tokens in the cache, and ms a token, drawn and fed."""
    for length in after:
        session.truncate(0)
        session.append(prompt[:length])
        for warm in (32, count):
            start = time.perf_counter()
            feed_ahead(session, warm)
            ms = 1e3 * (time.perf_counter() - start) / warm
        yield session.length - count, ms


def feed_ahead(session: Session, count: int) -> None:
    """Append greedy tokens, as many steps at a time as the session feeds ahead."""
    for i in range(count):
        session.append([session.likeliest(count - i)])


def fed_ahead(session: Session, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens after a prompt, fed ahead."""
    session.truncate(0)
    session.append(prompt)
    feed_ahead(session, count)
    return list(session.tokens[len(prompt) :])


def read(device: cuda.CudaDevice) -> float:
    """GB/s at which kernels read the GPU's memory, and a row of it."""
    rate = read_bandwidth(device.driver) / 1e9
    row("memory read by a kernel that sums 4 GiB", rate, "GB/s")
    return rate


def check(opened: Opened, model: Model, prompt: list[int], count: int, context: int, kv: DType) -> None:
    """Compare greedy tokens with the cpu device's."""
    found = greedy(opened.session, prompt, count)
    cpu = open_device("cpu")
    other = Opened(model, cpu, context, kv, Ledger())
    wanted = greedy(other.session, prompt, count)
    other.close()
    cpu.close()
    same = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), count)
    row(f"greedy tokens that agree with cpu, of {count}", same, "tokens")


def check_launches(
    found: list[int], model: Model, prompt: list[int], chosen: argparse.Namespace, kv: DType
) -> None:
    """Compare greedy tokens with those of the same GPU where no pass is one kernel, and time that."""
    device = open_gpu()
    device.driver.walks = False
    opened = Opened(model, device, chosen.context, kv, Ledger())
    wanted = fed_ahead(opened.session, prompt[:CHECKED_PROMPT], chosen.launches)
    same = sum(a == b for a, b in zip(found, wanted, strict=True))
    row(f"greedy tokens that are those of launches, of {chosen.launches}", same, "tokens")
    for start, taken in decode_ahead(opened.session, prompt, chosen.after, chosen.tokens):
        row(f"launches: greedy, fed ahead, after {start} tokens", taken, "ms a token")
    opened.close()
    device.close()


if __name__ == "__main__":
    main()
