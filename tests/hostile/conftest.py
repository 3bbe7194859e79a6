"""Fixtures that the unit tests have too: both event loops, a key."""

from __future__ import annotations

from tests.unit.conftest import key, run_async

__all__ = ["key", "run_async"]
