"""Prompts on a 1.24 B model, beside llama.cpp: `nocopy bench prefill`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "prefill", *sys.argv[1:]]))
