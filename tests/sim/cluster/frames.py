"""What goes over simulated data connections: the frames of docs/wire.md without their bytes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WriteFrame:
    """WRITE: store a chunk as member `hop` of its chain."""

    connection: int
    blob: int
    chunk: int
    target: int
    chain: int
    chain_version: int
    data: bytes
    hop: int = 0


@dataclass(frozen=True, slots=True)
class ReadFrame:
    """READ: all of one chunk."""

    blob: int
    chunk: int
    target: int


@dataclass(frozen=True, slots=True)
class ListFrame:
    """LIST: what a target holds, once it knows a version of its chain."""

    target: int
    after: tuple[int, int]
    limit: int
    since: int


@dataclass(frozen=True, slots=True)
class SuspectFrame:
    """SUSPECT: a chunk was missing, or did not match its checksums."""

    target: int
    blob: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Hello:
    """A connection is made."""


@dataclass(frozen=True, slots=True)
class Goodbye:
    """A connection is closed."""

    connection: int
