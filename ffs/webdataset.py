"""WebDataset shards in FFS: `register`.

See docs/ecosystem.md; the work is done in client/webdataset.py. Needs `pip install webdataset`.
"""

from __future__ import annotations

from ffs.client.webdataset import register

__all__ = ["register"]
