"""What a mutation may know besides the database: who asks, time, chance, the cluster's defaults."""

from __future__ import annotations

from dataclasses import dataclass

from ffs.errors import FFSError
from ffs.seams import Randomness
from ffs.server.meta.ops.access import Caller
from ffs.wire.method import Fault


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the configuration says for everyone."""

    chunk_size_bytes: int
    stripe: int
    session_ttl_ns: int


@dataclass(frozen=True, slots=True)
class Context:
    """One mutation's view of the world outside the database."""

    now_ns: int
    randomness: Randomness
    defaults: Defaults
    caller: Caller


def fault(error: FFSError) -> Fault:
    """Return an entry's error as it stands in a batch reply."""
    return Fault(error.code, error.message)
