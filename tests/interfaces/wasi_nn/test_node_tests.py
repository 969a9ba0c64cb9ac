"""onnx's own node tests: they pass through a guest's memory as they do in ONNX Runtime alone.

Those that don't have an input or output that wasi-nn cannot carry; docs/wasi-nn-node-tests.md names each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nocopy.interfaces.wasi_nn.encoding import Errno
from tests.interfaces.wasi_nn import node_tests
from tests.interfaces.wasi_nn.nn_guest import NnGuest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "wasi-nn-node-tests.md"
SHARDS = 2
"""Parts of the list, for two processes."""


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    return node_tests.cases()


@pytest.mark.parametrize("shard", range(SHARDS))
def test_the_same_tests_pass_through_a_guest_as_alone(cases: list[Any], shard: int) -> None:
    alone, through = set[str](), set[str]()
    refused: dict[str, int] = {}
    with NnGuest() as guest:
        for case in cases[shard::SHARDS]:
            if node_tests.alone(case):
                alone.add(case.name)
                passed, errno = node_tests.through(guest, case)
                if passed:
                    through.add(case.name)
                else:
                    refused[case.name] = errno
        assert guest.ledger["downloaded"] == 0
    assert len(alone) > 500  # the package has some 1900, and this is half of them
    lost = alone - through
    unsupported = {c.name for c in cases if c.name in lost and node_tests.cannot_cross(c)}
    assert lost == unsupported, {name: refused[name] for name in lost - unsupported}
    assert set(refused.values()) <= {Errno.UNSUPPORTED_OPERATION}
    assert lost <= set(PAGE.read_text().split())


@pytest.mark.parametrize(
    "family", ["attention", "rms_normalization", "rotary_embedding", "layer_normalization"]
)
def test_what_transformers_are_made_of_is_among_them(cases: list[Any], family: str) -> None:
    members = [c for c in cases if c.name.startswith(f"test_{family}") and not c.name.endswith("_expanded")]
    passing = [c for c in members if node_tests.alone(c)]
    assert passing
    with NnGuest() as guest:
        assert all(node_tests.through(guest, case)[0] for case in passing)
