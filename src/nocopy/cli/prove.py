"""`nocopy prove`: the evidence, for people and for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nocopy.cli.choices import AllowCopy, DeviceName, Json, Plot

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType
    from rich.text import Text

    from nocopy.prove import Proof


def prove(
    *,
    device: DeviceName = "auto",
    size: Annotated[str, Parameter(help="The largest round trip.", metavar="SIZE")] = "256MiB",
    json: Json = False,
    plot: Plot = None,
    allow_copy: AllowCopy = False,
) -> int:
    """See `app.VERBS`."""
    from nocopy.cli.choices import check_plot
    from nocopy.cli.grants import parse_size
    from nocopy.cli.output import console, print_json
    from nocopy.cli.progress import progress_bar
    from nocopy.cli.status import Status
    from nocopy.errors import UsageError
    from nocopy.prove import prove as collect

    largest = parse_size(size, "--size")
    if not 1024 <= largest <= 1 << 30:
        raise UsageError(f"--size {size} was asked for; it is 1KiB to 1GiB")
    check_plot(plot)
    with progress_bar("prove") as progress:
        proof = collect(device, largest=largest, allow_copy=allow_copy, progress=progress)
    if plot:
        draw(proof, plot)
    if json:
        print_json(proof.as_dict())
    else:
        console().print(page(proof))
    return Status.OK if proof.holds else Status.FAILURE


def draw(proof: Proof, path: Path) -> None:
    """Draw the round trips."""
    from nocopy.bench.chart import draw_lines

    lines = {"nocopy": {t.nbytes: t.shared * 1e6 for t in proof.roundtrip}}
    for name in proof.roundtrip[0].copied:
        lines[name] = {t.nbytes: t.copied[name] * 1e6 for t in proof.roundtrip}
    title = f"Guest to {proof.device.name} and back ({proof.device.product})"
    draw_lines(lines, title, "one round trip, µs", path)


def page(proof: Proof) -> RenderableType:
    """The evidence for people."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    def section(title: str, *parts: RenderableType) -> list[RenderableType]:
        return [Text(f"\n{title}", style="bold"), *(Padding(p, (0, 0, 0, 2), expand=False) for p in parts)]

    head = Text.assemble(
        (proof.device.name, "bold"), f"  {proof.device.product}  ", (proof.device.mode.value, "dim")
    )
    return Group(
        head,
        *section("One memory", pointers(proof)),
        *section("Nothing copied", copies(proof)),
        *section("The right answer", product(proof)),
        *section("Guest, device and back", round_trips(proof)),
        verdict(proof),
    )


def pointers(proof: Proof) -> RenderableType:
    """The three addresses."""
    from rich.console import Group
    from rich.text import Text

    from nocopy.cli.output import table

    names = {"memory": "the pages", "device": "the device's kernels", "wasm": "WebAssembly"}
    rows = table("", "byte 0 of the guest's memory, as seen by")
    rows.show_header = False
    for key, address in proof.pointers.items():
        rows.add_row(names[key], f"[cyan]{address:#018x}[/]")
    if proof.same_pointer:
        said = Text("one pointer", style="green")
    else:
        said = Text("the device has the same pages at an address of its own", style="yellow")
    return Group(rows, said)


def copies(proof: Proof) -> RenderableType:
    """The ledger and resident memory."""
    from nocopy.cli.output import size, table
    from nocopy.prove.residency import TENSOR_BYTES

    rows = table("", "")
    rows.show_header = False
    rows.add_row("ledger", ", ".join(f"{name} {size(n)}" for name, n in proof.ledger.items()))
    tensor = size(TENSOR_BYTES)
    rows.add_row(
        f"a tensor of {tensor}, shared", f"+{size(max(proof.rss_growth_shared, 0))} of resident memory"
    )
    rows.add_row(f"a tensor of {tensor}, copied", f"+{size(max(proof.rss_growth_copied, 0))}")
    return rows


def product(proof: Proof) -> Text:
    """The matrix product."""
    from rich.text import Text

    from nocopy.prove.proof import MATMUL_SIZE, TOLERANCE

    n, error = MATMUL_SIZE, proof.matmul_max_rel_error
    style = "green" if error <= TOLERANCE else "red"
    return Text.assemble(
        f"{n} x {n} matrices multiplied, {n * n:,} elements checked, largest relative error ",
        (f"{error:.1e}", style),
    )


def round_trips(proof: Proof) -> RenderableType:
    """The times, by size."""
    from nocopy.cli.output import duration, ratio, size, table

    peers = list(proof.roundtrip[0].copied)
    headers = [header for peer in peers for header in (peer, f"{peer} / shared")]
    rows = table("tensor", "shared", *headers, right=("tensor", "shared", *headers))
    for trip in proof.roundtrip:
        cells = [
            cell
            for peer in peers
            for cell in (duration(trip.copied[peer]), ratio(trip.copied[peer] / trip.shared))
        ]
        rows.add_row(size(trip.nbytes), duration(trip.shared), *cells)
    return rows


def verdict(proof: Proof) -> Text:
    """The last line."""
    from rich.text import Text

    from nocopy.cli.output import size

    if proof.holds:
        return Text("\nIt holds: the guest's memory is the device's memory.", style="bold green")
    copied = proof.ledger["copied"]
    why = f"{size(copied)} were copied" if copied else "see above"
    return Text(f"\nIt does not hold on this device: {why}.", style="bold red")
