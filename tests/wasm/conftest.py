import subprocess
import sys

import pytest

from nocopy.wasm import Guest


@pytest.fixture
def guest():
    """Start guests that are closed after the test."""
    guests = []

    def start(source, **kw):
        guests.append(Guest(source, **kw))
        return guests[-1]

    yield start
    for each in guests:
        each.close()


@pytest.fixture
def python():
    """Run a program in a process of its own, which may crash without taking the tests along."""

    def run(program, timeout=60):
        return subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
