"""Decoding several sequences together: `nocopy bench batch`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "batch", *sys.argv[1:]]))
