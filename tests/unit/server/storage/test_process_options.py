"""Small parsers of the processes' command lines."""

from __future__ import annotations

import errno

import pytest

from ffs.errors import ConfigError
from ffs.rpc.addresses import parse_address
from ffs.server.storage.daemon import InjectedFault, parse_fault


def test_addresses() -> None:
    assert parse_address("host:1") == ("host", 1)
    assert parse_address("[::1]:7000") == ("::1", 7000)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "host:0", "host:65536", "host:x"])
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_address(text)


def test_faults() -> None:
    assert parse_fault("fdatasync:3:EIO") == InjectedFault("fdatasync", 3, errno.EIO)


@pytest.mark.parametrize("text", ["", "a", "a:b:EIO", "a:1:EWHAT", ":1:EIO", "a:1:errorcode"])
def test_bad_faults_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_fault(text)
