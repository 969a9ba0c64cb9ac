"""Opening a model of 2.5 GB: `nocopy bench open`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "open", *sys.argv[1:]]))
