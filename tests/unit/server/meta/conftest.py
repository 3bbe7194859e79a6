"""A namespace of each engine for each test; its invariants are checked when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ffs.server.meta.ops.check import CHECKS, check
from ffs.wire.maintenance import CheckRequest
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
        # What operators are told of a database must hold of each that operations have made.
        for step in range(0 if namespace.tx.shared else len(CHECKS)):
            reply = namespace.transact(partial(check, request=CheckRequest(step)))
            assert reply.count == 0, reply
        namespace.close()


@pytest.fixture
def ns(new_ns: NewNamespace) -> Namespace:
    """An empty namespace with one storage target."""
    return new_ns(1)
