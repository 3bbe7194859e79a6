"""Seeds of the scenario of several servers; see several_servers.py for what each of them checks.

FFS_SIM_SEEDS sets how many (`make soak`: 20,000).
"""

from __future__ import annotations

import os

import pytest

from tests.sim.chain_of_one import Violation
from tests.sim.several_servers import BUGS, run

SEEDS = int(os.environ.get("FFS_SIM_SEEDS", "1000"))
BUG_SEEDS = 60


def test_mutations_happen_once_on_every_seed() -> None:
    for seed in range(SEEDS):
        try:
            run(seed)
        except Violation as violation:
            command = f"python -m tests.sim --scenario several_servers --seed {seed}"
            raise AssertionError(f"{command}: {violation}") from violation


def test_the_bad_things_really_happen() -> None:
    events: dict[str, int] = {}
    answers: dict[str, int] = {}
    for seed in range(20):
        for line in run(seed, keep_history=True).history:
            event, who = line.split()[1:3]
            events[f"{event} {who}"] = events.get(f"{event} {who}", 0) + 1
            if event == "answer":
                status = line.partition("status=")[2].partition(",")[0]
                answers[status] = answers.get(status, 0) + 1
    for server in ("server-0", "server-1", "server-2"):
        assert events[f"crash {server}"] and events[f"answer {server}"]
    assert events["crash database"]
    assert {"0", "4", "7", "101"} <= answers.keys(), "done, away, refused as another request, taken"


def test_same_seed_same_history() -> None:
    assert run(3).digest() == run(3).digest()
    assert run(3).digest() != run(4).digest()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str) -> None:
    for seed in range(BUG_SEEDS):
        try:
            BUGS[name](seed).run()
        except Violation:
            return
    pytest.fail(f"no seed below {BUG_SEEDS} noticed {name}")
