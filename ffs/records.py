"""Records: many samples in few files, read at random: `open`, `create`, `Records`.

See docs/records.md; the work is done in client/records/.
"""

from __future__ import annotations

from ffs.client.records.records import Records, open  # noqa: A004 - ffs.records.open
from ffs.client.records.writer import Writer, create

__all__ = ["Records", "Writer", "create", "open"]
