"""What a daemon counts, in heartbeats and in the status: between versions, and within bounds."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import msgpack
import pytest

from ffs.errors import ProtocolError
from ffs.rpc.schema import codec_of
from ffs.wire.membership import DataLoopCounters, HeartbeatRequest
from ffs.wire.status import NodeStatus

COUNTS: dict[str, Any] = {f.name: (1 << 64) - 1 for f in fields(DataLoopCounters)}
WORST = DataLoopCounters(**COUNTS | {"daemon": None})
BEAT = HeartbeatRequest(1, [], [7], 3, 4, 5, WORST)


def sent(message: object) -> list[object]:
    """The values that a peer unpacks."""
    values = msgpack.unpackb(msgpack.packb(codec_of(type(message)).encode(message)))
    assert isinstance(values, list)
    return values


@pytest.mark.parametrize(
    "message", [BEAT, NodeStatus(1, "storage", 2, "up", "h:1", WORST)], ids=["beat", "status"]
)
def test_counters_travel_whole(message: object) -> None:
    assert codec_of(type(message)).decode(sent(message)) == message


def test_an_older_peer_tells_none() -> None:
    beat = codec_of(HeartbeatRequest).decode(sent(BEAT)[:6])
    assert beat.counters is None and beat.dropped == [7]
    assert codec_of(NodeStatus).decode([1, "storage", 2, "up", "h:1"]).counters is None


def test_a_newer_peer_may_count_more_and_an_older_one_less() -> None:
    codec = codec_of(DataLoopCounters)
    assert codec.decode([*sent(WORST), 9, 9]) == WORST
    assert codec.decode(sent(WORST)[:-1]) == WORST
    assert codec.decode([5, 6]) == DataLoopCounters(5, 6)
    with pytest.raises(ProtocolError, match="age_ns"):
        codec.decode([])


def test_they_stay_small_in_every_heartbeat() -> None:
    assert len(msgpack.packb(codec_of(DataLoopCounters).encode(WORST))) < 512
