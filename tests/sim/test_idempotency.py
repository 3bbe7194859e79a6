"""Seeds of the mutations scenario; see mutations.py for what each of them checks."""

from __future__ import annotations

import pytest

from tests.sim.chain_of_one import Violation
from tests.sim.mutations import BUGS, Scenario, run

SEEDS = 300
EVENTS_MAX = 1_600
"""Twice what the longest seed takes: one that takes more does not come to rest."""
BUG_SEEDS = 60


def test_mutations_happen_once_on_every_seed() -> None:
    for seed in range(SEEDS):
        try:
            assert run(seed).scheduled < EVENTS_MAX, f"seed {seed}"
        except Violation as violation:
            command = f"python -m tests.sim --scenario mutations --seed {seed}"
            raise AssertionError(f"{command}: {violation}") from violation


def test_the_bad_things_really_happen() -> None:
    answers: dict[str, set[str]] = {}
    events: dict[str, int] = {}
    for seed in range(10):
        for line in run(seed, keep_history=True).history:
            event = line.split()[1]
            events[event] = events.get(event, 0) + 1
            if event == "answer":
                status = line.partition("status=")[2].partition(",")[0]
                answers.setdefault(status, set()).add(line)
    assert {"crash", "lost", "apply", "answer", "end"} <= events.keys()
    assert {"0", "7", "101"} <= answers.keys(), "done, refused as another request, taken"
    assert events["answer"] > events["apply"], "duplicates were answered from the ledger"


def test_same_seed_same_history() -> None:
    assert run(3).digest() == run(3).digest()
    assert run(3).digest() != run(4).digest()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str) -> None:
    for seed in range(BUG_SEEDS):
        try:
            Scenario(seed, server=BUGS[name]).run()
        except Violation:
            return
    pytest.fail(f"no seed below {BUG_SEEDS} noticed {name}")
