"""`nocopy doctor`: what works on this machine, and the command that would get the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nocopy.cli.choices import Json

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nocopy.device.discovery import DeviceStatus

PACKAGES = (
    "nocopy",
    "wasmtime",
    "numpy",
    "ml_dtypes",
    "vulkan",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
    "nvidia-cublas",
    "pyobjc-framework-Metal",
    "matplotlib",
)
"""Whose versions are worth knowing; those that are not installed are left out."""


def doctor(*, json: Json = False) -> int:
    """Say what works here, and how to get the rest."""
    from nocopy.cli.output import console, errors, print_json
    from nocopy.cli.probe import probe_all

    with errors().status("trying the devices"):
        devices = probe_all()
    machine = describe_machine()
    if json:
        keys = ("name", "available", "mode", "reason", "fix", "details")
        print_json({"devices": [{k: s.as_dict()[k] for k in keys} for s in devices]} | machine)
    else:
        console().print(report(devices, machine))
    return 0


def describe_machine() -> dict[str, Any]:
    """Everything but the devices, as `--json` prints it."""
    import mmap

    from nocopy.bench.machine import cores, cpu_model, memory_bytes, simd

    return {
        "versions": versions(),
        "native_library": native_library(),
        "compiler": compiler(),
        "cpu": {"model": cpu_model(), "cores": cores(), "simd": list(simd())},
        "memory_bytes": memory_bytes(),
        "page_bytes": mmap.PAGESIZE,
        "memlock_limit_bytes": memlock_limit(),
    }


def versions() -> dict[str, str]:
    """Python's, the system's and the installed packages' versions."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def native_library() -> dict[str, Any]:
    """Whether the C++ library is there, the instruction sets it can use here, or why not and the fix."""
    from nocopy import native
    from nocopy.errors import DeviceUnavailableError

    try:
        path, levels = native.path(), native.levels()
    except DeviceUnavailableError as e:
        return {"available": False, "path": "", "levels": [], "reason": e.reason, "fix": e.fix}
    return {"available": True, "path": str(path), "levels": levels, "reason": "", "fix": ""}


def compiler() -> dict[str, str]:
    """The C++ compiler that an installation would use, and its own first line."""
    import os
    import shutil
    import subprocess

    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        path = shutil.which(name)
        if path:
            said = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=False, timeout=20
            )
            return {"path": path, "version": (said.stdout or said.stderr).partition("\n")[0]}
    return {"path": "", "version": ""}


def memlock_limit() -> int | None:
    """Bytes that this process may lock into memory, or None for no limit."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if soft == resource.RLIM_INFINITY else soft


def report(devices: list[DeviceStatus], machine: dict[str, Any]) -> RenderableType:
    """The page for people."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [device_table(devices), Text(), machine_table(machine)]
    detailed = [s for s in devices if s.details]
    if detailed:
        parts += [Text(), Text("In detail", style="bold")]
        parts += [Text.assemble((f"  {s.name:<10}", "green"), describe_details(s)) for s in detailed]
    missing = [s for s in devices if not s.available]
    if missing:
        parts += [Text(), Text("To get the rest", style="bold")]
        parts += [Text.assemble((f"  {s.name:<10}", "yellow"), s.fix) for s in missing]
    return Group(*parts)


def describe_details(status: DeviceStatus) -> str:
    """What a device says of itself, on one line."""
    return "; ".join(f"{name} {value}" for name, value in status.details.items())


def device_table(devices: list[DeviceStatus]) -> RenderableType:
    """One line for each device."""
    from nocopy.cli.output import table

    rows = table("device", "", "mode", "what it is")
    for status in devices:
        if status.available:
            rows.add_row(status.name, "[green]ok[/]", status.mode, status.product)
        else:
            rows.add_row(status.name, "[yellow]no[/]", "", f"[dim]{status.reason}[/]")
    return rows


def machine_table(machine: dict[str, Any]) -> RenderableType:
    """The machine, one fact a line."""
    from nocopy.cli.output import size, table

    native, cpu, limit = machine["native_library"], machine["cpu"], machine["memlock_limit_bytes"]
    rows = table("this machine", "")
    rows.add_row("cpu", f"{cpu['model']}, {cpu['cores']} cores, {', '.join(cpu['simd']) or 'no wide SIMD'}")
    rows.add_row("memory", f"{size(machine['memory_bytes'])}, pages of {size(machine['page_bytes'])}")
    rows.add_row("may lock", "no limit" if limit is None else size(limit))
    if native["available"]:
        rows.add_row("native library", f"{native['path']} ({', '.join(native['levels'])})")
    else:
        rows.add_row("native library", f"[yellow]{native['reason']}[/]. {native['fix']}")
    rows.add_row("C++ compiler", machine["compiler"]["version"] or "[yellow]none found[/]")
    found = machine["versions"]
    rows.add_row("system", f"{found['system']}, Python {found['python']}")
    packages = [f"{name} {v}" for name, v in found.items() if name not in ("system", "python")]
    rows.add_row("packages", ", ".join(packages))
    return rows
