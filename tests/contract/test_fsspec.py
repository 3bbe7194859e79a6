"""fsspec's own conformance suite against a cluster of processes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import fsspec.tests.abstract
import pytest
from fsspec.tests.abstract import (
    AbstractCopyTests,
    AbstractFixtures,
    AbstractGetTests,
    AbstractOpenTests,
    AbstractPipeTests,
    AbstractPutTests,
)

from ffs.client.filesystem import FFSFileSystem
from tests.harness import Cluster


class FFSFixtures(AbstractFixtures):  # type: ignore[misc]  # fsspec is untyped
    """What the suite needs to know of us."""

    @pytest.fixture
    def fs(self, cluster: Cluster) -> FFSFileSystem:
        return FFSFileSystem(**cluster.storage_options)

    @pytest.fixture
    def fs_path(self, fs: FFSFileSystem) -> Iterator[str]:
        path = f"/contract-{uuid.uuid4().hex}"
        fs.mkdir(path)
        yield path
        fs.rm(path, recursive=True)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True

    @pytest.fixture
    def local_fs(self) -> Any:
        from fsspec.implementations.local import LocalFileSystem

        return LocalFileSystem(auto_mkdir=True)


class TestCopy(AbstractCopyTests, FFSFixtures):  # type: ignore[misc]  # fsspec is untyped
    """Copies inside."""


class TestGet(AbstractGetTests, FFSFixtures):  # type: ignore[misc]  # fsspec is untyped
    """Copies out."""


class TestPut(AbstractPutTests, FFSFixtures):  # type: ignore[misc]  # fsspec is untyped
    """Copies in."""


class TestPipe(AbstractPipeTests, FFSFixtures):  # type: ignore[misc]  # fsspec is untyped
    """Whole-file writes."""


class TestOpen(AbstractOpenTests, FFSFixtures):  # type: ignore[misc]  # fsspec is untyped
    """Exclusive opens."""


def test_every_part_of_the_suite_is_run_here() -> None:
    parts = {n for n in vars(fsspec.tests.abstract) if n.startswith("Abstract")}
    ours = (TestCopy, TestGet, TestPut, TestPipe, TestOpen)
    run = {base.__name__ for test in ours for base in test.__bases__}
    assert parts - run == {"AbstractFixtures"}
