"""Arrow files are read without a copy; a preloaded library counts, so not under sanitizers."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ffs.bench import rawtools
from tests.harness import Cluster

COUNTED = """
import json, os, sys
import ffs.arrow
from ffs.bench.cases.copies import totals
from ffs.client.filesystem import FFSFileSystem

fs = FFSFileSystem(url=sys.argv[1], key_file=sys.argv[2])
own = f"{os.environ['COPYCOUNT_OUT']}.{os.getpid()}"
found = {}
for name in ("whole", "columns", "stream"):
    columns = ["x"] if name == "columns" else None
    def read():
        if name == "stream":
            return sum(b.nbytes for b in ffs.arrow.open_stream(sys.argv[4], fs=fs))
        file = ffs.arrow.open_file(sys.argv[3], fs=fs, columns=columns)
        return sum(b.nbytes for b in file.get_batches(range(len(file))))
    read()
    before = totals(own)[0]
    payload = read()
    found[name] = (payload, totals(own)[0] - before)
print(json.dumps(found))
fs.close()
"""


def test_nothing_is_copied_in_user_space(
    cluster: Cluster, fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    """As an interposer over memcpy and memmove sees it, pyarrow's own included."""
    dice = np.random.default_rng(9)
    wide = pa.table({"x": dice.random(1 << 20), "y": dice.random(1 << 20)})
    for path, stream in ((f"{fs_dir}/w", False), (f"{fs_dir}/ws", True)):
        sink = io.BytesIO()
        new = pa.ipc.new_stream if stream else pa.ipc.new_file
        with new(sink, wide.schema) as writer:
            writer.write_table(wide, max_chunksize=1 << 17)
        fs.pipe_file(path, sink.getvalue())
    options = cluster.storage_options
    result = subprocess.run(
        [sys.executable, "-c", COUNTED, options["url"], options["key_file"]]
        + [f"{fs_dir}/w", f"{fs_dir}/ws"],
        env={
            **os.environ,
            "LD_PRELOAD": str(rawtools.build("copycount")),
            "COPYCOUNT_OUT": str(tmp_path / "copies"),
        },
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for name, (payload, copied) in json.loads(result.stdout).items():
        assert payload == (8 << 20) * (1 if name == "columns" else 2)
        assert copied <= payload * 0.01, name
