"""Pins: content stays while it is pinned, and goes when nothing needs it any more."""

from __future__ import annotations

import pytest

from ffs.errors import BusyError, InvalidError, NotFoundError
from ffs.limits import OWNER_BYTES_MAX, PINS_MAX
from ffs.server.meta.ops import storage
from ffs.server.meta.schema import BlobState
from ffs.wire.messages import CloseEntry, PinInfo
from tests.namespace import SECOND_NS, Namespace, good


def blob_of(ns: Namespace, path: bytes) -> int:
    """Return the one blob of a file."""
    ((blob, _),) = ns.segments(path)
    return blob


def test_a_pin_says_what_it_keeps(ns: Namespace) -> None:
    ns.write(b"/d/e/f", 10, parents=True)
    ns.write(b"/d/g", 20)
    ns.copy(b"/d/g", b"/d/e/copy")
    ns.link(b"/d/g", b"/d/e/link")
    ns.symlink(b"/d/s", b"/other")
    ns.write(b"/other", 40)
    ns.write(b"/d/empty", 0)
    ns.setattr(b"/d/empty", size=1_000)
    pin = ns.pin(b"/d", owner="me")
    assert pin == PinInfo(pin.pin, b"/d", "me", ns.now_ns, 0, 4, 30)
    assert ns.pins() == [pin]
    second = ns.pin(b"/other", ttl_ms=5)
    assert second.pin > pin.pin and (second.files, second.stored_bytes) == (1, 40)
    assert second.expires_ns == ns.now_ns + 5_000_000
    assert ns.pins() == [pin, second]


def test_pinned_content_survives_whatever_becomes_of_the_files(ns: Namespace) -> None:
    for name in (b"removed", b"replaced", b"cut", b"tree/f", b"over", b"kept"):
        ns.write(b"/d/" + name, parents=True)
    names = ns.names(b"/d")
    blobs = [blob_of(ns, b"/d/" + name) for name in names if name != b"tree"]
    blobs.append(blob_of(ns, b"/d/tree/f"))
    pin = ns.pin(b"/d")
    ns.remove(b"/d/removed")
    ns.write(b"/d/replaced", 7)
    ns.setattr(b"/d/cut", size=0)
    ns.rmdir(b"/d/tree", recursive=True)
    ns.rename(b"/d/kept", b"/d/over")
    assert {ns.blob_state(blob) for blob in blobs} == {BlobState.LIVE}
    ns.check()
    ns.now_ns += SECOND_NS
    ns.unpin(pin.pin)
    assert sorted(ns.blob_state(blob) or 0 for blob in blobs) == [2, 3, 3, 3, 3, 3]
    assert ns.blob_state(blob_of(ns, b"/d/over")) is BlobState.LIVE
    changed = ns.tx.rows("SELECT DISTINCT changed_ns FROM blobs WHERE state = 3")
    assert (ns.now_ns,) in changed, "they die when the pin goes, not before"
    assert ns.pins() == []


def test_every_pin_counts(ns: Namespace) -> None:
    ns.write(b"/f")
    blob = blob_of(ns, b"/f")
    first, second = ns.pin(b"/f"), ns.pin(b"/")
    ns.remove(b"/f")
    ns.unpin(first.pin)
    assert ns.blob_state(blob) is BlobState.LIVE
    ns.unpin(second.pin)
    assert ns.blob_state(blob) is BlobState.DEAD
    for number in (first.pin, 0, 10_000):
        with pytest.raises(NotFoundError):
            ns.unpin(number)


def test_pins_end_when_their_time_is_over(ns: Namespace) -> None:
    ns.write(b"/f")
    blob = blob_of(ns, b"/f")
    short, long, forever = (ns.pin(b"/f", ttl_ms=ttl) for ttl in (1_000, 2_000, 0))
    ns.remove(b"/f")
    assert ns.reap_pin() == 0
    ns.now_ns += SECOND_NS
    assert (ns.reap_pin(), ns.reap_pin()) == (short.pin, 0)
    ns.now_ns += 100 * SECOND_NS
    assert (ns.reap_pin(), ns.reap_pin()) == (long.pin, 0)
    assert ns.blob_state(blob) is BlobState.LIVE
    ns.unpin(forever.pin)
    assert ns.blob_state(blob) is BlobState.DEAD


def test_pinned_blobs_are_not_dropped(ns: Namespace) -> None:
    ns.write(b"/f")
    ns.write(b"/g")
    pin = ns.pin(b"/f")
    kept, gone = blob_of(ns, b"/f"), blob_of(ns, b"/g")
    ns.remove(b"/f", b"/g")
    ns.transact(lambda tx: storage.schedule_drops(tx, ns.now_ns, 10))
    assert (ns.blob_state(kept), ns.blob_state(gone)) == (BlobState.LIVE, BlobState.DROPPING)
    ns.unpin(pin.pin)
    ns.transact(lambda tx: storage.schedule_drops(tx, ns.now_ns, 10))
    assert ns.blob_state(kept) is BlobState.DROPPING


def test_a_pin_follows_a_link_and_needs_something_there(ns: Namespace) -> None:
    ns.write(b"/v1/f", 10, parents=True)
    ns.symlink(b"/current", b"v1")
    pin = ns.pin(b"/current")
    assert (pin.path, pin.files, pin.stored_bytes) == (b"/current", 1, 10)
    with pytest.raises(NotFoundError):
        ns.pin(b"/none")
    assert (ns.pin(b"/v1/f").files, len(ns.pins())) == (1, 2)


def test_pinning_many_files_takes_few_statements(ns: Namespace) -> None:
    ns.mkdir(b"/t/d", parents=True)
    sessions = ns.create(*(b"/t/d/%d" % i for i in range(500)))
    ns.close_sessions(*(CloseEntry(good(s).session, 1) for s in sessions))
    with ns.statements() as taken:
        pin = ns.pin(b"/t")
    assert (pin.files, pin.stored_bytes) == (500, 500)
    with ns.statements() as released:
        ns.unpin(pin.pin)
    assert len(taken) < 15 and len(released) < 8


def test_pins_max(ns: Namespace) -> None:
    ns.mkdir(b"/d")
    columns = ("pin", "path", "owner", "created_ns", "expires_ns", "files", "stored_bytes")
    rows = [(-n, b"/", "", 0, 0, 0, 0) for n in range(1, PINS_MAX)]
    ns.transact(lambda tx: tx.insert("pins", columns, rows))
    ns.pin(b"/d")
    with pytest.raises(BusyError):
        ns.pin(b"/d")
    assert len(ns.pins()) == PINS_MAX


def test_owner_bytes_max(ns: Namespace) -> None:
    longest = "\u00e4" * (OWNER_BYTES_MAX // 2)
    assert ns.pin(b"/", owner=longest).owner == longest
    for owner in (longest + "xx", "a\0b"):
        with pytest.raises(InvalidError):
            ns.pin(b"/", owner=owner)
    for ttl_ms in (-1, 1 << 62):
        with pytest.raises(InvalidError):
            ns.pin(b"/", ttl_ms=ttl_ms)
