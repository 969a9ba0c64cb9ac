"""What a benchmark gives back: the same shape for all of them, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

LOWER_IS_BETTER = frozenset({"ns", "us", "ms", "s", "MiB"})
HIGHER_IS_BETTER = frozenset({"GB/s", "GFLOP/s", "1/s"})


class Row(TypedDict):
    """One case. `ratio` above 1 means that ours is better.

    `case` names it, `value` is ours in `unit`, `peer` names what it is compared with and `peer_value` is the
    peer's, in the same unit.
    """

    case: str
    value: float
    unit: str
    peer: str
    peer_value: float
    ratio: float


def row(case: str, value: float, unit: str, peer: str, peer_value: float) -> Row:
    """Make a row; the unit says which way the ratio goes.

    Raises:
        ValueError: nobody has said whether more of that unit is better.
    """
    if unit in LOWER_IS_BETTER:
        ratio = peer_value / value
    elif unit in HIGHER_IS_BETTER:
        ratio = value / peer_value
    else:
        raise ValueError(f"unit {unit!r} is in neither LOWER_IS_BETTER nor HIGHER_IS_BETTER")
    return {
        "case": case,
        "value": round(value, 4),
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 4),
        "ratio": round(ratio, 3),
    }


@dataclass(frozen=True)
class Result:
    """A finished benchmark."""

    name: str
    device: str
    machine: Mapping[str, Any]
    rows: Sequence[Row] = field(default_factory=tuple[Row, ...])

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "name": self.name,
            "device": self.device,
            "machine": dict(self.machine),
            "rows": [dict(r) for r in self.rows],
        }
