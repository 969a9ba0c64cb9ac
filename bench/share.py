"""Making memory reachable for a device, beside copying it there: `nocopy bench share`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "share", *sys.argv[1:]]))
