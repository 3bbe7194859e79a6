"""The installed command `ffs`: one file per subcommand, each a thin door over client or server.

Only the typed command's module is imported, so `ffs --help` stays quick. Exit status:
0 done, 1 failed (one line on stderr says what and what to do), 2 wrong usage, 130 Ctrl-C.
"""

from ffs.cli.app import main

__all__ = ["main"]
