"""FFS: a high-throughput dataset file system for training.

This package root stays empty on purpose: `import ffs` costs nothing, the fsspec file system is
`ffs.client.filesystem`, the servers are `ffs.server.meta` and `ffs.server.storage`.
"""

__version__ = "0.1.0"
