"""Keys that are turned and kept, with their values: three records in one (`keep_rows` in prefill.cu).

What a model does with the keys and values of many rows is rope, scatter, scatter: each goes over all rows,
and looks for those that are written twice. One kernel turns a row's keys on their way to the cache, and takes
its values along.
"""

from __future__ import annotations

from collections.abc import Mapping

from nocopy.device.cuda_launch import Fields
from nocopy.device.cuda_records import Records
from nocopy.memory.dtype import DType
from nocopy.tape.record import Space

CACHES = frozenset({DType.F16, DType.BF16, DType.F32})


def keep(records: Records, at: int) -> Fields | None:
    """The record that `keep_rows` reads, instead of three from `at` on; None if they are not that.

    It is the rope's, with the keys' cache for `out`, the values in the fifth operand, the cache's rows as
    the fifth dim, and how many elements values lie behind keys as the second parameter. Nothing else may read
    the turned keys; the rope's operands are words of whole heads.
    """
    rope, keys, values = (records.find(at + i, op) for i, op in enumerate(("rope", "scatter", "scatter")))
    if not (rope and keys and values):
        return None
    addresses, width = records.addresses, rope.named["h"] * rope.named["n"]
    turned = _place(rope, 0, addresses, last=2), width
    indices = _place(rope, 3, addresses, last=0)
    step = values.address(0, addresses) - keys.address(0, addresses)
    step, rest = divmod(step, keys.dtype(0).itemsize)
    fits = (
        (rope.strides[0][1] == rope.named["n"] or rope.named["h"] == 1)
        and (_place(keys, 1, addresses, last=1), keys.named["w"]) == turned
        and keys.dims == values.dims
        and keys.named["r"] == rope.named["r"]
        and all(_place(s, 2, addresses, last=0) == indices for s in (keys, values))
        and all(s.dtype(1) is DType.F32 and s.words(0) for s in (keys, values))
        and values.words(1)
        and keys.dtype(0) is values.dtype(0)
        and keys.dtype(0) in CACHES
        and keys.strides[0] == values.strides[0]
        and not rest
        and width <= step <= keys.strides[0][0] - width
    )
    if not fits:
        return None
    kept = Fields.unpack(records.raw[at])
    kept.operands[0], kept.strides[0] = keys.operands[0], keys.strides[0]
    kept.operands[4], kept.strides[4] = values.operands[1], values.strides[1]
    kept.dims[4] = keys.named["t"]
    kept.params = (rope.params[0], step, *rope.params[2:])
    return kept


def _place(fields: Fields, slot: int, addresses: Mapping[Space, int], *, last: int) -> tuple[int, int, int]:
    """Address, step of rows and of elements of an operand."""
    strides = fields.strides[slot]
    return fields.address(slot, addresses), strides[0], strides[last]
