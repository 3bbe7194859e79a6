"""Which data connections go by RDMA, and why others do not.

Role: client/connections.py asks THIS for each fresh TCP connection to a daemon; next hop: the C
engine, which exchanges queue pairs over it (docs/wire.md, "The same by RDMA").

Invariants: what this process will never have is found out once and remembered (`absent`). All else
that stands in the way, on this side or a daemon's, is remembered for the node (NodePool), for
LOOK_AGAIN_NS or until a connection to it breaks.

Failure: with transport "auto" everything that stands in the way is a reason to go on by TCP, which
`Connections.transports` tells; with "rdma" it is a TransportError that says what is missing.
Fork: holds words alone; the child may find another answer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from ffs import _reader
from ffs.errors import OK, TransportError, UnavailableError
from ffs.wire.frame import RdmaFault

log = logging.getLogger("ffs.client.rdma")

Region = _reader.Region
"""Memory that is read into again and again: registered once, for as long as this lives."""
DeviceMemory = _reader.DeviceMemory
"""Memory of a GPU, a part of a dma-buf, for `readv_into` with `verify=False` in the options."""

_REFUSALS: Final[dict[int, str]] = {
    RdmaFault.NOT_BUILT: "the daemon was built without RDMA",
    RdmaFault.NO_LIBRARY: "the daemon's machine has no libibverbs",
    RdmaFault.NO_DEVICE: "the daemon has no RDMA device",
    RdmaFault.NO_PORT: "no RDMA port of the daemon is active",
    RdmaFault.OTHER_SUBNET: "no RDMA port of the daemon has our kind of link, or is in our subnet",
    RdmaFault.MEMLOCK: "the daemon may not lock enough memory (RLIMIT_MEMLOCK)",
    RdmaFault.NO_COPY_ON_FORK: "the daemon's kernel does not copy registered memory at a fork",
    RdmaFault.NO_ROOM: "the daemon has no queue pairs or credits left",
    RdmaFault.OFF: "the daemon's configuration has RDMA switched off",
    RdmaFault.SYSTEM: "the daemon's RDMA device failed",
    RdmaFault.OTHER_WAY: "the daemon has queue pairs connected another way (rdma_connect)",
    RdmaFault.NO_CM: "the daemon has no librdmacm",
    RdmaFault.NOT_REACHED: "the daemon was not reached by rdma_cm",
}
_FOR_GOOD: Final = (
    RdmaFault.NOT_BUILT,
    RdmaFault.NO_LIBRARY,
    RdmaFault.NO_DEVICE,
    RdmaFault.NO_COPY_ON_FORK,
)
"""What does not pass while a process lives."""
LOOK_AGAIN_NS: Final = 60_000_000_000
"""Ports come up, limits are raised and daemons get room: so long after a refusal it is tried
again."""
_HINT: Final = 'transport="auto" goes by TCP where RDMA is not to be had'


@dataclass(frozen=True, slots=True)
class RdmaOptions:
    """The client's options that concern RDMA: see [client] in docs/config.md."""

    required: bool = False
    device: str = ""
    gid_index: int = -1
    window_bytes: int = 64 << 20
    connect: str = "auto"


class Rdma:
    """Takes connections over to RDMA where that can be done."""

    def __init__(self, options: RdmaOptions) -> None:
        self.options = options
        self.absent = ""
        """Why no connection of this process can: empty while one may."""

    def go_over(
        self,
        connection: _reader.Connection,
        node: str,
        timeout_ms: int,
        why: str = "",
        *,
        own_domain: bool = False,
    ) -> str:
        """Have a fresh connection go by RDMA; return why it stays TCP, empty if it does not.

        Args:    why: what stood in the way of the last one; own_domain: it is for writes, or reads
                 into memory of devices
        Raises:  TransportError if RDMA is required; UnavailableError when the connection broke
        """
        if self.absent or why:
            return self._stays_tcp(self.absent or why, node)
        status, number, reason = _reader.connect_qp(
            connection,
            device=self.options.device,
            gid_index=self.options.gid_index,
            window_bytes=self.options.window_bytes,
            windows=not own_domain,
            way=self.options.connect,
            deadline_ms=timeout_ms,
        )
        if status != OK:
            raise UnavailableError(
                "the connection broke while RDMA was agreed on", node=node, reason=reason
            )
        if number == RdmaFault.FINE:
            return ""
        if reason and number in _FOR_GOOD:
            self.absent = reason
        return self._stays_tcp(reason or _REFUSALS.get(number, "the daemon refuses RDMA"), node)

    def _stays_tcp(self, why: str, node: str) -> str:
        log.debug("no_rdma", extra={"node": node, "reason": why})
        if self.options.required:
            raise TransportError(f"no RDMA to {node}: {why}", hint=_HINT, node=node)
        return why
