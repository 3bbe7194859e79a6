"""Which segments an append merges: cheap in all, few in the end, and never long zeros."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ffs.client.append import ZEROS_BYTES_MAX, merged
from ffs.limits import SEGMENTS_COMPACT
from ffs.types import ZERO_BLOB, Layout, Segment

HOW = Layout(chunk_size_bytes=1 << 20, stripe=1, table=1, seed=0)


def segments(*lengths: int) -> list[Segment]:
    return [Segment(blob=i, length=n, layout=HOW) for i, n in enumerate(lengths, 1)]


def append(lengths: list[int], length: int) -> int:
    """Append as AppendWriter does; return how many bytes were written again."""
    lengths.append(length)
    if len(lengths) <= SEGMENTS_COMPACT:
        return 0
    count = merged(segments(*lengths))
    if not count:
        return 0
    again = sum(lengths[-count:])
    lengths[-count:] = [again]
    return again


def test_what_is_taken() -> None:
    assert merged(segments(*[1] * 17)) == 17
    assert merged(segments(17, *[1] * 16)) == 16
    assert merged(segments(17, 16, *[1] * 15)) == 17
    assert merged(segments(8, 4, 2, 1)) == 0
    assert merged(segments(8, 4, 2, 1, 1)) == 5
    assert merged(segments(100, 4, 2, 1, 1)) == 4
    assert merged(segments(5)) == 0 and merged([]) == 0


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=60))
def test_the_first_that_is_taken_at_least_doubles_and_what_is_left_halves(
    lengths: list[int],
) -> None:
    count = merged(segments(*lengths))
    taken = lengths[-count:] if count else []
    assert count != 1
    assert not taken or sum(taken) >= 2 * taken[0]
    kept = [*lengths[: len(lengths) - count], *([sum(taken)] if count else [])]
    for place, length in enumerate(kept[:-1], 1):
        assert length > sum(kept[place:]), "what is left shrinks by halves"


@given(st.lists(st.integers(1, 1 << 20), min_size=1, max_size=2_000))
def test_many_appends_cost_little_and_leave_few(sizes: list[int]) -> None:
    lengths: list[int] = []
    again = sum(append(lengths, size) for size in sizes)
    total = sum(sizes)
    assert sum(lengths) == total
    assert again <= total * (total.bit_length() + 1)
    assert len(lengths) <= SEGMENTS_COMPACT + total.bit_length()


def test_equal_appends_of_any_number() -> None:
    lengths: list[int] = []
    again = sum(append(lengths, 1) for _ in range(20_000))
    assert again <= 20_000 * 15 and len(lengths) <= 20, (again, lengths)


def test_long_zeros_are_never_written_out() -> None:
    found = segments(*[1] * 30)
    hole = Segment(blob=ZERO_BLOB, length=ZEROS_BYTES_MAX + 1, layout=HOW)
    assert merged([*found, hole, *found[:5]]) == 5
    assert merged([*found, hole]) == 0
    short = Segment(blob=ZERO_BLOB, length=5, layout=HOW)
    assert merged([*found, short, *found[:5]]) == 36
