"""`ffs-bench grants`: what it costs that daemons serve a token's holder by grants alone.

The same calls of `fs.readv_into` by two clients of one cluster: one has the cluster key, whose
connections nobody asks for anything, the other a token of a user who may read the file. 4 KiB
ranges at random places, 256 a call and one a call, with CRC. What is held against the goal is the
CPU time of client and servers together for each byte.
"""

from __future__ import annotations

from contextlib import ExitStack

from ffs.bench.cases.common import Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.reading import Caller, DataSet, file_system, scattered, stored
from ffs.bench.measure import Better, Comparison, Runner, Series, by_cpu
from ffs.client.users import Users
from ffs.errors import ConfigError
from ffs.key import ClusterKey

RANGE_BYTES = 4096
RANGES_A_CALL = 256
CALLS = 512
GOAL = 1.03
_UID = 20_000
_LIFE_MS = 86_400_000

_KEY, _TOKEN = "by the cluster key", "by a token"
_SHAPES = {"256 a call": RANGES_A_CALL, "one a call": 1}


def measure(context: Context) -> Outcome:
    """Store a file, verify that both clients get it, and let them take turns."""
    if context.url:
        raise ConfigError("grants are measured in a cluster of their own", hint="leave --url out")
    with ExitStack() as stack:
        data = stack.enter_context(stored(context))
        contestants, verified = _contestants(context, data, stack)
        series = take_turns(context, contestants)
    return Outcome(
        command="grants",
        conditions=context.conditions(
            ranges="4 KiB, random, cached, CRC on",
            calls="256 ranges and one, one call at a time, on both sides",
            connections="1",
            destination="64 MiB, touched",
            data=f"{context.size_bytes} bytes, {verified} delivered bytes verified beforehand",
        ),
        figures=figures(series, list(contestants)),
        comparisons=_compare(series),
        runs=runs(series),
        notes=data.where.notes,
    )


def _token_file(context: Context, data: DataSet, stack: ExitStack) -> str:
    """Issue a token for a user of its own."""
    operator = stack.enter_context(file_system(data.where, context))
    users = Users(operator.core.meta)
    users.add("bench", _UID, [_UID])
    key = ClusterKey.load(data.where.key_file)
    token, _ = users.issue(key, "bench", job="ffs-bench", life_ms=_LIFE_MS)
    path = context.directory / "bench.token"
    path.touch(mode=0o600)
    path.write_text(token.export())
    return str(path)


def _contestants(
    context: Context, data: DataSet, stack: ExitStack
) -> tuple[dict[str, Runner], int]:
    token_file = _token_file(context, data, stack)
    clients = {
        _KEY: stack.enter_context(file_system(data.where, context)),
        _TOKEN: stack.enter_context(
            file_system(data.where, context, key_file="", token_file=token_file)
        ),
    }
    found: dict[str, Runner] = {}
    verified = 0
    for shape, ranges_a_call in _SHAPES.items():
        calls = 4 if context.plan.smoke else CALLS
        offsets = scattered(context.size_bytes, RANGE_BYTES, (calls, ranges_a_call))
        for name, fs in clients.items():
            caller = Caller(fs, data, offsets)
            verified += caller.verify(RANGE_BYTES)
            found[f"{shape}, {name}"] = data.where.metered(caller.batches(RANGE_BYTES))
    return found, verified


def _compare(series: Series) -> list[Comparison]:
    smaller = Better.SMALLER
    return [
        series.compare(
            f"CPU, {shape}",
            f"{shape}, {_TOKEN}",
            f"{shape}, {_KEY}",
            by_cpu,
            goal=GOAL if ranges == RANGES_A_CALL else None,
            better=smaller,
        )
        for shape, ranges in _SHAPES.items()
    ]
