"""What went over the cable between the two devices: RoCE v2 packets counted by their opcodes.

Read from a packet socket on one end, so only what really left a device is seen: a device that talks
to itself uses no cable. Root only, as the guest's tests are.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from types import TracebackType
from typing import Final, Self

ROCE_PORT: Final = 4791
ETH_P_ALL: Final = 3
SETTLE_S: Final = 0.5
"""How long nothing may come before all is taken for seen."""

OPCODES: Final = {
    0x00: "SEND_FIRST",
    0x01: "SEND_MIDDLE",
    0x02: "SEND_LAST",
    0x04: "SEND_ONLY",
    0x06: "WRITE_FIRST",
    0x07: "WRITE_MIDDLE",
    0x08: "WRITE_LAST",
    0x0A: "WRITE_ONLY",
    0x0C: "READ_REQUEST",
    0x0D: "READ_FIRST",
    0x0E: "READ_MIDDLE",
    0x0F: "READ_LAST",
    0x10: "READ_ONLY",
    0x11: "ACKNOWLEDGE",
    0x16: "SEND_LAST_INV",
    0x17: "SEND_ONLY_INV",
}
"""Of reliable connections (InfiniBand Architecture Specification, volume 1, table 35)."""


class Capture:
    """Counts packets and payload from `with` on; look at the counts after it.

    `opcodes` counts packets by name, `payload_bytes` the bytes behind their headers, both by the
    address that sent them.
    """

    def __init__(self, device: str = "rdma0") -> None:
        self.opcodes: dict[str, Counter[str]] = {}
        self.payload_bytes: dict[str, Counter[str]] = {}
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        self._socket.bind((device, ETH_P_ALL))
        self._socket.settimeout(SETTLE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._socket:
            while True:
                try:
                    self._count(self._socket.recv(65_536))
                except TimeoutError:
                    return

    def _count(self, frame: bytes) -> None:
        if frame[12:14] != b"\x08\x00" or frame[23] != socket.IPPROTO_UDP:
            return
        ip_bytes = (frame[14] & 15) * 4
        udp = frame[14 + ip_bytes :]
        port, length = struct.unpack_from(">HH", udp, 2)
        if port != ROCE_PORT:
            return
        sender = socket.inet_ntoa(frame[26:30])
        name = OPCODES.get(udp[8], hex(udp[8]))
        self.opcodes.setdefault(sender, Counter())[name] += 1
        body = length - 8 - 12 - _EXTENDED.get(name, 0) - 4  # UDP, BTH, ICRC
        padding = udp[9] >> 4 & 3
        self.payload_bytes.setdefault(sender, Counter())[name] += body - padding


_EXTENDED: Final = {
    **dict.fromkeys(("WRITE_FIRST", "WRITE_ONLY", "READ_REQUEST"), 16),
    **dict.fromkeys(("READ_FIRST", "READ_LAST", "READ_ONLY", "ACKNOWLEDGE"), 4),
    **dict.fromkeys(("SEND_LAST_INV", "SEND_ONLY_INV"), 4),
}
"""Bytes of the headers between the base header and the payload."""
