"""What a token's holder has been granted, and which connections have been shown it.

Role: client/calls.py hands THIS what comes with answers of the metadata server; client/settle.py
has it show, before operations go out on a connection, what they need. A holder of the cluster key
has no `Grants` at all.

Invariants: a connection is shown a grant before the first request that needs it, on the same
stream, unless nothing was granted since it was last shown something: then it is taken to know all
(`is_up_to_date`), and who is wrong is refused and shows what is needed. A grant that is used is
renewed before it is over, and when the token was replaced. Failure behaviour: what is refused all
the same is shown once more, renewed; then the refusal is the caller's GrantError.

Threads: any; Fork: the child has its own connections, which have been shown nothing.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Final

from ffs import _reader
from ffs.auth.grant import EPOCH_S, HEAD, May, ranges_of
from ffs.auth.token_file import TokenFile
from ffs.client import _fork
from ffs.errors import DeadlineError, UnavailableError
from ffs.limits import GRANTS_RENEWED_MAX
from ffs.seams import Clock

MARGIN_S: Final = 60
"""How long before its end a grant is renewed."""
PRESENT_MS: Final = 10_000
_SECOND_NS: Final = 1_000_000_000
_PRUNE_S: Final = 3_600


class _Grant:
    """One grant as it is shown."""

    __slots__ = ("count", "expires_s", "key_id", "may", "raw", "token_id")

    def __init__(self, raw: bytes) -> None:
        _, self.may, self.count, self.key_id, self.expires_s, self.token_id = HEAD.unpack_from(raw)
        self.raw = raw


class _Shown:
    """What one connection knows: grants, of which version of all that was learnt, and when the
    first of those is over that it was last used by."""

    __slots__ = ("expires_s", "raws", "version")

    def __init__(self) -> None:
        self.raws: set[bytes] = set()
        self.expires_s = 0
        self.version = -1


class Grants:
    """The grants of one client.

    Args:    renew: asks the metadata server for grants in place of others, which may be of the
             token before; key: the token
    """

    def __init__(
        self, renew: Callable[[list[bytes], bytes], list[bytes]], clock: Clock, key: TokenFile
    ) -> None:
        self._renew = renew
        self._clock = clock
        self._key = key
        self._pruned_s = 0
        self._by_blob: dict[int, dict[int, _Grant]] = {int(May.READ): {}, int(May.WRITE): {}}
        self._version = 0
        """How often something was learnt."""
        self._start()
        _fork.register(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._shown: weakref.WeakKeyDictionary[_reader.Connection, _Shown]
        self._shown = weakref.WeakKeyDictionary()

    def after_fork_in_child(self) -> None:
        """Begin with connections of our own."""
        self._start()

    def learn(self, grants: Iterable[bytes]) -> None:
        """Take what the metadata server has granted."""
        self._prune()
        for raw in grants:
            grant = _Grant(raw)
            blobs = [b for first, last in ranges_of(raw) for b in range(first, last + 1)]
            for may, known in list(self._by_blob.items()):
                if grant.may & may:
                    known.update(dict.fromkeys(blobs, grant))
            self._version += 1  # last: who is shown what is known now is behind until then

    def show(self, connection: _reader.Connection, blobs: Iterable[int], *, writes: bool) -> None:
        """Show a connection what it takes to read, or write, blobs."""
        version = self._version
        needed = self._needed(blobs, writes=writes)
        soon_s, mine = self._soon_s(), self._key.current().token_id
        ending = [g for g in needed if g.expires_s <= soon_s or g.token_id != mine]
        if ending:
            with contextlib.suppress(UnavailableError, DeadlineError):  # those may last a while yet
                self._renew_all(ending)
            needed = [g for g in self._needed(blobs, writes=writes) if g.token_id == mine]
        with self._lock:
            shown = self._shown.setdefault(connection, _Shown())
        for grant in needed:
            if grant.raw not in shown.raws:
                _reader.present(connection, grant.raw, grant.count, deadline_ms=PRESENT_MS)
                shown.raws.add(grant.raw)
        shown.expires_s = min((grant.expires_s for grant in needed), default=0)
        shown.version = version

    def is_up_to_date(self, connection: _reader.Connection) -> bool:
        """Return whether a connection may be read by without a look at what it was shown."""
        shown = self._shown.get(connection)
        return (
            shown is not None
            and shown.version == self._version
            and self._soon_s() < shown.expires_s
        )

    def _soon_s(self) -> int:
        return self._now_s() + MARGIN_S

    def doubt(self, blobs: Iterable[int], *, writes: bool) -> None:
        """A daemon has refused: renew what should have done, and show all of it again."""
        with self._lock:
            self._shown.clear()
        self._renew_all(self._needed(blobs, writes=writes))

    def _needed(self, blobs: Iterable[int], *, writes: bool) -> list[_Grant]:
        known = self._by_blob[int(May.WRITE if writes else May.READ)]
        found = (known.get(blob) for blob in blobs)
        return list(dict.fromkeys(grant for grant in found if grant is not None))

    def _renew_all(self, grants: list[_Grant]) -> None:
        for start in range(0, len(grants), GRANTS_RENEWED_MAX):
            part = grants[start : start + GRANTS_RENEWED_MAX]
            self.learn(self._renew([grant.raw for grant in part], self._key.before))

    def _prune(self) -> None:
        """Forget, once in a while, what could not even be renewed any more."""
        now_s = self._now_s()
        if now_s - self._pruned_s < _PRUNE_S:
            return
        self._pruned_s = now_s
        oldest = now_s // EPOCH_S - 1
        for may, known in self._by_blob.items():
            self._by_blob[may] = {b: g for b, g in known.copy().items() if g.key_id >= oldest}

    def _now_s(self) -> int:
        return self._clock.wall_ns() // _SECOND_NS
