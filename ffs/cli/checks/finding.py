"""What one check of `ffs doctor` has come to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How it stands."""

    FINE = "fine"
    NOTE = "note"
    """Not wrong, but it may explain something."""
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check` names what was looked at, `message` says what was found, `advice` what to change."""

    check: str
    verdict: Verdict
    message: str
    advice: str = ""


def fine(check: str, message: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Verdict.FINE, message)


def note(check: str, message: str, advice: str = "") -> Finding:
    """Return what may explain something."""
    return Finding(check, Verdict.NOTE, message, advice)


def problem(check: str, message: str, advice: str) -> Finding:
    """Return what should be changed, and how."""
    return Finding(check, Verdict.PROBLEM, message, advice)
