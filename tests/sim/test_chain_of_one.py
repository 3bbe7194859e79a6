"""Seeds of the chain-of-one scenario; see chain_of_one.py for what each of them checks.

FFS_SIM_SEEDS sets how many (`make soak`: 20,000).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.chain_of_one import BUGS, Scenario, Violation, run

SEEDS = int(os.environ.get("FFS_SIM_SEEDS", "600"))
EVENTS_MAX = 2_500
"""Twice what the longest seed takes: one that takes more does not come to rest."""
BUG_SEEDS = 60


@pytest.mark.timeout(60 + SEEDS / 15)
def test_many_seeds_keep_every_promise() -> None:
    for seed in range(SEEDS):
        try:
            assert run(seed).scheduled < EVENTS_MAX, f"seed {seed}"
        except Violation as violation:
            command = f"python -m tests.sim --scenario chain_of_one --seed {seed}"
            raise AssertionError(f"{command}: {violation}") from violation


def test_faults_really_happen() -> None:
    events: dict[str, int] = {}
    for seed in range(20):
        for line in run(seed, keep_history=True).history:
            event = line.split()[1]
            events[event] = events.get(event, 0) + 1
    assert {"crash", "start", "lost", "sync_failed", "chain_version", "ack"} <= events.keys()
    assert events["crash"] > 20


def test_same_seed_same_history_also_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.sim", "--scenario", "chain_of_one", "--seed", "7"]
    root = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert printed.stdout == f"scenario=chain_of_one seed=7 digest={run(7).digest()}\n"
    assert run(7).digest() != run(8).digest()


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str) -> None:
    for seed in range(BUG_SEEDS):
        try:
            Scenario(seed, logic=BUGS[name]).run()
        except Violation:
            return
    pytest.fail(f"no seed below {BUG_SEEDS} noticed {name}")
