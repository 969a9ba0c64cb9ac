"""Link 1: pages. Linear memories, typed views over them, and the ledger of copies.

Anything may import this package; it imports nothing of nocopy but `errors`.
The invariant: the base address of a memory never changes, and no page is unmapped while a device holds it.
"""
