"""Replay one simulated run: `python -m tests.sim --seed N [--bug NAME] [--history]`.

Prints the hash of the run's event log: the same seed has the same one in any process. A run that
breaks a promise says which, and the exit status is 1. `--coverage` prints how often each cell of
the manager's table of states was come through. `--scenario` chooses one of the smaller worlds
instead of the whole cluster.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable

from tests.sim import chain_of_one, mutations, several_servers
from tests.sim.chain_of_one import Violation
from tests.sim.cluster.bugs import BUGS, planted
from tests.sim.cluster.coverage import Cell, as_text, observed
from tests.sim.cluster.run import Cluster
from tests.sim.world import World

SMALLER: dict[str, Callable[..., World]] = {
    "chain_of_one": chain_of_one.run,
    "mutations": mutations.run,
    "several_servers": several_servers.run,
}


def main(argv: list[str] | None = None) -> int:
    """Run seeds of a scenario; print the digest of each history."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--bug", choices=sorted(BUGS), default="", help="plant it (cluster only)")
    parser.add_argument("--faults", default="", help="kinds to choose from, with commas between")
    parser.add_argument("--operated", action="store_true", help="with drains and rebalances")
    parser.add_argument("--restored", action="store_true", help="with a database that is lost, too")
    parser.add_argument("--coverage", action="store_true", help="print what was come through")
    parser.add_argument("--scenario", choices=["cluster", *sorted(SMALLER)], default="cluster")
    parser.add_argument("--history", action="store_true", help="print every event")
    options = parser.parse_args(argv)
    bad = 0
    cells: Counter[Cell] = Counter()
    for seed in range(options.seed, options.seed + options.seeds):
        if options.scenario == "cluster":
            with observed(cells):
                world, broken = _play(seed, options)
        else:
            world, broken = SMALLER[options.scenario](seed, keep_history=options.history), ""
        for line in world.history:
            print(line)
        verdict = f" violation={broken!r}" if broken else ""
        print(f"scenario={options.scenario} seed={seed} digest={world.digest()}{verdict}")
        bad += bool(broken)
    if options.coverage:
        print(as_text(cells))
    return 1 if bad else 0


def _play(seed: int, options: argparse.Namespace) -> tuple[World, str]:
    """Play a seed of the cluster; return its world, and which promise it broke."""
    faults = options.faults.split(",") if options.faults else ()
    if options.bug:
        faults = faults or BUGS[options.bug].faults
    operated = options.operated or (options.bug and BUGS[options.bug].operated)
    with planted(options.bug):
        cluster = Cluster(
            seed,
            faults=faults,
            keep_history=options.history,
            operated=bool(operated),
            restored=options.restored,
        )
        try:
            cluster.run()
        except Violation as violation:
            return cluster.world, str(violation)
    return cluster.world, ""


if __name__ == "__main__":
    sys.exit(main())
