"""Log lines: one event, one line, nothing secret, no floods."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ffs.config import LogConfig
from ffs.handshake import ClusterKey
from ffs.log import LINES_PER_EVENT_PER_S, FloodFilter, configure


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Give the loggers back as they were."""
    root = logging.getLogger("ffs")
    before = (root.level, root.propagate, list(root.handlers))
    yield
    root.level, root.propagate, root.handlers = before[0], before[1], before[2]


def lines(config: LogConfig) -> tuple[io.StringIO, logging.Logger]:
    """A configured logger and what it writes."""
    stream = io.StringIO()
    configure(config, stream)
    return stream, logging.getLogger("ffs.test")


def test_key_value_line() -> None:
    stream, log = lines(LogConfig())
    log.info("thing_done", extra={"peer": "1.2.3.4:5", "why": 'a "b"', "path": b"/x\xff", "n": 7})
    head, rest = stream.getvalue().split(" info ")
    assert len(head) == len("2026-01-31T12:00:00.123Z")
    assert head.endswith("Z")
    assert rest == 'ffs.test thing_done peer=1.2.3.4:5 why="a \\"b\\"" path=/x\\xff n=7\n'


def test_an_event_stays_on_its_line() -> None:
    stream, log = lines(LogConfig())
    log.warning("two\nlines", extra={"peer": "x\ny\x1b[31m", "empty": ""})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert 'empty=""' in stream.getvalue()


def test_json_line() -> None:
    stream, log = lines(LogConfig(json=True))
    log.error("it_failed", extra={"path": b"/x", "key": ClusterKey(bytes(32)), "level": "mine"})
    entry = json.loads(stream.getvalue())
    assert entry["event"] == "it_failed"
    assert entry["level"] == "error"
    assert entry["logger"] == "ffs.test"
    assert entry["path"] == "/x"
    assert entry["key"] == "ClusterKey(<redacted>)"


@pytest.mark.parametrize("as_json", [False, True])
def test_tracebacks_are_kept(as_json: bool) -> None:
    stream, log = lines(LogConfig(json=as_json))
    try:
        raise RuntimeError("the cause")
    except RuntimeError:
        log.exception("it_crashed")
    assert "RuntimeError: the cause" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1 or not as_json


def test_level() -> None:
    stream, log = lines(LogConfig(level="warning"))
    log.info("quiet")
    log.warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_configuring_again_replaces() -> None:
    first, log = lines(LogConfig())
    second, _ = lines(LogConfig())
    log.info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def record(second: float, event: str = "flood") -> logging.LogRecord:
    """An event at a given time."""
    made = logging.makeLogRecord({"name": "ffs.test", "msg": event})
    made.created = second
    return made


def test_floods_are_cut_and_counted() -> None:
    flood = FloodFilter()
    passed = [flood.filter(record(100.0 + i / 1000)) for i in range(50)]
    assert sum(passed) == LINES_PER_EVENT_PER_S
    assert flood.filter(record(100.5, "another event"))
    later = record(101.0)
    assert flood.filter(later)
    assert later.left_out == 50 - LINES_PER_EVENT_PER_S  # type: ignore[attr-defined]
    calm = record(102.0)
    assert flood.filter(calm)
    assert not hasattr(calm, "left_out")


def test_what_a_line_that_is_cut_says_was_left_out_is_said_later() -> None:
    """Two doors of one process write the same event, each with its own count."""
    flood = FloodFilter()
    for _ in range(LINES_PER_EVENT_PER_S):
        flood.filter(record(100.0))
    cut = record(100.5)
    vars(cut)["left_out"] = 1_000
    assert not flood.filter(cut)
    later = record(101.0)
    vars(later)["left_out"] = 7
    assert flood.filter(later)
    assert vars(later)["left_out"] == 7 + 1_000 + 1


def test_a_flood_of_different_events_is_bounded_too() -> None:
    flood = FloodFilter()
    for i in range(5_000):
        flood.filter(record(100.0, f"event {i}"))
    assert len(flood._seen) <= 1_026
