"""Where a scrubbing pass over one target stands: pure logic, driven by server/storage/scrubber.py.

A pass looks at every chunk that is there, in the order of their keys, and remembers its place, so
that a daemon which restarts every day still comes to the end. What is written behind its place is
the next pass's.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict, dataclass
from typing import Final

from ffs.server.storage.resync import ChunkKey, Entry

PAGE_ENTRIES: Final = 16_384


@dataclass(slots=True)
class ScrubState:
    """What outlives a restart. Times are of the wall clock, in nanoseconds, 0: never.

    `blob`, `chunk`: the last one that this pass has looked at; `chunks`: how many it has;
    `ended_ns`: the end of the last whole pass.
    """

    blob: int = 0
    chunk: int = 0
    chunks: int = 0
    began_ns: int = 0
    ended_ns: int = 0

    def to_text(self) -> str:
        """Return what is written down."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> ScrubState:
        """Read what was written down; what is no such text is a pass that has not begun."""
        try:
            found = json.loads(text)
            return cls(**{name: int(found[name]) for name in cls.__dataclass_fields__})
        except (ValueError, TypeError, KeyError):
            return cls()


class ScrubPass:
    """One pass after the other over one target.

    Args:    interval_ns: a pass begins at the earliest so long after the last one began
    """

    def __init__(self, state: ScrubState, interval_ns: int) -> None:
        self.state = state
        self._interval_ns = interval_ns
        self._entries: deque[Entry] = deque()

    @property
    def under_way(self) -> bool:
        """Whether a pass has begun and not ended."""
        return self.state.began_ns > self.state.ended_ns

    def begin_in_ns(self, wall_ns: int) -> int:
        """Return how long to wait before a new pass may begin. A clock that was set back waits once
        more, at most."""
        if not self.state.began_ns or wall_ns < self.state.began_ns:
            return 0
        return max(0, self.state.began_ns + self._interval_ns - wall_ns)

    def begin(self, wall_ns: int) -> None:
        """Begin a pass at the first chunk."""
        self.state = ScrubState(
            began_ns=max(wall_ns, self.state.ended_ns + 1), ended_ns=self.state.ended_ns
        )
        self._entries.clear()

    @property
    def page_after(self) -> ChunkKey | None:
        """The key after which the next page of keys is wanted; None while there are some left."""
        return None if self._entries else (self.state.blob, self.state.chunk)

    def listed(self, entries: list[Entry], wall_ns: int) -> None:
        """Take the page that was wanted; an empty one ends the pass."""
        self._entries.extend(entries)
        if not entries:
            self.state.ended_ns = max(wall_ns, self.state.began_ns)

    def next(self) -> Entry:
        """Return the chunk to look at now, and take it as looked at: one that ends the daemon must
        not be the first one again after every restart."""
        entry = self._entries.popleft()
        self.state.blob, self.state.chunk = entry.key
        self.state.chunks += 1
        return entry
