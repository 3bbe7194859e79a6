"""A loopback of its own gives every connection the congestion control that was asked for."""

import socket
from pathlib import Path

from ffs.bench.link import own_loopback

_DEFAULT = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_OFFERED = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def congestion_of(peer: socket.socket) -> str:
    found = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return found.rstrip(b"\0").decode()


def connected() -> set[str]:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
        listener.accept()[0] as theirs,
    ):
        return {congestion_of(ours), congestion_of(theirs)}


def test_both_ends_have_the_congestion_control() -> None:
    default = _DEFAULT.read_text().strip()
    other = next(name for name in _OFFERED.read_text().split() if name != default)
    with socket.create_server(("127.0.0.1", 0)) as outside:
        with own_loopback(other):
            assert connected() == {other}
            with socket.socket() as lost:
                assert lost.connect_ex(outside.getsockname()), "this is another network"
        assert connected() == {default}
        socket.create_connection(outside.getsockname()).close()
    with own_loopback(default):
        assert connected() == {default}
