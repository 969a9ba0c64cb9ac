"""Models and sessions from inside a guest: the same numbers as from Python, in the guest's own memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device, Program
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import DeadlineError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.grip import turns_of
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.loaded import Loaded, keep_loaded
from nocopy.interfaces.model_imports import ConstraintKind, Finish, Generate
from nocopy.memory.dtype import DType
from nocopy.memory.linear import LinearMemory
from nocopy.session import constraint
from nocopy.session.generate import Generation, generate
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session
from nocopy.wasm import Limits
from tests.interfaces.model_guest import OUT, PAGE, TEXT, ModelGuest
from tests.models.tiny import CONTEXT, VOCABULARY, write_tiny

PROMPT = [0, 72, 101, 108, 108, 111, 44, 32, 119, 111, 114]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["add", "lookup"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 999},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module", params=["reference", "cpu"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    device = open_device(request.param)
    yield device
    device.close()


@pytest.fixture(scope="module")
def loaded(device: Device, tiny: Path) -> Iterator[Loaded]:
    """The engine that the guests use, for Python."""
    with keep_loaded(tiny, device) as loaded:
        yield loaded


@pytest.fixture
def session(loaded: Loaded) -> Iterator[Session]:
    """A session of Python's, on the engine of the guests."""
    memory = LinearMemory(16 * PAGE)
    pages = loaded.engine.device.share(memory.address, memory.size)
    session = Session(loaded.engine, memory, pages, context=200, kv=DType.F32)
    yield session
    session.close()
    pages.close()
    memory.close()


@pytest.fixture(params=["wasm32", "memory64"])
def start(request: pytest.FixtureRequest, device: Device, tiny: Path) -> Iterator[Callable[..., ModelGuest]]:
    started: list[ModelGuest] = []

    def start(**kw: Any) -> ModelGuest:
        started.append(ModelGuest(device, tiny, memory64=request.param == "memory64", **kw))
        return started[-1]

    yield start
    for each in started:
        each.guest.close()


Start = Callable[..., ModelGuest]


def test_the_guest_learns_what_the_model_is_and_not_where(start: Start, tiny: Path, loaded: Loaded) -> None:
    g = start()
    info = g.info(g.open())
    assert info["architecture"] == "llama"
    assert (info["context"], info["vocabulary"], info["layers"], info["width"]) == (
        CONTEXT,
        VOCABULARY,
        2,
        64,
    )
    assert info["kv_bytes_per_token"] == {"f16": 256, "q8_0": 136, "f32": 512, "bf16": 256}
    assert info["end_tokens"] == sorted(loaded.model.tokenizer.end_ids)
    assert str(tiny.parent) not in json.dumps(info)


def test_logits_are_those_of_python_and_lie_in_the_guest(start: Start, session: Session) -> None:
    g = start()
    inside = g.session(g.open())
    session.append(PROMPT)
    g.append(inside, PROMPT)
    got = g.logits(inside)
    assert np.array_equal(got, session.logits)
    base = g.memory.address
    assert base + PAGE <= got.ctypes.data < base + g.memory.size
    g.append(inside, [5])
    session.append([5])
    assert np.array_equal(got, session.logits)  # the same array: written again, not handed over


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 0, "seed": 7},
        {"temperature": 0.7, "top_p": 0.8, "min_p": 0.1, "typical_p": 0.9, "seed": 2**64 - 1},
        {"temperature": 1.0, "seed": 3, "logit_bias": {17: 100.0, 18: -100.0}},
    ],
)
def test_a_generation_is_that_of_python(start: Start, session: Session, loaded: Loaded, options: Any) -> None:
    session.append(PROMPT)
    request = Generation(limit=24, ignore_end=True)
    steps = generate(session, loaded.model.tokenizer, Sampler(Sampling(**options)), request)
    wanted = [s.token for s in steps]
    g = start()
    inside = g.session(g.open())
    g.append(inside, PROMPT)
    assert g.generate(inside, 24, flags=Generate.IGNORE_END, **options) == wanted
    assert g.option("finish") == Finish.LENGTH
    assert g.ok("session_length", inside) == len(PROMPT) + 24


def test_pieces_are_the_whole(start: Start) -> None:
    g = start()
    model = g.open()
    whole, pieces = g.session(model), g.session(model)
    options = {"flags": Generate.IGNORE_END, "seed": 11, "repeat_penalty": 1.3, "presence_penalty": 0.5}
    g.append(whole, PROMPT)
    wanted = g.generate(whole, 20, **options)
    g.append(pieces, PROMPT)
    got = g.generate(pieces, 1, **options)
    for most in (0, 3, 7, 9):
        got += g.generate(pieces, most, keep=True)
    assert got == wanted
    assert np.array_equal(g.logits(whole), g.logits(pieces))


def test_truncate_extend_and_fork(start: Start) -> None:
    g = start()
    model = g.open()
    one = g.session(model)
    g.append(one, PROMPT)
    wanted = g.logits(one).copy()
    g.append(one, [1, 2, 3])
    assert g.ok("session_truncate", one, 5) == 0
    assert g.call("session_logits", one, 8) == -2
    assert "truncated" in g.error
    assert g.ok("session_extend", one, *g.tokens(PROMPT)) == 5
    assert np.allclose(g.logits(one), wanted, rtol=1e-4, atol=1e-5)
    two = g.fork(one, g.size(model, 200))
    assert np.array_equal(g.logits(two), g.logits(one))
    g.append(one, [40])
    g.append(two, [41])
    forked = g.logits(two).copy()
    assert not np.array_equal(forked, g.logits(one))
    assert g.ok("session_extend", one, *g.tokens([*PROMPT, 41])) == len(PROMPT)
    assert np.array_equal(g.logits(one), forked)


def test_a_fork_carries_the_constraint_on(start: Start) -> None:
    g = start()
    model = g.open()
    one = g.session(model)
    g.append(one, PROMPT)
    g.ok("session_constrain", one, ConstraintKind.REGEX, *g.put("abc(d|e)f"))
    begun = g.generate(one, 1, temperature=0)
    two = g.fork(one, g.size(model, 200))
    for session in (two, one):
        assert g.text(model, begun + g.generate(session, 9, temperature=0)) in (b"abcdf", b"abcef")


def test_the_memory_may_grow_while_sessions_are_open(start: Start, session: Session) -> None:
    g = start()
    inside = g.session(g.open())
    g.append(inside, PROMPT)
    before, base = g.logits(inside), g.memory.address
    assert g.call("grow", 16) == 33
    assert g.memory.address == base
    g.append(inside, [9])
    session.append(PROMPT)
    session.append([9])
    assert np.allclose(before, session.logits, rtol=1e-4, atol=1e-5)
    again = g.ok("session_open", g.open(), 33 * PAGE, 16 * PAGE, 200, DType.F32)  # in what was added
    g.append(again, PROMPT)


def test_no_byte_is_copied_for_a_token(start: Start) -> None:
    g = start()
    inside = g.session(g.open())
    g.append(inside, PROMPT)
    before = g.guest.ledger.as_dict()
    g.generate(inside, 32, flags=Generate.IGNORE_END)
    assert g.guest.ledger.as_dict() == before
    assert before["copied"] == 0
    assert g.guest.pages is not None
    assert g.guest.pages.device_address == g.memory.address


@pytest.mark.parametrize("seed", range(4))
def test_random_weights_give_valid_json(start: Start, seed: int) -> None:
    g = start()
    model = g.open()
    inside = g.session(model)
    g.append(inside, PROMPT)
    g.ok("session_constrain", inside, ConstraintKind.JSON_SCHEMA, *g.put(json.dumps(SCHEMA)))
    made = g.generate(inside, 80, temperature=1, top_k=0, top_p=1, min_p=0, seed=seed)
    assert g.option("finish") in (Finish.CONSTRAINT, Finish.END)
    found = json.loads(g.text(model, made))
    assert found.keys() == {"name", "count"}
    assert found["name"] in ("add", "lookup")
    assert 0 <= found["count"] <= 999
    assert g.generate(inside, 10) == []
    assert g.option("finish") == Finish.CONSTRAINT
    g.ok("session_constrain", inside, ConstraintKind.NONE, 0, 0)
    assert len(g.generate(inside, 3, flags=Generate.IGNORE_END)) == 3


@pytest.mark.parametrize(
    ("kind", "source", "outcomes"),
    [
        (ConstraintKind.REGEX, "(yes|no)!", {b"yes!", b"no!"}),
        (ConstraintKind.LARK, 'start: "one" | "two"', {b"one", b"two"}),
        (ConstraintKind.GBNF, 'root ::= "x" ("y" | "z")', {b"xy", b"xz"}),
    ],
)
def test_other_constraints(start: Start, kind: ConstraintKind, source: str, outcomes: set[bytes]) -> None:
    g = start()
    model = g.open()
    inside = g.session(model)
    g.append(inside, PROMPT)
    g.ok("session_constrain", inside, kind, *g.put(source))
    assert g.text(model, g.generate(inside, 20)) in outcomes


def test_the_kinds_of_constraints_are_those_of_sessions() -> None:
    assert [k.name.lower() for k in ConstraintKind][1:] == list(constraint.KINDS)


def test_text_in_and_out(start: Start, loaded: Loaded) -> None:
    g, tokenizer = start(), loaded.model.tokenizer
    model = g.open()
    for text in ("", "Hello, world", "héllo 漢字 🦙", "<|im_start|>user"):
        for flags in range(4):
            wanted = tokenizer.encode(text, add_special=bool(flags & 1), parse_special=bool(flags & 2))
            count = g.ok("tokenize", model, *g.put(text), OUT, 1000, flags)
            assert g.memory.view(count, "i32", OUT).numpy().tolist() == wanted
        plain = tokenizer.encode(text, add_special=False)
        assert g.text(model, plain, 0) == text.encode()
    assert g.text(model, [1, 2], 2) == b"<|im_start|><|im_end|>"
    messages = [{"role": "user", "content": 'say "hi" — ünïcode'}]
    prompt = loaded.model.template.render(messages).encode()
    for form in (messages, {"messages": messages, "add_generation_prompt": True}):
        size = g.ok("chat_template", model, *g.put(json.dumps(form)), OUT, 4096)
        assert g.memory.read(OUT, size) == prompt
    bare = json.dumps({"messages": messages, "add_generation_prompt": False})
    assert g.ok("chat_template", model, *g.put(bare), OUT, 4096) < len(prompt)


def test_results_that_do_not_fit_are_cut_and_measured(start: Start) -> None:
    g = start()
    model = g.open()
    at, size = g.put("Hello, world")
    count = g.ok("tokenize", model, at, size, 0, 0, 0)
    g.memory.view(count, "i32", OUT).numpy()[:] = -1
    assert g.ok("tokenize", model, at, size, OUT, 2, 0) == count
    assert (g.memory.view(count, "i32", OUT).numpy()[2:] == -1).all()
    size = g.ok("model_info", model, TEXT, 8)
    assert g.memory.read(TEXT, 9)[7:8] == b"\0"
    assert size > 100


def test_what_the_guest_writes_to_the_logits_is_drawn(start: Start) -> None:
    g = start()
    inside = g.session(g.open())
    g.append(inside, PROMPT)
    g.logits(inside)[123] = 1e9
    assert g.generate(inside, 1, temperature=0) == [123]


def test_generation_ends_where_it_should(start: Start, loaded: Loaded) -> None:
    g = start()
    inside = g.session(g.open(), context=len(PROMPT) + 5)
    end = min(loaded.model.tokenizer.end_ids)
    g.append(inside, PROMPT)
    assert g.generate(inside, 4, logit_bias={end: 1e6}) == []
    assert (g.option("finish"), g.ok("session_length", inside)) == (Finish.END, len(PROMPT))
    assert len(g.generate(inside, 100, flags=Generate.IGNORE_END)) == 5
    assert g.option("finish") == Finish.CONTEXT
    assert g.call("session_append", inside, *g.tokens([1])) == -2
    assert f"1 tokens were to follow {len(PROMPT) + 5}" in g.error


class Slow(ReferenceDevice):
    """Takes its time for every pass."""

    def play(self, program: Program, *, timeout: float | None = None, then: object = None) -> None:
        time.sleep(0.02)
        super().play(program, timeout=timeout)


def test_a_generation_stops_at_the_guests_deadline(tiny: Path) -> None:
    with ModelGuest(Slow(), tiny, limits=Limits(deadline=0.5)) as g:
        inside = g.session(g.open())
        g.append(inside, PROMPT)
        options = g.options(flags=Generate.IGNORE_END)
        began = time.monotonic()
        with pytest.raises(DeadlineError):
            g.call("session_generate", inside, options, OUT, 180)
        assert 0.4 < time.monotonic() - began < 2  # 180 tokens take 3.6 s
        assert (g.memory.view(4, "i32", OUT).numpy() > 0).any()  # they were written as they came


def test_work_limits_split_prompts(start: Start, session: Session) -> None:
    session.append(PROMPT * 8)
    one = session.engine.tape(session.region, 1, logits=True).work
    g = start(compute_limits=ComputeLimits(work=4 * one))
    inside = g.session(g.open())
    g.append(inside, PROMPT * 8)
    assert np.allclose(g.logits(inside), session.logits, rtol=1e-3, atol=1e-4)
    tight = start(compute_limits=ComputeLimits(work=one // 2))
    model = tight.open()
    size = tight.size(model, 200)
    assert tight.call("session_open", model, PAGE, size, 200, DType.F32) == -7
    assert "Raise the work limit" in tight.error


def test_guests_share_what_they_are_both_given(device: Device, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "fresh.gguf")
    with ModelGuest(device, tiny) as one, ModelGuest(device, tiny) as two:
        first, second = one.open(), two.open()
        assert one.guest.ledger.shared > one.memory.size
        assert two.guest.ledger.shared == two.memory.size  # the weights were there
        here, there = one.session(first), two.session(second)
        one.append(here, PROMPT)
        two.append(there, PROMPT)
        one.guest.close()
        two.append(there, [3])  # the model stays for whoever has it
        second_engine = two.guest._compute._models.sessions.model(second).engine
    assert second_engine not in [loaded.engine for loaded, _ in turns_of(device).shared.values()]
    with keep_loaded(tiny, device) as again, keep_loaded(tiny, device) as same:
        assert again is same


def test_an_open_model_stays_the_hosts(device: Device, tiny: Path) -> None:
    from nocopy.models import open_model

    model = open_model(tiny)
    with ModelGuest(device, model) as g:
        g.append(g.session(g.open()), PROMPT)
    assert model.weights["token_embd.weight"].elements == VOCABULARY * 64
    assert model.weights.dequantize("token_embd.weight").shape == (VOCABULARY, 64)
    model.close()


def test_a_grant_that_is_not_there_is_refused_at_once(device: Device, tmp_path: Path) -> None:
    from nocopy.errors import UsageError

    with pytest.raises(UsageError, match="no such file"):
        DeviceGuest("(module (memory 1))", device=device, models={"default": tmp_path / "nowhere.gguf"})
