"""`nocopy run`: one guest on one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from cyclopts import Parameter

from nocopy.cli.choices import AllowCopy, DeviceName

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest


def run(
    guest: Annotated[str, Parameter(help="A .wasm or .wat file, a folder with one, or an example's name.")],
    /,
    *args: Annotated[str, Parameter(help="The guest's own arguments, untouched.", allow_leading_hyphen=True)],
    device: DeviceName = "auto",
    dir: Annotated[
        list[str] | None,
        Parameter(metavar="HOST[::GUEST]", help="A folder that the guest may read and change, and where."),
    ] = None,
    env: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME[=VALUE]", help="A variable for the guest; without a value, the one set here."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME=FILE",
            help="A language model that the guest may open under a name: a GGUF file or a model folder.",
        ),
    ] = None,
    nn_model: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME=FILE",
            help="A model that the guest may load by name through wasi-nn: an ONNX or GGUF file.",
        ),
    ] = None,
    nn_preload: Annotated[
        list[str] | None,
        Parameter(metavar="NAME:ENCODING:TARGET:FILE", help="The same, as WasmEdge takes it."),
    ] = None,
    wasi: Annotated[
        list[str] | None,
        Parameter(
            name="-S",
            metavar="nn,nn-graph=FORMAT::DIR",
            help="As Wasmtime takes it: nn lets the guest bring models of its own, which you must trust; "
            "nn-graph grants one.",
        ),
    ] = None,
    wasi_nn_dialect: Annotated[
        str | None,
        Parameter(
            metavar="spec|wasmedge|wamr",
            help="Whose numbers of encodings the guest uses; left out, its imports tell.",
        ),
    ] = None,
    wasi_nn_copy: Annotated[
        bool,
        Parameter(
            help="Copy wasi-nn's inputs, for a guest that reuses their bytes before it has the outputs."
        ),
    ] = False,
    invoke: Annotated[
        str | None,
        Parameter(metavar="FUNC", help="Call this export with ARGS as numbers, and print what it returns."),
    ] = None,
    limit: Annotated[
        list[str] | None,
        Parameter(
            name="-W",
            metavar="LIMIT=VALUE,...",
            help="What the guest may use: max-memory=SIZE, timeout=TIME, fuel=COUNT, "
            "max-table-elements=COUNT, nn-graphs=COUNT, nn-contexts=COUNT, nn-bytes=SIZE, "
            "nn-model-bytes=SIZE.",
        ),
    ] = None,
    allow_copy: AllowCopy = False,
    report: Annotated[
        bool, Parameter(help="Then say on stderr which pointers, bytes and times there were.")
    ] = False,
    json: Annotated[bool, Parameter(help="Print that report as one line of JSON, on stderr.")] = False,
) -> int:
    """See `app.VERBS`."""
    from time import perf_counter

    from nocopy.cli.grants import parse_dir, parse_env, parse_limits, parse_models
    from nocopy.cli.guests import find_guest
    from nocopy.cli.nn_grants import LIMITS, parse_nn_limits, parse_nn_models
    from nocopy.cli.report import Times, print_report
    from nocopy.interfaces.host import DeviceGuest

    dirs, variables = [parse_dir(d) for d in dir or ()], parse_env(env or ())
    limits, nn_limits = parse_limits(limit or (), LIMITS)
    models = parse_models(model or ())
    nn_models = parse_nn_models(nn_model or (), nn_preload or (), wasi or ())
    path = find_guest(guest)
    start = perf_counter()
    with DeviceGuest(
        path,
        device=device,
        args=[path.name, *args],
        env=variables,
        dirs=dirs,
        stdin="inherit",
        stdout="inherit",
        stderr="inherit",
        limits=limits,
        models=models,
        nn_models=nn_models,
        nn_dialect=wasi_nn_dialect,
        nn_limits=parse_nn_limits(nn_limits, wasi or ()),
        nn_copy=wasi_nn_copy,
        log=print_log,
        allow_copy=allow_copy,
    ) as running:
        ready = perf_counter()
        try:
            status = play(running, invoke, args)
        finally:
            times = Times(start=ready - start, run=perf_counter() - ready)
            if report or json:
                print_report(running, times, json=json)
    return status


def play(guest: DeviceGuest, invoke: str | None, args: tuple[str, ...]) -> int:
    """Run the program, or the function that was asked for; return the guest's exit status.

    Raises:
        UsageError: there is no such function, or the arguments do not fit it.
    """
    from nocopy.errors import UsageError

    if invoke is not None:
        return call(guest, invoke, args)
    if "_start" not in guest.exports:
        functions = ", ".join(guest.exports)
        raise UsageError(
            f"{guest.module.name} was to be run; it is no program: it has no _start. "
            f"Call one of its functions with --invoke. It exports {functions}"
        )
    guest.run()
    return 0


def call(guest: DeviceGuest, name: str, args: tuple[str, ...]) -> int:
    """Call an export with numbers and print what it returns, one number a line."""
    import sys

    answer = guest.call(name, *(number(a) for a in args))
    values = cast("tuple[object, ...]", answer) if isinstance(answer, tuple) else (answer,)
    sys.stdout.writelines(f"{value}\n" for value in values if value is not None)
    return 0


def number(text: str) -> int | float:
    """An argument of `--invoke`.

    Raises:
        UsageError: it is no number.
    """
    from nocopy.errors import UsageError

    for read in (lambda: int(text, 0), lambda: float(text)):
        try:
            return read()
        except ValueError:
            continue
    raise UsageError(
        f"the argument {text!r} was given to --invoke; only numbers cross between host and guest"
    )


def print_log(level: int, line: str) -> None:
    """What the guest hands to `nocopy_log` goes to stderr."""
    from rich.text import Text

    from nocopy.cli.output import errors
    from nocopy.interfaces.imports import LOG_LEVELS

    style = ("dim", "", "yellow", "red")[level]
    errors().print(Text(f"{LOG_LEVELS[level]}: {line}", style), soft_wrap=True)
