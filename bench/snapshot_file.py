"""Snapshot files beside the disk itself: `nocopy bench snapshot_file`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "snapshot_file", *sys.argv[1:]]))
