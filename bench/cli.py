"""The `ffs-bench` command: parse, run one case, print text or JSON.

The exit status is 0 whenever the measurement itself worked, whatever the verdicts say: a benchmark
reports. 2 means that it could not be run; the reason is one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from ffs.bench import machine, page, report
from ffs.bench.cases.common import MIB, Context, Outcome
from ffs.bench.measure import Plan
from ffs.errors import ConfigError, FFSError

_CASES = {
    "roofline": "what this machine allows: memory, CRC, loopback, disk; no code of ours",
    "seq": "1 MiB ranges on one connection, beside a plain C request/reply loop",
    "seq-2": "the same on two connections",
    "medium": "64 KiB random ranges, 64 a call, beside plain C",
    "random": "4 KiB random ranges, 256 a call, beside plain C and Redis",
    "single": "4 KiB random ranges, one a call: latency, beside plain C",
    "planning": "what Python costs for each range, beside the C engine alone",
    "cold": "reads that no cache holds, over TCP, beside fio",
    "samehost": "reads on the daemon's machine, beside cached pread",
    "shaped": "a link of 1 and 5 Gbit/s, beside its rate and a raw flow (needs root)",
    "crowd": "10, 100 and 1,000 connections, beside the plainest epoll server",
    "memory": "the daemon's memory while it serves ten gibibytes",
    "meta": "stat_many and create_many on both engines, beside bare SQL loops",
    "snapshot": "snapshots of 20,000 files on both engines, beside bare INSERT ... SELECT",
    "write": "write a file, beside fio with the same fsync pattern",
    "checkpoint": "save and load a state dict, beside plain writes and reads, and fsspec",
    "replicas": "what a read loses when one of two replicas stops or dies in its middle",
    "copies": "user-space copies per byte read, in client and daemon",
    "dataloader": "batches in a training loop over TCP, beside `readv_into` alone",
    "records": "large indexes opened and shared, batches, writing, resuming",
    "write-replicated": "three replicas on three loop devices, beside fio (needs root)",
    "read-scaling": "the same bytes from 1 to 6 daemons, beside plain C",
    "read-while-resync": "reads from a chain while a member catches up, and without",
    "grants": "4 KiB ranges by a token, whose blobs are granted, beside the cluster key",
    "tls": "reads through TLS on the data port, beside none",
    "hostile": "reads and stat_many beside peers that misbehave, and without them",
}
_FUNCTIONS = {
    "seq-2": ("seq", "measure_two"),
    "write-replicated": ("write_replicated", "measure"),
    "read-scaling": ("read_scaling", "measure"),
    "read-while-resync": ("read_while_resync", "measure"),
}
"""Where a case is not `measure` of the module of its name."""
GOALS = (
    "seq",
    "seq-2",
    "medium",
    "random",
    "single",
    "planning",
    "cold",
    "samehost",
    "shaped",
    "crowd",
    "memory",
    "copies",
    "replicas",
    "dataloader",
    "records",
)
"""The cases with goals for reading, down to a training loop."""
CLUSTER = ("write-replicated", "read-scaling", "read-while-resync")
"""Those of several daemons."""
_LONG = {"hostile", "shaped", *CLUSTER}
"""Left out of `all`: most of an hour by itself, only for root, or a dozen processes."""
_ALL = "all"
_GROUPS: Mapping[str, tuple[tuple[str, ...], float, str]] = {
    "goals": (GOALS, 0.8, "the goals of the read path, and whether they are met"),
    "cluster": (CLUSTER, 0.5, "the goals of several daemons: replicas, growth, recovery"),
}
"""Cases, and the seconds of a run: so that all is measured within a quarter of an hour."""
_REPORT = "report"
_QUICK_BYTES = 8 * MIB
_DEFAULT_MIB = 512
_SIZES_MIB = {"write": 1024, "checkpoint": 2048, "read-scaling": 256, "read-while-resync": 1024}


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    main_parser = argparse.ArgumentParser(prog="ffs-bench", description=__doc__.splitlines()[0])
    cases = main_parser.add_subparsers(dest="case", required=True, metavar="CASE")
    for name, text in _CASES.items():
        _add_options(cases.add_parser(name, help=text, description=text))
    _add_options(cases.add_parser(_ALL, help="every case but the long ones, one after the other"))
    for name, (names, _, text) in _GROUPS.items():
        group = cases.add_parser(name, help=text, description=text)
        group.add_argument(
            "names", nargs="*", metavar="CASE", help=f"of {', '.join(names)}; or all"
        )
        _add_options(group)
    drawing = cases.add_parser(_REPORT, help="draw results of --json as one HTML page")
    drawing.add_argument("results", nargs="+", type=Path, help="files that the cases' --json wrote")
    drawing.add_argument("--out", type=Path, required=True, help="the page to write")
    drawing.add_argument("--debug", action="store_true", help="show tracebacks")
    return main_parser


def _add_options(case: argparse.ArgumentParser) -> None:
    case.add_argument("--json", action="store_true", help="print one JSON object")
    case.add_argument("--pairs", type=int, help="good pairs wanted (default 15)")
    case.add_argument(
        "--seconds",
        type=float,
        help="length of each timed run (default 2; goals: 0.8; cluster: 0.5)",
    )
    case.add_argument("--quick", action="store_true", help="smoke run: shows that it works")
    case.add_argument("--no-spinners", action="store_true", help="no idle-priority spinners")
    case.add_argument("--size-mib", type=int, help=f"data set (default {_DEFAULT_MIB})")
    case.add_argument("--dir", type=Path, help="where temporary data goes (default: TMPDIR)")
    case.add_argument("--congestion", default="cubic", help="TCP congestion control, both sides")
    case.add_argument("--client-cpu", type=int, help="default: the first allowed CPU")
    case.add_argument("--server-cpu", type=int, help="default: the second allowed CPU")
    case.add_argument(
        "--compare",
        action="store_true",
        help="seq, random, dataloader: the same bytes through what users would pick instead",
    )
    case.add_argument(
        "--ffrecord-src", type=Path, help="dataloader --compare: a checkout of FFRecord"
    )
    case.add_argument("--url", default="", help="measure this cluster instead of an own one")
    case.add_argument("--key-file", default="", help="the key of --url (default: FFS_KEY_FILE)")
    case.add_argument(
        "--sync-every-mib", type=int, default=0, help="write: fio's cadence (default: observed)"
    )
    case.add_argument("--debug", action="store_true", help="show tracebacks")


def plan_of(options: argparse.Namespace) -> Plan:
    """Return the plan that the options ask for."""
    plan = Plan.quick() if options.quick else Plan()
    if options.pairs is not None:
        plan = replace(plan, pairs=options.pairs)
    if options.case in _GROUPS and not options.quick:
        plan = replace(plan, seconds=_GROUPS[options.case][1])
    if options.seconds is not None:
        plan = replace(plan, seconds=options.seconds)
    return replace(plan, spinners=not options.no_spinners)


def context_of(name: str, options: argparse.Namespace, directory: Path) -> Context:
    """Return the conditions that the options ask for."""
    default_mib = _SIZES_MIB.get(name, _DEFAULT_MIB)
    size_bytes = _QUICK_BYTES if options.quick else default_mib * MIB
    if options.size_mib is not None:
        size_bytes = options.size_mib * MIB
    return Context(
        plan=plan_of(options),
        placement=machine.Placement.choose(options.client_cpu, options.server_cpu),
        directory=directory,
        congestion=options.congestion,
        size_bytes=size_bytes,
        url=options.url,
        key_file=options.key_file,
        sync_every_mib=options.sync_every_mib,
        ffrecord_source=options.ffrecord_src,
        progress=_progress if sys.stderr.isatty() else lambda text: None,
    )


def _progress(text: str) -> None:
    sys.stderr.write(f"\r\033[K{text}")
    sys.stderr.flush()


def measure_of(name: str, *, compared: bool) -> Callable[[Context], Outcome]:
    """Return what measures a case, or what compares it with other systems.

    Raises:  ConfigError for a case that no other system can do
    """
    if not compared:
        module, function = _FUNCTIONS.get(name, (name, "measure"))
        measure: Callable[[Context], Outcome] = getattr(
            import_module(f"ffs.bench.cases.{module}"), function
        )
        return measure
    if name == "dataloader":
        return measure_of("loaders", compared=False)
    compare = import_module("ffs.bench.cases.compare")
    if name not in compare.SHAPES:
        raise ConfigError(f"{name} has no --compare", hint="seq, random and dataloader have")
    return partial(compare.measure, case=name)


def run(name: str, options: argparse.Namespace) -> Outcome:
    """Run one case in a directory of its own and print what it found."""
    measure = measure_of(name, compared=options.compare)
    with tempfile.TemporaryDirectory(prefix="ffs-bench-", dir=options.dir) as directory:
        context = context_of(name, options, Path(directory))
        facts = machine.describe(context.directory)
        outcome = measure(context)
        context.progress("")
    _print(name, outcome, facts, as_json=options.json)
    return outcome


def _print(name: str, outcome: Outcome, facts: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        text = json.dumps(report.as_json(outcome, facts), indent=2)
    else:
        text = f"# {name}: {_CASES[name]}\n{report.as_text(outcome, facts)}\n"
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run_goals(options: argparse.Namespace) -> None:
    """Run a group's cases, or the named ones, and print a table of the verdicts.

    A case that cannot run here is a line of the table with the reason; the others go on.
    """
    known = _GROUPS[options.case][0]
    names = options.names or list(known)
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(f"no such goals: {', '.join(unknown)}", hint=f"one of {', '.join(known)}")
    outcomes: dict[str, Outcome] = {}
    for name in names:
        try:
            outcomes[name] = run(name, options)
        except ConfigError as error:
            outcomes[name] = Outcome(name, {}, [], [], [], [f"not run: {error}"])
            sys.stderr.write(f"ffs-bench: {name} is not run: {error}\n")
            if options.json:
                _print(name, outcomes[name], machine.describe(Path()), as_json=True)
    if not options.json:
        sys.stdout.write(report.goals_table(outcomes) + "\n")


def _chosen(case: str) -> list[str]:
    return [name for name in _CASES if name not in _LONG] if case == _ALL else [case]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ffs-bench`."""
    options = parser().parse_args(arguments)
    try:
        if options.case == _REPORT:
            options.out.write_text(page.page(page.load(options.results)))
        elif options.case in _GROUPS:
            run_goals(options)
        else:
            for name in _chosen(options.case):
                run(name, options)
    except FFSError as error:
        if options.debug:
            raise
        sys.stderr.write(f"ffs-bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
