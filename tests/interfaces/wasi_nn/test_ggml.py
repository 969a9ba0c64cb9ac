"""Language models through wasi-nn: a guest gets what Python gets, and what guests of WasmEdge expect."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nocopy.device.discovery import open_device
from nocopy.device.protocol import Device, Program
from nocopy.device.reference import ReferenceDevice
from nocopy.errors import DeadlineError, DeviceLostError
from nocopy.interfaces.attachment import ComputeLimits
from nocopy.interfaces.host import DeviceGuest
from nocopy.interfaces.loaded import keep_loaded
from nocopy.interfaces.wasi_nn.encoding import Errno
from nocopy.interfaces.wasi_nn.ggml import embedding, normalized
from nocopy.interfaces.wasi_nn.grants import NnLimits
from nocopy.memory import linear
from nocopy.models.find import EMBEDDED
from nocopy.session.language import LanguageModel
from nocopy.session.own import OwnSession
from nocopy.session.sampler import Sampler, Sampling
from nocopy.session.session import Session
from nocopy.wasm import Limits
from tests.cli.run_cli import nocopy_cli
from tests.interfaces.wasi_nn import language_guest
from tests.interfaces.wasi_nn.language_guest import Ran, Step, script
from tests.models.tiny import CONTEXT
from tests.models.tiny_bert import write_tiny_bert

PROMPT = "def add(a, b):\n"
GREEDY = {"temp": 0, "n-predict": 12}
SCHEMA = {
    "type": "object",
    "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["count"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_guest.build(tmp_path_factory.mktemp("guest"))


@pytest.fixture(scope="module")
def device(playing: str) -> Iterator[Device]:
    device = open_device(playing)
    yield device
    device.close()


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return folder


@pytest.fixture
def run(module: Path, device: Device) -> Any:
    def run(*steps: Step, model: Path = EMBEDDED, **kw: Any) -> Ran:
        return language_guest.run(module, *steps, **({"device": device, "nn_models": {"m": model}} | kw))

    return run


def start(options: dict[str, Any] | None = None) -> list[Step]:
    """Load, make a context, give options."""
    return [("name", "m"), "context", ("options", GREEDY if options is None else options)]


def ask(prompt: str) -> list[Step]:
    return [("prompt", prompt), "compute", "text", "meta"]


# Whole answers


def test_a_guest_gets_the_text_that_python_gets(run: Any, device: Device) -> None:
    ran = run(*start(), *ask(PROMPT))
    assert ran.errors == []
    with LanguageModel(EMBEDDED, device=device) as model:
        tokens = model.tokenizer.encode(PROMPT, parse_special=True)
        wanted = model.generate(tokens, max_tokens=12, temperature=0).text
    assert ran.last("text").data.decode() == wanted
    assert ran.last("meta").json == {
        "input_tokens": len(tokens),
        "output_tokens": 12,
        "cached_tokens": 0,
        "llama_build_number": 0,
        "llama_commit": "none",
    }
    assert ran.guest.ledger.copied == 0


def test_options_may_come_with_the_name(run: Any) -> None:
    one = run(*start(), *ask(PROMPT)).last("text")
    other = run(("config", "m " + json.dumps(GREEDY)), "context", *ask(PROMPT))
    assert other.errors == []
    assert other.last("text") == one


def test_what_was_done_can_be_read_at_any_time(run: Any) -> None:
    """Guests of WasmEdge ask for the plugin's version before they give a prompt."""
    ran = run(("name", "m"), "context", "meta", "piecemeta")
    assert ran.errors == []
    for found in (ran.last("meta").json, ran.last("piecemeta").json):
        assert (found["input_tokens"], found["output_tokens"]) == (0, 0)
        assert isinstance(found["llama_build_number"], int)
        assert isinstance(found["llama_commit"], str)


def test_sampling_draws_what_pythons_sampler_draws(run: Any, device: Device) -> None:
    options = {"temp": 1.2, "top-k": 30, "top-p": 0.9, "min-p": 0.0, "repeat-penalty": 1.3, "seed": 5}
    text = run(*start(options | {"n-predict": 16}), *ask(PROMPT)).last("text").data
    sampling = Sampling(temperature=1.2, top_k=30, top_p=0.9, min_p=0, repeat_penalty=1.3, seed=5)
    with LanguageModel(EMBEDDED, device=device) as model:
        session, sampler, drawn = model.session(), Sampler(sampling), []
        session.append(model.tokenizer.encode(PROMPT, parse_special=True))
        for _ in range(16):
            drawn.append(sampler.sample(session.logits))
            sampler.accept(drawn[-1:])
            session.append(drawn[-1:])
        assert text == b"".join(map(model.tokenizer.piece, drawn))
    assert text == run(*start(options | {"n-predict": 16}), *ask(PROMPT)).last("text").data
    assert text != run(*start(options | {"n-predict": 16, "seed": 6}), *ask(PROMPT)).last("text").data


def test_an_answer_ends_where_it_is_told_to(run: Any) -> None:
    whole = run(*start({"temp": 0, "n-predict": 40}), *ask(PROMPT)).last("text").data.decode()
    stop = whole[10:14]
    ran = run(*start({"temp": 0, "n-predict": 40, "reverse-prompt": stop}), *ask(PROMPT))
    text = ran.last("text").data.decode()
    assert whole.startswith(text)
    assert stop in text
    assert len(text) < len(whole)
    assert run(*start({"n-predict": 0}), *ask(PROMPT)).last("text").data == b""


def test_the_end_of_a_text_is_no_error_and_not_in_it(run: Any, device: Device) -> None:
    with LanguageModel(EMBEDDED, device=device) as model:
        end = model.tokenizer.piece(next(iter(model.tokenizer.end_ids))).decode()
        prompt = model.template.render(
            [{"role": "user", "content": "Write a function that adds two numbers"}]
        )
        wanted = model.generate(
            model.tokenizer.encode(prompt, parse_special=True), temperature=0, max_tokens=200
        )
        assert wanted.text
        assert wanted.finish == "stop"
    ran = run(*start({"temp": 0, "n-predict": 200}), *ask(prompt))
    assert ran.errors == []
    assert ran.last("text").data.decode() == wanted.text
    going_on = run(*start({"temp": 0, "n-predict": 200, "ignore-eos": True}), *ask(prompt))
    assert going_on.last("meta").json["output_tokens"] == 200
    assert end in going_on.last("text").data.decode()


def test_text_fits_a_schema_or_a_grammar(run: Any, tiny_gguf: Path) -> None:
    ran = run(
        *start({"json-schema": json.dumps(SCHEMA), "seed": 1}),
        *ask("x"),
        ("options", {"json-schema": "", "grammar": 'root ::= ("ja" | "nein")'}),
        *ask("x"),
        model=tiny_gguf,
    )
    assert ran.errors == []
    first, second = ran.of("text")
    assert 0 <= first.json["count"] <= 999
    assert second.data in (b"ja", b"nein")


def test_a_schema_means_what_llama_cpp_takes_it_to_mean(run: Any, tiny_gguf: Path) -> None:
    """It says neither that it is an array nor that objects have no other properties."""
    item = {"properties": {"id": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["id"]}
    schema = {"items": item, "minItems": 2, "maxItems": 3, "x-guidance": SCHEMA["x-guidance"]}
    ran = run(*start({"json-schema": json.dumps(schema), "seed": 3}), *ask("x"), model=tiny_gguf)
    assert ran.errors == []
    found = ran.last("text").json
    assert 2 <= len(found) <= 3
    assert all(one.keys() == {"id"} for one in found)


@pytest.mark.parametrize(
    ("options", "errno"),
    [
        ({"json-schema": "{"}, Errno.INVALID_ARGUMENT),
        ({"grammar": "root ::= ("}, Errno.INVALID_ARGUMENT),
        ({"grammar": "[" * 300}, Errno.INVALID_ARGUMENT),
        ({"grammar": "x" * (65 << 10)}, Errno.TOO_LARGE),
    ],
)
def test_a_constraint_that_cannot_be_is_an_error_of_compute(
    run: Any, options: dict[str, Any], errno: Errno
) -> None:
    ran = run(*start(options), *ask("x"))
    assert ran.errors == [("compute", errno)]


# Token by token


def test_tokens_one_by_one_are_the_same_text(run: Any) -> None:
    whole = run(*start(), *ask(PROMPT)).last("text").data
    ran = run(*start(), ("prompt", PROMPT), *["single", "piece"] * 12, "text", "piecemeta", "fini", "piece")
    assert ran.errors == [("piece", Errno.RUNTIME_ERROR)]  # the one after fini
    pieces = [done.data for done in ran.of("piece")[:-1]]
    assert b"".join(pieces) == ran.last("text").data == whole
    assert ran.last("piecemeta").json["output_tokens"] == 12


def test_a_new_prompt_or_fini_begins_again(run: Any) -> None:
    first = ["single", "piece", "single", "piece"]
    ran = run(*start(), ("prompt", PROMPT), *first, "fini", *first, ("prompt", PROMPT), *first)
    assert ran.errors == []
    pieces = [done.data for done in ran.of("piece")]
    assert pieces[0:2] == pieces[2:4] == pieces[4:6]


def test_the_end_of_a_sequence_is_error_100(run: Any, tiny_gguf: Path) -> None:
    ran = run(*start({"grammar": 'root ::= "ja"'}), ("prompt", "x"), *["single"] * 4, "text", model=tiny_gguf)
    errnos = [done.errno for done in ran.of("single")]
    assert Errno.END_OF_SEQUENCE in errnos
    assert set(errnos) == {Errno.SUCCESS, Errno.END_OF_SEQUENCE}
    assert errnos[0] == Errno.SUCCESS
    assert not any(level >= 2 for level, _ in ran.log)  # it is how every streamed answer ends


# The cache


def test_of_a_prompt_that_goes_on_only_the_rest_is_fed(
    run: Any, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    append = Session.append

    def counting(self: Session, tokens: Any, **kw: Any) -> None:
        fed.append(len(tokens))
        append(self, tokens, **kw)

    monkeypatch.setattr(Session, "append", counting)
    first = run(*start(), *ask(PROMPT)).last("text").data.decode()
    fed.clear()
    longer = PROMPT + first + "\n\nclass Queue:\n"
    ran = run(*start(), *ask(PROMPT), *ask(longer), *ask(PROMPT))
    fresh = run(*start(), *ask(longer))
    assert ran.of("text")[1] == fresh.last("text")
    assert ran.of("text")[2] == ran.of("text")[0]
    with LanguageModel(EMBEDDED, device=device) as model:
        one, two = (model.tokenizer.encode(text, parse_special=True) for text in (PROMPT, longer))
    cached = [done.json["cached_tokens"] for done in ran.of("meta")]
    assert cached[0] == 0
    assert cached[1] > len(one)  # most of the answer too
    assert cached[2] == len(one) - 1  # all, but the last token is fed for its logits
    # 12 tokens are drawn each time, and the last of them is not fed.
    wanted: list[int] = []
    for prompt, had in ((one, cached[0]), (two, cached[1]), (one, cached[2]), (two, 0)):
        wanted += [len(prompt) - had, *[1] * 11]
    assert fed == wanted


def test_contexts_of_one_model_are_separate(run: Any) -> None:
    """Two answers, made in turns, are what each is alone."""
    other = "class Stack:\n"
    alone = [run(*start(), ("prompt", p), *["single", "piece"] * 3).of("piece") for p in (PROMPT, other)]
    named = run(*start(), "which", *start(), "which")
    assert len({done.data for done in named.of("which")}) == 2
    loaded = ("config", "m " + json.dumps(GREEDY))
    ran = run(
        loaded,
        "context",
        ("prompt", PROMPT),
        "keep",
        "context",
        ("prompt", other),
        *["single", "piece", "swap"] * 6,
    )
    assert ran.errors == []
    pieces = ran.of("piece")
    assert pieces[0::2] == alone[1]
    assert pieces[1::2] == alone[0]


def test_another_context_size_or_type_begins_with_an_empty_cache(run: Any, tiny_gguf: Path) -> None:
    ran = run(
        *start(GREEDY | {"ctx-size": 64}),
        *ask("Hello, world"),
        *ask("Hello, world!"),
        ("options", {"ctx-size": 128}),
        *ask("Hello, world!"),
        ("options", {"cache-type-k": 0, "cache-type-v": 0}),
        *ask("Hello, world!"),
        *ask("Hello, world!"),
        model=tiny_gguf,
    )
    assert ran.errors == []
    assert [done.json["cached_tokens"] > 0 for done in ran.of("meta")] == [False, True, False, False, True]


# Lengths


def test_a_prompt_that_leaves_no_room_is_error_102(run: Any, tiny_gguf: Path) -> None:
    ran = run(*start({"ctx-size": 16}), *ask("Hello, world, " * 20), *ask("Hi"), model=tiny_gguf)
    assert ran.of("compute")[0].errno == Errno.PROMPT_TOO_LONG
    assert any("there is room for 15" in line for _, line in ran.log)
    assert ran.of("text")[0].data == b""


def test_a_full_context_is_error_101_and_the_text_can_be_read(run: Any, tiny_gguf: Path) -> None:
    options = {"temp": 0, "ctx-size": 32, "ignore-eos": True}
    ran = run(*start(options), *ask("Hello"), ("prompt", "Hello"), *["single"] * 40, "text", model=tiny_gguf)
    assert ran.of("compute")[0].errno == Errno.CONTEXT_FULL
    meta = ran.of("meta")[0].json
    assert meta["input_tokens"] + meta["output_tokens"] == 33  # the last token was drawn and has no room
    errnos = [done.errno for done in ran.of("single")]
    assert errnos[: meta["output_tokens"]] == [Errno.SUCCESS] * meta["output_tokens"]
    assert errnos[meta["output_tokens"]] == Errno.CONTEXT_FULL
    assert len(ran.of("text")[0].data) >= meta["output_tokens"]


def test_a_context_is_at_most_the_models(run: Any, tiny_gguf: Path) -> None:
    ran = run(*start({"temp": 0, "ctx-size": 4096, "ignore-eos": True}), *ask("Hello"), model=tiny_gguf)
    assert ran.errors == [("compute", Errno.CONTEXT_FULL)]
    meta = ran.last("meta").json
    assert meta["input_tokens"] + meta["output_tokens"] == CONTEXT + 1
    assert any(f"the model has {CONTEXT}" in line for _, line in ran.log)


def test_a_short_buffer_gets_nothing_and_says_what_it_takes(run: Any) -> None:
    ran = run(*start(), *ask(PROMPT), "short")
    assert ran.errors == [("short", Errno.TOO_LARGE)]


# Embeddings


def test_vectors_are_those_that_python_gets(run: Any, device: Device, bert: Path) -> None:
    texts = ["a cat sat on the mat .", "Dogs"]
    ran = run(*start({"embedding": True}), *[s for t in texts for s in ask(t)], model=bert)
    assert ran.errors == []
    with LanguageModel(bert, device=device) as model:
        for text, done, meta in zip(texts, ran.of("text"), ran.of("meta"), strict=True):
            vector = model.embed(text)
            assert done.json["n_embedding"] == len(vector)
            assert np.allclose(done.json["embedding"], vector, rtol=1e-6, atol=1e-7)
            assert meta.json["input_tokens"] == len(model.tokenizer.encode(text))


@pytest.mark.parametrize("norm", [-1, 0, 1, 2, 3, 64])
def test_vectors_are_divided_as_asked(run: Any, device: Device, bert: Path, norm: int) -> None:
    ran = run(*start({"embedding": True, "embd-normalize": norm}), *ask("a cat"), model=bert)
    found = np.array(ran.last("text").json["embedding"])
    with LanguageModel(bert, device=device) as model:
        vector = model.embed("a cat", normalize=False).astype(np.float64)
    sizes = {-1: 1.0, 0: np.abs(vector).max() / 32760}
    size = sizes.get(norm, float(np.linalg.norm(vector, norm if norm > 0 else None)))
    assert np.allclose(found, vector / size, rtol=1e-5, atol=1e-7)


def test_a_vector_of_zeros_stays_one() -> None:
    zeros = np.zeros(3, np.float32)
    for norm in (-1, 0, 1, 2, 7):
        assert json.loads(embedding(normalized(zeros, norm))) == {"n_embedding": 3, "embedding": [0, 0, 0]}


def test_a_text_that_is_too_long_to_embed_is_error_102(run: Any, bert: Path) -> None:
    ran = run(*start({"embedding": True}), *ask("the " * 100), model=bert)
    assert ran.errors == [("compute", Errno.PROMPT_TOO_LONG)]


def test_models_do_what_they_can(run: Any, bert: Path) -> None:
    ran = run(*start({}), *ask("a cat"), "single", model=bert)
    assert ran.errors == [("compute", 6), ("single", 6)]
    assert any('Give it the option "embedding": true' in line for _, line in ran.log)
    ran = run(*start({"embedding": True}), *ask("a cat"), "single")
    assert ran.errors == [("compute", 6), ("single", 6)]


# Hostile guests and quotas


@pytest.mark.parametrize("name", ["/etc/passwd", "", "m\0", "../m", "M", "preload:m", str(EMBEDDED)])
def test_a_guest_finds_only_what_it_was_granted(run: Any, name: str) -> None:
    assert run(("name", name)).errors == [("name", Errno.NOT_FOUND)]


def test_a_file_that_is_gone_is_error_103(
    module: Path, device: Device, tiny_gguf: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    path.symlink_to(tiny_gguf)
    steps = script(("name", "m"))
    with DeviceGuest(module, device=device, nn_models={"m": path}, stdin=steps, stdout="capture") as guest:
        path.unlink()
        guest.run()
        assert language_guest.parse(guest.stdout) == [("name", Errno.MODEL_NOT_FOUND, b"")]


def test_a_model_in_the_guests_own_bytes_is_refused(run: Any, tiny_gguf: Path) -> None:
    ran = run(("load", tiny_gguf.read_bytes()[: 1 << 19]), ("load", f"preload:{EMBEDDED}"))
    assert ran.errors == [("load", Errno.UNSUPPORTED_OPERATION)] * 2


def test_calls_out_of_order_are_errors(run: Any) -> None:
    ran = run(
        *start(), "compute", "single", "piece", ("prompt", ""), "compute", ("input2", "x"), "output2", "text"
    )
    assert ran.errors == [
        ("compute", Errno.INVALID_ARGUMENT),
        ("single", Errno.INVALID_ARGUMENT),
        ("piece", Errno.RUNTIME_ERROR),
        *([("compute", Errno.INVALID_ARGUMENT)] if not bos(EMBEDDED) else []),
        ("input2", Errno.INVALID_ARGUMENT),
        ("output2", Errno.INVALID_ARGUMENT),
    ]


def bos(path: Path) -> bool:
    """Whether the model's tokenizer makes tokens of an empty text."""
    with LanguageModel(path, device="reference") as model:
        return bool(model.tokenizer.encode(""))


def test_a_prompt_that_is_no_text_changes_nothing(run: Any) -> None:
    ran = run(*start(), ("prompt", PROMPT), ("prompt", b"\xff\xfe"), ("options", b"{"), "compute", "text")
    assert ran.errors == [("prompt", Errno.INVALID_ARGUMENT), ("options", Errno.INVALID_ENCODING)]
    assert ran.last("text") == run(*start(), *ask(PROMPT)).last("text")


def test_an_unloaded_model_answers_no_more(run: Any) -> None:
    ran = run(*start(), *ask(PROMPT), "unload", "text", "compute", "finalize", "text")
    assert ran.of("text")[0].data == ran.of("text")[1].data != b""
    assert [verb for verb, _ in ran.errors] == ["compute", "text"]


def test_caches_are_charged_to_the_guest(run: Any, tiny_gguf: Path) -> None:
    """Two contexts that compute, with room for one cache; a context that does not compute costs nothing."""
    with LanguageModel(tiny_gguf, device="reference") as model:
        size = model.session().region.nbytes
    options = ("config", "m " + json.dumps(GREEDY))
    ran = run(
        *(options, "context", "which", "context", "context", *ask("Hi"), "finalize"),
        *("context", *ask("Hi"), "context", *ask("Hi")),
        model=tiny_gguf,
        nn_limits=NnLimits(bytes=2 * size - 1),
    )
    assert [done.errno for done in ran.of("compute")] == [0, 0, Errno.TOO_LARGE]


def test_what_is_kept_of_a_guest_is_charged_and_given_back(run: Any, tiny_gguf: Path, bert: Path) -> None:
    """Prompts, options and vectors stay as long as their context."""
    long = ("options", {"grammar": "# " + "x" * 3000 + '\nroot ::= "a"'})
    ran = run(
        *(("name", "m"), "context", long, "context", long, "finalize", "context", long, "context", long),
        model=tiny_gguf,
        nn_limits=NnLimits(bytes=7000),
    )
    assert [done.errno for done in ran.of("options")] == [0, 0, 0, Errno.TOO_LARGE]
    text = ("prompt", "Hello, world, " * 5)
    with LanguageModel(tiny_gguf, device="reference") as model:
        size = 4 * len(model.tokenizer.encode(text[1]))
    ran = run(
        *(("name", "m"), "context", text, text, text, "context", text),
        model=tiny_gguf,
        nn_limits=NnLimits(bytes=2 * size - 1),
    )
    assert [done.errno for done in ran.of("prompt")] == [0, 0, 0, Errno.TOO_LARGE]
    ran = run(
        *start({"embedding": True}), *ask("a cat"), *ask("a cat"), model=bert, nn_limits=NnLimits(bytes=100)
    )
    assert [done.errno for done in ran.of("compute")] == [Errno.TOO_LARGE] * 2


def test_a_pass_costs_at_most_what_the_guest_may_ask_for(run: Any, tiny_gguf: Path, bert: Path) -> None:
    prompt = "Hello, world, " * 8
    whole = run(*start(), *ask(prompt), model=tiny_gguf).last("text")
    cut = run(*start(), *ask(prompt), model=tiny_gguf, compute_limits=ComputeLimits(work=1 << 22))
    assert cut.last("text") == whole
    none = run(*start(), *ask(prompt), model=tiny_gguf, compute_limits=ComputeLimits(work=1000))
    assert none.errors == [("compute", Errno.RUNTIME_ERROR)]
    vectors = run(
        *start({"embedding": True}), *ask("a cat"), model=bert, compute_limits=ComputeLimits(work=1000)
    )
    assert vectors.errors == [("compute", Errno.RUNTIME_ERROR)]


def test_a_deadline_ends_the_guest_in_the_middle_of_an_answer(module: Path, device: Device) -> None:
    prompts = [step for _ in range(1000) for step in ask(PROMPT)]
    with (
        DeviceGuest(
            module,
            device=device,
            nn_models={"m": EMBEDDED},
            stdin=script(*start({"ignore-eos": True}), *prompts),
            stdout="capture",
            limits=Limits(deadline=1.0),
        ) as guest,
        pytest.raises(DeadlineError),
    ):
        guest.run()


def test_guests_share_the_weights(run: Any, device: Device, tiny_gguf: Path) -> None:
    alone = run(*start(), *ask("Hi"), model=tiny_gguf)
    with keep_loaded(tiny_gguf, device):
        beside = run(*start(), *ask("Hi"), model=tiny_gguf)
    assert beside.last("text") == alone.last("text")
    assert beside.guest.ledger.shared < alone.guest.ledger.shared


def test_guests_leave_nothing_behind(run: Any, tiny_gguf: Path) -> None:
    process = psutil.Process()
    sizes: list[int] = []
    for _ in range(10):
        assert run(*start(), *ask("Hello"), model=tiny_gguf).errors == []
        sizes.append(process.memory_info().rss)
    assert sizes[-1] - sizes[3] < 8 << 20


def test_a_guest_that_is_dropped_gives_its_cache_back(
    module: Path, device: Device, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OwnSession] = []
    close = OwnSession.close

    def recording(self: OwnSession) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(OwnSession, "close", recording)
    guest = DeviceGuest(
        module, device=device, nn_models={"m": tiny_gguf}, stdin=script(*start(), *ask("Hello"))
    )
    guest.run()
    assert not closed
    del guest
    gc.collect()
    assert len(closed) == 1


def test_a_lost_device_is_a_runtime_error_and_its_memory_stays_mapped(module: Path, tiny_gguf: Path) -> None:
    class Lost(ReferenceDevice):
        def play(self, program: Program, *, timeout: float | None = None, then: object = None) -> None:
            raise DeviceLostError("the device fell off the bus")

    leaked = len(linear._leaked)
    device = Lost()
    with pytest.warns(ResourceWarning, match="was lost"):
        ran = language_guest.run(
            module, *start(), *ask("Hello"), "single", device=device, nn_models={"m": tiny_gguf}
        )
    device.close()
    assert ran.errors == [("compute", Errno.RUNTIME_ERROR), ("single", Errno.RUNTIME_ERROR)]
    assert len(linear._leaked) > leaked + 1  # the guest's own memory, and the cache's


@settings(max_examples=8)
@given(st.lists(st.binary(max_size=48) | st.text(max_size=24).map(str.encode), min_size=1, max_size=12))
def test_no_prompt_is_a_crash(run: Any, tiny_gguf: Path, prompts: list[bytes]) -> None:
    steps = [step for prompt in prompts for step in (("prompt", prompt), "compute", "text")]
    ran = run(*start({"n-predict": 2, "ctx-size": 32, "seed": 1}), *steps, model=tiny_gguf)
    for prompt, given_ in zip(prompts, ran.of("prompt"), strict=True):
        assert given_.errno == (Errno.SUCCESS if is_text(prompt) else Errno.INVALID_ARGUMENT)
    allowed = {Errno.SUCCESS, Errno.INVALID_ARGUMENT, Errno.PROMPT_TOO_LONG, Errno.CONTEXT_FULL}
    assert {done.errno for done in ran.of("compute")} <= allowed


def is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


# Where lines go


def test_the_text_streams_to_the_guests_stdout(module: Path, device: Device) -> None:
    steps = [*start(GREEDY | {"stream-stdout": True}), ("prompt", PROMPT), "compute", "text"]
    with DeviceGuest(
        module, device=device, nn_models={"m": EMBEDDED}, stdin=script(*steps), stdout="capture"
    ) as guest:
        guest.run()
    streamed, _, rest = guest.stdout.partition(b"compute 0 0\n")
    text = language_guest.parse(rest.removeprefix(b"\n"))[-1].data
    assert text
    assert streamed.endswith(b"prompt 0 0\n\n" + text)


def test_the_log_says_what_was_done_when_asked(run: Any) -> None:
    quiet, loud = run(*start(), *ask(PROMPT)), run(*start(GREEDY | {"enable-log": True}), *ask(PROMPT))
    assert quiet.log == []
    (line,) = [line for level, line in loud.log if level == 1]
    assert line.startswith("wasi-nn: ")
    assert "tokens of prompt, 0 of them in the cache" in line
    assert "12 tokens of answer" in line


@pytest.mark.parametrize(
    ("name", "grant"),
    [
        ("./m.gguf", ("--nn-model", "./m.gguf={}")),
        ("default", ("--nn-preload", "default:GGML:AUTO:{}")),
    ],
)
def test_from_the_command_line(
    module: Path, playing: str, tmp_path: Path, name: str, grant: tuple[str, str]
) -> None:
    (tmp_path / "m.gguf").symlink_to(EMBEDDED)
    steps = script(("name", name), "context", ("options", GREEDY | {"stream-stdout": True}), *ask(PROMPT))
    arguments = ("--device", playing, grant[0], grant[1].format("m.gguf"), str(module))
    done = nocopy_cli("run", *arguments, cwd=tmp_path, stdin=steps.decode())
    assert done.status == 0, done.err
    streamed, _, rest = done.out.partition("compute 0 0\n")
    text = language_guest.parse(rest.removeprefix("\n").encode())[0].data.decode()
    assert text
    assert streamed.endswith("prompt 0 0\n\n" + text)
