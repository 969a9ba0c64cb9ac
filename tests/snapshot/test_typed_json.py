import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.snapshot.typed_json import Defect, Length, Range, dump, load


@dataclass(frozen=True)
class Inner:
    name: Annotated[str, Length(1, 5)]
    weight: float = 0.0

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ValueError("bad is no name")


@dataclass(frozen=True)
class Outer:
    flag: bool = False
    count: Annotated[int, Range(0, 9)] = 0
    wide: int = 0
    kind: Literal["a", "b"] = "a"
    data: bytes = b""
    items: tuple[Inner, ...] = ()
    maybe: Annotated[bytes, Length(2, 2)] | None = None


inners = st.builds(
    Inner,
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(lambda s: s != "bad"),
    st.floats(allow_nan=False),
)
outers = st.builds(
    Outer,
    st.booleans(),
    st.integers(0, 9),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(["a", "b"]),
    st.binary(max_size=20),
    st.lists(inners, max_size=3).map(tuple),
    st.none() | st.binary(min_size=2, max_size=2),
)


@given(outers)
def test_what_is_dumped_is_loaded(value):
    text = dump(value)
    assert load(Outer, text) == value
    assert dump(load(Outer, text)) == text


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_anything_else_is_a_defect(data):
    with pytest.raises(Defect):
        load(Outer, data)


SOUND = json.loads(dump(Outer(items=(Inner("x"),))))


def text(**changed) -> bytes:
    """The sound value with some fields changed; a field set to ... is left out."""
    value = {k: v for k, v in (SOUND | changed).items() if v is not ...}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_the_sound_value_is_sound():
    assert load(Outer, text()) == Outer(items=(Inner("x"),))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"flag": ...}, "flag is missing"),
        ({"more": 1}, "'more' is unknown"),
        ({"flag": 0}, "flag: 0 was found; it must be true or false"),
        ({"flag": None}, "true or false"),
        ({"count": True}, "integer from 0 to 9"),
        ({"count": 10}, "integer from 0 to 9"),
        ({"count": -1}, "integer from 0 to 9"),
        ({"count": "1"}, "integer from 0 to 9"),
        ({"wide": 2**64}, "integer from"),
        ({"wide": 1.0}, "not an integer"),
        ({"kind": "c"}, "one of"),
        ({"kind": ["a"]}, "one of"),
        ({"data": "AAA"}, "base64"),
        ({"data": "AB=="}, "base64"),
        ({"data": "A A="}, "base64"),
        ({"data": "\u00e9AAA"}, "base64"),
        ({"data": 5}, "base64"),
        ({"maybe": "AAAA"}, "base64 of 2 to 2 bytes"),
        ({"items": {}}, "an array"),
        ({"items": [None]}, r"items\[0\]: None was found; it must be an object"),
        ({"items": [{"name": "", "weight": "0x0.0p+0"}]}, r"items\[0\].name"),
        ({"items": [{"name": "bad", "weight": "0x0.0p+0"}]}, "bad is no name"),
        ({"items": [{"name": "x", "weight": "1.0"}]}, "base 16"),
        ({"items": [{"name": "x", "weight": "0x1p+2000"}]}, "base 16"),
        ({"items": [{"name": "x", "weight": 1}]}, "base 16"),
    ],
)
def test_a_field_that_does_not_fit_is_named(changed, why):
    with pytest.raises(Defect, match=why):
        load(Outer, text(**changed))


@pytest.mark.parametrize(
    "data",
    [
        text().replace(b'"count":0', b'"count": 0'),
        text().replace(b'"count":0', b'"count":-0'),
        text().replace(b'"count":0', b'"count":0,"count":0'),
        text().replace(b'"kind":"a"', rb'"kind":"\u0061"'),
        text().replace(b'"count":0,', b"").replace(b"{", b'{"wide":0,"count":0,', 1),
        text() + b"\n",
        b"\xef\xbb\xbf" + text(),
        text().replace(b'"x"', rb'"\ud800"'),
        text().replace(b'"x"', b'"\xed\xa0\x80"'),
    ],
)
def test_one_value_has_one_text(data):
    with pytest.raises(Defect, match=r"canonical|made of"):
        load(Outer, data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"NaN", b"-Infinity"])
def test_hostile_json_is_a_defect(data):
    with pytest.raises(Defect):
        load(Outer, data)


@pytest.mark.parametrize(
    "value",
    [Outer(count=10), Outer(flag=1), Outer(data="x"), Outer(items=[]), Outer(items=(Inner("\ud800"),))],
)
def test_nothing_is_dumped_that_would_not_load(value):
    with pytest.raises(Defect):
        dump(value)


def test_a_type_that_has_no_json_is_an_error_of_the_program():
    @dataclass(frozen=True)
    class Odd:
        field: complex = 0j

    with pytest.raises(TypeError, match="no type"):
        dump(Odd())
