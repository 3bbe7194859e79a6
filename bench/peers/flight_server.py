"""An Arrow Flight server over one file: `python -m ffs.bench.peers.flight_server HOST PORT FILE`.

A ticket is a 64-bit range length and then the ranges' 64-bit offsets, little-endian. Large ranges
are slices of the mapped file, a record batch each, which Arrow sends without copying them; small
ones are gathered into one batch, since a batch has some 10 us of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight

GATHERED_BYTES_MAX = 64 << 10
SCHEMA = pa.schema([("bytes", pa.uint8())])


class RangeServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no annotations
    """Answers do_get with the bytes of the ranges that the ticket names, in their order."""

    def __init__(self, host: str, port: int, path: Path) -> None:
        super().__init__(f"grpc://{host}:{port}")
        self._data = np.memmap(path, dtype=np.uint8, mode="r")

    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.RecordBatchStream:
        """Send the ranges of one call."""
        length, *offsets = np.frombuffer(ticket.ticket, dtype="<u8").tolist()
        slices = [self._data[at : at + length] for at in offsets]
        if length < GATHERED_BYTES_MAX:
            slices = [np.concatenate(slices)]
        batches = [pa.record_batch([pa.array(each)], schema=SCHEMA) for each in slices]
        return flight.GeneratorStream(SCHEMA, iter(batches))


if __name__ == "__main__":
    RangeServer(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])).serve()
