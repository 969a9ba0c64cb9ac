"""How fast `cuda_walk` asks for weights: memory is to be busy, but what blocks hand on lies behind them."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from nocopy.device.cuda_walk_stage import Stage
from nocopy.memory.dtype import QUANTISED

FLIGHT_CYCLES = 4000
"""What memory brings in so many cycles is on its way to a multiprocessor: more delays what blocks wait for,
less leaves memory idle. As many slots as come nearest to it."""
BLOCKS_IN_FLIGHT = 64 << 10
"""Bytes of weights in blocks that are on their way: here memory is not what decides."""
WAITING_IN_FLIGHT = 16 << 10
"""The same while a block waits for a row, whose words come behind all that is on its way. Where products of
halves are short it is as much as else: blocks wait so often that memory has to go on meanwhile."""
LONG_PRODUCTS = 64 << 20
"""Bytes of a run's mean product from which on they are not."""
PACE, STEADY_PACE = 0.65, 0.8
"""Times what memory takes for as much: how long from the copies of one slot to those of the next, at least.
Bursts from the second cache delay what blocks wait for. The latter where copies go on while blocks wait."""


def flow(products: Sequence[Stage], bytes_per_cycle: float, slots: int) -> tuple[int, int, int]:
    """Return `ahead`, `waiting` and `pace` of `nocopy_walk`.

    Args:
        products: the run's, one or more.
        bytes_per_cycle: what memory brings to each multiprocessor; infinite where its clocks are not known.
        slots: of the ring.
    """
    blocks = any(stage.dtype in QUANTISED for stage in products)
    in_flight = BLOCKS_IN_FLIGHT
    if not blocks:
        in_flight = round(bytes_per_cycle * FLIGHT_CYCLES) if isfinite(bytes_per_cycle) else 0
    tile = max(stage.tile_bytes for stage in products)
    ahead = min(max(round(in_flight / tile), 1), slots)
    waiting = min(max(round(WAITING_IN_FLIGHT / tile), 1), ahead)
    steady = not blocks and sum(stage.nbytes for stage in products) <= LONG_PRODUCTS * len(products)
    pace = int((STEADY_PACE if steady else PACE) * tile / bytes_per_cycle)
    return ahead, ahead if steady else waiting, pace
