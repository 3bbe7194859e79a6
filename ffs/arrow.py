"""Arrow IPC files in FFS as record batches without a copy: `open_file`, `open_stream`.

See docs/client.md; the work is done in client/arrow.py. Needs pyarrow (`pip install 'ffs[arrow]'`).
"""

from __future__ import annotations

from ffs.client.arrow import RecordBatchFile, open_file, open_stream

__all__ = ["RecordBatchFile", "open_file", "open_stream"]
