"""Run the demonstration; exit status 0 if everything held, 1 with one line if not."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from ffs import _reader
from ffs.cli.cp import plan_copy, transfer
from ffs.cli.output import human_bytes
from ffs.cli.progress import draw, on_terminal, silence
from ffs.cli.sides import Links, LocalSide, RemoteSide
from ffs.client.filesystem import FFSFileSystem
from ffs.demo.cluster import ClusterStartError, cluster
from ffs.demo.corpus import SAMPLE_BYTES, SHARD_SAMPLES, Shard, pack
from ffs.demo.dataset import CorruptSampleError, SampleDataset, as_it_is, verify
from ffs.demo.model import Trainer
from ffs.errors import FFSError

SEED = 20_240_601
BATCH_SAMPLES = 32
LOSS_RATIO_MAX = 0.8
DIRECTORY = "/demo"


def main() -> int:
    """Start a cluster, store, read, train, report; leave nothing behind."""
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="ffs-demo-") as name:
            good = _demonstrate(Path(name))
    except (FFSError, OSError, CorruptSampleError, ClusterStartError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print(f"all done in {time.perf_counter() - started:.1f} s, everything cleaned up")
    return 0 if good else 1


def _demonstrate(directory: Path) -> bool:
    torch.set_num_threads(1)  # for a model so small, more threads only wait for each other
    print("1. starting a cluster: one metadata server and one storage daemon")
    with cluster(directory / "cluster") as options:
        fs = FFSFileSystem(skip_instance_cache=True, **options)
        try:
            shards = _pack(directory / "packed")
            _store(fs, directory / "packed")
            return _train(fs, shards)
        finally:
            fs.close()


def _pack(directory: Path) -> list[Shard]:
    print("2. packing the sources of Python's standard library as byte tokens")
    directory.mkdir()
    return pack(directory)


def _store(fs: Any, directory: Path) -> None:
    print("3. copying them into the cluster")
    source, goal = LocalSide(str(directory)), RemoteSide(fs, DIRECTORY)
    plan = plan_copy(source, goal, list(source.walk(Links.FOLLOW, print)), recursive=True)
    goal.makedirs([DIRECTORY])
    total = sum(item.size for item in plan.items)
    started = time.perf_counter()
    with draw("   storing", total) if on_terminal() else silence() as progress:
        transfer(source, goal, plan.items, 2, progress)
    seconds = time.perf_counter() - started
    print(f"   {len(plan.items)} files, {human_bytes(total)}, {total / seconds / 1e6:.0f} MB/s")


def _train(fs: Any, shards: list[Shard]) -> bool:
    digests = [one for shard in shards for one in shard.digests]
    paths = [f"{DIRECTORY}/{shard.path.name}" for shard in shards]
    dataset = SampleDataset(fs, paths, SHARD_SAMPLES, len(digests))
    order = torch.Generator().manual_seed(SEED)
    loader = DataLoader(
        dataset, batch_size=BATCH_SAMPLES, shuffle=True, generator=order, collate_fn=as_it_is
    )
    print(f"4. one epoch of {len(digests)} samples in random order, training a tiny model on them")
    trainer, before, started = Trainer(SEED), _reader.counters(), time.perf_counter()
    seen = set()
    for batch in loader:
        verify(batch, digests)
        seen.update(batch.indices)
        trainer.step(batch.tokens)
    if len(seen) != len(digests):
        raise CorruptSampleError(f"{len(digests) - len(seen)} samples were never read")
    _report(dataset, before, time.perf_counter() - started)
    return _judge(trainer)


def _report(dataset: SampleDataset, before: dict[str, int], seconds: float) -> None:
    after = _reader.counters()
    used = {key: after[key] - before[key] for key in after}
    meter = dataset.meter
    payload = meter.samples * SAMPLE_BYTES
    print(f"   every one of the {meter.samples} samples has the hash it was stored with")
    print(
        f"   reading:  {meter.samples / meter.seconds:,.0f} samples/s, "
        f"{payload / meter.seconds / 1e9:.3f} GB/s ({meter.seconds:.2f} s of {seconds:.1f} s)"
    )
    copied = used["copied_bytes"] / used["payload_bytes"]
    print(f"   copies:   {copied:.4f} bytes copied in user space per byte read")
    print(f"   network:  {used['wire_bytes_received'] / payload:.4f} bytes received per byte read")


def _judge(trainer: Trainer) -> bool:
    first, last = trainer.tenths()
    good = last < LOSS_RATIO_MAX * first
    print(
        f"   loss:     {first:.3f} at first, {last:.3f} at last over {len(trainer.losses)} steps: "
        + ("the model learns" if good else f"not below {LOSS_RATIO_MAX} of the start")
    )
    return good


if __name__ == "__main__":
    sys.exit(main())
