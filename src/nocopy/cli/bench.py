"""`nocopy bench`: one thing beside its peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from nocopy.cli.choices import DeviceName, Json, Plot

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nocopy.bench import Result


def bench(
    name: Annotated[str | None, Parameter(help="What to measure; left out, they are listed.")] = None,
    /,
    *,
    device: DeviceName = "auto",
    json: Json = False,
    plot: Plot = None,
) -> int:
    """See `app.VERBS`."""
    from nocopy.bench import BENCHMARKS, run
    from nocopy.cli.choices import check_choice, check_plot
    from nocopy.cli.output import console, print_json
    from nocopy.cli.progress import progress_bar

    if name is None:
        list_benchmarks(json)
        return 0
    check_choice("benchmark", name, BENCHMARKS)
    check_plot(plot)
    with progress_bar(f"bench {name}") as progress:
        result = run(name, device, progress=progress)
    if plot:
        from nocopy.bench.chart import draw

        draw(result, BENCHMARKS[name].chart, plot)
    if json:
        print_json(result.as_dict())
    else:
        console().print(page(result))
    return 0


def list_benchmarks(json: bool) -> None:
    """Say which benchmarks there are."""
    from nocopy.bench import BENCHMARKS
    from nocopy.cli.output import console, print_json, table

    if json:
        print_json({"benchmarks": [{"name": n, "summary": b.summary} for n, b in BENCHMARKS.items()]})
        return
    rows = table("benchmark", "measures")
    for name, benchmark in BENCHMARKS.items():
        rows.add_row(name, benchmark.summary)
    console().print(rows)


def page(result: Result) -> RenderableType:
    """A result for people."""
    from rich.console import Group
    from rich.text import Text

    from nocopy.cli.output import quantity, ratio, table

    rows = table("case", "nocopy", "beside it", "ratio", "", right=("nocopy", "beside it", "ratio"))
    for r in result.rows:
        ours, peers = quantity(r["value"], r["unit"]), quantity(r["peer_value"], r["unit"])
        rows.add_row(r["case"], ours, peers, ratio(r["ratio"]), f"[dim]{r['peer']}[/]")
    where = ", ".join(dict.fromkeys(result.machine[k] for k in ("device", "cpu") if k in result.machine))
    device = "" if result.device == "none" else f" on {result.device}"
    head = Text.assemble((result.name, "bold"), f"{device}: {where}, {result.machine['cores']} cores")
    return Group(head, Text(), rows)
