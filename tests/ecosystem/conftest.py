"""The cluster as other people's libraries are told of it: a URL and `storage_options`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.harness import Cluster


@pytest.fixture
def options(cluster: Cluster) -> dict[str, Any]:
    """`storage_options` that say which cluster, since some libraries rebuild URLs without a host.

    Not by `url`: the functions of fsspec that get these keywords have a parameter of that name.
    """
    return {"hosts": cluster.meta_addresses, "key_file": str(cluster.key_file)}


@pytest.fixture
def url(fs_dir: str) -> str:
    """A fresh directory."""
    return f"ffs://{fs_dir}"
