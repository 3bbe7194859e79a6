"""zarr's own suite for stores, on a directory of a cluster; and arrays by their URL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zarr
from fsspec.core import url_to_fs
from zarr.abc.store import SupportsDeleteSync, SupportsGetSync, SupportsSetSync
from zarr.core.buffer import Buffer, cpu
from zarr.storage import FsspecStore
from zarr.testing import StoreTests


class TestStore(StoreTests[FsspecStore, cpu.Buffer]):
    """What zarr asks of any store. `get` and `set` below go past the store, as it wants them to."""

    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    # These five skip themselves, and a skip is a failure here: `FsspecStore` has no synchronous
    # forms, on whatever file system. The test below tells when zarr gives it some.
    test_get_sync = None  # type: ignore[assignment]
    test_get_sync_missing = None  # type: ignore[assignment]
    test_set_sync = None  # type: ignore[assignment]
    test_delete_sync = None  # type: ignore[assignment]
    test_delete_sync_missing = None  # type: ignore[assignment]

    @pytest.fixture
    def store_kwargs(self, url: str, options: dict[str, Any]) -> dict[str, Any]:
        """The store's arguments: a file system for coroutines, and a directory of its own."""
        fs, path = url_to_fs(url, asynchronous=True, **options)
        return {"fs": fs, "path": path}

    @pytest.fixture(autouse=True)
    def _beside_the_store(self, fs: Any) -> None:
        self.fs = fs

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        """Write past the store."""
        self.fs.pipe_file(f"{store.path}/{key}", value.to_bytes())

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        """Read past the store."""
        return self.buffer_cls.from_bytes(self.fs.cat_file(f"{store.path}/{key}"))

    def test_store_repr(self, store: FsspecStore) -> None:
        assert str(store) == f"<FsspecStore(FFSFileSystem, {store.path})>"

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing


def test_zarr_has_no_synchronous_forms_to_test() -> None:
    assert not issubclass(FsspecStore, (SupportsGetSync, SupportsSetSync, SupportsDeleteSync))


def test_array_by_url(url: str, options: dict[str, Any]) -> None:
    values = np.arange(60_000, dtype="float32").reshape(300, 200)
    array = zarr.create_array(
        f"{url}/a.zarr", shape=values.shape, chunks=(100, 100), dtype="f4", storage_options=options
    )
    array[:] = values
    again = zarr.open_array(f"{url}/a.zarr", mode="r", storage_options=options)
    assert np.array_equal(again[:], values)
    assert np.array_equal(again[150:250, 99:101], values[150:250, 99:101])
