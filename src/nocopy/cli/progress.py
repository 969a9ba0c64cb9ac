"""Progress bars on stderr, for work that takes longer than a breath."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def progress_bar(title: str) -> Generator[Callable[[str, float], None]]:
    """Show a bar while the block runs; call the result with (what is going on, how much is done, 0 to 1).

    Nothing is shown when stderr is not a terminal. The bar is gone when the block ends.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from nocopy.cli.output import errors

    screen = errors()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[what]}"),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, what="")
        yield lambda what, done: bar.update(task, completed=done, what=what)


@contextmanager
def byte_bar(title: str) -> Generator[Callable[[str, int, int], None]]:
    """Show bytes, their rate and what is left while the block runs; call the result with (file, bytes so far,
    all of its bytes).

    Nothing is shown when stderr is not a terminal, or before the first call. Bars are gone when the block
    ends.
    """
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from nocopy.cli.output import errors

    screen = errors()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    bar = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)

    def update(file: str, done: int, total: int) -> None:
        if not tasks:
            bar.start()
        if file not in tasks:
            tasks[file] = bar.add_task(f"{title}: {file}", total=total, completed=done)
        bar.update(tasks[file], completed=done)

    try:
        yield update
    finally:
        bar.stop()
