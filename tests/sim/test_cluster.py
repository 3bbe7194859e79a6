"""Seeds of the simulated cluster; see cluster/run.py for what each of them checks.

FFS_SIM_SEEDS sets how many (`make soak`: 20,000), FFS_SIM_FIRST the first one, so that each search
is a new one. Seeds are played in chunks, which run beside each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ffs.server.meta.cluster.states import CELLS, Event
from ffs.types import TargetState
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.bugs import BUGS, planted
from tests.sim.cluster.coverage import IMPOSSIBLE, Cell, as_text, missing, observed
from tests.sim.cluster.run import Cluster, run

SEEDS = int(os.environ.get("FFS_SIM_SEEDS", "1000"))
FIRST = int(os.environ.get("FFS_SIM_FIRST", "0"))
CHUNK = 10
"""Few, so that none comes near the time-out of a test on a machine that has far too much to do."""
CHUNKS = range(FIRST, FIRST + SEEDS, CHUNK)
OPERATED_CHUNK = 5
NEIGHBOURS = 12
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("first", CHUNKS)
def test_every_promise_holds(first: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    cells: Counter[Cell] = Counter()
    with observed(cells):
        for seed in range(first, min(first + CHUNK, FIRST + SEEDS)):
            try:
                run(seed)
            except Violation as violation:
                raise AssertionError(f"python -m tests.sim --seed {seed}: {violation}") from (
                    violation
                )
    _check_coverage(first, cells, tmp_path_factory)


@pytest.mark.parametrize("first", range(FIRST, FIRST + max(1, SEEDS // 50), OPERATED_CHUNK))
def test_every_promise_holds_while_nodes_are_drained_and_filled(first: int) -> None:
    for seed in range(first, first + OPERATED_CHUNK):
        try:
            Cluster(seed, operated=True).run()
        except Violation as violation:
            command = f"python -m tests.sim --operated --seed {seed}"
            raise AssertionError(f"{command}: {violation}") from violation


def test_every_promise_holds_with_a_database_that_was_restored() -> None:
    cells: Counter[Cell] = Counter()
    with observed(cells):
        for seed in range(FIRST, FIRST + max(10, SEEDS // 100)):
            try:
                Cluster(seed, restored=True).run()
            except Violation as violation:
                command = f"python -m tests.sim --restored --seed {seed}"
                raise AssertionError(f"{command}: {violation}") from violation
    assert not missing(cells, restored=True), as_text(cells)


def _check_coverage(
    first: int, cells: Counter[Cell], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The chunk that ends last, in whichever process, adds up what all have come through."""
    base = tmp_path_factory.getbasetemp()
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    numbers = {str(CELLS.index(cell)): count for cell, count in cells.items()}
    (together / f"cells-{first}.tmp").write_text(json.dumps(numbers))
    (together / f"cells-{first}.tmp").rename(together / f"cells-{first}.json")
    parts = [together / f"cells-{one}.json" for one in CHUNKS]
    if not all(part.exists() for part in parts):
        return
    total: Counter[Cell] = Counter()
    for part in parts:
        for index, count in json.loads(part.read_text()).items():
            total[CELLS[int(index)]] += count
    print(as_text(total))
    assert not missing(total), f"cells of the table never come through:\n{as_text(total)}"


def test_each_cell_is_in_the_table_or_cannot_be() -> None:
    every = {(state, event) for state in TargetState for event in Event}
    assert set(CELLS) | IMPOSSIBLE.keys() == every
    assert not set(CELLS) & IMPOSSIBLE.keys()
    assert all(IMPOSSIBLE.values())


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name: str) -> None:
    """By its recorded seed; whoever changes a server shifts what chance does, so if that one finds
    it no more its next neighbours may, until it is recorded anew."""
    bug = BUGS[name]
    for seed in range(bug.seed, bug.seed + NEIGHBOURS):
        run(seed, faults=bug.faults, operated=bug.operated)
        with planted(name):
            try:
                run(seed, faults=bug.faults, operated=bug.operated)
            except Violation:
                return
    pytest.fail(f"no seed of {bug.seed} .. {bug.seed + NEIGHBOURS - 1} noticed {name}")


def test_same_seed_same_history_also_in_another_process() -> None:
    command = [sys.executable, "-m", "tests.sim", "--seed", "7"]
    environment = {**os.environ, "PYTHONHASHSEED": "17"}
    printed = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"scenario=cluster seed=7 digest={run(7).digest()}\n"
    assert run(7).digest() != run(8).digest()


def test_faults_really_happen() -> None:
    events: Counter[str] = Counter()
    kinds = list(Cluster(0).nemesis.kinds)
    for seed, kind in enumerate(kinds):
        cluster = Cluster(seed, faults=[kind], keep_history=True)
        cluster.run()
        for line in cluster.world.history:
            _, event, *facts = line.split()
            events[f"fault {facts[0]}" if event == "fault" else event] += 1
    assert all(events[f"fault {kind}"] for kind in kinds)
    wanted = {"crash", "freeze", "lost", "target_stopped", "target_back", "synced", "repaired"}
    assert wanted | {"scrubbed"} <= events.keys()
    assert events["ack"] > 80 * len(kinds) and events["read"] > 30 * len(kinds)
