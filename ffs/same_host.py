"""Where a storage daemon and the clients on its host meet: an abstract Unix socket.

Role: server/storage/data_port.py listens, client/connections.py connects; what passes afterwards
are data frames, and descriptors of the extent files (native/storage/locate.c).

The name is a MAC over the address that clients know the daemon by, under what follows from the
cluster key and stands in tokens that may read here. So clients of the same network namespace find
it without asking anybody, in whatever container they run, a host with daemons of several clusters
has no clashes, and nobody else can guess it (it can be seen, in /proc/net/unix, and is no secret:
both sides prove themselves as on TCP, for a kind of their own, so that a proof from here is good
for no port and none from there is good here).

Failure behaviour: a daemon that cannot listen serves TCP alone; a client that cannot connect uses
TCP.
"""

from __future__ import annotations

import hmac
import socket
import struct
from typing import Final

from ffs.handshake import Credential, HandshakeKind, prove
from ffs.key import ClusterKey

_BACKLOG: Final = 1_024
_CREDENTIALS: Final = struct.Struct("3i")

Address = tuple[str, int]


def socket_name(key: Credential, address: Address) -> bytes:
    """Return the abstract name of the daemon that clients know by `address`."""
    host, port = address
    mac = hmac.digest(key.same_host, f"{host}:{port}".encode(), "sha256")
    return b"\0ffs-" + mac.hex()[:32].encode()


class LocalListener(socket.socket):
    """A listening Unix socket that tells who came as TCP does, by two values."""

    def accept(self) -> tuple[socket.socket, Address]:
        """Accept a connection; its peer is ("uid N", its process id)."""
        sock, _ = super().accept()
        size = _CREDENTIALS.size
        pid, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return sock, (f"uid {uid} pid", pid)


def listen_local(key: ClusterKey, address: Address) -> LocalListener:
    """Open the listening socket of the daemon at `address`; raises OSError when it is taken."""
    listener = LocalListener(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(socket_name(key, address))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def connect_local(key: Credential, address: Address, *, timeout_ms: int) -> socket.socket:
    """Open an authenticated connection to the daemon at `address`, if it is on this host.

    Raises:  OSError: nobody listens here; DeadlineError: somebody does and does not answer;
             AuthError, ProtocolError, BusyError, UnavailableError
    Threads: any; Fork: the socket is the caller's to close in the child
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)  # a full backlog is no reason to wait: there is TCP
        sock.connect(socket_name(key, address))
        prove(sock, address, key, HandshakeKind.LOCAL, timeout_ms=timeout_ms)
    except BaseException:
        sock.close()
        raise
    return sock
