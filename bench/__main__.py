"""`python -m ffs.bench`: the same as `ffs-bench`; without arguments, a smoke run of every case."""

import sys

from ffs.bench.cli import main

sys.exit(main(sys.argv[1:] or ["all", "--quick"]))
