"""The engine without memory or descriptors (test_fail_nth_reader.py fails every other call).

Also what holds C and Python together: the constants, the status codes, the stub file.
"""

from __future__ import annotations

import ast
import errno
import inspect
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import _reader, errors, limits, types
from tests.native.server import (
    Peer,
    honest,
    read_ops,
)

STUB = Path(__file__).resolve().parents[2] / "ffs/_reader.pyi"
CHUNK = os.urandom(600_000)
LOST = errors.ConnectionLostError.code
COUNT_ONLY = 1 << 60


@pytest.fixture(autouse=True)
def no_fault_left() -> Iterator[None]:
    """Whatever a test armed is off afterwards."""
    yield
    _reader.fault_set("*", 0, 0)


def test_no_memory_is_an_exception_before_anything_is_sent() -> None:
    with Peer(honest, {(5, 0): CHUNK}) as peer:
        ops, out = read_ops((5, 0, 0, 100, 0)), bytearray(100)
        for nth in (1, 2):
            _reader.fault_set("alloc", nth, errno.ENOMEM)
            with pytest.raises(MemoryError):
                _reader.read_batch([peer.connection], ops, out, deadline_ms=1_000)
        _reader.fault_set("alloc", 0, 0)
        assert peer.requests == []
        assert _reader.read_batch([peer.connection], ops, out, deadline_ms=1_000) == 1


def test_a_connection_that_can_not_be_made_leaves_its_descriptor_alone() -> None:
    reader, writer = os.pipe()
    _reader.fault_set("fcntl", 1, errno.EPERM)
    with pytest.raises(PermissionError):
        _reader.Connection(reader)
    os.fstat(reader)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("nth", [1, 2], ids=["no copy", "no connection"])
def test_a_copy_that_is_of_no_use_is_not_kept(nth: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        before = os.listdir("/proc/self/fd")
        _reader.fault_set("fcntl", nth, errno.EMFILE)
        with pytest.raises(OSError, match="Too many open files"):
            _reader.Connection(ours.fileno(), copy=True)
        assert os.listdir("/proc/self/fd") == before


def test_a_copy_leaves_the_caller_its_descriptor() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = _reader.Connection(ours.fileno(), copy=True)
        assert connection.fileno() != ours.fileno() and not os.get_inheritable(connection.fileno())
        ours.close()
        assert connection.alive
        connection.close()
        assert theirs.recv(1) == b""


def test_fault_names_are_checked() -> None:
    with pytest.raises(ValueError, match="no system call wrapper hcf"):
        _reader.fault_set("hcf", 1, errno.EIO)


def test_reading_allocates_nothing_that_grows_with_bytes() -> None:
    """After warm-up a call takes one block for its plan, whatever it moves."""
    with Peer(honest, {(5, 0): CHUNK}) as peer:
        out = bytearray(600_000)
        for length in (100, 600_000, 600_000):
            _reader.fault_set("*", COUNT_ONLY, errno.EIO)
            ops = read_ops((5, 0, 0, length, 0))
            assert _reader.read_batch([peer.connection], ops, out, deadline_ms=5_000) == 1
        assert _reader.fault_counts()["alloc"] == 1


# ------------------------------------------------------------------------------------ one truth


def test_limits_are_the_same_in_c() -> None:
    known = {name: value for name, value in vars(limits).items() if name.isupper()}
    known["BLOCK_BYTES"] = types.BLOCK_BYTES
    found = _reader.constants()["limits"]
    assert found == {name: known[name] for name in found}


def test_status_codes_are_the_same_in_c() -> None:
    for name, code in _reader.constants()["status"].items():
        assert getattr(errors, name).code == code
        assert errors.error_class(code).__name__ == name


def test_the_stub_names_what_the_module_has() -> None:
    tree = ast.parse(STUB.read_text())
    named: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            named.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named.add(node.target.id)
    public = {name for name in vars(_reader) if not name.startswith("_")}
    assert public == named
    (connection,) = [node for node in tree.body if getattr(node, "name", "") == "Connection"]
    assert isinstance(connection, ast.ClassDef)
    methods = {node.name for node in connection.body if isinstance(node, ast.FunctionDef)}
    assert {m for m in vars(_reader.Connection) if not m.startswith("_")} == methods - {"__init__"}
    assert _reader.READ_OP_BYTES == _reader.WRITE_OP_BYTES == 40
    assert all(inspect.getdoc(getattr(_reader, name)) for name in public if name.islower())
