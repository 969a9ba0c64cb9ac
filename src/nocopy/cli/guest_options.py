"""What a command line grants a guest, for the verbs that run one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from nocopy.cli.choices import AllowCopy, DeviceName

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest


@Parameter(name="*")
@dataclass(frozen=True)
class GuestOptions:
    """Where it runs, and what it may reach."""

    device: DeviceName = "auto"
    dir: Annotated[
        list[str] | None,
        Parameter(metavar="HOST[::GUEST]", help="A folder that the guest may read and change, and where."),
    ] = None
    env: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME[=VALUE]", help="A variable for the guest; without a value, the one set here."
        ),
    ] = None
    model: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME=FILE",
            help="A language model that the guest may open under a name: a GGUF file or a model folder.",
        ),
    ] = None
    nn_model: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME=FILE",
            help="A model that the guest may load by name through wasi-nn: an ONNX or GGUF file.",
        ),
    ] = None
    nn_preload: Annotated[
        list[str] | None,
        Parameter(metavar="NAME:ENCODING:TARGET:FILE", help="The same, as WasmEdge takes it."),
    ] = None
    wasi: Annotated[
        list[str] | None,
        Parameter(
            name="-S",
            metavar="nn,nn-graph=FORMAT::DIR",
            help="As Wasmtime takes it: nn lets the guest bring models of its own, which you must trust; "
            "nn-graph grants one.",
        ),
    ] = None
    wasi_nn_dialect: Annotated[
        str | None,
        Parameter(
            metavar="spec|wasmedge|wamr",
            help="Whose numbers of encodings the guest uses; left out, its imports tell.",
        ),
    ] = None
    wasi_nn_copy: Annotated[
        bool,
        Parameter(
            help="Copy wasi-nn's inputs, for a guest that reuses their bytes before it has the outputs."
        ),
    ] = False
    limit: Annotated[
        list[str] | None,
        Parameter(
            name="-W",
            metavar="LIMIT=VALUE,...",
            help="What the guest may use: max-memory=SIZE, timeout=TIME, fuel=COUNT, "
            "max-table-elements=COUNT, nn-graphs=COUNT, nn-contexts=COUNT, nn-bytes=SIZE, "
            "nn-model-bytes=SIZE.",
        ),
    ] = None
    allow_copy: AllowCopy = False

    def arguments(self) -> dict[str, Any]:
        """What `DeviceGuest` and `thaw` take.

        Raises:
            UsageError: a value is wrong, or a folder does not exist.
        """
        from nocopy.cli.grants import parse_dir, parse_env, parse_limits, parse_models
        from nocopy.cli.nn_grants import LIMITS, parse_nn_limits, parse_nn_models

        wasi = self.wasi or ()
        limits, nn_limits = parse_limits(self.limit or (), LIMITS)
        return {
            "device": self.device,
            "dirs": [parse_dir(d) for d in self.dir or ()],
            "env": parse_env(self.env) if self.env else None,
            "limits": limits,
            "models": parse_models(self.model or ()),
            "nn_models": parse_nn_models(self.nn_model or (), self.nn_preload or (), wasi),
            "nn_dialect": self.wasi_nn_dialect,
            "nn_limits": parse_nn_limits(nn_limits, wasi),
            "nn_copy": self.wasi_nn_copy,
            "allow_copy": self.allow_copy,
            "log": print_log,
        }


def go_on(guest: DeviceGuest) -> None:
    """Go on from the guest's checkpoints, through all of them, to its end. Errors as in `resume`."""
    while guest.checkpoint is not None:
        guest.resume()


def print_log(level: int, line: str) -> None:
    """What the guest hands to `nocopy_log` goes to stderr."""
    from rich.text import Text

    from nocopy.cli.output import errors
    from nocopy.interfaces.imports import LOG_LEVELS

    style = ("dim", "", "yellow", "red")[level]
    errors().print(Text(f"{LOG_LEVELS[level]}: {line}", style), soft_wrap=True)
