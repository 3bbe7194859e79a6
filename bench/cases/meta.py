"""`ffs-bench meta`: rates of batched metadata operations, beside a bare SQLite loop.

stat_many: 1,000 random paths of depth 4 a call, nothing remembered by the client. create_many:
1,000 files a call, each opened for writing and closed (two calls, both durable when answered). Both
contestants keep their database on the same disk; the reference pays for no network, no process, no
session and no repeated request, so the ratio says what those cost together.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TypeVar

import numpy as np

from ffs.bench.cases.bare_sqlite import BareSqlite
from ffs.bench.cases.common import SEED, Context, Outcome, figures, runs, take_turns
from ffs.bench.cluster import Work, metered, servers
from ffs.bench.measure import by_operations
from ffs.client.core import Core
from ffs.client.meta import MetaClient
from ffs.client.options import client_config
from ffs.errors import FFSError
from ffs.wire.messages import CloseEntry, CreateEntry, WriteSession

T = TypeVar("T")

CALL_PATHS = 1_000
STAT_GOAL = 50_000
CREATE_GOAL = 10_000

_STAT, _BARE_STAT = "stat_many", "bare SQLite, same paths"
_CREATE, _BARE_CREATE = "create_many + close_many", "bare SQLite, two rows a file"


class Tree:
    """The namespace that both sides get: /ROOT/d?/e?/f???, so a file's path has depth 4."""

    def __init__(self, root: str, *, smoke: bool) -> None:
        directories, files = (2, 50) if smoke else (10, 100)
        self.root = f"/{root}"
        self.outer = [f"{self.root}/d{i:02}" for i in range(directories)]
        self.inner = [f"{outer}/e{i:02}" for outer in self.outer for i in range(directories)]
        self.names = [f"f{i:03}" for i in range(files)]
        self.files = [f"{inner}/{name}" for inner in self.inner for name in self.names]

    def calls(self, count: int = 64) -> list[list[str]]:
        """Return reproducible batches of random paths."""
        picks = np.random.default_rng(SEED).integers(0, len(self.files), (count, CALL_PATHS))
        return [[self.files[i] for i in row] for row in picks.tolist()]


def measure(context: Context) -> Outcome:
    """Build the same tree on both sides, then let the four contestants take turns."""
    tree = Tree(f"ffs-bench-{os.getpid()}", smoke=context.plan.smoke)
    with ExitStack() as stack:
        where = stack.enter_context(servers(context))
        bare = stack.enter_context(BareSqlite(context.directory / "bare.sqlite"))
        core = Core(client_config({**where.options, "attr_ttl_ms": 0}))
        stack.callback(core.close)
        client = core.meta
        _build(client, bare, tree)
        stack.callback(client.rmdir, tree.root, recursive=True)
        series = take_turns(
            context,
            {
                _STAT: where.metered(_stat(client, tree)),
                _BARE_STAT: metered(_bare_stat(bare, tree), ()),
                _CREATE: where.metered(_create(client, tree)),
                _BARE_CREATE: metered(_bare_create(bare, tree), ()),
            },
        )
    compare, reach = series.compare, series.reach
    return Outcome(
        command="meta",
        conditions=context.conditions(
            call=f"{CALL_PATHS} entries, one call at a time",
            tree=f"{len(tree.files)} files in {len(tree.inner)} directories, depth 4",
            durability="every commit synced, on both sides",
        ),
        figures=figures(series, [_STAT, _BARE_STAT, _CREATE, _BARE_CREATE]),
        comparisons=[
            reach(f"paths/s of {STAT_GOAL:,}", _STAT, by_operations, STAT_GOAL),
            compare("stat_many", _STAT, _BARE_STAT, by_operations),
            reach(f"files/s of {CREATE_GOAL:,}", _CREATE, by_operations, CREATE_GOAL),
            compare("create_many + close_many", _CREATE, _BARE_CREATE, by_operations),
        ],
        runs=runs(series),
        notes=where.notes,
    )


def _build(client: MetaClient, bare: BareSqlite, tree: Tree) -> None:
    """Make the tree on both sides and compare what both then say about it."""
    for directory in (tree.root, *tree.outer, *tree.inner):
        client.mkdir(directory, mode=0o755, parents=True, exist_ok=False)
    _make_files(client, tree.files)
    bare.make_directories([p.encode() for p in (tree.root, *tree.outer, *tree.inner)])
    for inner in tree.inner:
        bare.create_many(inner.encode(), [name.encode() for name in tree.names])
    part = tree.calls(1)[0]
    ours = _checked(client.stat_many(part))
    theirs = bare.stat_many([path.encode() for path in part])
    assert [attr.size for attr in ours] == [row[7] for row in theirs]
    assert len({attr.inode for attr in ours}) == len({row[1] for row in theirs}) == len(set(part))


def _checked(answers: Sequence[T | FFSError]) -> list[T]:
    good = [answer for answer in answers if not isinstance(answer, FFSError)]
    if len(good) != len(answers):
        raise next(answer for answer in answers if isinstance(answer, FFSError))
    return good


def _make_files(client: MetaClient, paths: Sequence[str]) -> None:
    for start in range(0, len(paths), CALL_PATHS):
        part = paths[start : start + CALL_PATHS]
        entries = [CreateEntry(os.fsencode(path)) for path in part]
        sessions: list[WriteSession] = _checked(client.create_many(entries))
        closes = [CloseEntry(session.session, 0) for session in sessions]
        _checked(client.close_many(part, closes))


def _stat(client: MetaClient, tree: Tree) -> Work:
    batches = itertools.cycle(tree.calls())

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            answers = client.stat_many(next(batches))
            assert not isinstance(answers[0], FFSError)
            done += len(answers)
        return 0, done, {}

    return work


def _bare_stat(bare: BareSqlite, tree: Tree) -> Work:
    batches = itertools.cycle([[path.encode() for path in call] for call in tree.calls()])

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            done += len(bare.stat_many(next(batches)))
        return 0, done, {}

    return work


def _create(client: MetaClient, tree: Tree) -> Work:
    numbers = itertools.count()

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            number = next(numbers)
            _make_files(client, [f"{tree.outer[0]}/n{number}-{i}" for i in range(CALL_PATHS)])
            done += CALL_PATHS
        return 0, done, {}

    return work


def _bare_create(bare: BareSqlite, tree: Tree) -> Work:
    numbers = itertools.count()
    directory = tree.outer[0].encode()

    def work(until: float) -> tuple[int, int, dict[str, float]]:
        done = 0
        while time.perf_counter() < until:
            number = next(numbers)
            bare.create_many(directory, [b"n%d-%d" % (number, i) for i in range(CALL_PATHS)])
            done += CALL_PATHS
        return 0, done, {}

    return work
