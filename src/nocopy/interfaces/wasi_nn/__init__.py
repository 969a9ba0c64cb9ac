"""What guests import as `wasi_ephemeral_nn`: the published interface of wasi-nn, and WasmEdge's extensions.

`abi` reads what a guest hands over and finds the graph or context that it names; what those do is up to a
backend: `protocol` holds that contract. `host` imports this package, nothing below does. The invariant: a
backend gets buffers that lie in the guest's memory, and files that the host granted by name; a guest can name
neither an address nor a file of the host.
"""
