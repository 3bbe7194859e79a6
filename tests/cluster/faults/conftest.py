"""What all fault tests begin with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.faults.network import Network
from tests.cluster.faults.rig import DAEMONS


@pytest.fixture
def network() -> Iterator[Network]:
    """Three machines on a switch; the test itself is at the hub."""
    made = Network(DAEMONS)
    try:
        with made.inside():
            yield made
    finally:
        made.close()
