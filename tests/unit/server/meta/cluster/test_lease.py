"""The manager's lease: terms, who has them, and that the row itself stops an old manager."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffs.server.meta.cluster.lease import NOBODY, LeaseRow, ManagerLease

LEASE = 100


def servers(count: int) -> list[ManagerLease]:
    return [ManagerLease(f"server-{i}", LEASE, alone=False) for i in range(count)]


def try_to_take(lease: ManagerLease, row: LeaseRow, now_ns: int) -> LeaseRow:
    wanted = lease.bid(row, now_ns)
    if wanted is None:
        return row
    lease.took(wanted)
    return wanted


def test_the_first_to_ask_is_the_manager_until_its_lease_ends() -> None:
    one, other = servers(2)
    row = try_to_take(one, NOBODY, 1_000)
    assert row == LeaseRow(1, "server-0", 1_100)
    assert one.holds(row)
    assert other.bid(row, 1_099) is None
    row = try_to_take(other, row, 1_100)
    assert row == LeaseRow(2, "server-1", 1_200)
    assert other.holds(row)
    assert not one.holds(row)


def test_a_manager_renews_in_time_and_does_not_write_more_than_it_must() -> None:
    one, other = servers(2)
    row = try_to_take(one, NOBODY, 0)
    assert one.bid(row, 40) is row
    row = try_to_take(one, row, 60)
    assert row == LeaseRow(1, "server-0", 160)
    assert other.bid(row, 159) is None


def test_a_lease_that_ended_is_renewed_if_nobody_took_it() -> None:
    (one,) = servers(1)
    row = try_to_take(one, NOBODY, 0)
    assert try_to_take(one, row, 10_000) == LeaseRow(1, "server-0", 10_100)


def test_a_server_that_came_up_again_has_a_new_term_at_once() -> None:
    before, after = servers(1) + servers(1)
    row = try_to_take(before, NOBODY, 0)
    row = try_to_take(after, row, 1)
    assert row.term == 2
    assert not before.holds(row)


def test_the_server_that_is_alone_keeps_it_whatever_its_clock_does() -> None:
    one = ManagerLease("", LEASE, alone=True)
    row = try_to_take(one, NOBODY, 10**18)
    assert one.bid(row, 0) is row
    assert one.bid(row, 3 * 10**18) is row


@pytest.mark.parametrize("was_shared", [True, False])
def test_a_lease_from_a_wrong_clock_or_another_engine_does_not_last(was_shared: bool) -> None:
    (one,) = servers(1)
    far = LeaseRow(5, "somebody", 10**18 if was_shared else (1 << 63) - 1)
    assert try_to_take(one, far, 1_000) == LeaseRow(6, "server-0", 1_100)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(-2 * LEASE, 2 * LEASE), st.booleans()),
        max_size=60,
    )
)
def test_a_term_never_has_two_holders_even_if_clocks_jump(
    turns: list[tuple[int, int, bool]],
) -> None:
    """Three servers bid in any order, restart at any time, and the clock goes anywhere."""
    leases = servers(3)
    row, now_ns = NOBODY, 10_000
    holders: dict[int, ManagerLease] = {}
    for who, passed, restarts in turns:
        now_ns += passed
        if restarts:
            leases[who] = servers(3)[who]
        before = row
        row = try_to_take(leases[who], row, now_ns)
        assert row.term in (before.term, before.term + 1)
        holding = [lease for lease in leases if lease.holds(row)]
        assert len(holding) <= 1
        for lease in holding:
            assert holders.setdefault(row.term, lease) is lease


def test_a_new_term_is_told_from_a_renewal() -> None:
    one, other = servers(2)
    first = one.bid(NOBODY, 0)
    assert first is not None
    assert one.took(first)
    renewed = one.bid(first, 90)
    assert renewed is not None
    assert not one.took(renewed)
    taken = other.bid(renewed, 500)
    assert taken is not None
    assert other.took(taken)
    assert (one.term, other.term) == (1, 2)
