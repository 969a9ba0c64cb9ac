"""`python -m nocopy.cli` is `nocopy`."""

import sys

from nocopy.cli import main

sys.exit(main())
