"""An ONNX model through wasi-nn, beside its peers: `nocopy bench wasinn`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "wasinn", *sys.argv[1:]]))
