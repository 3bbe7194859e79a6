"""Who of a chain serves, who takes writes, and who is its head."""

from __future__ import annotations

import itertools

import pytest

from ffs.chains import NO_TARGET, head, serving, target_states, writable
from ffs.types import ChainInfo, Routing, TargetInfo, TargetState

S, Y, W, L, O = TargetState  # noqa: E741


def chain(*states: TargetState) -> tuple[ChainInfo, dict[int, int]]:
    """A chain of targets 10, 11, ... in these states, among others of other chains."""
    members = [TargetInfo(10 + i, 1, state, since=3) for i, state in enumerate(states)]
    others = [TargetInfo(99, 1, S)]
    info = ChainInfo(7, 3, [m.target for m in members])
    routing = Routing(5, [], [*members, *others], [info], [])
    return info, target_states(routing)


@pytest.mark.parametrize(
    ("states", "served", "written"),
    [
        ((S,), (10,), (10,)),
        ((S, S, S), (10, 11, 12), (10, 11, 12)),
        ((S, Y, O), (10,), (10, 11)),
        ((O, S, Y), (11,), (11, 12)),
        ((Y, S), (11,), (11, 10)),
        ((S, W, L, O), (10,), (10,)),
        ((Y, W), (), ()),
        ((L, O), (), ()),
        ((), (), ()),
    ],
)
def test_members_by_state(
    states: tuple[TargetState, ...], served: tuple[int, ...], written: tuple[int, ...]
) -> None:
    info, known = chain(*states)
    assert serving(info, known) == served
    assert writable(info, known) == written
    assert head(info, known) == (served[0] if served else NO_TARGET)


def test_member_of_unknown_state_does_nothing() -> None:
    info, _ = chain(S, S)
    assert writable(info, {11: S}) == (11,)


def test_whoever_serves_is_written_to() -> None:
    for states in itertools.product(TargetState, repeat=3):
        info, known = chain(*states)
        served, written = serving(info, known), writable(info, known)
        assert written[: len(served)] == served
        assert set(written) <= {t for t in info.targets if known[t] in (S, Y)}
