"""Grants: which blobs the holder of a token may read and write, for storage daemons to verify.

Role: the metadata server gives them with what it answers to `open_many` and `create_many`, once it
has checked that the caller may; a client shows them on its data connections; the C loop of a daemon
verifies them (native/storage/grants.c) and serves nothing else to a token. A holder of the cluster
key needs none.

A grant is a head, ranges of blobs in order, and a MAC over both: keyed BLAKE2b under a key that
follows from the cluster key and the day. Three days' keys count: the last, this and the next one,
so clocks may differ and a grant is good at midnight. It is good for its token alone.

Failure behaviour: what cannot be renewed any more is left out of the answer.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from enum import IntFlag
from itertools import islice
from typing import Final

from ffs.auth.token import TOKEN_ID_BYTES, Claims
from ffs.key import ClusterKey
from ffs.limits import GRANT_RANGES_MAX
from ffs.seams import Clock

LIFE_S: Final = 600
"""How long a grant counts; a client renews it in time, without a look at its files."""
EPOCH_S: Final = 86_400
"""How long a key is the current one."""
MAC_BYTES: Final = 32
HEAD: Final = struct.Struct("<BBHIQ16s")
"""Version, operations, ranges, key id, when it is over (seconds), token id."""
RANGE: Final = struct.Struct("<QQ")
"""First and last blob."""
_VERSION: Final = 1
_LABEL: Final = b"ffs grant key "
_SECOND_NS: Final = 1_000_000_000
assert HEAD.size == 16 + TOKEN_ID_BYTES

Range = tuple[int, int]


class May(IntFlag):
    """What may be done to a blob; sent, never renumber."""

    READ = 1
    WRITE = 2


class GrantKeys:
    """What makes and verifies grants. Threads: any"""

    def __init__(self, key: ClusterKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    def live(self) -> tuple[tuple[int, bytes], tuple[int, bytes], tuple[int, bytes]]:
        """Return the three keys that count now, with their ids."""
        now = self._now_s() // EPOCH_S
        return self._named(now - 1), self._named(now), self._named(now + 1)

    def grant(self, claims: Claims, blobs: Iterable[int], may: int) -> list[bytes]:
        """Return grants for blobs, as few as there can be."""
        return self._grant(claims, ((blob, blob) for blob in set(blobs) if blob), may)

    def renew(self, claims: Claims, grants: Sequence[bytes], before: bytes = b"") -> list[bytes]:
        """Return grants that say the same for longer, fewer if that is possible; without those
        that are not genuine, not this token's, or under a key that counts no more.

        Args:    before: id of a token whose grants count as this one's
        """
        tokens = {claims.token_id, before}
        granted: dict[int, list[Range]] = {}
        for grant in grants:
            if (found := self._verify(tokens, grant)) is not None:
                may, ranges = found
                granted.setdefault(may, []).extend(ranges)
        return [one for may in sorted(granted) for one in self._grant(claims, granted[may], may)]

    def _grant(self, claims: Claims, ranges: Iterable[Range], may: int) -> list[bytes]:
        merged = _merged(sorted(ranges))
        made: list[bytes] = []
        while part := list(islice(merged, GRANT_RANGES_MAX)):
            made.append(self._sign(claims, part, may))
        return made

    def _verify(self, tokens: Set[bytes], grant: bytes) -> tuple[int, list[Range]] | None:
        if len(grant) < HEAD.size + MAC_BYTES:
            return None
        _, may, _, key_id, _, token_id = HEAD.unpack_from(grant)
        key = dict(self.live()).get(key_id)
        body, mac = grant[:-MAC_BYTES], grant[-MAC_BYTES:]
        if key is None or not hmac.compare_digest(mac, _mac(key, body)):
            return None
        return (may, ranges_of(grant)) if token_id in tokens else None

    def _sign(self, claims: Claims, ranges: Sequence[Range], may: int) -> bytes:
        now_s = self._now_s()
        key_id, key = self._named(now_s // EPOCH_S)
        expires_s = min(now_s + LIFE_S, claims.expires_ms // 1_000)
        head = HEAD.pack(_VERSION, may, len(ranges), key_id, expires_s, claims.token_id)
        body = head + b"".join(RANGE.pack(*each) for each in ranges)
        return body + _mac(key, body)

    def _named(self, key_id: int) -> tuple[int, bytes]:
        return key_id, self._key.derive(_LABEL + struct.pack("<I", key_id))

    def _now_s(self) -> int:
        return self._clock.wall_ns() // _SECOND_NS


def ranges_of(grant: bytes) -> list[Range]:
    """Return the blobs that a grant names."""
    return [(first, last) for first, last in RANGE.iter_unpack(grant[HEAD.size : -MAC_BYTES])]


def _mac(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=MAC_BYTES).digest()


def _merged(ranges: Sequence[Range]) -> Iterator[Range]:
    """Yield ranges in order, as one those that overlap or are neighbours."""
    current: Range | None = None
    for first, last in ranges:
        if current is not None and first <= current[1] + 1:
            current = (current[0], max(current[1], last))
            continue
        if current is not None:
            yield current
        current = (first, last)
    if current is not None:
        yield current
