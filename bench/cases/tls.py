"""`ffs-bench tls`: what encrypting the data port costs (`[tls] data = true`), beside none.

Two clusters of one metadata server and one daemon each, with the same certificates: one encrypts
what is said to the metadata server alone, the other data as well. The same calls to both, over one
connection: 1 MiB ranges in file order and 4 KiB ranges at random places, with CRC. There is no
goal: the cost is published (docs/performance.md), whoever wants encryption pays it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

from ffs import certificates
from ffs.bench.cases.common import MIB, Context, Outcome, data_set, figures, runs, take_turns
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order, scattered
from ffs.bench.cluster import servers
from ffs.bench.measure import Better, Comparison, Runner, Series, by_bytes, by_cpu
from ffs.errors import ConfigError
from ffs.tls import Role

KIB = 1 << 10
SIZES = {"1 MiB": (MIB, 16), "4 KiB": (4 * KIB, 256)}
"""Range length and ranges a call."""
CALLS = 128
_CLEAR, _SEALED = "in clear", "through TLS"


def measure(context: Context) -> Outcome:
    """Store the same file in both clusters, verify that it comes back, and take turns."""
    if context.url:
        raise ConfigError("two clusters of our own are compared", hint="leave --url out")
    with ExitStack() as stack:
        contestants: dict[str, Runner] = {}
        verified = 0
        for name, data_too in ((_CLEAR, False), (_SEALED, True)):
            more, checked = _contestants(context, stack, name, data_too=data_too)
            contestants |= more
            verified += checked
        series = take_turns(context, contestants)
    return Outcome(
        command="tls",
        conditions=context.conditions(
            ranges="1 MiB in file order, 4 KiB at random places, cached, CRC on",
            calls="16 and 256 ranges, one call at a time",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=_compare(series),
        runs=runs(series),
        notes=[],
    )


def _certificates(directory: Path) -> dict[str, str]:
    """Make an authority and one certificate for every role; return what `[tls]` has to say."""
    authority = certificates.make_authority(directory, "ffs-bench")
    issued = certificates.issue(directory, "bench", list(Role))
    return {
        "ca_file": str(authority.cert_file),
        "cert_file": str(issued.cert_file),
        "key_file": str(issued.key_file),
    }


def _contestants(
    context: Context, stack: ExitStack, name: str, *, data_too: bool
) -> tuple[dict[str, Runner], int]:
    tls: dict[str, object] = {**_certificates(context.directory / f"ca {name}"), "data": data_too}
    plain = context.directory / f"plain {name}"
    content = data_set(plain, context.size_bytes)
    settings = {f"tls.{key}": value for key, value in tls.items()}
    where = stack.enter_context(servers(context, settings=settings, name=f"cluster {name}"))
    keywords = {f"tls_{key}": value for key, value in tls.items()}
    fs = stack.enter_context(file_system(where, context, **keywords))
    data = DataSet(where, plain, f"/ffs-bench-{os.getpid()}.data", context.size_bytes)
    fs.pipe_file(data.path, content.data)
    found: dict[str, Runner] = {}
    verified = 0
    for size, (range_bytes, ranges_a_call) in SIZES.items():
        if range_bytes == MIB:
            offsets = in_order(context.size_bytes, MIB, ranges_a_call)
        else:
            calls = 4 if context.plan.smoke else CALLS
            offsets = scattered(context.size_bytes, range_bytes, (calls, ranges_a_call))
        caller = Caller(fs, data, offsets)
        verified += caller.verify(range_bytes)
        found[f"{size}, {name}"] = where.metered(caller.batches(range_bytes))
    return found, verified


def _compare(series: Series) -> list[Comparison]:
    found: list[Comparison] = []
    for size in SIZES:
        sealed, clear = f"{size}, {_SEALED}", f"{size}, {_CLEAR}"
        found += [
            series.compare(f"speed, {size}", sealed, clear, by_bytes),
            series.compare(f"CPU, {size}", sealed, clear, by_cpu, better=Better.SMALLER),
        ]
    return found
