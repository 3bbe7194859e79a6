"""Daemons whose chains lead to each other: each needs the others' memory to give its own back."""

from __future__ import annotations

import select
import threading
from pathlib import Path

from ffs import _storage
from ffs.errors import OK
from tests.native.data_loop import MIB, Event, Server, serving, write_frame
from tests.native.test_forward import connect, content


class Daemon:
    """One of three: every write is persisted, and sent on to the end of its chain."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.peers: dict[tuple[int, int], int] = {}
        self.legs: dict[int, int] = {}
        self.done = 0

    def drain(self, chains: dict[int, list[int]]) -> None:
        loop = self.server.loop
        for event in loop.poll():
            if event[0] == _storage.EVENT_WRITE:
                self.start(event, chains[event[3]])
            elif event[0] in (_storage.EVENT_PERSISTED, _storage.EVENT_FORWARDED):
                assert event[2] == OK
                self.end(event[1])

    def start(self, event: Event, chain: list[int]) -> None:
        write_id, hop = event[1], event[9]
        self.legs[write_id] = 1
        self.server.loop.persist([write_id])
        if hop + 1 < len(chain):
            self.legs[write_id] = 2
            successor = chain[hop + 1]
            self.server.loop.forward([write_id], self.peers[successor, hop], 20 + successor)

    def end(self, write_id: int) -> None:
        self.legs[write_id] -= 1
        if self.legs[write_id] == 0:
            del self.legs[write_id]
            self.server.loop.ack(write_id, OK)
            self.done += 1


def decide(daemons: list[Daemon], chains: dict[int, list[int]], count: int) -> None:
    """Python's part of all three, until so many writes are through."""
    fds = [daemon.server.loop.event_fd() for daemon in daemons]
    while sum(daemon.done for daemon in daemons) < count:
        ready, _, _ = select.select(fds, [], [], 20)
        assert ready, "the daemons wait for each other"
        for daemon in daemons:
            daemon.drain(chains)


def test_rotated_chains_do_not_wait_in_a_circle(tmp_path: Path) -> None:
    """Three daemons with room for four chunks each, and chains 0 1 2, 1 2 0, 2 0 1 under load.

    With one pool the first writes of each chain would fill it, and none could be sent on.
    """
    chains = {blob: [(blob + i) % 3 for i in range(3)] for blob in range(3)}
    chunks, clients = 6, 6
    options = {"write_buffer_bytes": 4 * MIB, "loops": 1}
    with (
        serving(tmp_path / "0", target=20, **options) as a,
        serving(tmp_path / "1", target=21, **options) as b,
        serving(tmp_path / "2", target=22, **options) as c,
    ):
        daemons = [Daemon(server) for server in (a, b, c)]
        for i, daemon in enumerate(daemons):
            for hop in (0, 1):
                for j in (k for k in range(3) if k != i):
                    daemon.peers[j, hop] = connect(daemon.server, daemons[j].server)
        senders = []
        for blob in range(3):
            for number in range(clients):
                names = range(number * chunks, (number + 1) * chunks)
                target = 20 + blob
                frames = [
                    write_frame(blob, name, content(name, MIB), target=target) for name in names
                ]
                peer = daemons[blob].server.peer()
                senders.append(threading.Thread(target=peer.send, args=(b"".join(frames),)))
        for sender in senders:
            sender.start()
        decide(daemons, chains, 3 * 3 * clients * chunks)
        for sender in senders:
            sender.join()
        for server in (a, b, c):
            assert server.store.stats()["chunks"] == 3 * clients * chunks
            assert server.loop.stats()["buffer_bytes"] == 0
