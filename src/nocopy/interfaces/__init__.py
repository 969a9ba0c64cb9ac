"""What guests import: the module `nocopy`, which plays tapes and runs language models in a guest's memory.

The package joins `wasm` with `device`, `tape`, `models` and `session`; the command line and users import it,
nothing below does. The invariant: a guest's records are copied before they are checked, and only the checked
copy is played; of models a guest has handles only, and every pointer that it gives is checked first.
"""
