"""A namespace of each engine for each test; its invariants are checked when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.databases import ENGINES, new_database
from tests.namespace import Namespace

NewNamespace = Callable[[int], Namespace]


@pytest.fixture(params=ENGINES)
def new_ns(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewNamespace]:
    """Make the test's one namespace, with so many storage targets."""
    made: list[Namespace] = []

    def make(targets: int) -> Namespace:
        assert not made, "a test has one database"
        made.append(Namespace(new_database(request.param, tmp_path), targets=targets))
        return made[0]

    yield make
    for namespace in made:
        namespace.check()
        namespace.close()


@pytest.fixture
def ns(new_ns: NewNamespace) -> Namespace:
    """An empty namespace with one storage target."""
    return new_ns(1)
