"""How large a packet may be on its way to a host: the MTU of all that lies between.

Previous hop: ffs/cli/doctor.py. A host whose link takes larger packets than a switch or the peer
does sends packets that vanish without a word: small reads work, large ones stall. So a datagram as
large as our route allows, not to be fragmented, is sent to a UDP port where nobody listens: whoever
gets it answers "port unreachable", which a connected socket tells as ECONNREFUSED. A small one goes
first: no answer to that says only that such answers are filtered.

Some facts: IP_PMTUDISC_PROBE sets "don't fragment" and ignores what was learnt of the path; IP_MTU
is what our route believes; Linux answers a host six times at once, then once a second: what it
does not answer may have arrived, so a small one is sent right behind it.

Failure behaviour: what cannot be told is a note. Sends a dozen datagrams at most.
"""

from __future__ import annotations

import errno
import socket
import time
from dataclasses import dataclass
from typing import Final

from ffs.cli.checks.finding import Finding, fine, note, problem

_PMTUDISC_PROBE: Final = 3
_IP_MTU_DISCOVER: Final = 10
_IP_MTU: Final = 14
_IPV6_MTU_DISCOVER: Final = 23
_IPV6_MTU: Final = 24
_HEADERS: Final = {socket.AF_INET: 28, socket.AF_INET6: 48}
_PAYLOAD_MAX: Final = 65_507
_SMALL_BYTES: Final = 64
ANSWER_S: Final = 0.3
TRIES: Final = 3
PAUSE_S: Final = 1.1
USUAL: Final = (9_000, 8_900, 4_470, 2_044, 1_500, 1_492, 1_480, 1_450, 1_400, 1_280, 576)


@dataclass(frozen=True, slots=True)
class PathMtu:
    """`link`: what our route allows; `whole`: the largest that arrived, 0: nothing answers."""

    link: int
    whole: int


def check_path(host: str, port: int) -> Finding:
    """Say whether packets as large as our link allows get to a host."""
    check = f"MTU to {host}"
    try:
        found = probe(host, port)
    except OSError as error:
        return note(check, f"cannot be told: {error.strerror or error}")
    if not found.whole:
        return note(check, "cannot be told: the host, or a filter on the way, answers nothing")
    if found.whole < found.link:
        return problem(
            check,
            f"packets of {found.link} bytes, which our link allows, get lost on the way; "
            f"{found.whole} bytes get through",
            f"give all links and switches between one MTU, or set ours to {found.whole}: "
            f"ip link set dev DEVICE mtu {found.whole}",
        )
    return fine(check, f"{found.whole} bytes all the way")


def probe(host: str, port: int) -> PathMtu:
    """Find out how large a packet gets to a host."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        sock.connect(address)
        sock.settimeout(ANSWER_S)
        where = (socket.IPPROTO_IPV6, _IPV6_MTU) if family == socket.AF_INET6 else (0, _IP_MTU)
        link = sock.getsockopt(*where)
        headers = _HEADERS[socket.AddressFamily(family)]
        if not any(_answered(sock, _SMALL_BYTES) for _ in range(TRIES)):
            return PathMtu(link, 0)
        sizes = [link, link, *(size for size in USUAL if size < link)]  # one may get lost anyhow
        for size in sizes:
            through = _gets_through(sock, min(size - headers, _PAYLOAD_MAX))
            if through is None:
                return PathMtu(link, 0)
            if through:
                return PathMtu(link, size)
        return PathMtu(link, _SMALL_BYTES + headers)


def _gets_through(sock: socket.socket, payload: int) -> bool | None:
    """Whether so many bytes arrive; None if nothing is answered any more.

    No answer means something only if a small one is answered right behind it: else the other side
    has answered as often as it wants to, and is asked again later.
    """
    for _ in range(TRIES):
        if _answered(sock, payload):
            return True
        if _answered(sock, _SMALL_BYTES):
            return False
        time.sleep(PAUSE_S)
    return None


def _answered(sock: socket.socket, payload: int) -> bool:
    try:
        sock.send(bytes(payload))
        sock.recv(1)
        return True  # somebody listens there, and answered
    except ConnectionRefusedError:
        return True
    except TimeoutError:
        return False
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        return False
