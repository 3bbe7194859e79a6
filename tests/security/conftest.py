"""Fixtures of the tests that keep strangers out."""

from __future__ import annotations

import pytest

from ffs.key import ClusterKey
from tests.security.certificates import Authority
from tests.security.tenants import admit, home, users

__all__ = ["admit", "home", "users"]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cluster's own authority."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another cluster's."""
    return Authority(tmp_path_factory.mktemp("foreign"))


@pytest.fixture
def key() -> ClusterKey:
    """A cluster key."""
    return ClusterKey(bytes(range(32)))
