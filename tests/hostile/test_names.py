"""Names and paths of every bad kind: by the client, and in frames written by hand.

Each is a typed error or a name like any other; afterwards the namespace is as it was, and whoever
sent them can go on.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest

from ffs.errors import (
    BadNameError,
    FFSError,
    NotFoundError,
    ProtocolError,
)
from ffs.handshake import HandshakeKind, connect
from ffs.key import ClusterKey
from tests.harness import Cluster

BAD = {
    "nul": b"a\0b",
    "dot": b".",
    "dot dot": b"..",
    "256 bytes": b"n" * 256,
    "4,097 bytes of path": b"/".join([b"n" * 100] * 41),
}
"""What may not be a name (or, with slashes, the end of a path)."""

ODD = {
    "invalid utf-8": b"\xff\xfe\x80",
    "overlong utf-8": b"\xc0\xaf",
    "encoded surrogate": b"\xed\xb2\x80",
    "newline": b"a\nb",
    "escape": b"\x1b[2Jx",
    "255 bytes": b"\xf0" * 255,
    "backslash": b"a\\b",
    "three dots": b"...",
    "blank": b" ",
    "right to left": "\u202eabc".encode(),
    "star": b"*?[x]",
}
"""Names that POSIX allows and people rarely think of."""


def listing(fs: Any, path: str) -> list[str]:
    return sorted(fs.ls(path, detail=False))


# --- by the client --------------------------------------------------------------------------------


OPERATIONS: dict[str, Callable[[Any, str], object]] = {
    "info": lambda fs, path: fs.info(path),
    "ls": lambda fs, path: fs.ls(path),
    "cat": lambda fs, path: fs.cat_file(path),
    "write": lambda fs, path: fs.pipe_file(path, b"x"),
    "mkdir": lambda fs, path: fs.mkdir(path, create_parents=False),
    "remove": lambda fs, path: fs.rm_file(path),
    "rmdir": lambda fs, path: fs.rmdir(path),
    "move from": lambda fs, path: fs.mv(path, "/elsewhere"),
    "move to": lambda fs, path: fs.mv(f"{path[:38]}/there", path),
}


@pytest.fixture
def names_dir(fs: Any, fs_dir: str) -> Iterator[str]:
    """A directory with one file, which must be there unharmed afterwards."""
    fs.pipe_file(f"{fs_dir}/there", b"unharmed")
    yield fs_dir
    assert fs.cat_file(f"{fs_dir}/there") == b"unharmed"
    assert listing(fs, fs_dir) == [f"{fs_dir}/there"]


@pytest.mark.parametrize("name", [n for n in BAD if "dot" not in n])
def test_bad_names_are_typed_errors_of_the_client(fs: Any, names_dir: str, name: str) -> None:
    path = f"{names_dir}/{os.fsdecode(BAD[name])}"
    for operation in OPERATIONS.values():
        with pytest.raises(BadNameError):
            operation(fs, path)


@pytest.mark.parametrize("surrogate", ["\ud800", "a\udbffb"])
def test_lone_surrogates_that_stand_for_no_byte_are_typed_errors(
    fs: Any, names_dir: str, surrogate: str
) -> None:
    for operation in OPERATIONS.values():
        with pytest.raises(BadNameError):
            operation(fs, f"{names_dir}/{surrogate}")


@pytest.mark.parametrize("name", ODD)
def test_odd_names_work_and_come_back_as_bytes(fs: Any, names_dir: str, name: str) -> None:
    path = f"{names_dir}/{os.fsdecode(ODD[name])}"
    fs.pipe_file(path, b"content")
    assert path in listing(fs, names_dir)
    assert [os.fsencode(p).rpartition(b"/")[2] for p in listing(fs, names_dir) if p == path] == [
        ODD[name]
    ]
    assert fs.cat_file(path) == b"content"
    assert fs.info(path)["size"] == 7
    fs.rm_file(path)


def test_the_root_is_no_file(fs: Any) -> None:
    before = listing(fs, "/")
    for path in ("", "/", "//", "ffs://"):
        assert fs.info(path)["type"] == "directory"
        for change in (fs.rm_file, fs.rmdir, lambda p: fs.pipe_file(p, b"x")):
            with pytest.raises((OSError, FFSError)) as caught:
                change(path)
            assert isinstance(caught.value, FFSError)
    assert listing(fs, "/") == before


# --- by hand --------------------------------------------------------------------------------------


class RawPeer:
    """Holds the key and writes frames itself: no client of ours checks what it sends."""

    def __init__(self, cluster: Cluster) -> None:
        key = ClusterKey.load(cluster.key_file)
        self.socket = connect(*cluster.address, key, HandshakeKind.RPC, timeout_ms=20_000)
        self.socket.settimeout(20)
        self._id = 0

    def ask(self, method: str, *fields: Any) -> tuple[int, Any]:
        """Send a request; return its code and body."""
        self._id += 1
        packed = msgpack.packb([self._id, method, list(fields)], unicode_errors="surrogatepass")
        self.socket.sendall(struct.pack("<I", len(packed)) + packed)
        (length,) = struct.unpack("<I", self.socket.recv(4, socket.MSG_WAITALL))
        reply = msgpack.unpackb(self.socket.recv(length, socket.MSG_WAITALL))
        assert reply[0] == self._id
        return reply[1], reply[2]


@pytest.fixture
def raw(cluster: Cluster) -> Iterator[RawPeer]:
    """A peer with a connection of its own."""
    peer = RawPeer(cluster)
    yield peer
    peer.socket.close()


def codes(error: type[FFSError]) -> set[int]:
    """The codes of an error class and of those below it."""
    return {error.code}.union(*(codes(below) for below in error.__subclasses__()))


@pytest.mark.parametrize("name", BAD)
def test_bad_names_in_frames_are_typed_errors(raw: RawPeer, names_dir: str, name: str) -> None:
    path = names_dir.encode() + b"/" + BAD[name]
    for method in ("stat_many", "open_many"):
        code, [[fault], *_] = raw.ask(method, [path])
        assert (code, fault[1] in codes(BadNameError)) == (0, True), method
    code, [[fault], *_] = raw.ask("create_many", os.urandom(16), b"me", [[path]])
    assert (code, fault[1] in codes(BadNameError)) == (0, True)
    code, [[fault]] = raw.ask("remove_many", os.urandom(16), [path])
    assert (code, fault[1] in codes(BadNameError)) == (0, True)
    for method, *fields in (
        ("list", path),
        ("mkdir", os.urandom(16), path),
        ("rmdir", os.urandom(16), path, False),
        ("rename", os.urandom(16), path, b"/elsewhere"),
        ("rename", os.urandom(16), names_dir.encode() + b"/there", path),
    ):
        assert raw.ask(method, *fields)[0] in codes(BadNameError), method


@pytest.mark.parametrize("path", [b"", b"relative", b"a/b", "text", 7, None, [b"/a"]])
def test_what_is_no_path_in_frames(raw: RawPeer, names_dir: str, path: Any) -> None:
    code, body = raw.ask("stat_many", [path])
    if isinstance(path, bytes):
        assert body[0][0][1] in codes(BadNameError)
    else:
        assert code == ProtocolError.code
    assert raw.ask("stat_many", [b"/"])[0] == 0, "the connection goes on"


def test_slashes_in_frames_are_no_names(raw: RawPeer, names_dir: str) -> None:
    """A path of slashes is the root, and the root can be neither made nor removed nor replaced."""
    code, [[attr]] = raw.ask("stat_many", [b"////"])
    assert (code, len(attr) > 3) == (0, True)
    for method, *fields in (
        ("mkdir", os.urandom(16), b"//"),
        ("rmdir", os.urandom(16), b"/", True),
        ("rename", os.urandom(16), b"/", b"/elsewhere"),
        ("rename", os.urandom(16), names_dir.encode(), b"/"),
    ):
        assert raw.ask(method, *fields)[0] != 0, method
    code, [[fault], *_] = raw.ask("create_many", os.urandom(16), b"me", [[b"/"]])
    assert (code, len(fault)) == (0, 3)


@pytest.mark.parametrize("name", ODD)
def test_odd_names_in_frames(raw: RawPeer, fs: Any, names_dir: str, name: str) -> None:
    path = names_dir.encode() + b"/" + ODD[name]
    assert raw.ask("mkdir", os.urandom(16), path)[0] == 0
    code, body = raw.ask("list", names_dir.encode())
    assert code == 0
    assert ODD[name] in {entry[0] for entry in body[0]}
    assert fs.info(os.fsdecode(path))["type"] == "directory"
    assert raw.ask("rmdir", os.urandom(16), path, False)[0] == 0


def test_errors_carry_undecodable_paths(fs: Any, names_dir: str) -> None:
    """An error about such a path names it and can be shown anywhere."""
    with pytest.raises(NotFoundError) as caught:
        fs.info(f"{names_dir}/{os.fsdecode(ODD['invalid utf-8'])}")
    shown = str(caught.value).encode("utf-8", "backslashreplace").decode()
    assert "xff" in shown or "udcff" in shown
