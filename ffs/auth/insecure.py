"""`auth = "insecure"`: a cluster without secrets, for trying things out on one machine.

Used by whoever would load a key: servers (server/meta, server/storage, server/up) and clients
(client/core.py). The handshake is as ever, by a key that everybody knows; so there is one way
through the code, and a server that wants a secret refuses who has none.
Invariants: a server listens at loopback addresses alone, whatever is configured, and only if it was
told so on its command line as well: neither a file nor a variable does that by itself. Failure:
ConfigError, before anything listens.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import sys
from typing import Final

from ffs.errors import ConfigError
from ffs.key import ClusterKey

INSECURE: Final = "insecure"
KEY: Final = ClusterKey(hashlib.sha256(b"ffs: no secret, on loopback").digest())
"""What takes the place of the cluster key; it proves nothing."""

_BANNER: Final = """\
************************************************************************
*  INSECURE: this {what} asks nobody who they are.
*  Whoever can run a program on this machine reads, changes and removes
*  all there is. It listens at {host} alone. Not for data that matters.
************************************************************************
"""

log = logging.getLogger("ffs.audit")


def server_key(key_file: str | None, auth: str, *, flag: bool, host: str, what: str) -> ClusterKey:
    """Return the key that a server goes by; without authentication, say so to whoever looks.

    Args:    auth: as configured; flag: whether --insecure was typed; host: where it is to listen
    Raises:  ConfigError
    """
    if not flag:
        if auth == INSECURE:
            raise ConfigError(
                f'auth = "insecure" is configured for this {what}, and --insecure was not typed',
                hint="type it if you mean it, or remove the option",
            )
        assert key_file is not None, "one of both is required"
        return ClusterKey.load(key_file)
    refuse_remote(host, f"a {what} without authentication listens at loopback addresses alone")
    sys.stderr.write(_BANNER.format(what=what, host=host))
    sys.stderr.flush()
    log.warning("insecure", extra={"server": what, "host": host})
    return KEY


def refuse_remote(host: str, why: str) -> None:
    """Raise ConfigError unless all addresses of a host are loopback ones."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host or None, None)}
    except OSError as error:
        raise ConfigError(f"{why}; {host!r} is no address: {error.strerror}") from error
    if not host or not all(ipaddress.ip_address(ip.partition("%")[0]).is_loopback for ip in found):
        raise ConfigError(
            f"{why}, and {host!r} is another one",
            hint="use 127.0.0.1, or a cluster key: `ffs up` makes one",
        )
