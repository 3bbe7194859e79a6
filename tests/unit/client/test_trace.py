"""Ids of calls: unlike each other, unlike those of a forked child, or the caller's own."""

from __future__ import annotations

import os
from typing import Final

import pytest

from ffs.client import trace
from ffs.errors import InvalidError
from ffs.seams import SystemRandomness

MANY: Final = 10_000


class FromZero(SystemRandomness):
    """A start that makes the first id one that may not be used."""

    def u64(self) -> int:
        return 0


def test_ids_differ_and_none_is_zero() -> None:
    ids = trace.TraceIds(FromZero())
    taken = [ids.take() for _ in range(MANY)]
    assert len(set(taken)) == MANY
    assert all(0 < one < 1 << 64 for one in taken)


def test_sequences_start_at_random() -> None:
    first, second = (trace.TraceIds(SystemRandomness()) for _ in range(2))
    assert not {first.take() for _ in range(100)} & {second.take() for _ in range(100)}


def test_a_forked_child_begins_a_sequence_of_its_own() -> None:
    trace.take()
    read_end, write_end = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write_end, b"%016x" % trace.take())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    theirs = int(os.read(read_end, 16), 16)
    os.close(read_end)
    assert theirs not in {trace.take() for _ in range(100)}


def test_an_id_of_the_callers_own_is_used_inside_only() -> None:
    with trace.tracing(0xABC):
        assert (trace.take(), trace.take()) == (0xABC, 0xABC)
    assert trace.take() != 0xABC


@pytest.mark.parametrize("wrong", [0, -1, 1 << 64])
def test_an_id_that_no_header_holds_is_refused(wrong: int) -> None:
    with pytest.raises(InvalidError), trace.tracing(wrong):
        pass


def test_the_fact_has_sixteen_digits() -> None:
    assert trace.as_fact(0xABC) == "0000000000000abc"
