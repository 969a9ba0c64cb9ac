"""Drawing a token on a device, beside the host: `nocopy bench sample`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "sample", *sys.argv[1:]]))
