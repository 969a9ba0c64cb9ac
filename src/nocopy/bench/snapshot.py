"""Freezing and thawing a conversation of so many tokens with a model of 1.24 B parameters, f16 KV cache.

freeze        the session becomes a file on the disk    beside writing as many bytes and fsync
publish       the same                                  beside writing them as durably by hand: under another
                                                        name, fsync, rename, fsync of the folder
thaw          the file becomes a session                beside reading the tokens again (re-prefill)
thaw of new   the same, of a file that this process     beside thawing one that it has thawed before
              has not opened before
first token   thaw, then one token: a token, and the    beside one token of the session that was frozen
              median of how much more the two took
at most       the same with the upper end of the 95 %   beside the same
              interval of that median
beyond        thaw, then one token without its          beside the upper end of its 95 % interval
              arithmetic, less that of the session
              that was frozen; not on devices that
              lock pages in memory

What a token takes varies by more than a thaw does, the more so the longer the conversation. Its arithmetic is
the same after a thaw; `beyond` measures all that is not: the device touches each page that a token reads or
writes, and all of the program runs but the kernels.

The file is written to the user's cache directory and is in the page cache when it is thawed, without
verification. Its size is what it takes on the disk. Reading the tokens again is measured up to `READ` tokens.
Beyond, the peer says so: what stands there is the time that they take at the rate of `READ` tokens, which is
less than they would take, since attention grows with the square. The keys and values of such a length are
noise: no time depends on them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from nocopy.bench.llama import fill_with_noise, model_file, tokens
from nocopy.bench.result import Result, Row, row
from nocopy.bench.runner import Progress, silent
from nocopy.bench.timing import LEAST_SAMPLES, MOST_SAMPLES, interleaved, interval, turns
from nocopy.device.protocol import Device, Program
from nocopy.memory.linear import LinearMemory
from nocopy.models.ggml import GGMLType
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.snapshot.publish import sync_folder
from nocopy.snapshot.session import freeze_session, thaw_session
from nocopy.tape import Space, Tape, TapeBuilder, Tensor

AXIS = "tokens of the conversation"
LENGTHS = (24, 256, 4096, 32768)
READ = 4096
"""Tokens up to which re-prefill is measured: a minute on two cores."""
KIND = GGMLType.Q4_0
SECONDS = 6.0
"""For writing files of one size, likewise for thawing; first tokens take up to fifty times as long."""
MOST_PAIRS = 1000
"""Tokens that are compared with first tokens."""
LAYERS = 0.003
"""Seconds that a token spends with its layers at least, before it writes logits."""
READ_AROUND = 65536
"""Bytes that the system maps around a page of a file that is read, at least."""
SLOW_DISK = 64 << 20
"""Bytes a second."""
STEP = 16 << 20
"""Bytes of one plain write."""


def rows(device: Device, *, progress: Progress = silent) -> list[Row]:
    """Measure each of `LENGTHS`; the unit is milliseconds. The case names the tokens and the file's size."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nocopy"
    model_path = model_file(KIND)
    found: list[Row] = []
    with (
        TemporaryDirectory(prefix="bench-", dir=cache) as folder,
        LanguageModel(model_path, device=device, context=max(LENGTHS) + 64) as model,
    ):
        rate = 0.0
        for i, length in enumerate(LENGTHS):
            progress(f"{length} tokens", i / len(LENGTHS))
            with model.session(context=length + 64) as session:
                read = _read(session, length)
                rate = read / length if read else rate
                peer = "re-prefill" if read else f"re-prefill at the rate of {READ}"
                found += _of(model, session, Path(folder) / "session", peer, read or rate * length)
    return found


def lines(result: Result) -> dict[str, dict[int, float]]:
    """Milliseconds over tokens, for a picture."""
    drawn: dict[str, dict[int, float]] = {
        name: {} for name in ("thaw", "freeze", "re-prefill", "write and publish")
    }
    for found in result.rows:
        what, length = re.fullmatch(r"(.*) (\d+) tokens.*", found["case"], re.DOTALL).groups()  # pyright: ignore
        for name, value in ((what, found["value"]), (found["peer"], found["peer_value"])):
            if name in drawn:
                drawn[name][int(length)] = value
    return drawn


def _read(session: OwnSession, length: int) -> float:
    """Fill the session; return the seconds that reading the tokens took, 0 if they were not read."""
    if length <= READ:
        fed = tokens(length)
        start = perf_counter()
        session.append(fed)
        return perf_counter() - start
    fill_with_noise(session, length)
    return 0.0


def _of(model: LanguageModel, session: OwnSession, path: Path, peer: str, read: float) -> list[Row]:
    length = session.length

    def freeze() -> Callable[[], None]:
        freeze_session(session, path)
        return path.unlink

    freeze_session(session, path)
    nbytes = path.stat().st_blocks * 512
    path.unlink()
    times = interleaved(
        {
            "ours": freeze,
            "disk": lambda: _write(path, session.memory, nbytes),
            "durably": lambda: _publish(path, session.memory, nbytes),
        },
        seconds=SECONDS + nbytes / SLOW_DISK,  # a disk is uneven, and few files of 1 GiB say little
    )
    case = f"{length} tokens, {nbytes / 2**20:.1f} MiB"
    ours = 1e3 * times["ours"]
    found = [
        row(f"freeze {case}", ours, "ms", "write and fsync", 1e3 * times["disk"]),
        row(f"publish {case}", ours, "ms", "write and publish", 1e3 * times["durably"]),
    ]
    freeze_session(session, path)
    names = [path.with_name(f"{path.name}-{i}") for i in range(MOST_SAMPLES + 2)]
    for name in names:
        name.hardlink_to(path)
    unseen = iter(names)
    (token,) = tokens(1)

    def thaw() -> Callable[[], None]:
        return thaw_session(model, path, verify="off").session.close

    def thaw_new() -> Callable[[], None]:
        return thaw_session(model, next(unseen), verify="off").session.close

    def first_token() -> Callable[[], None]:
        thawed = thaw_session(model, path, verify="off").session
        thawed.append([token])
        return thawed.close

    def next_token() -> Callable[[], None]:
        session.append([token])
        return lambda: session.truncate(length)

    # Whatever is thawed comes after a token: a model that has just passed through the caches.
    calls = {"next": next_token, "thaw": thaw, "again": next_token, "new": thaw_new}
    times = turns(calls, seconds=SECONDS)
    thawing, new = 1e3 * median(times["thaw"]), 1e3 * median(times["new"])
    found.append(row(f"thaw {case}", thawing, "ms", peer, 1e3 * read))
    found.append(row(f"thaw of new {case}", new, "ms", "thaw", thawing))
    times = turns({"next": next_token, "first": first_token}, seconds=50 * SECONDS, most=MOST_PAIRS)
    # From one turn to the next a machine's speed changes by more than a thaw takes, within a turn less.
    more = [first - plain for first, plain in zip(times["first"], times["next"], strict=True)]
    plain = median(times["next"])
    for name, much in (("first token", median(more)), ("at most", interval(more)[1])):
        found.append(row(f"{name} {case}", 1e3 * (plain + much), "ms", "next token", 1e3 * plain))
    if not session.engine.device.info.pins:
        beyond = [1e3 * seconds for seconds in _beyond(model, session, path, next_token)]
        found.append(row(f"beyond {case}", median(beyond), "ms", "at most, 95 %", interval(beyond)[1]))
    for name in (path, *names):
        name.unlink()
    return found


def _beyond(
    model: LanguageModel, session: OwnSession, path: Path, next_token: Callable[[], Callable[[], None]]
) -> list[float]:
    """Seconds of a thaw and a token without its arithmetic, less those of such a token without a thaw."""
    (token,), length, samples = tokens(1), session.length, list[float]()
    tapes = _touching(session)
    end = perf_counter() + 3 * SECONDS
    while len(samples) < LEAST_SAMPLES or (len(samples) < MOST_SAMPLES and perf_counter() < end):
        next_token()()
        start = perf_counter()
        thawed = thaw_session(model, path, verify="off").session
        seconds = perf_counter() - start + _touched(thawed, token, tapes)
        thawed.close()
        next_token()()
        samples.append(seconds - _touched(session, token, tapes))
        session.truncate(length)
    return samples


def _touching(session: OwnSession) -> list[Tape]:
    """What touches the pages that the next token does: before its logits, and those of its logits."""
    engine, region, tapes = session.engine, session.region, (TapeBuilder(), TapeBuilder())
    cache = region.cache
    row = cache.offset + session.length * cache.token_bytes
    pages, apart = (row - cache.offset) // READ_AROUND, READ_AROUND // cache.dtype.itemsize
    tapes[0].fill(Tensor(Space.GUEST, row, (cache.token_elements,), cache.dtype), 0.0)
    if pages:
        read = Tensor(Space.GUEST, cache.offset, (pages,), cache.dtype, (apart,))
        tapes[0].copy(Tensor(Space.SCRATCH, 0, (pages,), cache.dtype), read)
    tapes[1].fill(region.logits, 0.0)
    return [engine.validated(bytes(tape)) for tape in tapes]


def _touched(session: OwnSession, token: int, tapes: Sequence[Tape]) -> float:
    """Append a token without computing anything; returns the seconds without `LAYERS`."""
    engine = session.engine

    def touch(make: Callable[[], Program]) -> None:
        make()
        layers, head = (engine.compile(tape, session.pages) for tape in tapes)
        engine.device.play(layers)
        end = perf_counter() + LAYERS
        while perf_counter() < end:
            pass
        engine.device.play(head)

    play = session._play  # pyright: ignore[reportPrivateUsage]
    session._play = touch  # pyright: ignore[reportPrivateUsage]
    start = perf_counter()
    session.append([token])
    seconds = perf_counter() - start - LAYERS
    session._play = play  # pyright: ignore[reportPrivateUsage]
    return seconds


def _write(path: Path, memory: LinearMemory, nbytes: int) -> Callable[[], None]:
    """As fast as the disk is: the same bytes in large writes, one fsync."""
    data = memoryview(memory.buffer())
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    try:
        left = nbytes
        while left:
            at = (nbytes - left) % len(data)
            left -= os.write(file, data[at : at + min(left, STEP)])
        os.fsync(file)
    finally:
        os.close(file)
    return path.unlink


def _publish(path: Path, memory: LinearMemory, nbytes: int) -> Callable[[], None]:
    """As durable as a file can be that replaces another: whenever the machine stops, one of them is whole."""
    temporary = path.with_name("temporary")
    _write(temporary, memory, nbytes)
    temporary.rename(path)
    sync_folder(path.parent)
    return path.unlink
