"""Replay one simulated run: `python -m tests.sim --seed N [--scenario NAME] [--history]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from tests.sim import chain_of_one, mutations, several_servers
from tests.sim.world import World

SCENARIOS: dict[str, Callable[..., World]] = {
    "chain_of_one": chain_of_one.run,
    "mutations": mutations.run,
    "several_servers": several_servers.run,
}


def main(argv: list[str] | None = None) -> int:
    """Run seeds of a scenario; print the digest of each history."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seeds", type=int, default=1, help="how many, from --seed on")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="chain_of_one")
    parser.add_argument("--history", action="store_true", help="print every event")
    options = parser.parse_args(argv)
    for seed in range(options.seed, options.seed + options.seeds):
        world = SCENARIOS[options.scenario](seed, keep_history=options.history)
        for line in world.history:
            print(line)
        print(f"scenario={options.scenario} seed={seed} digest={world.digest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
