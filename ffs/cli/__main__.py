"""`python -m ffs.cli` is `ffs`."""

import sys

from ffs.cli.app import main

sys.exit(main())
