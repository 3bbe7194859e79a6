"""The ring by itself: slots change hands, and come back whatever happens to who has them."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ffs.client.torch import landing
from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.landing import Landing
from ffs.client.torch.ring import Ring, ring_named
from ffs.client.torch.rings import Rings
from ffs.client.torch.segment import Segment
from ffs.errors import ClosedError, InvalidError, OutOfMemoryError

ROUNDS = int(os.environ.get("FFS_ROUNDS", "1"))
PR_SET_PDEATHSIG = 1
BYTES = Form(torch.uint8, (4096,))


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child that dies with this process; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        work()
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def wait_for(pid: int) -> int:
    """Return the exit code of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def states(ring: Ring) -> dict[str, int]:
    """How many slots are in which state."""
    counters = ring.counters()
    return {name: counters[name] for name in ("free", "filling", "sent", "held") if counters[name]}


# --- slots ------------------------------------------------------------------------------------


def test_slots_come_back_when_the_last_view_dies_in_any_order() -> None:
    ring = Ring(8192, 3)
    held = []
    for value in range(3):
        slot = ring.claim(8192)
        assert slot is not None
        slot.memory[:] = value
        slot.send()
        held.append(torch.from_numpy(ring.hold(slot.number, 8192)))
        del slot
    assert states(ring) == {"held": 3} and ring.claim(1) is None
    row = held[1].view(2, 4096)[1]
    del held[1]
    assert states(ring) == {"held": 3}
    assert (row == 1).all()
    del row, held[0]
    assert states(ring) == {"free": 2, "held": 1}
    held.clear()
    assert states(ring) == {"free": 3}
    assert ring.counters()["fallbacks"] == 1


def test_a_tensor_s_storage_is_its_slot_and_no_more() -> None:
    """So sending it to yet another process copies what it shows, not the ring."""
    ring = Ring(1 << 20, 4)
    slot = ring.claim(8192)
    assert slot is not None
    batch = Batch(BYTES, slot, 2, away=False)
    whole = batch.whole()
    assert isinstance(whole, torch.Tensor) and whole.shape == (2, 4096)
    assert whole.untyped_storage().nbytes() == 8192
    assert whole.storage_offset() == 0


def test_a_batch_that_nobody_takes_leaves_its_slot() -> None:
    ring = Ring(4096, 1)
    slot = ring.claim(4096)
    assert slot is not None and states(ring) == {"filling": 1}
    views = Batch(BYTES, slot, 1, away=True).samples()
    del slot
    assert states(ring) == {"filling": 1}
    del views
    assert states(ring) == {"free": 1}


def test_the_garbage_collector_may_end_a_slot_at_any_step_of_a_claim() -> None:
    """A slot in a cycle, as an error's traceback makes it, dies wherever memory is asked for."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()  # so that there is little to collect
    try:
        for allocations in range(1, 40):
            ring = Ring(4096, 3)
            gc.collect()
            gc.disable()
            cycle: list[object] = [ring.claim(1)]
            cycle.append(cycle)
            del cycle
            gc.set_threshold(gc.get_count()[0] + allocations)
            gc.enable()
            slots = [ring.claim(1), ring.claim(1)]
            gc.collect()
            assert None not in slots and states(ring) == {"free": 1, "filling": 2}
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
        gc.enable()


def test_a_batch_is_sent_once() -> None:
    ring = Ring(4096, 1)
    slot = ring.claim(4096)
    assert slot is not None
    slot.memory[:] = 7
    batch = Batch(BYTES, slot, 1, away=True)
    message = pickle.dumps(batch)
    assert len(message) < 400 and states(ring) == {"sent": 1}
    with pytest.raises(InvalidError, match="before"):
        pickle.dumps(batch)
    tensor = pickle.loads(message)
    assert (tensor == 7).all() and states(ring) == {"held": 1}
    del tensor
    assert states(ring) == {"free": 1}


def test_a_message_to_a_stranger_says_so() -> None:
    with pytest.raises(ClosedError, match="not the ring"):
        ring_named("1-2")


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.bfloat16])
def test_samples_of_different_lengths_are_views_of_one_slot(dtype: torch.dtype) -> None:
    form = Form(dtype, None)
    ring = Ring(4096, 1)
    slot = ring.claim(24)
    assert slot is not None
    slot.memory[:] = np.arange(24)
    views = Batch(form, slot, [8, 0, 16], away=False).samples()
    assert [len(v) for v in views] == [8 // dtype.itemsize, 0, 16 // dtype.itemsize]
    assert views[2].view(torch.uint8).tolist() == list(range(8, 24))
    assert len({v.untyped_storage().data_ptr() for v in views}) == 1
    del views, slot
    assert states(ring) == {"free": 1}


def test_nothing_at_all_fits_anywhere() -> None:
    ring = Ring(4096, 1)
    slot = ring.claim(0)
    assert slot is not None
    whole = Batch(BYTES, slot, 0, away=False).whole()
    assert isinstance(whole, torch.Tensor) and whole.shape == (0, 4096)


# --- processes --------------------------------------------------------------------------------


def test_fillers_that_race_and_die_never_share_a_slot() -> None:
    """Each marks its slot, checks that nobody else wrote to it, and may be killed at any time."""
    ring = Ring(4096, 4, writers=8)
    deadline = time.monotonic() + 1.0 * ROUNDS

    def fill(number: int) -> None:
        ring.attach(number)
        dice = random.Random(os.getpid())
        while True:
            slot = ring.claim(4096)
            if slot is None:
                continue
            mark = dice.getrandbits(60)
            words = slot.memory.view(np.uint64)
            words[:] = mark
            assert (words == mark).all(), "two in one slot"
            del words, slot

    dice = random.Random(3)
    children = [in_child(lambda n=n: fill(n)) for n in range(8)]
    failed = 0
    while time.monotonic() < deadline:
        time.sleep(0.02)
        place = dice.randrange(8)
        os.kill(children[place], signal.SIGKILL)
        failed += wait_for(children[place]) != -signal.SIGKILL
        children[place] = in_child(lambda n=place: fill(n))
    for child in children:
        os.kill(child, signal.SIGKILL)
        failed += wait_for(child) != -signal.SIGKILL
    assert failed == 0
    assert ring.counters()["batches"] > 8
    mine = [ring.claim(1) for _ in range(4)]  # also those whose owner died in the middle
    assert all(slot is not None for slot in mine)


def test_what_a_dead_process_left_is_taken_back() -> None:
    ring = Ring(4096, 3, writers=2)

    def work() -> None:
        ring.attach(1)
        slots = [ring.claim(4096), ring.claim(4096)]
        assert slots[1] is not None
        slots[1].send()
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait_for(in_child(work)) == -signal.SIGKILL
    assert states(ring) == {"filling": 1, "sent": 1, "free": 1}
    ring.reset()
    assert states(ring) == {"free": 3}


def test_reset_leaves_alone_what_lives() -> None:
    ring = Ring(4096, 3, writers=2)
    mine = ring.claim(1)
    assert mine is not None
    read_end, write_end = os.pipe()

    def work() -> None:
        ring.attach(1)
        slot = ring.claim(1)
        assert slot is not None
        os.write(write_end, b"x")
        signal.pause()

    child = in_child(work)
    os.read(read_end, 1)
    ring.reset()
    assert states(ring) == {"filling": 2, "free": 1}
    os.kill(child, signal.SIGKILL)
    wait_for(child)
    ring.reset()
    assert states(ring) == {"filling": 1, "free": 2}
    os.close(read_end)
    os.close(write_end)


def test_a_child_s_copies_free_nothing() -> None:
    ring = Ring(4096, 2)
    slot = ring.claim(4096)
    assert slot is not None
    slot.keep()
    filling = ring.claim(4096)
    kept = {"tensor": torch.from_numpy(slot.memory), "filling": filling}
    del slot, filling

    def work() -> None:
        kept.clear()
        gc.collect()

    assert wait_for(in_child(work)) == 0
    assert states(ring) == {"held": 1, "filling": 1}
    kept.clear()
    assert states(ring) == {"free": 2}


def test_segments_travel_with_their_bytes(tmp_path: Path) -> None:
    """As fallback batches do: from a child, by its descriptor."""
    message = tmp_path / "message"
    ready, go = os.pipe(), os.pipe()

    def work() -> None:
        from multiprocessing.reduction import ForkingPickler

        ring = Ring(4096, 1)
        landing.use(Landing(ring, away=True))
        place = landing.take(3 * 4096, landing.current())
        place.memory[:] = 5
        message.write_bytes(ForkingPickler.dumps(Batch(BYTES, place, 3, away=True)))
        os.write(ready[1], b"x")
        os.read(go[0], 1)

    child = in_child(work)
    assert os.read(ready[0], 1)
    before = len(os.listdir("/proc/self/fd"))
    tensor = pickle.loads(message.read_bytes())
    assert tensor.shape == (3, 4096) and (tensor == 5).all()
    assert len(os.listdir("/proc/self/fd")) == before
    os.write(go[1], b"x")
    assert wait_for(child) == 0
    for end in (*ready, *go):
        os.close(end)


# --- limits of the machine --------------------------------------------------------------------


def test_too_much_is_an_error_before_it_is_touched() -> None:
    with pytest.raises(OutOfMemoryError, match="smaller batches") as caught:
        Ring(1 << 40, 64)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_NOFILE])
def test_limits_of_the_process_are_errors(limit: int) -> None:
    def work() -> None:
        value = 64 << 20 if limit == resource.RLIMIT_AS else 3
        resource.setrlimit(limit, (value, value))
        with pytest.raises(OutOfMemoryError, match="cannot allocate"):
            Segment(128 << 20)

    assert wait_for(in_child(work)) == 0


def test_locked_memory_is_not_asked_for() -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        ring = Ring(1 << 20, 4)
        ring.attach(0)
        slot = ring.claim(1 << 20)
        assert slot is not None
        slot.memory[:] = 1

    assert wait_for(in_child(work)) == 0


def test_pages_are_there_before_they_are_touched() -> None:
    ring = Ring(4 << 20, 4)

    def work() -> None:
        ring.attach(0)
        slot = ring.claim(4 << 20)
        assert slot is not None
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        slot.memory[::4096] = 1
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        assert faults < 32, faults

    assert wait_for(in_child(work)) == 0


def test_a_program_may_end_with_batches_in_hand() -> None:
    program = """
import torch
from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.ring import Ring
ring = Ring(4096, 2)
kept = Batch(Form(torch.uint8, (4096,)), ring.claim(4096), 1, away=False).whole()
unsent = Batch(Form(torch.uint8, (4096,)), ring.claim(4096), 1, away=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


# --- leases -----------------------------------------------------------------------------------


def test_two_iterators_have_two_rings_and_the_next_one_takes_over() -> None:
    rings = Rings(2, 1)
    first, second = rings.lease(4096, pinned=False), rings.lease(4096, pinned=False)
    assert first.ring is not None and first.ring is not second.ring
    second.end()
    third = rings.lease(4096, pinned=False)
    assert third.ring is second.ring
    second.end()  # a finished iterator that is dropped late ends nothing
    assert rings.lease(4096, pinned=False).ring is not third.ring


def test_a_ring_grows_with_its_batches() -> None:
    rings = Rings(2, 1)
    lease = rings.lease(0, pinned=False)
    assert lease.ring is not None and lease.ring.claim(20_000) is None
    assert lease.ring.counters()["fallbacks"] == 1
    lease.end()
    grown = rings.lease(0, pinned=False).ring
    assert grown is not None and grown.claim(20_000) is not None
