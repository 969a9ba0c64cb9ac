"""nocopy itself: greedy tokens through `Session.likeliest`, drawn by Python one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from typing import Any

from nocopy.bench.llama import open_session
from nocopy.device.discovery import open_device
from nocopy.session.session import Session

from .contender import Task, measured

TYPES = ("bf16", "q8_0", "q4_0")


def measure(task: Task) -> dict[str, Any]:
    """Time it."""
    with (
        closing(open_device(task.device)) as device,
        open_session(device, task.path, task.context) as session,
    ):
        return measured(Ours(session), task)


class Ours:
    """A session on a device."""

    version = version("nocopy")
    how = "Python asks for each token; the GPU feeds up to 8 of them ahead"

    def __init__(self, session: Session) -> None:
        self.session = session

    def read(self, prompt: Sequence[int]) -> None:
        """Forget everything, read a prompt, and wait until that is done."""
        self.session.truncate(0)
        self.session.append(prompt)

    def generate(self, count: int) -> list[int]:
        """The next greedy tokens, each fed again; the last one too."""
        drawn: list[int] = []
        for made in range(count):
            drawn.append(self.session.likeliest(count - made))
            self.session.append(drawn[-1:])
        return drawn
