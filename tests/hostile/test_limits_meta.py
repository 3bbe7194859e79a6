"""Every bound of the namespace, met from both sides (docs/limits.md names these tests)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ffs import config
from ffs.errors import ConfigError, InvalidError, NameTooLongError
from ffs.key import ClusterKey
from ffs.limits import (
    CHAINS_PER_TABLE_MAX,
    CHUNK_BYTES_DEFAULT,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNK_INDEX_MAX,
    LIST_PAGE_BYTES_MAX,
    LIST_PAGE_MAX,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    RPC_BATCH_MAX,
)
from ffs.rpc.blocking import RpcClient
from ffs.rpc.codec import encode_reply
from ffs.server.meta.ops.routing import add_chains
from ffs.wire import messages as wire
from tests.harness import Cluster
from tests.namespace import Namespace, kind


@pytest.fixture
def ns(tmp_path: Path) -> Iterator[Namespace]:
    """An empty namespace."""
    made = Namespace(tmp_path)
    yield made
    made.check()
    made.close()


def test_name_bytes_max(ns: Namespace) -> None:
    ns.mkdir(b"/" + b"n" * NAME_BYTES_MAX)
    before = ns.names(b"/")
    with pytest.raises(NameTooLongError, match="256 bytes"):
        ns.mkdir(b"/" + b"n" * (NAME_BYTES_MAX + 1))
    assert ns.names(b"/") == before


def test_path_bytes_max(ns: Namespace) -> None:
    longest = b"/ab" * (PATH_BYTES_MAX // 3) + b"/"
    assert len(longest) == PATH_BYTES_MAX
    ns.write(longest.rstrip(b"/") + b"c", parents=True)
    assert ns.exists(longest[:-1] + b"c")
    assert kind(ns.stat_many(longest + b"c")[0]) is NameTooLongError
    assert kind(ns.create(longest + b"c")[0]) is NameTooLongError


def test_rpc_batch_max(cluster: Cluster) -> None:
    client = RpcClient([cluster.address], ClusterKey.load(cluster.key_file))
    most = wire.StatManyRequest([b"/"] * RPC_BATCH_MAX)
    assert len(client.call(wire.STAT_MANY, most, deadline_ms=30_000).attrs) == RPC_BATCH_MAX
    more = wire.StatManyRequest([b"/"] * (RPC_BATCH_MAX + 1))
    with pytest.raises(InvalidError, match=f"{RPC_BATCH_MAX + 1} paths"):
        client.call(wire.STAT_MANY, more, deadline_ms=30_000)
    client.close()


def fill_directory(ns: Namespace, count: int, name_bytes: int) -> None:
    """Make so many files with names of one length in /d."""
    ns.mkdir(b"/d")
    paths = [b"/d/%0*d" % (name_bytes, i) for i in range(count)]
    sessions = [s for s in ns.create(*paths) if isinstance(s, wire.WriteSession)]
    ns.close_sessions(*[wire.CloseEntry(s.session, 0) for s in sessions])


def test_list_page_max(ns: Namespace) -> None:
    fill_directory(ns, LIST_PAGE_MAX + 1, 5)
    page = ns.list(b"/d", limit=LIST_PAGE_MAX * 10)
    assert (len(page.entries), page.more) == (LIST_PAGE_MAX, True)
    ns.remove(b"/d/" + page.entries[-1].name)
    page = ns.list(b"/d", limit=LIST_PAGE_MAX * 10)
    assert (len(page.entries), page.more) == (LIST_PAGE_MAX, False)


def test_list_page_bytes_max(ns: Namespace) -> None:
    fill_directory(ns, 2_000, NAME_BYTES_MAX)
    names: list[bytes] = []
    more = True
    while more:
        page = ns.list(b"/d", after=names[-1] if names else b"", limit=LIST_PAGE_MAX)
        names += [entry.name for entry in page.entries]
        more = page.more
        reply_bytes = len(encode_reply(1, wire.LIST, page))
        assert reply_bytes <= LIST_PAGE_BYTES_MAX
        assert not more or reply_bytes > LIST_PAGE_BYTES_MAX * 0.8
    assert len(set(names)) == len(names) == 2_000


@pytest.mark.parametrize("size", [CHUNK_BYTES_MIN, CHUNK_BYTES_MAX])
def test_chunk_bytes_min_and_max(ns: Namespace, size: int) -> None:
    ns.write(b"/f", chunk_size_bytes=size)
    wrong = size // 2 if size == CHUNK_BYTES_MIN else size * 2
    [refused] = ns.create(wire.CreateEntry(b"/g", chunk_size_bytes=wrong))
    assert kind(refused) is InvalidError
    assert not ns.exists(b"/g")
    config.load(overrides={"meta.chunk_size_bytes": size})
    with pytest.raises(ConfigError):
        config.load(overrides={"meta.chunk_size_bytes": wrong})


def test_chunk_bytes_default() -> None:
    assert config.load().meta.chunk_size_bytes == CHUNK_BYTES_DEFAULT


def test_chunk_index_max(ns: Namespace) -> None:
    longest = CHUNK_BYTES_MIN * (CHUNK_INDEX_MAX + 1)
    session = ns.open_session(b"/f", chunk_size_bytes=CHUNK_BYTES_MIN)
    [refused] = ns.close_sessions(wire.CloseEntry(session.session, longest + 1))
    assert kind(refused) is InvalidError
    assert ns.publish(session, longest).size == longest


def test_chains_per_table_max(tmp_path: Path) -> None:
    ns = Namespace(tmp_path, targets=0)
    alone = [[target] for target in range(1, CHAINS_PER_TABLE_MAX + 2)]
    ns.transact(lambda tx: add_chains(tx, alone[:-1]))
    with pytest.raises(InvalidError, match="chains"):
        ns.transact(lambda tx: add_chains(tx, alone[-1:]))
    rows = ns.tx.rows("SELECT count(*) FROM chains")
    assert rows == [(CHAINS_PER_TABLE_MAX,)]
    ns.close()
