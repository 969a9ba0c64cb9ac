"""What a device plays: op records, the op table, the builder, the validator, the NumPy meaning of every op.

Devices, interfaces and models import this package; it imports `memory` and `errors` only and knows no device.
The invariant: a `Tape` is a private copy that the validator has accepted; nothing else is ever played.
"""

from nocopy.tape.builder import TapeBuilder
from nocopy.tape.ops import OPS, Op
from nocopy.tape.record import RECORD, Space, Tensor
from nocopy.tape.validate import DEFAULT_WORK_LIMIT, Tape, validate

__all__ = [
    "DEFAULT_WORK_LIMIT",
    "OPS",
    "RECORD",
    "Op",
    "Space",
    "Tape",
    "TapeBuilder",
    "Tensor",
    "validate",
]
