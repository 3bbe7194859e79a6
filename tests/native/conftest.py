"""Under the address sanitizer, tests of the native code must not lose memory either (make asan)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.native.fail_nth import lost_memory


@pytest.fixture(autouse=True, scope="session")
def _no_memory_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    """Look once, when all tests are over: it takes seconds, since all memory is searched."""
    yield
    for item in request.session.items:
        item.__dict__.pop("funcargs", None)  # the last test's, which pytest lets go of after this
    assert lost_memory() == []
