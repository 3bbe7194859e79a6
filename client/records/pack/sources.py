"""Sources whose samples are bytes as they are: directories of files, lines of JSONL, records."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from ffs.client.records.files import SUFFIX
from ffs.client.records.pack.places import Entry, Place
from ffs.client.records.pack.units import Plan, Sample, Unit, unpack_fields
from ffs.client.records.records import Records
from ffs.errors import FormatError

STATE: Final = "pack.json"
NAMES: Final = ".names"
BATCH_BYTES: Final = 16 << 20
BATCH_SAMPLES: Final = 4_096


def plan_directory(place: Place, entries: Sequence[Entry], shard_bytes: int) -> Plan:
    """Each file is a sample, its path below the directory its key."""
    units, group, size = [], list[str](), 0
    for entry in entries:
        if group and size + entry.size > shard_bytes:
            units.append(Unit(size, partial(_read_files, place, group)))
            group, size = [], 0
        group.append(entry.name)
        size += entry.size
    if group:
        units.append(Unit(size, partial(_read_files, place, group)))
    return Plan(units, list(entries), named=True)


def _read_files(place: Place, names: Sequence[str]) -> Iterator[Sample]:
    for name in names:
        yield Sample(place.read(name), name or posixpath.basename(place.path))


# --- lines ----------------------------------------------------------------------------------------


def plan_lines(place: Place, entries: Sequence[Entry], shard_bytes: int) -> Plan:
    """Each line is a sample, without its end; a shard has the lines that begin in its range."""
    units = []
    for entry in entries:
        for start in range(0, entry.size, shard_bytes):
            end = min(start + shard_bytes, entry.size)
            units.append(Unit(end - start, partial(_read_lines, place, entry.name, start, end)))
    return Plan(units, list(entries))


def _read_lines(place: Place, name: str, start: int, end: int) -> Iterator[Sample]:
    with place.open(name) as file:
        position = start
        if start:
            file.seek(start - 1)
            position += len(file.readline()) - 1
        while position < end:
            line = file.readline()
            position += len(line)
            yield Sample(line.removesuffix(b"\n").removesuffix(b"\r"))


# --- records --------------------------------------------------------------------------------------


def plan_records(place: Place, entries: Sequence[Entry], shard_bytes: int) -> Plan:
    """Each record is a sample; what `ffs pack` left beside records says what they are."""
    names = {entry.name for entry in entries}
    state = read_state(place) if STATE in names else {}
    fields = bool(state.get("fields"))
    files = [entry for entry in entries if entry.name.endswith(SUFFIX) or not entry.name]
    units, named = [], False
    for entry in files:
        keys = entry.name.removesuffix(SUFFIX) + NAMES
        with _records(place, entry.name) as records:
            count = len(records)
        step = max(1, count * shard_bytes // max(entry.size, 1))
        named |= keys in names
        for first in range(0, count, step):
            last = min(first + step, count)
            read = partial(
                _read_records,
                place,
                entry.name,
                keys if keys in names else "",
                (first, last),
                fields,
            )
            units.append(Unit(entry.size * (last - first) // count, read))
    hints = state.get("hints", {})
    return Plan(units, [*entries], fields=fields, named=named, hints=hints)


def read_state(place: Place) -> dict[str, Any]:
    """Return what `ffs pack` wrote beside its shards."""
    try:
        state = json.loads(place.read(STATE))
    except ValueError as error:
        raise FormatError("not a file that `ffs pack` wrote", path=place.join(STATE)) from error
    if not isinstance(state, dict):
        raise FormatError("not a file that `ffs pack` wrote", path=place.join(STATE))
    return state


def _records(place: Place, name: str) -> Records:
    return Records(place.join(name), fs=place.ours)


def _read_records(
    place: Place, name: str, names: str, span: tuple[int, int], fields: bool
) -> Iterator[Sample]:
    keys = json.loads(place.read(names)) if names else None
    with _records(place, name) as records:
        for ids in _batches(records, *span):
            for number, sample in zip(ids.tolist(), records.read(ids), strict=True):
                value = unpack_fields(sample, place.join(name)) if fields else sample
                yield Sample(value, keys[number] if keys is not None else "")


def _batches(records: Records, first: int, last: int) -> Iterator[Any]:
    """Return runs of numbers whose samples are not too much for one read."""
    while first < last:
        ids = np.arange(first, min(last, first + BATCH_SAMPLES))
        ends = np.cumsum(records.lengths(ids))
        fit = max(1, int(np.searchsorted(ends, BATCH_BYTES, side="right")))
        yield ids[:fit]
        first += min(fit, len(ids))
