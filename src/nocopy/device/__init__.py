"""Link 2: devices. The protocol, five devices, and how one is found and opened.

Interfaces, models and the command line import this package; it imports `memory`, `tape` and `errors`.
The invariant: a device plays validated tapes only, and copies nothing without saying so in the ledger.
"""
