"""`ffs-bench dataloader`: smoke runs, beside another project's loader that is installed here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ffs.records
from ffs.bench.cases import dataloader, large_records, loaders, records
from ffs.bench.cases.common import MIB, Context
from ffs.bench.cases.loading import KIB, Shape, Truth
from ffs.bench.machine import Placement
from ffs.bench.measure import Plan, Verdict
from ffs.bench.peers.environments import PEERS, Absent, Peer, python_of
from ffs.bench.peers.loaders.child import Job
from ffs.bench.peers.process import loader_process
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChecksumError, UnavailableError
from tests.harness import Cluster

SHAPES = (Shape(64 * KIB, 64, 1),)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    plan = replace(Plan.quick(), spinners=False)
    return Context(plan, Placement.choose(), tmp_path, size_bytes=4 * MIB)


def test_dataloader(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies and faults are counted, not timed: their verdicts are real."""
    monkeypatch.setattr(dataloader, "LARGE", ())
    monkeypatch.setattr(dataloader, "COUNTED", SHAPES)
    found = dataloader.measure(context)
    loader, alone = found.figures
    assert loader.operation_rate > 0 and loader.client_cpu > 0 and alone.bytes_rate > 0
    verdicts = {each.name.partition(", ")[2]: each.verdict for each in found.comparisons}
    assert verdicts["1 worker, samples"] == Verdict.UNRESOLVED
    assert verdicts["1 worker, copied bytes per byte"] == Verdict.MET
    assert {"1 worker, faults a batch, loop", "1 worker, faults a batch, workers"} <= set(verdicts)


def test_compare(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """One loader of another project takes part; those that are absent are named with the reason."""

    def python(peer: Peer, source: Path | None) -> Path:
        if peer.title != "s3torchconnector":
            raise Absent("not for this test")
        return Path(sys.executable)

    monkeypatch.setattr(loaders, "LARGE", SHAPES)
    monkeypatch.setattr(loaders, "python_of", python)
    found = loaders.measure(context)
    assert [figure.name.partition(": ")[2] for figure in found.figures] == [
        "FFS, TCP",
        "s3torchconnector",
    ]
    assert len(found.comparisons) == 3
    assert len(found.notes) == len(PEERS) - 1
    assert all("is absent: not for this test" in note for note in found.notes)


def test_ffrecord_needs_a_checkout(tmp_path: Path) -> None:
    (peer,) = (each for each in PEERS if each.from_source)
    with pytest.raises(Absent, match="--ffrecord-src"):
        python_of(peer, None)


def test_a_loader_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        loader_process("nobody", Path(sys.executable), tmp_path) as process,
        pytest.raises(UnavailableError, match="No module named"),
    ):
        process.ask("open", **job(tmp_path).__dict__)


def test_wrong_bytes_and_missing_samples_are_refused(tmp_path: Path) -> None:
    truth = Truth(job(tmp_path))
    with pytest.raises(ChecksumError, match="not every sample once"):
        truth.check_epoch("a loader", {"count": 4, "crc_sum": 1})
    for crcs in ([], [1]):
        with pytest.raises(ChecksumError, match="other bytes"):
            truth.check_batch("a loader", crcs)


def job(directory: Path) -> Job:
    """Four samples of noise."""
    plain = directory / "plain"
    plain.write_bytes(np.random.default_rng(3).bytes(64))
    return Job(str(plain), str(directory), sample_bytes=16, count=4, batch=2, workers=0)


def test_records(context: Context) -> None:
    found = records.measure(context)
    named = {each.name: each for each in found.comparisons}
    assert named["open our container of 100,000"].reference_figure == 50.0
    assert named["index in a process and 2 workers (spawn)"].figure is not None
    assert {"64 KiB x 8, speed", "writing records, speed"} <= set(named)
    assert len(found.figures) == 9 and len(named) == 11


@pytest.mark.parametrize(
    "write", [large_records.write_container, large_records.write_ffrecord], ids=["ffs", "ffrecord"]
)
def test_large_records_are_files_like_any_other(cluster: Cluster, write: Any) -> None:
    """Their checksums, which NumPy made, are those that readers expect."""
    fs = FFSFileSystem(skip_instance_cache=True, **cluster.storage_options)
    write(fs, "/large-by-numpy.ffr", 1000)
    with ffs.records.open("/large-by-numpy.ffr", fs=fs, verify="sample") as opened:
        opened.validate()
        found = opened.read(range(1000))
    fs.close()
    assert [int.from_bytes(each, "little") for each in found] == list(range(1000))
