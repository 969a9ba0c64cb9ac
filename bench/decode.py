"""Decoding with a 1.24 B model, beside llama.cpp: `nocopy bench decode`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "decode", *sys.argv[1:]]))
