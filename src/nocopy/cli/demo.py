"""`nocopy demo`: the main job, for someone who has just installed it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nocopy.cli.choices import DeviceName

if TYPE_CHECKING:
    from rich.console import RenderableType

GUEST = "matmul"


def demo(*, device: DeviceName = "auto") -> int:
    """See `app.VERBS`."""
    import sys
    from time import perf_counter

    from nocopy.cli.guests import find_guest
    from nocopy.cli.output import console
    from nocopy.cli.report import Times, describe
    from nocopy.cli.status import Status
    from nocopy.interfaces.host import DeviceGuest

    screen = console()
    screen.print(
        "[bold]A guest fills two matrices, a device multiplies them, the guest checks the answer.[/]\n"
    )
    sys.stdout.flush()  # the guest writes to the same file, past Python's buffer
    start = perf_counter()
    with DeviceGuest(
        find_guest(GUEST), device=device, args=[GUEST], stdout="inherit", stderr="inherit"
    ) as guest:
        ready = perf_counter()
        guest.run()
        found = describe(guest, Times(start=ready - start, run=perf_counter() - ready))
    screen.print(evidence(found))
    return Status.FAILURE if found["ledger"]["copied"] else Status.OK


def evidence(found: dict[str, Any]) -> RenderableType:
    """Where the guest's memory was, what was copied, and what to look at next."""
    from rich.console import Group
    from rich.text import Text

    from nocopy.cli.output import size, table

    where, ledger = found["pointers"], found["ledger"]
    same = found["same_pointer"]
    rows = table("", "", "")
    rows.show_header = False
    rows.add_row("memory", f"[cyan]{where['memory']:#018x}[/]", "the pages that nocopy reserved")
    rows.add_row("wasm", f"[cyan]{where['wasm']:#018x}[/]", "the same, as WebAssembly's memory")
    seen = "the same, as the device's memory" if same else "the same pages, at the device's own address"
    rows.add_row("device", f"[cyan]{where['device']:#018x}[/]", seen)
    style = "bold yellow" if ledger["copied"] else "bold green"
    result = Text.assemble(
        (f"\n{size(ledger['shared'])} shared, {size(ledger['copied'])} copied", style),
        f"; started in {found['seconds']['start']:.2f} s, ran in {found['seconds']['run']:.2f} s.\n",
    )
    after = table("", "")
    after.show_header = False
    after.add_row("[bold]nocopy prove[/]", "the evidence, measured on this machine")
    after.add_row("[bold]nocopy devices[/]", "what else it could run on")
    after.add_row("[bold]nocopy run --help[/]", "your own guests")
    return Group(Text(), rows, result, after)
