"""Ctrl-C that works while native code runs.

Python delivers signals between its own instructions, so a guest in a loop or a long kernel would never see
one. The C-level handler writes to a pipe at once; a thread reads it, gives Python a moment to end by itself,
and then ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

GRACE = 0.5  # seconds that Python gets to unwind before the process ends
SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it, and cannot show it again


@contextmanager
def end_on_interrupt(status: int) -> Generator[None]:
    """End the process with `status` if it is still inside this block `GRACE` seconds after a SIGINT."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    left = threading.Event()

    def watch() -> None:
        while True:
            received = os.read(reading, 64)
            if not received:
                return
            if signal.SIGINT in received and not left.wait(GRACE):
                if os.isatty(2):
                    os.write(2, SHOW_CURSOR)
                os._exit(status)

    watcher = threading.Thread(target=watch, name="nocopy-interrupt", daemon=True)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        os.close(writing)
        watcher.join()
        os.close(reading)


@contextmanager
def interrupts_are_answered() -> Generator[None]:
    """Ctrl-C is no end while this block runs: it answers KeyboardInterrupt itself."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
