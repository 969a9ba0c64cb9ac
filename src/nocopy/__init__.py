"""WebAssembly guests whose linear memory is the GPU's memory."""
