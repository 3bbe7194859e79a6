"""Logging: events with facts, on stderr, as key=value or JSON lines.

Library code logs by the standard library under `ffs.*`, an event's name as the message and its
facts in `extra`: `log.info("rpc_handshake_failed", extra={"peer": peer})`. Processes call
`configure` once; a program that uses the client as a library keeps its own logging. An event that
comes in a flood is written ten times a second; the next line says how many were left out. Nothing
is logged on the success path of a read or write: that is what counters are for.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any, Final, TextIO

from ffs.config import LogConfig

LINES_PER_EVENT_PER_S: Final = 10
_EVENTS_MAX: Final = 1_024
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(config: LogConfig, stream: TextIO | None = None) -> logging.Handler:
    """Send everything under `ffs.*` to `stream` (stderr); replaces what an earlier call set up.

    Threads: any, the handler has a lock; Fork: the standard library re-makes that lock in the child
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if config.json else KeyValueFormatter())
    handler.addFilter(FloodFilter())
    root = logging.getLogger("ffs")
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(config.level.upper())
    root.propagate = False
    _configure_audit(stream)
    return handler


def _configure_audit(stream: TextIO | None) -> None:
    """Write the audit log as JSON whatever the rest is, and whatever the level."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(FloodFilter())
    audit = logging.getLogger("ffs.audit")
    audit.handlers[:] = [handler]
    audit.setLevel(logging.INFO)
    audit.propagate = False


def facts_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what was passed as `extra`."""
    return {k: v for k, v in vars(record).items() if k not in _STANDARD}


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


def _text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


class KeyValueFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z info ffs.rpc rpc_accept_failed reason="too many files"`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a traceback follows on lines of its own, indented."""
        head = f"{_timestamp(record)} {record.levelname.lower()} {record.name}"
        facts = [f"{k}={_quoted(_text(v))}" for k, v in facts_of(record).items()]
        line = " ".join([head, _escaped(record.getMessage()), *facts])
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "".join(f"\n    {part}" for part in trace.splitlines())
        return line


def _escaped(text: str) -> str:
    """Keep one event on one line, whatever a peer put into it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _quoted(text: str) -> str:
    if text and text.isprintable() and not set(text) & set(' "='):
        return text
    return json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, event, the facts, perhaps a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as text."""
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        facts = facts_of(record).items()
        entry.update({k: v for k, v in facts if k not in entry})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=_text)


class Flood:
    """How often one event has happened in this second, and how often nobody was told."""

    __slots__ = ("_count", "_left_out", "_second")

    def __init__(self) -> None:
        self._second = self._count = self._left_out = 0

    def passes(self, second: int, told: int = 0) -> bool:
        """Count one; say whether it is among the LINES_PER_EVENT_PER_S that are written.

        Args:    told: how many it says were left out: told later if it is left out itself
        """
        if self._second != second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count <= LINES_PER_EVENT_PER_S:
            return True
        self._left_out += 1 + told
        return False

    def left_out(self) -> dict[str, int]:
        """Return the fact for the next line that so many were left out, if any were."""
        left_out, self._left_out = self._left_out, 0
        return {"left_out": left_out} if left_out else {}


class FloodFilter(logging.Filter):
    """Lets LINES_PER_EVENT_PER_S of one event through in a second; adds `left_out` to the next."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], Flood] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the record is written."""
        if len(self._seen) > _EVENTS_MAX:
            self._seen.clear()
        flood = self._seen.setdefault((record.name, str(record.msg)), Flood())
        told: int = getattr(record, "left_out", 0)
        if not flood.passes(int(record.created), told):
            return False
        if left_out := flood.left_out():
            record.left_out = told + left_out["left_out"]
        return True
