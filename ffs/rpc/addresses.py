"""Where one logical server answers: several addresses, and which of them to try first.

Used by both RPC clients (ffs.rpc.blocking, ffs.rpc._aio_client); no sockets here. The address that
worked last is tried first, and one that failed is tried last, so that a dead server costs one
failed attempt and not one for each call. Addresses that were given stay for good; those that a
server told are replaced by what is told next.

Threads: any; an update that two threads make at once may be lost, which costs an attempt and no
more. Fork: nothing to re-make.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffs.errors import (
    AuthError,
    BusyError,
    ConfigError,
    DeadlineError,
    FFSError,
    InvalidError,
    UnavailableError,
)

Address = tuple[str, int]

LEARNT_MAX: Final = 64
"""Addresses taken from one answer; a cluster has a handful of metadata servers."""


CONNECT_ERRORS: Final = (UnavailableError, DeadlineError, BusyError, AuthError)
"""Why one address may not do where another might; anything else is no use to try elsewhere."""


def graver(first: FFSError | None, second: FFSError) -> FFSError:
    """Of the failures at two addresses keep the one that the caller should hear of.

    Why: a key that one server refuses may be another cluster's server at a reused address, but if
    no server takes us it is the reason that trying again does not mend.
    """
    return first if isinstance(first, AuthError) else second


def parse_address(text: str) -> Address:
    """Split HOST:PORT (an IPv6 host in brackets); raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:
        raise ConfigError(f"{text!r} is not HOST:PORT", hint="for example 127.0.0.1:7000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def show_address(host: str, port: int) -> str:
    """Write what `parse_address` reads."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Addresses:
    """The addresses of one logical server, in the order in which to try them."""

    def __init__(self, given: Iterable[Address]) -> None:
        self._given = tuple(dict.fromkeys((host, port) for host, port in given))
        if not self._given:
            raise InvalidError("an RPC client needs at least one address")
        self.order: tuple[Address, ...] = self._given

    @property
    def several(self) -> bool:
        """Whether there is another one to go to."""
        return len(self.order) > 1

    def worked(self, address: Address) -> None:
        """Try this one first from now on."""
        if self.order[0] != address:
            self.order = (address, *(other for other in self.order if other != address))

    def failed(self, address: Address) -> None:
        """Try this one last from now on."""
        others = tuple(other for other in self.order if other != address)
        if len(others) < len(self.order):
            self.order = (*others, address)

    def learn(self, told: Iterable[str]) -> None:
        """Take what a server says: these and no others are there, besides those given."""
        learnt: list[Address] = []
        for text in list(told)[:LEARNT_MAX]:
            try:
                learnt.append(parse_address(text))
            except ConfigError:
                continue  # a word that only a newer client understands
        known = {*self._given, *learnt}
        kept = [address for address in self.order if address in known]
        self.order = tuple(dict.fromkeys((*kept, *learnt)))
