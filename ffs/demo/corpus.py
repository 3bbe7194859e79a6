"""Real data that every machine has: the sources of Python's standard library, as byte tokens.

Files are joined in name order and cut into samples of one length, packed into shards of many
samples. The last, incomplete sample is left out.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SAMPLE_BYTES = 4096
SHARD_SAMPLES = 512
DIGEST_BYTES = 8
_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of samples back to back, and a digest of each one."""

    path: Path
    digests: list[bytes]


def digest(sample: bytes | memoryview) -> bytes:
    """A short cryptographic hash of one sample."""
    return hashlib.blake2b(sample, digest_size=DIGEST_BYTES).digest()


def source_files() -> Iterator[Path]:
    """The standard library's modules, in name order."""
    top = Path(sysconfig.get_path("stdlib"))
    for path in sorted(top.rglob("*.py")):
        if not _LEFT_OUT & set(path.relative_to(top).parts):
            yield path


def pack(directory: Path) -> list[Shard]:
    """Write the samples as shards into `directory`."""
    tokens = b"".join(path.read_bytes() for path in source_files())
    shard_bytes = SAMPLE_BYTES * SHARD_SAMPLES
    whole = len(tokens) // SAMPLE_BYTES * SAMPLE_BYTES
    shards: list[Shard] = []
    for start in range(0, whole, shard_bytes):
        content = tokens[start : min(start + shard_bytes, whole)]
        path = directory / f"shard-{len(shards):03}.tokens"
        path.write_bytes(content)
        samples = range(0, len(content), SAMPLE_BYTES)
        digests = [digest(content[i : i + SAMPLE_BYTES]) for i in samples]
        shards.append(Shard(path, digests))
    return shards
