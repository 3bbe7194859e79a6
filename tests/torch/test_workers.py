"""What workers and the training process tell each other, and by which way."""

from __future__ import annotations

import multiprocessing
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.ring import Ring
from ffs.client.torch.workers import ShortQueue
from ffs.torch import DataLoader
from tests.torch.samples import InMemory

SHORT = (7, [1, 2, 3])
LONG = (8, "x" * 100_000)
"""More than a pipe takes: the queue's thread writes it, and waits for room."""


@contextmanager
def queue_of(method: str = "fork") -> Iterator[ShortQueue]:
    """Yield a queue, and end its thread."""
    made = ShortQueue(ctx=multiprocessing.get_context(method))
    try:
        yield made
    finally:
        made.cancel_join_thread()
        made.close()


def has_thread(made: ShortQueue) -> bool:
    """Whether anything went through the queue's thread."""
    return made._thread is not None  # type: ignore[attr-defined]


def test_a_short_message_needs_no_thread() -> None:
    with queue_of() as made:
        made.put(SHORT)
        assert made.get(timeout=30) == SHORT
        with pytest.raises(queue.Empty):
            made.get(timeout=0)
        assert not has_thread(made)


def test_a_batch_travels_as_its_place() -> None:
    ring = Ring(64, 1)
    slot = ring.claim(64)
    assert slot is not None
    slot.memory[:] = 5
    with queue_of() as made:
        made.put((0, Batch(Form(torch.uint8, (8,)), slot, 8, away=True)))
        number, got = made.get(timeout=30)
        assert number == 0 and got.shape == (8, 8) and bool((got == 5).all())
        assert not has_thread(made) and ring.counters()["held"] == 1


def test_messages_keep_their_order_by_either_way() -> None:
    sent = [(i, [i]) if i % 3 else (i, "y" * 30_000) for i in range(60)]
    with queue_of() as made:
        for item in sent:
            made.put(item)
        assert has_thread(made)
        assert [made.get(timeout=30) for _ in sent] == sent
        made.put(SHORT)
        assert made.get(timeout=30) == SHORT


def test_nobody_waits_for_a_pipe_that_is_full() -> None:
    count = 8_000  # of 20 bytes and more: twice what a pipe takes
    with queue_of() as made:
        for i in range(count):
            made.put((i, [i]))
        assert [made.get(timeout=30)[0] for _ in range(count)] == list(range(count))


def test_a_lock_that_somebody_holds_is_not_waited_for() -> None:
    with queue_of() as made:
        with made._wlock:
            made.put(SHORT)
            with pytest.raises(queue.Empty):
                made.get(timeout=0)
        assert made.get(timeout=30) == SHORT
        assert has_thread(made)


def _echo(questions: ShortQueue, answers: ShortQueue) -> None:
    while (item := questions.get()) is not None:
        answers.put(item)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_answers(method: str) -> None:
    context = multiprocessing.get_context(method)
    with queue_of(method) as questions, queue_of(method) as answers:
        other = context.Process(target=_echo, args=(questions, answers))  # type: ignore[attr-defined]
        other.start()
        try:
            for item in (SHORT, LONG, SHORT, (1, list(range(5000))), SHORT):
                questions.put(item)
                assert answers.get(timeout=60) == item
        finally:
            questions.put(None)
            other.join(60)
        assert other.exitcode == 0


def test_threads_may_put_at_once() -> None:
    with queue_of() as made:

        def put(first: int) -> None:
            for i in range(first, first + 500):
                made.put((i, [i]))

        threads = [threading.Thread(target=put, args=(500 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        got = [made.get(timeout=30)[0] for _ in range(2000)]
        for thread in threads:
            thread.join()
    assert sorted(got) == list(range(2000))
    for first in range(0, 2000, 500):
        assert [i for i in got if first <= i < first + 500] == list(range(first, first + 500))


def test_torch_s_profiler_still_sees_the_loop() -> None:
    loader = DataLoader(InMemory(np.zeros((8, 4), dtype=np.uint8)), 2, num_workers=1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert len(list(loader)) == 4
    names: set[Any] = {event.key for event in profile.key_averages()}
    assert any("Workers.__next__" in name for name in names), names


_KILLED = """
import time
import numpy as np
from ffs.torch import DataLoader
from tests.torch.samples import InMemory
loop = iter(DataLoader(InMemory(np.zeros((64, 4096), dtype=np.uint8)), 8, num_workers=2))
kept = [next(loop) for _ in range(2)]
print(*(worker.pid for worker in loop._batches._workers), flush=True)
time.sleep(600)
"""


def rings_of(process: int) -> set[str]:
    """The inodes of the rings that a process has mapped or open."""
    found = set()
    with suppress(OSError):
        lines = Path(f"/proc/{process}/maps").read_text().splitlines()
        found |= {line.split()[4] for line in lines if "/memfd:ffs-ring" in line}
        for fd in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                if "/memfd:ffs-ring" in os.readlink(fd):
                    found.add(str(fd.stat().st_ino))
    return found


def everyone() -> list[int]:
    """All processes, but those that have ended and were not waited for yet."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(place.name))
    return found


def test_a_killed_training_process_takes_its_workers_and_its_ring_along() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", _KILLED],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
    ) as main:
        assert main.stdout is not None
        try:
            workers = [int(word) for word in main.stdout.readline().split()]
            (ring,) = rings_of(main.pid)
            assert len(workers) == 2 and all(rings_of(worker) == {ring} for worker in workers)
        finally:
            main.kill()
    give_up = time.monotonic() + 120  # torch's workers look every five seconds
    while left := [p for p in everyone() if p in workers or ring in rings_of(p)]:
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
