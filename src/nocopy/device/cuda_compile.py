"""CUDA kernels from their sources to code for one chip: NVRTC, and a cache on disk.

A cache entry is named by a digest of everything that decides its content (sources, options, chip, NVRTC's
version), is written to a temporary file and renamed, and carries a digest of itself, so that a reader sees
a whole entry or none.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from nocopy.errors import DeviceError, DeviceUnavailableError

OPTIONS = ("--std=c++17", "--fmad=false")
"""No fused multiply-adds that the source does not ask for: results agree with NumPy's."""
ONE_CHIP = frozenset({"attention_group"})
"""Sources with instructions that one chip has and later ones have not: code for sm_90a."""
INSTALL = "Run `pip install 'nocopy[cuda]'`."
_DIGEST_BYTES = 32
_log = logging.getLogger(__name__)


@cache
def kernel_sources() -> Mapping[str, str]:
    """Every file under kernels/cuda by the name that an #include uses, and `../tape.h`."""
    kernels = resources.files("nocopy") / "kernels"
    files = {f.name: f.read_text() for f in (kernels / "cuda").iterdir() if f.name.endswith((".cu", ".cuh"))}
    return files | {"../tape.h": (kernels / "tape.h").read_text()}


def cache_directory() -> Path:
    """Where compiled kernels are kept: nocopy/cuda under $XDG_CACHE_HOME, which is ~/.cache if not set."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "nocopy" / "cuda"


class Compiler:
    """NVRTC for one chip.

    Args:
        capability: compute capability, such as (9, 0).
        directory: of the cache.

    Raises:
        DeviceUnavailableError: NVRTC is not installed.
    """

    def __init__(self, capability: tuple[int, int], directory: Path) -> None:
        self._nvrtc = load_nvrtc()
        self._directory = directory
        major, minor = self._ask("nvrtcVersion")
        self.version: tuple[int, int] = (major, minor)
        (known,) = self._ask("nvrtcGetSupportedArchs")
        wanted = capability[0] * 10 + capability[1]
        newest = max(known)
        # Machine code for a chip that NVRTC knows; for a newer one PTX, which the driver compiles.
        self.target = f"sm_{wanted}" if wanted in known else f"compute_{min(wanted, newest)}"

    def code(self, source: str, defines: tuple[str, ...] = ()) -> bytes:
        """The code of `kernels/cuda/<source>.cu`: machine code, or PTX for a chip newer than NVRTC.

        `defines` are macros, "NAME=value".

        Raises:
            DeviceError: NVRTC refuses the source; the message has its log.
        """
        entry = self._directory / f"{source}-{self._key(source, defines)}.bin"
        code = _read(entry)
        if code is None:
            code = self._compile(source, defines)
            _write(entry, code)
        return code

    def _key(self, source: str, defines: tuple[str, ...] = ()) -> str:
        digest = hashlib.sha256(repr((source, self._target(source), self.version, OPTIONS, defines)).encode())
        for name, text in sorted(kernel_sources().items()):
            if name == f"{source}.cu" or not name.endswith(".cu"):
                digest.update(repr((name, text)).encode())
        return digest.hexdigest()[:32]

    def _target(self, source: str) -> str:
        return self.target + "a" if source in ONE_CHIP and self.target == "sm_90" else self.target

    def _compile(self, source: str, defines: tuple[str, ...]) -> bytes:
        sources, target = kernel_sources(), self._target(source)
        headers = {n: t for n, t in sources.items() if not n.endswith(".cu")}
        (program,) = self._ask(
            "nvrtcCreateProgram",
            sources[f"{source}.cu"].encode(),
            f"{source}.cu".encode(),
            len(headers),
            [text.encode() for text in headers.values()],
            [name.encode() for name in headers],
        )
        try:
            options = [f"--gpu-architecture={target}".encode(), *(o.encode() for o in OPTIONS)]
            options += [f"-D{define}".encode() for define in defines]
            (status,) = self._nvrtc.nvrtcCompileProgram(program, len(options), options)
            if int(status):
                raise DeviceError(
                    f"compiling kernels/cuda/{source}.cu for {target} was asked for;"
                    f" NVRTC {self.version[0]}.{self.version[1]} refused it:\n{self._log(program)}"
                )
            kind = "CUBIN" if target.startswith("sm_") else "PTX"
            (size,) = self._ask(f"nvrtcGet{kind}Size", program)
            code = bytearray(size)
            self._ask(f"nvrtcGet{kind}", program, code)
            return bytes(code)
        finally:
            self._nvrtc.nvrtcDestroyProgram(program)

    def _log(self, program: Any) -> str:
        (size,) = self._ask("nvrtcGetProgramLogSize", program)
        log = bytearray(size)
        self._ask("nvrtcGetProgramLog", program, log)
        return log.decode(errors="replace").rstrip("\0\n")

    def _ask(self, function: str, *arguments: Any) -> tuple[Any, ...]:
        status, *results = getattr(self._nvrtc, function)(*arguments)
        if int(status):
            raise DeviceError(f"{function} failed with {status.name}; the kernels cannot be compiled")
        return tuple(results)


def load_nvrtc() -> Any:
    """The NVRTC bindings, with the library behind them loaded.

    Raises:
        DeviceUnavailableError: the bindings or the library are not installed.
    """
    try:
        nvrtc = import_module("cuda.bindings.nvrtc")
        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as e:  # RuntimeError: the bindings did not find the library
        raise DeviceUnavailableError(
            "cuda", f"NVRTC, CUDA's compiler, cannot be loaded ({e})", INSTALL
        ) from e
    return nvrtc


def _read(entry: Path) -> bytes | None:
    """A whole entry; None if there is none."""
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(entry: Path, code: bytes) -> None:
    """Keep an entry. A cache that cannot be written costs the next start a second, so it is only reported."""
    temporary = ""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=entry.parent, prefix=entry.stem, delete=False) as file:
            temporary = file.name
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(temporary, entry)
    except OSError as e:
        _log.warning("compiled CUDA kernels could not be kept in %s (%s)", entry.parent, e)
        if temporary:
            Path(temporary).unlink(missing_ok=True)
