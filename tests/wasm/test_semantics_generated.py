"""WebAssembly's memory rules hold under our creator exactly as under Wasmtime's own: generated programs."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wasm.both_ways import BULK, GROW, LOADS, PAGE, STORES, U32, U64, accesses, check, module

EDGES = [0, 1, 2, 7, 8, 15, 16, 100, PAGE - 9, PAGE - 8, PAGE - 4, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE - 8]
EDGES += [2 * PAGE - 1, 2 * PAGE, 3 * PAGE, 1 << 31, (1 << 31) - 1, U32, U32 - 3, U32 - 7]
EDGES_64 = [*EDGES, U32 + 1, 1 << 40, 1 << 63, U64, U64 - 7]


def signed(value, bits):
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> bits - 1 else value


def numbers(at):
    """Addresses and lengths of one address type: near the edges, or anywhere in the first pages."""
    bits = 32 if at == "i32" else 64
    edges = EDGES if at == "i32" else EDGES_64
    return (st.sampled_from(edges) | st.integers(0, 3 * PAGE)).map(lambda v: signed(v, bits))


def operations(at):
    address = numbers(at)
    small = st.integers(0, 300)
    return st.lists(
        st.one_of(
            st.tuples(st.sampled_from(LOADS), address),
            st.tuples(st.sampled_from(STORES), address, st.integers(-(1 << 63), (1 << 63) - 1)),
            st.tuples(st.just("grow"), st.sampled_from([0, 0, 1, 1, 2, 5, -1])),
            st.just(("size",)),
            st.tuples(st.just("fill"), address, st.integers(0, 255), address | small),
            st.tuples(st.just("copy"), address, address, address | small),
            st.tuples(st.just("init"), address, st.integers(0, 17), st.integers(0, 17)),
            st.just(("drop",)),
        ),
        max_size=30,
    )


MODULES = {
    (at, limits, offset): module(f"{at} {limits}", GROW[at], BULK[at], *accesses(at, offset=offset))
    for at in ("i32", "i64")
    for limits in ("0 3", "1 1", "1 4")
    for offset in (0, 3, PAGE, U32)
}
RELAXED = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])


@RELAXED
@given(st.data(), st.sampled_from(sorted(MODULES)))
def test_any_sequence_of_calls(data, which):
    """Addresses arrive as arguments, so nothing can be folded away by the compiler."""
    check(MODULES[which], data.draw(operations(which[0])))


FORMS = {
    "size": "(drop (memory.size))",
    "grow": "(drop (memory.grow ({at}.const {0})))",
    "drop": "(data.drop $p)",
    "fill": "(memory.fill ({at}.const {0}) (i32.const {1}) ({at}.const {2}))",
    "copy": "(memory.copy ({at}.const {0}) ({at}.const {1}) ({at}.const {2}))",
    "init": "(memory.init $p ({at}.const {0}) (i32.const {1}) (i32.const {2}))",
}


def instruction(at, operation):
    """One operation with constant operands, leaving nothing on the stack."""
    name, *args = operation
    if name in FORMS:
        return FORMS[name].format(*args, at=at)
    value = name.split(".")[0]
    if ".load" in name:
        return f"(drop ({name} ({at}.const {args[0]})))"
    bits = {"i32": 32, "i64": 64, "f32": 32, "f64": 64}[value]
    const = f"(i{bits}.const {signed(args[1], bits)})"
    const = f"({value}.reinterpret_i{bits} {const})" if value[0] == "f" else const
    return f"({name} ({at}.const {args[0]}) {const})"


@settings(RELAXED, max_examples=60)
@given(st.sampled_from(["i32", "i64"]), st.sampled_from(["0 3", "1 1", "1 4"]), st.data())
def test_any_program_of_constants(at, limits, data):
    """Constant addresses let the compiler decide bounds checks; the first that fails ends the program."""
    body = " ".join(instruction(at, operation) for operation in data.draw(operations(at)))
    function = f'(func (export "go") {body})'
    check(module(f"{at} {limits}", '(data $p "passive segment")', function), [("go",)])


@settings(RELAXED, max_examples=60)
@given(
    st.sampled_from(["i32", "i64"]),
    st.integers(0, 2),
    st.lists(st.tuples(st.sampled_from(EDGES_64), st.binary(max_size=40)), max_size=6),
)
def test_any_data_segments(at, pages, segments):
    bits = 32 if at == "i32" else 64
    text = []
    for offset, content in segments:
        escaped = "".join(f"\\{byte:02x}" for byte in content)
        text.append(f'(data ({at}.const {signed(offset, bits)}) "{escaped}")')
    check(module(f"{at} {pages} 3", *text))
