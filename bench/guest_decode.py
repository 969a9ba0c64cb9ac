"""Generating from inside a guest, beside Python: `nocopy bench guest_decode`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "guest_decode", *sys.argv[1:]]))
