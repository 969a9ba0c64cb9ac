"""Guest, device and back, beside a host that copies: `nocopy bench roundtrip`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "roundtrip", *sys.argv[1:]]))
