"""A call between guest and host, beside wasmtime-py's: `nocopy bench hostcall`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "hostcall", *sys.argv[1:]]))
