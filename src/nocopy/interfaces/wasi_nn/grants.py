"""What a host grants a guest of wasi-nn: named models, quotas, and whose numbers the guest uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from nocopy.errors import UsageError
from nocopy.interfaces.wasi_nn.backends import detect_file
from nocopy.interfaces.wasi_nn.encoding import Dialect, Encoding, Target
from nocopy.interfaces.wasi_nn.protocol import File, Source


@dataclass(frozen=True)
class NnModel:
    """A model that a guest may load by a name.

    Args:
        file: a path, or an open language model.
        encoding: what it is written in, by WasmEdge's name: "onnx", "ggml", ...; by default the file tells.
        target: where it runs: "cpu", "gpu" or "auto".
        more: other files, for encodings that have parts.
    """

    file: File
    encoding: Encoding | str = Encoding.AUTODETECT
    target: Target | str = Target.CPU
    more: tuple[File, ...] = ()

    @property
    def source(self) -> Source:
        """Where it is."""
        return Source(files=(self.file, *self.more))


Grant: TypeAlias = File | NnModel
"""What `nn_models` takes for a name."""


def encoding_named(encoding: Encoding | str) -> Encoding:
    """The encoding of a name, in capitals or not.

    Raises:
        UsageError: there is none.
    """
    if isinstance(encoding, Encoding):
        return encoding
    try:
        return Encoding(encoding.lower())
    except ValueError:
        known = ", ".join(e.value for e in Encoding)
        raise UsageError(f"the encoding {encoding!r} was asked for; there are {known}") from None


def target_named(target: Target | str) -> Target:
    """The target of a name, in capitals or not.

    Raises:
        UsageError: there is none.
    """
    if isinstance(target, Target):
        return target
    try:
        return Target[target.upper()]
    except KeyError:
        known = ", ".join(t.name.lower() for t in Target)
        raise UsageError(f"the target {target!r} was asked for; there are {known}") from None


def dialect_named(dialect: Dialect | str | None) -> Dialect | None:
    """The dialect of a name; None is for the host to find out.

    Raises:
        UsageError: there is none.
    """
    if dialect is None or isinstance(dialect, Dialect):
        return dialect
    try:
        return Dialect(dialect.lower())
    except ValueError:
        known = ", ".join(d.value for d in Dialect)
        raise UsageError(f"the wasi-nn dialect {dialect!r} was asked for; there are {known}") from None


@dataclass(frozen=True)
class NnLimits:
    """What one guest may use of wasi-nn.

    Args:
        graphs: models that are loaded at once.
        contexts: contexts that are there at once. Guests of the specification cannot free them.
        bytes: of the host's memory that they take: models that the guest brings, tensors and caches that are
            kept for it.
        model_bytes: of models that it brings, in its own memory. ONNX Runtime is native code which a hostile
            model can crash, so the default leaves a guest those that were granted by name.
    """

    graphs: int = 64
    contexts: int = 4096
    bytes: int = 1 << 32
    model_bytes: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value < 1 << 63:
                raise UsageError(f"{name}={value!r} was asked for; a limit is a number from 0 up")


@dataclass(frozen=True)
class Granted:
    """A model whose grant was checked."""

    source: Source
    encoding: Encoding
    target: Target


@dataclass(frozen=True)
class NnGrants:
    """All of it.

    Args:
        models: by name.
        dialect: None means by what the guest imports.
        limits: quotas.
        copy: copy inputs at `set_input`, as other hosts do, instead of reading them where they lie.
    """

    models: Mapping[str, Granted] = field(default_factory=dict[str, "Granted"])
    dialect: Dialect | None = None
    limits: NnLimits = NnLimits()
    copy: bool = False


def nn_grants(
    models: Mapping[str, Grant] | None,
    dialect: Dialect | str | None,
    limits: NnLimits | None,
    copy: bool,
) -> NnGrants:
    """Check what a host grants, before the guest asks for it.

    Raises:
        UsageError: a file that is not there, a name that means nothing, or a model that nothing here plays.
    """
    checked: dict[str, Granted] = {}
    for name, grant in (models or {}).items():
        model = grant if isinstance(grant, NnModel) else NnModel(grant)
        for file in model.source.files:
            if isinstance(file, str | os.PathLike) and not Path(file).exists():
                raise UsageError(f"the model '{file}' was to be granted as {name!r}; there is no such file")
        encoding = encoding_named(model.encoding)
        if encoding is Encoding.AUTODETECT:
            encoding = detect_file(model.source)
        if encoding is Encoding.ONNX:
            from nocopy.interfaces.wasi_nn.onnx_model import require_runtime

            require_runtime(name)
        checked[name] = Granted(model.source, encoding, target_named(model.target))
    return NnGrants(checked, dialect_named(dialect), limits or NnLimits(), copy)
