"""`python -m loaders NAME`: see child.py."""

from __future__ import annotations

import sys

from .child import serve

if __name__ == "__main__":
    serve(sys.argv[1])
