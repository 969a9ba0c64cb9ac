"""What guests import: the module `nocopy`, which describes a device and plays tapes on the guest's memory.

The package joins `wasm` with `device` and `tape`; the command line and users import it, nothing below does.
The invariant: a guest's records are copied before they are checked, and only the checked copy is played.
"""
