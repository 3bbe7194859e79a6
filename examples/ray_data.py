"""Ray Data on FFS: write a table in parts, compute on it in parallel, store what came out.

    python examples/ray_data.py ffs:///ray-example

The cluster is that of FFS_URL and FFS_KEY_FILE. Ray takes any fsspec file system as `filesystem=`;
it travels to Ray's workers as configuration, and each of them reads its own blocks.
"""

from __future__ import annotations

import sys

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

ROWS = 20_000


def main(url: str) -> None:
    """Run the example in a directory."""
    fs, directory = fsspec.url_to_fs(url)
    ray.init(num_cpus=1, include_dashboard=False, logging_level="warning")
    try:
        numbers = ray.data.range(ROWS, override_num_blocks=4)
        numbers.write_parquet(f"{directory}/numbers", filesystem=fs)
        table = ray.data.read_parquet(f"{directory}/numbers", filesystem=fs)
        roots = table.map_batches(lambda batch: {"root": np.sqrt(batch["id"])})
        roots.write_parquet(f"{directory}/roots", filesystem=fs)
    finally:
        ray.shutdown()
    # By this thread alone: pyarrow's threads let go of what they have read a moment after it was
    # returned, and one that does so while the program ends takes it down.
    parts = [pq.ParquetFile(fs.open(part)) for part in fs.ls(f"{directory}/roots", detail=False)]
    stored = pa.concat_tables([part.read(use_threads=False) for part in parts])
    print(f"{stored.num_rows} roots, mean {stored['root'].to_numpy().mean():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
