"""What tests of the native code share: a quick place for targets, and a look for lost memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.fail_nth import lost_memory


@pytest.fixture(autouse=True, scope="session")
def _no_memory_lost() -> Iterator[None]:
    """Look once, when all tests are over: it takes seconds, since all memory is searched."""
    yield
    assert lost_memory() == []


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: for tests that sync thousands of times."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="ffs-test-") as directory:
        yield Path(directory)
