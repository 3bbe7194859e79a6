"""Sizes and durations as people type them: `64K`, `4MiB`, `90`, `12h`, `7d`."""

from __future__ import annotations

import argparse
import re
from typing import Final

_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}


def size_bytes(text: str) -> int:
    """`4M` or `4MiB` -> 4194304, for argparse."""
    match = re.fullmatch(r"(\d{1,12})([KMGTP]?)(?:i?B)?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 65536, 64K or 4M")
    return int(match[1]) * _SIZES[match[2].upper()]


def duration_s(text: str) -> int:
    """`12h` -> 43200, for argparse."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text, re.ASCII)
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration, such as 90s, 12h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def count(text: str) -> int:
    """`3` -> 3, for argparse: a whole number that is not negative."""
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)
