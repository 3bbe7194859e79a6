"""TLS 1.3 of both ports: the certificates of this side, the roles of the other one.

Used by ffs.rpc.dial (clients) and ffs.rpc.greeting (servers), which get a `TlsChannel` for each
connection (on the data port only with `tls.data`: ffs.tls_relay carries those); `[tls]` of the
configuration names the files, `ffs auth ca` makes them.

Both sides show a certificate of the cluster's authority (`tls.ca_file`) that names roles in its
subjectAltName (`URI:ffs:role:meta`). A client talks only to who may be a metadata server, or a
storage daemon on the data port, a server only to who has any role. Roles take the place of host
names: every metadata server of a cluster is as good as another, under whatever name it is reached.
Where certificates are configured nothing is ever said without TLS; the proof of the cluster key
(ffs.handshake) goes on inside, tied to the channel.

Failure behaviour: files that cannot be used are a ConfigError at the start. Later on they are read
again whenever they change, for the connections that come then; if what is there cannot be used (a
certificate was replaced, its key not yet), the last ones that could stay, and the log says so.
"""

from __future__ import annotations

import logging
import os
import ssl
from enum import StrEnum
from typing import Final, NamedTuple

from ffs.config import TlsConfig
from ffs.errors import ConfigError
from ffs.tls_channel import TlsChannel

__all__ = ["ROLE_URI", "Role", "Tls"]

log = logging.getLogger("ffs.tls")

ROLE_URI: Final = "ffs:role:"


class Role(StrEnum):
    """What the holder of a certificate may be."""

    META = "meta"
    STORAGE = "storage"
    CLIENT = "client"


_CLIENTS: Final = frozenset(ROLE_URI + role for role in Role)
_OTHERS: Final = 0o077

_Stamp = tuple[tuple[int, int, int], ...]
"""Of each file what changes when it is replaced or written."""


class _Contexts(NamedTuple):
    client: ssl.SSLContext
    server: ssl.SSLContext


class Tls:
    """This side's certificates, as they are in the files now.

    Raises:  ConfigError if they cannot be used
    Threads: any; two that notice a change at once both read the files. Fork: nothing to re-make
    """

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen = self._stamp()
        self._contexts = self._load()

    @classmethod
    def configured(cls, config: TlsConfig) -> Tls | None:
        """Return what the configuration asks for; None: no TLS."""
        return cls(config) if config.ca_file else None

    def client(self, role: Role = Role.META) -> TlsChannel:
        """Return a client's end of a new connection to a server of a role."""
        wanted = frozenset({ROLE_URI + role})
        return TlsChannel(self._current().client, server_side=False, wanted=wanted)

    def server(self) -> TlsChannel:
        """Return a server's end of a new connection."""
        return TlsChannel(self._current().server, server_side=True, wanted=_CLIENTS)

    def _current(self) -> _Contexts:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp  # first: files that cannot be used are told of once
                self._contexts = self._load()
                log.info("tls_files_reloaded", extra={"path": self._config.cert_file})
        except ConfigError as error:
            log.warning("tls_files_not_usable", extra={"reason": str(error)})
        return self._contexts

    def _stamp(self) -> _Stamp:
        config = self._config
        return tuple(_changes(p) for p in (config.ca_file, config.cert_file, config.key_file))

    def _load(self) -> _Contexts:
        config = self._config
        if os.stat(config.key_file).st_mode & _OTHERS:
            log.warning("tls_key_file_open_to_others", extra={"path": config.key_file})
        return _Contexts(
            client=_context(ssl.PROTOCOL_TLS_CLIENT, config),
            server=_context(ssl.PROTOCOL_TLS_SERVER, config),
        )


def _changes(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise ConfigError(
            f"cannot read a TLS file: {error.strerror}",
            hint="check [tls] of the configuration; `ffs auth ca` makes such files",
            path=path,
        ) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _context(protocol: int, config: TlsConfig) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # roles instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cafile=config.ca_file)
    except OSError as error:
        raise _unusable("the certificates of the authority", config.ca_file, error) from error
    try:
        # An empty password: one that is asked for must not be waited for at the terminal.
        context.load_cert_chain(config.cert_file, config.key_file, password="")
    except OSError as error:
        raise _unusable("the certificate and its key", config.cert_file, error) from error
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nobody resumes; and a client takes a silent connection for idle
    return context


def _unusable(what: str, path: str, error: OSError) -> ConfigError:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return ConfigError(
        f"cannot use {what}: {reason}",
        hint="PEM files are needed: the certificate, its own key without a password, and the"
        " authority's certificate",
        path=path,
    )
