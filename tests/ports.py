"""Ports for servers that are killed, and started again where they were.

The kernel takes the port of each outgoing connection from a range, and from that range it also
takes what a server is given that asks for any port. While such a server is away, a connection of
any other process may have its port, and it cannot come back: so tests choose from beside the range.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path
from typing import Final

LOWEST: Final = 12_000
HIGHEST: Final = 65_535
_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """Return a port on which nobody listens, and which nobody is given who does not ask for it."""
    first, last = map(int, _RANGE.read_text().split())
    ports = [*range(LOWEST, first), *range(max(LOWEST, last + 1), HIGHEST)]
    dice = random.SystemRandom()  # many test processes choose at the same time
    while True:
        port: int = dice.choice(ports)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
