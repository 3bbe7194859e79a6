"""What a client tells daemons about their chunks: once in a while, bounded, beside everything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ffs.client.suspects import AGAIN_NS, KNOWN_MAX, Suspects
from ffs.errors import UnavailableError
from ffs.limits import SUSPECT_CHUNKS_MAX

HERE, THERE = ("a", 1), ("b", 2)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_ns = 0

    def monotonic_ns(self) -> int:
        return self.now_ns

    def wall_ns(self) -> int:
        return self.now_ns


class Sent:
    """Stands for the connections: what was sent where."""

    def __init__(self) -> None:
        self.sent: list[tuple[tuple[str, int], bytes]] = []
        self.dead: set[tuple[str, int]] = set()

    def tell_suspects(self, address: tuple[str, int], descriptors: bytes, timeout_ms: int) -> None:
        assert timeout_ms > 0
        if address in self.dead:
            raise UnavailableError("nobody is there")
        self.sent.append((address, descriptors))


@pytest.fixture
def sent() -> Sent:
    return Sent()


def make(sent: Sent, clock: Clock) -> tuple[Suspects, list[Callable[[], None]]]:
    aside: list[Callable[[], None]] = []
    return Suspects(sent, clock, aside.append), aside  # type: ignore[arg-type]


def note(suspects: Suspects, chunk: int, address: tuple[str, int] = HERE) -> None:
    suspects.note(address, target=1, blob=5, chunk=chunk, offset=0, length=10)


def test_nothing_is_sent_before_it_is_asked_for_nor_without_reason(sent: Sent) -> None:
    suspects, aside = make(sent, Clock())
    suspects.send_soon()
    assert aside == []
    note(suspects, 0)
    assert sent.sent == []
    suspects.send_soon()
    suspects.send_soon()
    assert len(aside) == 1
    aside[0]()
    assert [(to, len(rows)) for to, rows in sent.sent] == [(HERE, 24)]


def test_a_chunk_is_named_again_only_after_a_while(sent: Sent) -> None:
    clock = Clock()
    suspects, aside = make(sent, clock)
    for now_ns in (0, AGAIN_NS - 1, AGAIN_NS):
        clock.now_ns = now_ns
        note(suspects, 0)
        suspects.send_soon()
    assert len(aside) == 1
    aside[0]()
    assert len(sent.sent) == 1
    clock.now_ns += AGAIN_NS
    note(suspects, 0)
    suspects.send_soon()
    aside[1]()
    assert len(sent.sent) == 2


def test_each_node_hears_of_its_own_and_one_that_is_dead_is_passed_over(sent: Sent) -> None:
    suspects, aside = make(sent, Clock())
    for address in (HERE, THERE):
        for chunk in range(3):
            suspects.note(
                address,
                target=len(address[0]),
                blob=1,
                chunk=chunk + address[1] * 9,
                offset=0,
                length=1,
            )
    sent.dead.add(HERE)
    suspects.send_soon()
    aside[0]()
    assert [(to, len(rows)) for to, rows in sent.sent] == [(THERE, 72)]


def test_what_is_remembered_is_bounded(sent: Sent) -> None:
    suspects, aside = make(sent, Clock())
    for chunk in range(2 * KNOWN_MAX):
        note(suspects, chunk)
    suspects.send_soon()
    aside[0]()
    assert [len(rows) for _, rows in sent.sent] == [24 * SUSPECT_CHUNKS_MAX]
    for chunk in range(KNOWN_MAX + 1_000):
        note(suspects, chunk)
        if chunk % SUSPECT_CHUNKS_MAX == 0:
            suspects.send_soon()
            aside[-1]()
    assert sum(len(rows) for _, rows in sent.sent) <= 24 * KNOWN_MAX


def test_a_child_sends_its_own(sent: Sent) -> None:
    suspects, aside = make(sent, Clock())
    note(suspects, 0)
    suspects.send_soon()
    suspects.after_fork_in_child()
    note(suspects, 1)
    suspects.send_soon()
    assert len(aside) == 2
    aside[1]()
    assert len(sent.sent) == 1
