"""The transport option where there is no RDMA: everything works by TCP, and says why."""

from __future__ import annotations

import re
import socket

import pytest

from ffs import _reader
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ConfigError, TransportError
from tests.harness import Cluster

DATA = bytes(range(256)) * 1_000
NO_DEVICE = "absent0"
"""No machine has one of this name, whatever else it has."""


@pytest.fixture(scope="module")
def reason() -> str:
    """Why this device cannot be used, in the engine's words: which, depends on the machine."""
    near, far = socket.socketpair()
    with far:
        connection = _reader.Connection(near.detach())
        status, fault, why = _reader.connect_qp(connection, device=NO_DEVICE)
        assert (status, connection.alive, connection.rdma) == (0, True, None)
        assert fault != 0
        connection.close()
    assert NO_DEVICE in why or "libibverbs" in why
    return why


def opened(cluster: Cluster, **options: str) -> FFSFileSystem:
    """A file system whose bytes do not come from this host's files."""
    keywords = {**cluster.storage_options, "same_host": "off", **options}
    return FFSFileSystem(skip_instance_cache=True, **keywords)


def only_node(fs: FFSFileSystem) -> dict[str, str]:
    """What is told of the one daemon."""
    (told,) = fs.transports().values()
    return told


def test_without_a_device_everything_goes_by_tcp_and_says_why(
    cluster: Cluster, reason: str
) -> None:
    fs = opened(cluster, rdma_device=NO_DEVICE)
    fs.pipe_file("/transport-auto", DATA)
    assert fs.cat_file("/transport-auto") == DATA
    assert only_node(fs) == {"transport": "tcp", "why": reason}


def test_rdma_alone_is_an_error_that_says_what_is_missing(cluster: Cluster, reason: str) -> None:
    opened(cluster).pipe_file("/transport-rdma", DATA)
    fs = opened(cluster, transport="rdma", rdma_device=NO_DEVICE)
    for _ in range(2):
        with pytest.raises(TransportError, match=re.escape(reason)):
            fs.cat_file("/transport-rdma")


def test_tcp_alone_looks_for_nothing_else(cluster: Cluster) -> None:
    fs = opened(cluster, transport="tcp")
    fs.pipe_file("/transport-tcp", DATA)
    assert fs.cat_file("/transport-tcp") == DATA
    told = only_node(fs)
    assert told["transport"] == "tcp"
    assert 'transport = "tcp"' in told["why"]


def test_no_other_transport_is_known(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"client\.transport"):
        opened(cluster, transport="pigeons")
