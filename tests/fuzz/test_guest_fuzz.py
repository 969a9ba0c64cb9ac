"""Hostile tapes that a guest submits, for some seconds; `make fuzz` runs the same for longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nocopy.device.protocol import Device
from tests.fuzz.guest import GuestTarget
from tests.tape.choices import Drawn, Seeded


@pytest.fixture(scope="module")
def target(device: Device) -> Iterator[GuestTarget]:
    target = GuestTarget(device)
    yield target
    target.close()


@given(st.data())
def test_what_a_guest_submits_harms_nothing(target: GuestTarget, data: st.DataObject):
    target.run(Drawn(data.draw))


def test_many_submits_of_one_guest_harm_nothing(target: GuestTarget):
    """Seeds instead of hypothesis: more submits a second. Enough are accepted to mean something."""
    accepted, executions = target.accepted, target.executions
    for seed in range(300):
        target.run(Seeded(seed))
    assert target.accepted - accepted > 0.2 * (target.executions - executions)
