"""The evidence behind `nocopy prove`: pointers, resident memory, a matrix product, round trips, the ledger.

The command line imports it. It uses the public API only, and the guests of `bench`.
The invariant: nothing here is asserted of nocopy that was not measured on the machine at hand.
"""

from nocopy.prove.proof import Proof, prove

__all__ = ["Proof", "prove"]
