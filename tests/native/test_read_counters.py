"""What the data loop counts about reads, and what it tells about slow ones."""

from __future__ import annotations

import socket
from pathlib import Path

from ffs import _reader, _storage
from ffs.errors import OK
from tests.native.data_loop import CLUSTER, KIB, MIB, TARGET, Peer, fill, read_frame, serving
from tests.native.fail_nth import COUNT_ONLY, wait_until


def test_ranges_and_bytes_are_counted_by_how_they_were_sent(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, MIB)
        peer = server.peer()
        peer.send(read_frame(*[(1, 0, i * 4096, 4096) for i in range(100)]))
        peer.answers(100)
        peer.send(read_frame((1, 0, 0, MIB), (9, 9, 0, 1)))
        peer.answers(2)
        wait_until(lambda: server.loop.stats()["frames_total"] == 2, server.loop.stats())
        stats = server.loop.stats()
        assert (stats["mapped_ranges_total"], stats["mapped_bytes_total"]) == (100, 400 * KIB)
        assert (stats["sendfile_ranges_total"], stats["sendfile_bytes_total"]) == (1, MIB)
        assert stats["read_bytes_total"] == 400 * KIB + MIB
        assert stats["ranges_total"] == 102 and stats["errors_total"] == 1
        assert stats["buffered_ranges_total"] == stats["disk_ranges_total"] == 0


def test_many_small_ranges_take_one_system_call(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, MIB)
        ours, theirs = socket.socketpair()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MIB)
        ours.settimeout(20)
        server.loop.adopt(theirs.detach())
        with ours:
            ours.sendall(read_frame(*[(1, 0, i * 512, 512) for i in range(256)], flags=1))
            header = _reader.unpack_header(ours.recv(64, socket.MSG_WAITALL))
            assert (header["count"], header["payload_bytes"]) == (256, 128 * KIB)
            rest = header["body_bytes"] + header["payload_bytes"]
            assert len(ours.recv(rest, socket.MSG_WAITALL)) == rest
        wait_until(lambda: server.loop.stats()["frames_total"] == 1, server.loop.stats())
        stats = server.loop.stats()
        assert (stats["send_calls_total"], stats["short_sends_total"]) == (1, 0)


def test_a_lone_range_takes_one_receive_and_no_copy(tmp_path: Path) -> None:
    with serving(tmp_path, loops=1) as server:
        fill(server, 1, 0, MIB)
        peer = server.peer()
        for size, sends in (
            (4 * KIB, {"sendmsg": 10}),
            (64 * KIB, {"sendmsg": 10, "sendfile": 10}),
        ):
            peer.send(read_frame((1, 0, 0, size)))
            peer.answers(1)  # whatever is done once for a connection, a chunk or a mapping
            _storage.fault_set("*", COUNT_ONLY, 0)
            for request_id in range(10):
                peer.send(read_frame((1, 0, size, size), request_id=request_id))
                assert peer.reply().request_id == request_id
            counts = _storage.fault_counts()
            _storage.fault_set("*", 0, 0)
            wanted = {"recvmsg": 10, "sendfile": 0, "preadv2": 0, "epoll_ctl": 0} | sends
            assert {call: counts[call] for call in wanted} == wanted
        stats = server.loop.stats()
        assert (stats["mapped_ranges_total"], stats["sendfile_ranges_total"]) == (11, 11)


def test_a_full_socket_is_counted_and_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        fill(server, 1, 0, 8 * MIB)
        peer = server.peer()
        peer.send(read_frame((1, 0, 0, 8 * MIB)) + read_frame((1, 0, 0, 10), request_id=2))
        wait_until(lambda: server.loop.stats()["short_sends_total"] > 0, server.loop.stats())
        peer.answers(1)
        peer.answers(1)
        wait_until(lambda: server.loop.stats()["frames_total"] == 2, server.loop.stats())
        stats = server.loop.stats()
        assert 0 < stats["queued_ns_max"] <= stats["queued_ns_total"]


def test_slow_reads_are_told_ten_a_second_and_counted_all(tmp_path: Path) -> None:
    store = _storage.ChunkStore(
        str(tmp_path / "t"), cluster_id=CLUSTER, target_id=TARGET, create=True
    )
    data = bytes(10_000)
    assert store.put(5, 0, data, _reader.block_crcs(data, 5, 0)) == OK
    loop = _storage.DataLoop({TARGET: store}, loops=1, slow_read_ms=0)
    peer = Peer(loop)
    try:
        wanted = [read_frame((5, 0, 0, 1), (5, 0, 0, 10_000), trace_id=i + 1) for i in range(50)]
        peer.send(b"".join(wanted))
        for _ in wanted:
            peer.answers(2)
        wait_until(lambda: loop.stats()["slow_reads_total"] == 50, loop.stats())
        told = [event for event in loop.poll() if event[0] == _storage.EVENT_SLOW_READ]
        assert 10 <= len(told) < 50
        _, connection, trace_id, blob, ranges, size, took_ms, queued_ms = told[0]
        assert (connection, trace_id, blob, ranges) == (peer.id, 1, 5, 2)
        assert size == 4096 + 10_000 and took_ms >= queued_ms >= 0
    finally:
        peer.socket.close()
        loop.close()
        store.close()
