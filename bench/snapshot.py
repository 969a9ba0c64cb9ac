"""Freezing and thawing a conversation, beside the disk and reading it again: `nocopy bench snapshot`."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "snapshot", *sys.argv[1:]]))
