"""Listing page by page while names come and go, and keywords that nobody knows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ffs.client.filesystem import FFSFileSystem
from ffs.errors import DirectoryExpectedError, InvalidError
from ffs.limits import LIST_PAGE_MAX
from tests.harness import Cluster

# --- paging ------------------------------------------------------------------------------------


def test_pages_of_a_directory_that_changes(cluster: Cluster, fs: Any, fs_dir: str) -> None:
    """Names that stay are seen exactly once, whatever comes and goes meanwhile."""
    count = LIST_PAGE_MAX + 500
    stay = {f"{fs_dir}/s{i:05d}": b"" for i in range(count)}
    fs.pipe(stay)
    other = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    stop, rounds = threading.Event(), [0]

    def churn() -> None:
        while not stop.is_set():
            names = [f"{fs_dir}/{c}{rounds[0]}" for c in ("a", "s00500x", "s02000x", "z")]
            other.pipe(dict.fromkeys(names, b""))
            other.rm(names)
            rounds[0] += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        while rounds[0] < 3:
            for names in (
                fs.ls(fs_dir, detail=False),
                [i["name"] for i in fs.scandir(fs_dir, page=100)],
                fs.find(fs_dir),
            ):
                assert [n for n in names if n in stay] == sorted(stay)
                assert len(set(names)) == len(names)
    finally:
        stop.set()
        thread.join()
    other.close()


def test_scandir_holds_a_page_at_a_time(fs: Any, fs_dir: str) -> None:
    fs.pipe({f"{fs_dir}/{i:02d}": b"x" * i for i in range(20)})
    asked: list[int] = []
    call = fs.core.meta.call_on

    def counting(path: str, method: Any, request: Any) -> Any:
        asked.append(request.limit)
        return call(path, method, request)

    fs.core.meta.call_on = counting
    entries = fs.scandir(fs_dir, page=6)
    assert asked == []
    assert [next(entries)["size"] for _ in range(7)] == list(range(7))
    assert asked == [6, 6]
    assert [e["name"] for e in entries] == [f"{fs_dir}/{i:02d}" for i in range(7, 20)]
    del fs.core.meta.call_on
    assert list(fs.scandir(fs_dir)) == fs.ls(fs_dir)
    with pytest.raises(DirectoryExpectedError):
        next(fs.scandir(f"{fs_dir}/01"))
    for bad in (0, LIST_PAGE_MAX + 1):
        with pytest.raises(InvalidError):
            next(fs.scandir(fs_dir, page=bad))


# --- keywords ----------------------------------------------------------------------------------


def test_a_misspelt_keyword_is_told(fs: Any, fs_dir: str) -> None:
    path = f"{fs_dir}/x"
    fs.pipe_file(path, b"1")
    calls: list[Callable[[], Any]] = [
        lambda: fs.pipe_file(path, b"2", chunksize=1),
        lambda: fs.pipe({path: b"2"}, chunksize=1),
        lambda: fs.open(path, "wb", chunksize=1),
        lambda: fs.open(path, "rb", chunksize=1),
        lambda: fs.cat_file(path, begin=1),
        lambda: fs.cat(path, begin=1),
        lambda: fs.cat([path], begin=1),
        lambda: fs.cat_ranges([path], [0], [1], onerror="raise"),
        lambda: fs.get_file(path, "/dev/null", mod=1),
        lambda: fs.put_file("/dev/null", path, mod=1),
        lambda: fs.ls(path, details=True),
        lambda: fs.info(path, follow=True),
        lambda: fs.find(path, max_depth=1),
        lambda: fs.mkdir(f"{path}-d", parents=True),
        lambda: fs.cp_file(path, f"{path}-2", overwrite=True),
        lambda: fs.touch(path, truncat=True),
        lambda: fs.du(path, totals=True),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    assert fs.cat_file(path) == b"1" and fs.ls(fs_dir, detail=False) == [path]
