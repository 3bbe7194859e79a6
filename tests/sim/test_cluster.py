"""Seeds of the simulated cluster; see cluster/run.py for what each of them checks."""

from __future__ import annotations

import pytest

from tests.sim.chain_of_one import Violation
from tests.sim.cluster.run import run


@pytest.mark.parametrize("first", range(0, 20, 10))
def test_every_promise_holds(first: int) -> None:
    for seed in range(first, first + 10):
        try:
            run(seed)
        except Violation as violation:
            raise AssertionError(f"python -m tests.sim --seed {seed}: {violation}") from violation


def test_same_seed_same_history() -> None:
    assert run(3).digest() == run(3).digest()
    assert run(3).digest() != run(4).digest()
