"""What an operator sees of the whole cluster: its processes, its targets, its counts.

Declared and sent as `ffs.wire.method` says. Previous hop: ffs/cli/status.py; next hop:
server/meta/service.py. The upkeep that operators start is in `ffs.wire.maintenance`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ffs.types import Routing
from ffs.wire.membership import DataLoopCounters, TargetReport
from ffs.wire.method import Method

RETURNS_KEPT_S: Final = 600


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Ask for the whole state of the cluster."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One process of the cluster, as the metadata server sees it."""

    id: int
    role: str
    pid: int
    state: str
    address: str
    counters: DataLoopCounters | None = None
    """Of a storage daemon, as its last heartbeat told them; None: it did not."""
    returns: int = 0
    """How often a daemon came back within the last RETURNS_KEPT_S, as this server has seen it."""


@dataclass(frozen=True, slots=True)
class StatusReply:
    """What `ffs status` prints."""

    cluster_id: bytes
    nodes: list[NodeStatus]
    routing: Routing
    reports: list[TargetReport]
    inodes: int
    blobs: int
    sessions: int
    dead_blobs: int
    backup_ns: int = 0
    """When the server last made a backup by itself; 0: never."""
    backup_error: str = ""
    """Why its last attempt failed; empty: it did not."""
    version: str = ""
    """Of the server that answers."""
    wall_ns: int = 0
    """Its clock when it did; 0: it does not tell."""


STATUS = Method("status", StatusRequest, StatusReply)
