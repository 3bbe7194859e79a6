"""The system's clock and dice do what the seams promise."""

from __future__ import annotations

import os

from ffs.seams import Clock, Randomness, SystemClock, SystemRandomness


def test_clock() -> None:
    clock: Clock = SystemClock()
    first, second = clock.monotonic_ns(), clock.monotonic_ns()
    assert first <= second
    assert clock.wall_ns() > 1_600_000_000 * 10**9


def test_randomness() -> None:
    dice: Randomness = SystemRandomness()
    assert len(dice.token(16)) == 16
    assert dice.token(16) != dice.token(16)
    assert {dice.below(3) for _ in range(200)} == {0, 1, 2}
    assert dice.below(1) == 0
    assert all(0 <= dice.u64() < 1 << 64 for _ in range(10))


def test_parent_and_child_do_not_repeat_each_other() -> None:
    dice = SystemRandomness()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, dice.token(16))
        os._exit(0)
    os.close(write_end)
    mine = dice.token(16)
    assert os.read(read_end, 16) != mine
    os.close(read_end)
    assert os.waitpid(child, 0)[1] == 0
