"""Chunks that are restored while their blobs are dropped: they are there before, or never."""

from __future__ import annotations

import threading

from ffs.errors import OK
from ffs.server.storage.restoring import Restores


def test_a_chunk_is_stored_unless_its_blob_was_dropped_since() -> None:
    restores = Restores()
    with restores.of(1) as one, restores.of(2) as other:
        assert one.store(lambda: OK) == OK
        restores.drop([1, 3])
        assert one.store(lambda: OK) is None
        assert other.store(lambda: OK) == OK
    with restores.of(1) as later:  # who begins after the drop asks first
        assert later.store(lambda: OK) == OK


def test_a_drop_waits_for_the_chunk_that_is_being_stored() -> None:
    restores, order = Restores(), []
    storing, go_on = threading.Event(), threading.Event()

    def slow() -> int:
        storing.set()
        assert go_on.wait(60)
        order.append("stored")
        return OK

    def drop() -> None:
        restores.drop([1])
        order.append("dropped")

    with restores.of(1) as restore:
        writer = threading.Thread(target=restore.store, args=(slow,))
        writer.start()
        assert storing.wait(60)
        dropper = threading.Thread(target=drop)
        dropper.start()
        restores.drop([2])  # others wait for nobody
        go_on.set()
        writer.join()
        dropper.join()
    assert order == ["stored", "dropped"]
