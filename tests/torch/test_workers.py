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
from torch.utils.data import dataloader

from ffs.client.torch.batch import Batch, Form
from ffs.client.torch.channel import Channel
from ffs.client.torch.loader import workers_type
from ffs.client.torch.messages import Messages
from ffs.client.torch.ring import Ring
from ffs.client.torch.workers import Workers
from ffs.torch import DataLoader
from tests.torch.samples import InMemory

SHORT = (7, [1, 2, 3])
LONG = (8, "x" * 100_000)
"""More than a pipe takes: the queue's thread writes it, and waits for room."""
NUMBERS = Messages(None, None)


@contextmanager
def channel(method: str = "fork", messages: Messages = NUMBERS) -> Iterator[Channel]:
    """Yield a channel, and end its threads."""
    made = Channel(multiprocessing.get_context(method), messages)
    try:
        yield made
    finally:
        made.cancel_join_thread()
        made.close()


def has_thread(made: Channel) -> bool:
    """Whether anything went through a thread."""
    return made._others._thread is not None or bool(made._waiting)


def test_a_short_message_needs_no_thread() -> None:
    with channel() as made:
        for item in (SHORT, None, (1 << 40, [-(1 << 63)])):
            made.put(item)
            assert made.get(timeout=30) == item
        with pytest.raises(queue.Empty):
            made.get(timeout=0)
        assert not has_thread(made)


def test_numbers_arrive_as_what_they_were() -> None:
    with channel() as made:
        made.put((3, np.array([5, 6])))
        number, got = made.get(timeout=30)
        assert number == 3 and got.dtype == np.int64 and got.tolist() == [5, 6]
        odd: list[Any] = [
            [True, 2],
            [1, 2.5],
            [1 << 70],
            [1, "a"],
            [],
            (1, 2),
            np.array([1.5]),
            np.int64(3),
        ]
        for i, item in enumerate(odd):
            made.put((i, item))
            number, got = made.get(timeout=30)
            assert number == i and type(got) is type(item) and np.array_equal(got, item)


def test_a_batch_travels_as_its_place() -> None:
    ring = Ring(64, 1)
    slot = ring.claim(64)
    assert slot is not None
    slot.memory[:] = 5
    form = Form(torch.uint8, (8,))
    with channel(messages=Messages(ring.name, form)) as made:
        made.put((0, Batch(form, slot, 8, away=True)))
        number, got = made.get(timeout=30)
        assert number == 0 and got.shape == (8, 8) and bool((got == 5).all())
        assert not has_thread(made) and ring.counters()["held"] == 1


def test_batches_of_samples_that_differ_travel_too() -> None:
    ring, form = Ring(64, 1), Form(torch.int16, None)
    with channel(messages=Messages(ring.name, form)) as made:
        for lengths in ([], [4, 0, 6]):
            slot = ring.claim(sum(lengths))
            assert slot is not None
            slot.memory[:] = 1
            made.put((0, Batch(form, slot, lengths, away=True)))
            del slot
            got = made.get(timeout=30)[1]
            assert [len(sample) for sample in got] == [n // 2 for n in lengths]
            assert all(bool((sample == 257).all()) for sample in got)
            del got
        assert not has_thread(made) and ring.counters()["free"] == 1


def test_a_batch_of_another_form_says_so() -> None:
    ring = Ring(64, 1)
    slot = ring.claim(8)
    assert slot is not None
    with channel(messages=Messages(ring.name, Form(torch.uint8, (8,)))) as made:
        made.put((0, Batch(Form(torch.float32, (2,)), slot, 1, away=True)))
        got = made.get(timeout=30)[1]
        assert got.shape == (1, 2) and got.dtype == torch.float32


def test_messages_keep_their_order_by_either_way() -> None:
    sent = [(i, [i]) if i % 3 else (i, "y" * 30_000) for i in range(60)]
    with channel() as made:
        for item in sent:
            made.put(item)
        assert has_thread(made)
        assert [made.get(timeout=30) for _ in sent] == sent
        made.put(SHORT)
        assert made.get(timeout=30) == SHORT


def test_nobody_waits_for_a_pipe_that_is_full() -> None:
    count = 8_000  # of 24 bytes: three times what a pipe takes
    with channel() as made:
        for i in range(count):
            made.put((i, [i]))
        assert made._waiting
        assert [made.get(timeout=30)[0] for _ in range(count)] == list(range(count))
        made.put(SHORT)
        assert made.get(timeout=30) == SHORT


def feeders() -> set[threading.Thread]:
    """The threads that write what waits in channels of this process."""
    return {one for one in threading.enumerate() if "(_write_on)" in one.name}


def test_what_nobody_takes_is_given_up_with_the_channel() -> None:
    with channel() as made:
        before = feeders()
        for i in range(8_000):
            made.put((i, [i]))
        (feeder,) = feeders() - before
    give_up = time.monotonic() + 60
    while feeder.is_alive():
        assert time.monotonic() < give_up
        time.sleep(0.01)


class _Late:
    """Can be pickled once `gate` is open."""

    gate = threading.Event()

    def __reduce__(self) -> Any:
        assert self.gate.wait(60)
        return str, ("late",)


def test_a_long_message_that_is_late_is_waited_for() -> None:
    with channel() as made:
        made.put((1, _Late()))
        made.put(SHORT)
        for _ in range(2):
            with pytest.raises(queue.Empty):
                made.get(timeout=0.01)
        _Late.gate.set()
        assert made.get(timeout=30) == (1, "late")
        assert made.get(timeout=30) == SHORT


def _echo(questions: Channel, answers: Channel) -> None:
    while (item := questions.get()) is not None:
        answers.put(item)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_answers(method: str) -> None:
    context = multiprocessing.get_context(method)
    with channel(method) as questions, channel(method) as answers:
        other = context.Process(target=_echo, args=(questions, answers))  # type: ignore[attr-defined]
        other.start()
        try:
            for item in (SHORT, LONG, SHORT, (1, list(range(5000))), SHORT):
                questions.put(item)
                assert answers.get(timeout=150) == item  # it imports torch first
        finally:
            questions.put(None)
            other.join(60)
        assert other.exitcode == 0


def test_threads_may_put_at_once() -> None:
    with channel() as made:

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


@pytest.mark.parametrize("persistent", [False, True])
def test_a_torch_that_is_another_has_its_own_iterator(
    persistent: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = dataloader._MultiProcessingDataLoaderIter.__next__

    def other(self: Any) -> Any:
        return known(self)

    monkeypatch.delitem(sys.modules, "ffs.client.torch.workers", raising=False)
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__next__", other)
    workers_type.cache_clear()
    monkeypatch.setattr(sys.modules["ffs.client.torch"], "workers", None, raising=False)
    try:
        rows = np.arange(64, dtype=np.uint8).reshape(16, 4)
        loader = DataLoader(InMemory(rows), 4, num_workers=2, persistent_workers=persistent)
        for _ in range(2):
            assert (np.concatenate([batch.numpy().copy() for batch in loader]) == rows).all()
        assert loader.ring_counters()["fallbacks"] == 0, "batches travel in the ring all the same"
        assert not isinstance(loader._iterator, Workers)
    finally:
        workers_type.cache_clear()
    (record,) = (r for r in caplog.records if r.message == "torch_is_another")
    assert "__next__ of torch's iterator" in record.__dict__["reason"]


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
