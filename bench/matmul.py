"""Matrix products, beside NumPy's on the same pages: `nocopy bench matmul`, from a checkout."""

import sys

from nocopy.cli import main

sys.exit(main(["bench", "matmul", *sys.argv[1:]]))
