"""A loader whose forked workers read by RDMA, straight into the ring that they share with it."""

from __future__ import annotations

import numpy as np

import ffs.records
from tests.harness import Cluster
from tests.rdma.capture import Capture

DAEMON = "10.77.0.1"
SAMPLES, SAMPLE = 96, 16_384


def test_forked_workers_read_by_rdma_into_the_ring(cluster: Cluster) -> None:
    # Importing torch takes a minute in the guest: only where it is used.
    from ffs.torch import DataLoader, RecordDataset

    rows = np.random.default_rng(6).integers(0, 256, (SAMPLES, SAMPLE), dtype=np.uint8)
    options = {**cluster.storage_options, "rdma_device": "rxe1"}
    with ffs.records.create("ffs:///by-rdma.ffr", storage_options=options) as file:
        for row in rows:
            file.append(row)
    dataset = RecordDataset(
        "ffs:///by-rdma.ffr", dtype="uint8", shape=(SAMPLE,), storage_options=options
    )
    assert (dataset[1].numpy() == rows[1]).all()  # so that there are queue pairs to be forked
    loader = DataLoader(dataset, batch_size=16, num_workers=2, multiprocessing_context="fork")
    with Capture("rdma0") as wire:
        got = np.concatenate([batch.numpy().copy() for batch in loader])
    assert (got == rows).all()
    assert loader.ring_counters()["fallbacks"] == 0
    sent = wire.payload_bytes[DAEMON]
    assert sum(n for name, n in sent.items() if name.startswith("WRITE")) >= rows.nbytes
    assert (dataset[2].numpy() == rows[2]).all()
