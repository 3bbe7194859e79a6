"""A cluster on each metadata engine for the state machines."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Cluster

SERVERS = {"sqlite": 1, "postgres": 2}
"""How many metadata servers there are: PostgreSQL is what several share."""


@pytest.fixture(scope="module", params=SERVERS)
def engine_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A cluster whose metadata is in the engine named."""
    engine: str = request.param
    running = Cluster(
        tmp_path_factory.mktemp(engine), metas=SERVERS[engine], postgres=engine == "postgres"
    ).start()
    yield running
    running.stop()
