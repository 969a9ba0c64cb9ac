"""LanguageModel: one object from a file to text, with a cache that is used again."""

import gc
import json
import weakref

import numpy as np
import pytest

import nocopy
from nocopy.errors import HubError, ModelFileError, UsageError
from nocopy.session.language import LanguageModel
from nocopy.session.sampler import Sampling
from tests.models.tiny import CONTEXT, write_tiny

HELLO = [{"role": "user", "content": "heap"}]


@pytest.fixture
def model(tiny_gguf, playing):
    with LanguageModel(tiny_gguf, device=playing) as opened:
        yield opened


def test_the_package_offers_it():
    assert nocopy.LanguageModel is LanguageModel
    assert nocopy.Sampling is Sampling
    assert set(nocopy.__all__) <= set(dir(nocopy))
    with pytest.raises(AttributeError, match="nothing"):
        _ = nocopy.nothing


def test_pieces_are_the_text(model):
    pieces = list(model.generate("heap", max_tokens=12, seed=3))
    assert "".join(pieces) == model.generate("heap", max_tokens=12, seed=3).text
    assert len(pieces) > 1


def test_greedy_text_is_what_the_logits_say(model):
    made = model.generate("heap", max_tokens=8, temperature=0)
    assert made.text
    with model.session() as session:
        session.append(made.prompt)
        for token in made.tokens:
            assert token == int(session.logits.argmax())
            session.append([token])


def test_a_seed_reproduces_and_is_reported(model):
    first = model.generate("heap", max_tokens=12)
    text = first.text
    again = model.generate("heap", max_tokens=12, seed=first.seed)
    assert again.text == text
    assert model.generate("heap", max_tokens=12, seed=first.seed + 1).text != text


def test_a_second_prompt_uses_what_the_first_left(model):
    start = model.tokenizer.encode("the heap is a list")
    model.generate(start, max_tokens=0).text  # noqa: B018 - reading it makes it
    second = model.generate([*start, 5, 6], max_tokens=1, temperature=0)
    text = second.text
    assert second.speed.reused == len(start)
    with model.session() as fresh:
        assert model.generate([*start, 5, 6], max_tokens=1, temperature=0, session=fresh).text == text


def test_turns_of_a_conversation_are_read_once(model):
    first = model.chat(HELLO, max_tokens=5, temperature=0)
    turns = [*HELLO, {"role": "assistant", "content": first.text}, {"role": "user", "content": "more"}]
    second = model.chat(turns, max_tokens=1)
    _ = second.text
    assert second.speed.reused >= len(first.prompt)


def test_a_newer_text_ends_an_older_one_instead_of_mixing(model):
    older = iter(model.generate("heap", max_tokens=9, ignore_end=True))
    next(older)
    _ = model.generate("queue", max_tokens=1).text
    with pytest.raises(UsageError, match="begun another text"):
        next(older)


def test_sessions_of_their_own_do_not_disturb_each_other(model):
    with model.session() as a, model.session(context=32, kv="q8_0") as b:
        one = iter(model.generate("heap", max_tokens=6, temperature=0, ignore_end=True, session=a))
        two = iter(model.generate("queue", max_tokens=6, temperature=0, ignore_end=True, session=b))
        mixed = [next(one), next(two), next(one), next(two)]
    alone = list(model.generate("heap", max_tokens=6, temperature=0, ignore_end=True))
    assert [mixed[0], mixed[2]] == alone[:2]


def test_a_prompt_that_does_not_fit_is_refused_with_both_lengths(model):
    with pytest.raises(UsageError, match=f"{CONTEXT + 1} tokens; the context of {CONTEXT}"):
        model.generate([1] * (CONTEXT + 1))


def test_a_full_context_ends_the_text(tiny_gguf, playing):
    with LanguageModel(tiny_gguf, device=playing, context=8) as model:
        made = model.generate([1, 2, 3, 4], ignore_end=True)
        assert len(made.text) > 0
        assert (made.finish, len(made.tokens)) == ("length", 4)


def test_a_text_can_be_cancelled(model):
    made = model.generate("heap", ignore_end=True)
    for piece in made:
        assert piece
        made.cancel()
    assert len(made.tokens) <= 3


def test_a_schema_binds_the_text(model):
    schema = {"enum": ["heap", "queue"]}
    for given in (schema, json.dumps(schema)):
        made = model.generate("x", json_schema=given, seed=1)
        assert json.loads(made.text) in schema["enum"]
        assert made.finish == "stop"


@pytest.mark.parametrize("grammar", ['root ::= "yes" | "no"', 'start: "yes" | "no"'])
def test_a_grammar_binds_the_text(model, grammar):
    assert model.generate("x", grammar=grammar, seed=1).text in ("yes", "no")
    assert model.generate("x", regex="(yes|no)", seed=1).text in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temprature": 1}, "'temprature' was given; sampling has temperature"),
        ({"temperature": -1}, "temperature = -1"),
        ({"grammar": 'root ::= "x"', "regex": "x"}, "follows one constraint"),
        ({"sampling": Sampling(), "seed": 1}, "give one of them"),
        ({"stop": [""]}, "empty stop string"),
        ({"json_schema": "{"}, "json_schema constraint cannot be read"),
    ],
)
def test_wrong_options_are_refused(model, options, says):
    with pytest.raises(UsageError, match=says):
        model.generate("heap", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context": CONTEXT + 1}, f"context of {CONTEXT + 1} tokens was asked for"),
        ({"kv": "q2"}, "there are f16, q8_0"),
        ({"device": "abacus"}, "abacus"),
        ({"chat_template": "nothing"}, "chatml"),
    ],
)
def test_a_model_cannot_be_opened_in_a_way_that_it_does_not_have(tiny_gguf, options, says):
    with (
        pytest.raises(UsageError, match=says),
        LanguageModel(tiny_gguf, **({"device": "reference"} | options)) as model,
    ):
        model.chat(HELLO)


def test_a_model_without_a_template_says_so_and_takes_another(tmp_path, playing):
    path = write_tiny(tmp_path / "base.gguf", template=None)
    with (
        LanguageModel(path, device=playing) as model,
        pytest.raises(UsageError, match="Tiny has no chat template"),
    ):
        model.chat(HELLO)
    with LanguageModel(path, device=playing, chat_template="chatml") as model:
        special = model.tokenizer.token_id("<|im_start|>")
        assert model.chat(HELLO, max_tokens=1).prompt.count(special) == 2


def test_no_default_model_says_what_to_do(monkeypatch, tmp_path, tiny_gguf):
    monkeypatch.setattr("nocopy.models.find.EMBEDDED", tmp_path / "none.gguf")
    monkeypatch.delenv("NOCOPY_MODEL", raising=False)
    with pytest.raises(UsageError, match="no default model is installed; give one with -m FILE or -hf"):
        LanguageModel()
    monkeypatch.setenv("NOCOPY_MODEL", str(tiny_gguf))
    with LanguageModel(device="reference") as model:
        assert model.name == "Tiny"
    monkeypatch.setenv("NOCOPY_MODEL", str(tmp_path / "gone"))
    with pytest.raises(UsageError, match="NOCOPY_MODEL names"):
        LanguageModel()


def test_names_of_the_hub_are_looked_up_and_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="nocopy models pull u/r:Q8_0"):
        LanguageModel("u/r:Q8_0")


def test_what_is_no_model_is_refused(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"not a model at all")
    with pytest.raises(ModelFileError, match="magic"):
        LanguageModel(tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="No such file"):
        LanguageModel(tmp_path / "y.gguf")
    assert issubclass(HubError, nocopy.errors.ModelError)


def test_a_decoder_gives_no_embeddings(model):
    with pytest.raises(UsageError, match="which generates text"):
        model.embed("heap")


def test_nothing_is_copied_and_closing_twice_is_allowed(tiny_gguf, playing):
    model = LanguageModel(tiny_gguf, device=playing)
    session = model.session()
    _ = model.generate("heap", max_tokens=3, session=session).text
    assert model.ledger.copied == 0
    assert model.ledger.shared > np.int64(tiny_gguf.stat().st_size)
    model.close()
    model.close()
    with pytest.raises(nocopy.errors.ClosedError):
        session.append([1])


def test_texts_and_sessions_that_nobody_holds_are_freed(model):
    session = model.session()
    made = model.generate("heap", max_tokens=2, session=session)
    assert made.text
    gone = weakref.ref(session)
    session.close()
    del session, made
    gc.collect()
    assert gone() is None
