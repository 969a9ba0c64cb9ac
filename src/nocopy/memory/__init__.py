"""Link 1: pages. Linear memories, typed views over them, and the ledger of copies.

Anything may import this package; it imports nothing of nocopy but `errors`.
The invariant: the base address of a memory never changes, and no page is unmapped while a device holds it.
"""

from nocopy.memory.dtype import DType
from nocopy.memory.ledger import Ledger
from nocopy.memory.linear import GUARD, RESERVE, GrowthHook, Hold, LinearMemory
from nocopy.memory.pages import PAGE
from nocopy.memory.quota import Quota
from nocopy.memory.view import TensorView

__all__ = [
    "GUARD",
    "PAGE",
    "RESERVE",
    "DType",
    "GrowthHook",
    "Hold",
    "Ledger",
    "LinearMemory",
    "Quota",
    "TensorView",
]
