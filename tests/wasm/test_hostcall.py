import ctypes
import subprocess
import threading

import pytest

from nocopy.errors import TrapError, UsageError
from nocopy.wasm import HostFunction, NativeFunction

CALLER = """(module (import "env" "f" (func $f (param {params}) (result {results})))
  (memory (export "memory") 1)
  (func (export "call") (param {params}) (result {results}) {args} (call $f)))"""


def caller(params, results):
    args = " ".join(f"(local.get {i})" for i in range(len(params)))
    return CALLER.format(params=" ".join(params), results=" ".join(results), args=args)


def wasm(types):
    return [t.replace("u", "i") for t in types]


def start(guest, function, params=(), results=()):
    source = caller(wasm(params), wasm(results))
    return guest(source, imports={("env", "f"): HostFunction(function, params, results)})


@pytest.mark.parametrize(
    ("kind", "value", "seen"),
    [
        ("i32", -1, -1),
        ("i32", 0xFFFFFFFF, -1),
        ("u32", -1, 0xFFFFFFFF),
        ("u32", 0x80000000, 0x80000000),
        ("i64", -1, -1),
        ("i64", (1 << 63) - 1, (1 << 63) - 1),
        ("u64", -1, (1 << 64) - 1),
        ("f32", 0.1, ctypes.c_float(0.1).value),
        ("f64", 0.1, 0.1),
    ],
)
def test_every_type_arrives_as_declared(guest, kind, value, seen):
    got = []
    instance = start(guest, got.append, (kind,))
    instance.call("call", value)
    assert got == [seen]
    assert type(got[0]) is type(seen)


@pytest.mark.parametrize(
    ("params", "results", "args", "wanted"),
    [
        ((), (), (), None),
        ((), ("i32",), (), 1),
        (("i32",) * 8, ("i32",), tuple(range(8)), 28),
        (("u32", "i64"), ("i32",), (1, 2), 3),
        (("i32", "i32"), ("i64",), (1, 2), 3),
        (("u32", "u32", "u32"), ("i32",), (1, 2, 3), 6),
    ],
)
def test_signatures_of_many_shapes(guest, params, results, args, wanted):
    instance = start(guest, lambda *a: (sum(a) if a else 1) if results else None, params, results)
    assert instance.call("call", *args) == wanted


def test_a_negative_result_goes_through_unsigned_parameters(guest):
    assert start(guest, lambda a: -3, ("u32",), ("i32",)).call("call", 9) == -3


def test_the_original_exception_comes_back_with_the_backtrace(guest):
    error = LookupError("nothing here")

    def fail(_a):
        raise error

    instance = start(guest, fail, ("i32",), ("i32",))
    with pytest.raises(LookupError) as caught:
        instance.call("call", 1)
    assert caught.value is error
    assert "wasm function" in error.__notes__[0]


def test_the_guest_lives_on_after_an_exception(guest):
    state = [True]

    def once(a):
        if state.pop():
            state.append(False)
            raise OSError("first")
        state.append(False)
        return a

    instance = start(guest, once, ("i32",), ("i32",))
    with pytest.raises(OSError, match="first"):
        instance.call("call", 1)
    assert instance.call("call", 5) == 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_exceptions_that_are_not_errors_come_back_too(guest, error):
    def fail():
        raise error

    with pytest.raises(error):
        start(guest, fail).call("call")


@pytest.mark.parametrize("result", [None, "7", 1.5, 1 << 32, -(1 << 31) - 1, (1, 2), [1]])
def test_a_result_that_does_not_fit_is_refused_and_never_truncated(guest, result):
    instance = start(guest, lambda: result, (), ("i32",))
    with pytest.raises(UsageError, match=r"env\.f returned"):
        instance.call("call")


@pytest.mark.parametrize("result", [None, 1, (1,), (1, 2, 3), ("a", 1)])
def test_several_results_must_all_be_there(guest, result):
    with pytest.raises(UsageError, match="does not fit"):
        start(guest, lambda: result, (), ("i32", "i32")).call("call")


def test_a_result_where_none_is_declared_is_refused(guest):
    with pytest.raises(UsageError, match="does not fit"):
        start(guest, lambda: 0).call("call")


def test_a_type_error_inside_the_function_is_its_own(guest):
    with pytest.raises(TypeError, match="unsupported operand"):
        start(guest, lambda: 1 + "a", (), ("i32",)).call("call")


@pytest.mark.parametrize("name", ["i16", "externref", "v128", "", "I32"])
def test_unknown_types_are_refused(guest, name):
    with pytest.raises(UsageError, match="numbers cross as one of"):
        guest('(module (memory (export "memory") 1))', imports={("env", "f"): HostFunction(print, (name,))})


def test_a_host_function_sees_the_guests_memory(guest):
    """Base fixed, size fresh, also while the start function runs."""
    seen = []

    def imports(instance):
        def look():
            seen.append((instance.memory.address, instance.memory.size, instance.memory.read(0, 2)))

        return {("env", "look"): HostFunction(look)}

    instance = guest(
        """(module (import "env" "look" (func $look)) (memory (export "memory") 1) (data (i32.const 0) "hi")
          (func $go (call $look) (drop (memory.grow (i32.const 1))) (call $look)) (start $go)
          (func (export "go") (call $go)))""",
        imports=imports,
    )
    instance.call("go")
    address = instance.memory.address
    assert seen == [(address, n * 65536, b"hi") for n in (1, 2, 2, 3)]


def test_a_host_function_may_call_the_guest_that_called_it(guest):
    def imports(instance):
        def down(n):
            return n + instance.call("sum", n - 1) if n else 0

        return {("env", "down"): HostFunction(down, ("i32",), ("i32",))}

    instance = guest(
        """(module (import "env" "down" (func $down (param i32) (result i32))) (memory (export "memory") 1)
          (func (export "sum") (param i32) (result i32) (call $down (local.get 0))))""",
        imports=imports,
    )
    assert instance.call("sum", 20) == 210


def test_an_exception_passes_through_nested_guest_calls(guest):
    def imports(instance):
        def down(n):
            if n == 0:
                raise LookupError("bottom")
            instance.call("sum", n - 1)

        return {("env", "down"): HostFunction(down, ("i32",))}

    instance = guest(
        """(module (import "env" "down" (func $down (param i32))) (memory (export "memory") 1)
          (func (export "sum") (param i32) (call $down (local.get 0))))""",
        imports=imports,
    )
    with pytest.raises(LookupError, match="bottom"):
        instance.call("sum", 5)


def test_another_thread_gets_a_clear_error_while_the_guest_runs(guest):
    inside, leave, errors = threading.Event(), threading.Event(), []

    def wait():
        inside.set()
        assert leave.wait(10)

    instance = start(guest, wait)
    thread = threading.Thread(target=instance.call, args=("call",))
    thread.start()
    assert inside.wait(10)
    for use in (lambda: instance.call("call"), instance.close):
        with pytest.raises(UsageError, match="another thread is inside") as caught:
            use()
        errors.append(caught)
    leave.set()
    thread.join()
    assert len(errors) == 2


def test_a_guest_cannot_be_closed_from_its_own_call(guest):
    def imports(instance):
        return {("env", "f"): HostFunction(instance.close)}

    instance = guest(caller((), ()), imports=imports)
    with pytest.raises(UsageError, match="one of its own calls"):
        instance.call("call")


def test_two_guests_run_in_two_threads(guest):
    barrier = threading.Barrier(2)

    def meet():
        barrier.wait(10)

    instances = [start(guest, meet) for _ in range(2)]
    threads = [threading.Thread(target=instance.call, args=("call",)) for instance in instances]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_host_functions_may_replace_those_of_wasi(guest):
    seen = []
    instance = guest(
        """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1) (func (export "go") (call $exit (i32.const 3))))""",
        imports={("wasi_snapshot_preview1", "proc_exit"): HostFunction(seen.append, ("i32",))},
    )
    instance.call("go")
    assert seen == [3]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A C library with host functions."""
    folder = tmp_path_factory.mktemp("native")
    (folder / "host.c").write_text(
        """#include <stdint.h>
        #include <stddef.h>
        void *add(void *env, void *caller, int64_t *v, size_t n) {
            v[0] = (int32_t)(v[0] + v[2] + *(int32_t *)env);
            return 0;
        }
        """
    )
    built = folder / "host.so"
    try:
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", built, folder / "host.c"], check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no C compiler")
    return ctypes.CDLL(str(built))


def test_a_native_function_gets_its_env_and_the_values(guest, library):
    env = ctypes.c_int32(100)
    host = NativeFunction(
        ctypes.cast(library.add, ctypes.c_void_p).value,
        ctypes.addressof(env),
        ("i32", "i32"),
        ("i32",),
        keep=(library, env),
    )
    instance = guest(caller(("i32", "i32"), ("i32",)), imports={("env", "f"): host})
    assert instance.call("call", 1, 2) == 103
    env.value = -3
    assert instance.call("call", 1, 2) == 0


def test_a_host_function_of_another_type_than_the_import_is_refused(guest):
    from nocopy.errors import InvalidModuleError

    with pytest.raises(InvalidModuleError, match="incompatible import type"):
        guest(caller(("i32",), ()), imports={("env", "f"): HostFunction(print, ("i64",))})


@pytest.mark.parametrize("padding", range(12))
@pytest.mark.parametrize("base", [0, 200, 900])
def test_unbounded_recursion_through_the_host_ends_with_an_error(guest, base, padding):
    """Wherever the recursion limit strikes: in the host function, around it, or on the way into it."""

    def imports(instance):
        def again(n=padding):
            if n:
                again(n - 1)
            else:
                instance.call("call")

        return {("env", "f"): HostFunction(again)}

    instance = guest(caller((), ()), imports=imports)

    def deep(n):
        if n:
            deep(n - 1)
        else:
            instance.call("call")

    with pytest.raises((RecursionError, TrapError)):
        deep(base)
    with pytest.raises((RecursionError, TrapError)):
        instance.call("call")
