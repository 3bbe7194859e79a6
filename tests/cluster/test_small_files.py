"""Small files stay small: 10^5 files of 4 KiB on real processes, everything on disk counted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import fsspec

from tests.harness import Cluster

FILES = 100_000
FILE_BYTES = 4096
PER_DIRECTORY = 1000
DISK_SHARE_MAX = 1.3


def disk_bytes(directory: str) -> int:
    out = subprocess.run(
        ["du", "-s", "--block-size=1", directory], check=True, capture_output=True, text=True
    )
    return int(out.stdout.split()[0])


def test_small_files_take_little_more_than_their_bytes(new_cluster: Callable[..., Cluster]) -> None:
    cluster = new_cluster()
    fs = fsspec.filesystem("ffs", **cluster.storage_options, skip_instance_cache=True)
    data = os.urandom(FILES * FILE_BYTES)
    pieces = memoryview(data)
    paths = [f"/many/{i // PER_DIRECTORY:03d}/{i:06d}" for i in range(FILES)]
    fs.pipe({p: bytes(pieces[i * FILE_BYTES :][:FILE_BYTES]) for i, p in enumerate(paths)})
    os.sync()
    share = disk_bytes(str(cluster.directory)) / len(data)
    assert share <= DISK_SHARE_MAX, f"{share:.3f} bytes on disk for each byte stored"
    sample = range(0, FILES, 997)
    assert fs.cat_ranges([paths[i] for i in sample], 0, None) == [
        data[i * FILE_BYTES :][:FILE_BYTES] for i in sample
    ]
    fs.close()
