"""What `nocopy run --report` says of a run, on stderr: stdout is the guest's."""

from __future__ import annotations

import json as jsonlib
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nocopy.cli.output import duration, errors, size, table

if TYPE_CHECKING:
    from nocopy.interfaces.host import DeviceGuest


@dataclass(frozen=True)
class Times:
    """Seconds. `start` is what comes before the guest's first instruction: compiling it, importing memory."""

    start: float
    run: float


def describe(guest: DeviceGuest, times: Times) -> dict[str, Any]:
    """The report as `--json` prints it."""
    info, pages = guest.device.info, guest.pages
    pointers = {
        "memory": guest.memory.address,
        "device": pages.device_address if pages else 0,
        "wasm": guest.wasm_address,
    }
    return {
        "guest": guest.module.name,
        "device": info.name,
        "product": info.product,
        "mode": (pages.mode if pages else info.mode).value,
        "pointers": pointers,
        "same_pointer": len(set(pointers.values())) == 1,
        "memory_bytes": guest.memory.size,
        "ledger": guest.ledger.as_dict(),
        "seconds": asdict(times),
    }


def print_report(guest: DeviceGuest, times: Times, *, json: bool) -> None:
    """Print it."""
    found = describe(guest, times)
    sys.stdout.flush()  # what the guest wrote comes first, also in a terminal that shows both
    if json:
        sys.stderr.write(jsonlib.dumps(found) + "\n")
        return
    pointers = found["pointers"]
    copied = found["ledger"]["copied"]
    rows = table("", "")
    rows.show_header = False
    rows.add_row("device", f"{found['device']}: {found['product']} [dim]({found['mode']})[/]")
    for name, address in pointers.items():
        rows.add_row(f"{name} pointer", f"[cyan]{address:#018x}[/]")
    rows.add_row("", "[green]one pointer[/]" if found["same_pointer"] else "[yellow]not one pointer[/]")
    rows.add_row("memory", size(found["memory_bytes"]))
    rows.add_row("shared", size(found["ledger"]["shared"]))
    rows.add_row("copied", f"[{'yellow' if copied else 'green'}]{size(copied)}[/]" + _causes(found["ledger"]))
    rows.add_row("start", duration(times.start))
    rows.add_row("run", duration(times.run))
    errors().print(rows)


def _causes(ledger: dict[str, int]) -> str:
    """Why bytes were copied, if any were."""
    causes = [f"{name} {size(n)}" for name, n in ledger.items() if n and name not in ("shared", "copied")]
    return f" ({', '.join(causes)})" if causes else ""
