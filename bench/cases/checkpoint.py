"""`ffs-bench checkpoint`: save and load a state dict, beside plain writes and reads, and fsspec.

Ours is torch.distributed.checkpoint with ffs.torch's StorageWriter and StorageReader. The limits
are what `ffs-bench write` and `seq` measure, in turn with it: one `pipe_file` of as many bytes, and
`readv_into` of 16 ranges of 1 MiB a call. The alternative is torch's own FsspecWriter and
FsspecReader on the same URLs, through the same file system object.

A run saves or loads everything once, however long that takes; `--seconds` has no meaning here.
Plain writes and fsspec's saves, which take many seconds each, are held against ours in rounds of
their own, fewer than `--pairs` says: enough for an interval, in minutes. Loading fills the same
tensors every time, so that all their memory is there already. What saves and loads is run once
before, to be verified, so that no round is spent on getting warm.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter

from ffs.bench.cases.common import MIB, SEED, Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.reading import Caller, DataSet, file_system, in_order, stored
from ffs.bench.cases.write import wait_for_drops
from ffs.bench.machine import FullCache
from ffs.bench.measure import (
    PAIRS_MIN,
    Better,
    Comparison,
    Runner,
    Sample,
    Series,
    by_bytes,
    by_cpu,
)
from ffs.client.checkpoint.storage_reader import StorageReader
from ffs.client.checkpoint.storage_writer import StorageWriter
from ffs.client.filesystem import FFSFileSystem
from ffs.errors import ChecksumError

SAVE_GOAL, LOAD_GOAL = 0.8, 0.85
MATRIX_BYTES_MAX: Final = 16 * MIB
VECTOR_BYTES: Final = 4096
RANGES_A_CALL: Final = 16
SAVE_PAIRS_MAX: Final = 7
FSSPEC_PAIRS_MAX: Final = PAIRS_MIN
READ_BYTES_MAX: Final = 512 * MIB
"""Of what `readv_into` walks through: as `seq` has it, beyond every cache of a CPU."""
_SETTINGS: Final = {"meta.gc_delay_s": 0}
"""So that a run does not find the last one's bytes on the disk."""

_SAVE, _WRITE, _FSSPEC_SAVE = "save", "pipe_file", "save, fsspec"
_LOAD, _READ, _FSSPEC_LOAD = "load", "readv_into", "load, fsspec"

State = dict[str, torch.Tensor]
Work = Callable[[float], tuple[int, int, Mapping[str, float]]]


def measure(context: Context) -> Outcome:
    """Verify what is saved and loaded once by both, then let all take turns."""
    state = state_of(context.size_bytes)
    total = sum(tensor.nbytes for tensor in state.values())
    with (
        stored(_for_reading(context), settings=_SETTINGS) as data,
        file_system(data.where, context, skip_instance_cache=False) as fs,
    ):
        job = _Job(fs, data, state, smoke=context.plan.smoke)
        verified = job.verify()
        # Loads first: filling memory for the saves takes from the page cache what they read.
        loading = _rounds(context, job.loading(), context.plan.pairs)
        cache = FullCache(context.directory, smoke=context.plan.smoke)
        saving = _rounds(context, job.saving(cache), SAVE_PAIRS_MAX)
        fs.rm(job.kept, recursive=True)
    return Outcome(
        command="checkpoint",
        conditions=context.conditions(
            state=f"{len(state)} tensors, {total} bytes",
            data=f"{verified} delivered bytes verified beforehand",
            saving="one rank; memory full of clean page cache before each run",
            loading="one rank, from the page cache, into tensors that are there already",
        ),
        figures=[
            *figures(saving[0], [_SAVE, _WRITE]),
            *figures(saving[1], [_FSSPEC_SAVE]),
            *figures(loading[0], [_LOAD, _READ]),
            *figures(loading[1], [_FSSPEC_LOAD]),
        ],
        comparisons=[*_compare_saves(*saving), *_compare_loads(*loading)],
        runs=[run for series in (*saving, *loading) for run in runs(series)],
        notes=data.where.notes,
    )


def _for_reading(context: Context) -> Context:
    return replace(context, size_bytes=min(context.size_bytes, READ_BYTES_MAX))


def _rounds(
    context: Context, contestants: Mapping[str, Runner], pairs_max: int
) -> tuple[Series, Series]:
    """Let ours take turns with the limit, then with fsspec.

    Args:    contestants: ours, the limit and fsspec, in that order
    """
    ours, limit, fsspec = contestants

    def held_against(other: str, most: int) -> Series:
        plan = replace(context.plan, pairs=min(context.plan.pairs, most))
        both = {name: contestants[name] for name in (ours, other)}
        return take_turns(replace(context, plan=plan), both, warm=False)

    return held_against(limit, pairs_max), held_against(fsspec, FSSPEC_PAIRS_MAX)


def _compare_saves(limit: Series, fsspec: Series) -> list[Comparison]:
    smaller = Better.SMALLER
    return [
        limit.compare("saving / writing", _SAVE, _WRITE, by_bytes, goal=SAVE_GOAL),
        fsspec.compare("saving, factor over fsspec", _SAVE, _FSSPEC_SAVE, by_bytes, goal=1.0),
        limit.compare("saving, CPU / writing", _SAVE, _WRITE, by_cpu, better=smaller),
        fsspec.compare("saving, CPU / fsspec", _SAVE, _FSSPEC_SAVE, by_cpu, better=smaller),
    ]


def _compare_loads(limit: Series, fsspec: Series) -> list[Comparison]:
    smaller = Better.SMALLER
    return [
        limit.compare("loading / reading", _LOAD, _READ, by_bytes, goal=LOAD_GOAL),
        fsspec.compare("loading, factor over fsspec", _LOAD, _FSSPEC_LOAD, by_bytes, goal=1.0),
        limit.compare("loading, CPU / reading", _LOAD, _READ, by_cpu, better=smaller),
        fsspec.compare("loading, CPU / fsspec", _LOAD, _FSSPEC_LOAD, by_cpu, better=smaller),
    ]


def state_of(size_bytes: int) -> State:
    """Return a state dict of noise of about so many bytes: matrices, each with a small vector."""
    matrix_bytes = min(MATRIX_BYTES_MAX, max(VECTOR_BYTES, size_bytes // 8))
    dice = torch.Generator().manual_seed(SEED)
    state: State = {}
    for layer in range(max(1, size_bytes // matrix_bytes)):
        for name, count in (("weight", matrix_bytes // 4), ("bias", VECTOR_BYTES // 4)):
            state[f"{layer}.{name}"] = torch.rand(count, generator=dice)
    return state


class _Job:
    """Saving and loading one state, by ours and by fsspec; `kept` is where a checkpoint of each
    stays for loading."""

    def __init__(self, fs: FFSFileSystem, data: DataSet, state: State, *, smoke: bool) -> None:
        self._smoke = smoke
        self._fs, self._data, self._state = fs, data, state
        self._target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        self._total = sum(tensor.nbytes for tensor in state.values())
        self._options = {k: v for k, v in fs.storage_options.items() if k != "url"}
        self._numbers = itertools.count()
        self.kept = f"/ffs-bench-{os.getpid()}-checkpoints"

    def verify(self) -> int:
        """Save and load by each; this is the only time that tensors are looked at."""
        for save, load in ((self._save, self._load), (self._fsspec_save, self._fsspec_load)):
            save(f"{self.kept}/{save.__name__}")
            for tensor in self._target.values():
                tensor.zero_()
            load(f"{self.kept}/{save.__name__}")
            for name, tensor in self._state.items():
                if not tensor.equal(self._target[name]):
                    raise ChecksumError("another tensor was loaded than was saved", tensor=name)
        return 2 * self._total

    def loading(self) -> dict[str, Runner]:
        """Return what takes turns at loading; what `readv_into` reads is verified, and cached."""
        caller = Caller(self._fs, self._data, in_order(self._data.size_bytes, MIB, RANGES_A_CALL))
        caller.verify(MIB)
        return {
            _LOAD: self._metered(lambda: self._load(f"{self.kept}/_save")),
            _READ: self._data.where.metered(caller.once(MIB)),
            _FSSPEC_LOAD: self._metered(lambda: self._fsspec_load(f"{self.kept}/_fsspec_save")),
        }

    def saving(self, cache: FullCache) -> dict[str, Runner]:
        """Return what takes turns at saving; the same bytes, for `pipe_file` in one piece."""
        payload = torch.cat(list(self._state.values())).numpy().data
        return {
            _SAVE: self._saving(self._save, cache),
            _WRITE: self._saving(lambda path: self._fs.pipe_file(path, payload), cache),
            _FSSPEC_SAVE: self._saving(self._fsspec_save, cache),
        }

    def _metered(self, work: Callable[[], None]) -> Runner:
        def once(until: float) -> tuple[int, int, Mapping[str, float]]:
            work()
            return self._total, 1, {}

        return self._data.where.metered(once)

    def _saving(self, save: Callable[[str], None], cache: FullCache) -> Runner:
        def run(seconds: float) -> Sample:
            path = f"{self.kept}/{next(self._numbers)}"
            os.sync()
            cache.fill()
            sample = self._metered(lambda: save(path))(seconds)
            self._fs.rm(path, recursive=True)
            if not self._smoke:
                wait_for_drops(self._data.where)
            return sample

        return run

    def _url(self, path: str) -> str:
        return self._fs.unstrip_protocol(path)

    def _save(self, path: str) -> None:
        writer = StorageWriter(self._url(path), storage_options=self._options)
        with _quiet():
            state_dict_saver.save(dict(self._state), storage_writer=writer, no_dist=True)

    def _load(self, path: str) -> None:
        reader = StorageReader(self._url(path), storage_options=self._options)
        with _quiet():
            state_dict_loader.load(dict(self._target), storage_reader=reader, no_dist=True)

    def _fsspec_save(self, path: str) -> None:
        writer = FsspecWriter(self._url(path), sync_files=False, **self._options)
        with _quiet():
            state_dict_saver.save(dict(self._state), storage_writer=writer, no_dist=True)

    def _fsspec_load(self, path: str) -> None:
        reader = FsspecReader(self._url(path), **self._options)
        with _quiet():
            state_dict_loader.load(dict(self._target), storage_reader=reader, no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning of what is meant: there is one rank."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torch")
        yield
