"""A data set of rows in memory, for tests of loaders that need no cluster."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ffs.client.torch.batch import Form
from ffs.client.torch.landing import Bytes
from ffs.client.torch.source import BatchSource, Ids


class InMemory(BatchSource):
    """Rows of bytes."""

    def __init__(self, rows: npt.NDArray[np.uint8]) -> None:
        super().__init__(Form(torch.uint8, rows.shape[1:]))
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, ids: Ids) -> Ids:
        """Return the bytes of each row."""
        return np.full(len(ids), self.rows[0].nbytes)

    def fill(self, ids: Ids, out: Bytes) -> None:
        """Copy them: this is no file."""
        np.take(self.rows, ids, axis=0, out=out.reshape(len(ids), *self.rows.shape[1:]))
