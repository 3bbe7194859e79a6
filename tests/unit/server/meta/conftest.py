"""A namespace in a file of its own for each test; its invariants are checked when the test ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespace import Namespace


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    """An empty namespace with one storage target."""
    namespace = Namespace(tmp_path)
    yield namespace
    namespace.check()
    namespace.close()
