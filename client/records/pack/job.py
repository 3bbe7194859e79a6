"""Plans a conversion and runs it: which shard comes from where, several at a time, resumable.

Role: ffs/cli/pack.py calls `convert`; next hops are a source's plan and a target's shards.

How it can be killed at any time:
1. `pack.json` in the target says what is being made of what, before the first shard;
2. every shard appears whole, under a name that follows from the plan alone;
3. the same call again makes the same plan, finds it in `pack.json`, and leaves out the shards that
   are there; for a directory of files it writes each file again, with the same bytes;
4. `pack.json` is told at the end that all is there.
A target that another plan has begun is refused.
Threads: shards are made in a few; Failure behaviour: the first error ends the call, as
client/parallel.py has it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Final, Protocol

from ffs.client.parallel import Stop, run_all
from ffs.client.records.pack import mds, sources, tar
from ffs.client.records.pack.places import Entry, Place
from ffs.client.records.pack.sources import STATE, read_state
from ffs.client.records.pack.targets import FileShard, LineShard, RecordShard, Shard
from ffs.client.records.pack.units import Plan, Unit
from ffs.errors import ExistsError, FormatError, InvalidError, NotFoundError

SUFFIXES: Final = {
    "ffs": ".ffr",
    "ffrecord": ".ffr",
    "dir": "",
    "jsonl": ".jsonl",
    "parquet": ".parquet",
    "arrow": ".arrow",
    "tar": ".tar",
    "mds": ".mds",
}
"""What a target may be, and what its shards' names end in; a source of records is `records`."""
_ENDINGS: Final = {
    ".ffr": "records",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
}
SOURCES: Final = ("records", "dir", "jsonl", "parquet", "arrow", "tar", "mds")
TARGETS: Final = tuple(SUFFIXES)
PARTIAL: Final = ".partial"


class Tell(Protocol):
    """Told of progress."""

    def advance(self, count: int) -> None:
        """So many bytes of the source are done."""


@dataclass(slots=True)
class Report:
    """What was done: shards made now and found from before, samples and bytes of those made."""

    source: str
    target: str
    shards: int = 0
    skipped: int = 0
    samples: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Conversion:
    """What is to be made of what."""

    source: Place
    target: Place
    source_kind: str = ""
    """"": told by names."""
    target_kind: str = "ffs"
    shard_bytes: int = 256 << 20
    column: str = ""
    jobs: int = 4
    plan: Plan = field(default_factory=lambda: Plan([], []))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def prepare(self) -> int:
        """Find out what there is to do; return how many bytes it is.

        Raises:  NotFoundError, FormatError, InvalidError
        """
        entries = self.source.files()
        if not entries:
            raise NotFoundError("there is no file below", path=self.source.path)
        self.source_kind = self.source_kind or _kind_of(entries, self.source.path)
        self.plan = self._plan(entries)
        return sum(unit.size for unit in self.plan.units)

    def _plan(self, entries: list[Entry]) -> Plan:
        kind, place, shard = self.source_kind, self.source, self.shard_bytes
        if self.column and kind not in ("parquet", "arrow"):
            raise InvalidError(f"{kind} has no columns to choose from")
        if kind == "dir":
            return sources.plan_directory(place, entries, shard)
        if kind == "records":
            return sources.plan_records(place, entries, shard)
        if kind == "mds":
            return mds.plan(place, entries, shard)
        chosen = [e for e in entries if _ENDINGS.get(_ending(e.name)) == kind or not e.name]
        if not chosen:
            raise FormatError(f"there is no file of the format {kind} below", path=place.path)
        if kind == "jsonl":
            return sources.plan_lines(place, chosen, shard)
        if kind == "tar":
            return tar.plan(place, chosen, shard)
        tables: Plan = _columns().Tables(place, self.column).plan(chosen, shard)
        return tables

    def run(self, progress: Tell, stop: Stop) -> Report:
        """Make the shards that are not there yet."""
        report = Report(self.source_kind, self.target_kind)
        self._begin()
        there = self.target.names() if self.target_kind != "dir" else set()
        names = [self._name(number) for number in range(len(self.plan.units))]
        work: list[Callable[[], None]] = []
        for number, unit in enumerate(self.plan.units):
            if names[number] in there:
                report.skipped += 1
                progress.advance(unit.size)
            else:
                work.append(partial(self._make, number, unit, report, progress, stop))
        run_all(work, self.jobs, stop)
        if self.target_kind == "mds":
            mds.write_index(self.target, names)
        elif self.target_kind != "dir":
            self._write_state(complete=True)
        return report

    def _begin(self) -> None:
        """Say what the target is going to be; refuse one that is something else."""
        names = self.target.names()
        if self.target_kind == "dir":
            return
        if STATE in names:
            if read_state(self.target).get("plan") != self._fingerprint():
                raise ExistsError(
                    "the target holds what was made of something else, or in another way",
                    hint="choose another target, or remove it",
                    path=self.target.path,
                )
        elif self.target.fs.exists(self.target.path) and (names or not self.target.isdir()):
            raise ExistsError(
                "the target is there already, and not from `ffs pack`",
                hint="choose another target, or remove it",
                path=self.target.path,
            )
        for name in names:
            if name.endswith(PARTIAL) and self.target.ours is None:
                self.target.remove(name)  # what a killed run was writing
        if STATE not in names:
            self._write_state(complete=False)

    def _write_state(self, *, complete: bool) -> None:
        state = {
            "version": 1,
            "plan": self._fingerprint(),
            "from": self.source_kind,
            "to": self.target_kind,
            "fields": self.plan.fields,
            "hints": self.plan.hints,
            "complete": complete,
        }
        self.target.write(STATE, json.dumps(state).encode())

    def _fingerprint(self) -> str:
        what = [self.source_kind, self.target_kind, self.shard_bytes, self.plan.identity]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _name(self, number: int) -> str:
        return f"part-{number:05d}{SUFFIXES[self.target_kind]}"

    def _make(self, number: int, unit: Unit, report: Report, progress: Tell, stop: Stop) -> None:
        shard, left, samples, size = self._shard(number, unit), unit.size, 0, 0
        try:
            for sample in unit.samples():
                if stop:
                    shard.discard()
                    return
                shard.append(sample)
                length = len(sample.value) if not isinstance(sample.value, dict) else 0
                samples, size = samples + 1, size + length
                step = min(left, length)
                left -= step
                progress.advance(step)
            shard.close()
        except BaseException:
            shard.discard()
            raise
        progress.advance(left)
        with self._lock:
            report.shards += 1
            report.samples += samples
            report.bytes += unit.size

    def _shard(self, number: int, unit: Unit) -> Shard:
        name, kind, place = self._name(number), self.target_kind, self.target
        prefix = f"{number:05d}-"
        if kind == "dir":
            return FileShard(place, prefix)
        if kind in ("ffs", "ffrecord"):
            # FFRecord's header comes first: a piece is read once more to count its samples.
            count = sum(1 for _ in unit.samples()) if kind == "ffrecord" else None
            return RecordShard(place, name, count, named=self.plan.named)
        sink = place.sink(name)
        if kind == "jsonl":
            return LineShard(sink)
        if kind == "tar":
            return tar.TarShard(sink, prefix)
        if kind == "mds":
            return mds.MdsShard(sink, self.plan.hints)
        made: Shard = _columns().TableShard(sink, kind, self.plan.hints)
        return made


def _columns() -> Any:
    """Import what needs pyarrow, which an installation may lack."""
    return import_module("ffs.client.records.pack.columns")


def _ending(name: str) -> str:
    return next((end for end in _ENDINGS if name.lower().endswith(end)), "")


def _kind_of(entries: Sequence[Entry], path: str) -> str:
    """Return what a source is, by the names of its files."""
    if entries[0].name == "":
        return _ENDINGS.get(_ending(path), "dir")
    names = {entry.name for entry in entries}
    if mds.INDEX in names and any(name.endswith(mds.SUFFIX) for name in names):
        return "mds"
    kinds = {_ENDINGS.get(_ending(n), "dir") for n in names if not n.endswith(sources.NAMES)}
    if STATE in names:
        kinds.discard("dir")
    return kinds.pop() if len(kinds) == 1 else "dir"
