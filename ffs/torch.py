"""Feeding PyTorch: samplers, data sets, loaders and checkpoints over FFS.

See docs/torch.md and docs/checkpoints.md; the work is done in client/torch and client/checkpoint.
Needs PyTorch (`pip install 'ffs[torch]'`).
"""

from __future__ import annotations

from ffs.client.checkpoint.published import latest
from ffs.client.checkpoint.safetensors import load_safetensors, save_safetensors
from ffs.client.checkpoint.storage_reader import StorageReader
from ffs.client.checkpoint.storage_writer import StorageWriter
from ffs.client.torch.dataset import IterableRecordDataset, RecordDataset
from ffs.client.torch.loader import DataLoader
from ffs.client.torch.mixing import ConcatDataset, MixedDataset
from ffs.client.torch.sampler import ElasticSampler

__all__ = [
    "ConcatDataset",
    "DataLoader",
    "ElasticSampler",
    "IterableRecordDataset",
    "MixedDataset",
    "RecordDataset",
    "StorageReader",
    "StorageWriter",
    "latest",
    "load_safetensors",
    "save_safetensors",
]
