"""`ffs-bench dataloader`: what arrives in a training loop, beside `readv_into` alone.

Over TCP, random order: 64 and 256 KiB samples with two workers against `readv_into` of the same
samples in one process without torch; 4 KiB samples with one worker against a number of samples a
second. Both sides may use both CPUs, as may the servers; neither looks at what arrived. Then the
same loop, now reading a byte of each page, runs under bench/raw/copycount.c with 0, 1 and 2
workers: how often a warm loop and its workers fault, and what is copied in user space for each byte
that arrives (a forked worker counts in the file of the process that it came from, so the ratio is
that of all of them together).

`--compare` is bench/cases/loaders.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from ffs.bench import rawtools
from ffs.bench.cases.common import Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.copies import GOAL as COPIES_GOAL
from ffs.bench.cases.copies import totals
from ffs.bench.cases.loading import (
    KIB,
    OWN_PYTHON,
    Shape,
    Truth,
    contestant,
    needs_torch,
    opened,
    own_job,
    own_options,
    scattered_batches,
)
from ffs.bench.cases.reading import Caller, DataSet, file_system, stored
from ffs.bench.cluster import Work
from ffs.bench.machine import pinned
from ffs.bench.measure import (
    Better,
    Comparison,
    Runner,
    Series,
    bounded,
    by_bytes,
    by_cpu,
    by_operations,
)
from ffs.client.filesystem import FFSFileSystem

LARGE = (Shape(64 * KIB, 64, 2), Shape(256 * KIB, 64, 2))
SMALL = Shape(4 * KIB, 1024, 1)
COUNTED = tuple(Shape(64 * KIB, 64, workers) for workers in (0, 1, 2))
SPEED_GOAL = 0.8
SMALL_GOAL = 100_000
MAIN_FAULTS_MAX, WORKER_FAULTS_MAX = 3, 150
LOADER, ALONE = "DataLoader", "readv_into alone"


def measure(context: Context) -> Outcome:
    """Load samples of each shape beside `readv_into`, then count copies."""
    needs_torch()
    context = replace(context, placement=replace(context.placement, shared=True))
    found = Outcome("dataloader", {}, [], [], [])
    with stored(context) as data:
        for shape in (each.of(context) for each in (*LARGE, SMALL)):
            with _contestants(shape, context, data) as contestants:
                series = take_turns(context, contestants)
            found.figures.extend(figures(series, list(contestants)))
            found.comparisons.extend(_judge(series, shape, list(contestants)))
            found.runs.extend(runs(series))
        for shape in COUNTED:
            found.comparisons.extend(_counted(shape.of(context), context, data))
        notes = [*data.where.notes, "the loops that copies and faults are counted in are not timed"]
    conditions = context.conditions(
        order="random; each loader an epoch after the other, workers kept",
        data=f"{context.size_bytes} bytes; an epoch of every loader verified beforehand, and the "
        "last batch of every timed run",
        loader="ffs.torch.DataLoader, RecordDataset, ElasticSampler; CRC on; reads ahead 2 batches "
        "a worker",
    )
    return replace(found, conditions=conditions, notes=notes)


@contextmanager
def _client(context: Context, data: DataSet) -> Iterator[FFSFileSystem]:
    """Have a client with the options that the loader gets, and no others."""
    options = own_options(data, context)
    fs = FFSFileSystem(url=data.where.url, skip_instance_cache=True, **options)
    try:
        yield fs
    finally:
        fs.close()


@contextmanager
def _contestants(shape: Shape, context: Context, data: DataSet) -> Iterator[dict[str, Runner]]:
    """Yield the loader and what it is held against."""
    name = f"{shape.sample_bytes}-{shape.batch}"
    with ExitStack() as stack:
        stack.enter_context(pinned(context.placement.client_cpus))
        fs = stack.enter_context(_client(context, data))
        job = stack.enter_context(own_job(shape, data, context, fs, name))
        truth = Truth(job)
        process, _ = stack.enter_context(opened("ours", OWN_PYTHON, job, truth=truth))
        caller = Caller(fs, data, scattered_batches(job))
        caller.verify(shape.sample_bytes)
        yield {
            f"{shape.title}: {LOADER}": contestant(
                LOADER, process, truth, data.where.pids, touch=False
            ),
            f"{shape.title}: {ALONE}": data.where.metered(_alone(caller, shape)),
        }


def _alone(caller: Caller, shape: Shape) -> Work:
    return caller.batches(shape.sample_bytes)


def _judge(series: Series, shape: Shape, names: list[str]) -> list[Comparison]:
    ours, alone = names
    title, smaller = shape.title, Better.SMALLER
    large = shape.sample_bytes != SMALL.sample_bytes
    found = [
        series.compare(
            f"{title}, speed", ours, alone, by_bytes, goal=SPEED_GOAL if large else None
        ),
        series.compare(f"{title}, CPU of both", ours, alone, by_cpu, better=smaller),
    ]
    if not large:
        found.append(series.reach(f"{title}, samples", ours, by_operations, SMALL_GOAL))
    return found


def _counted(shape: Shape, context: Context, data: DataSet) -> list[Comparison]:
    """Loop under the counter; hold copies and page faults against their bounds."""
    name = f"counted-{shape.workers}"
    prefix = context.directory / f"{name}-copies"
    environment = {"LD_PRELOAD": str(rawtools.build("copycount")), "COPYCOUNT_OUT": str(prefix)}
    with file_system(data.where, context) as fs, own_job(shape, data, context, fs, name) as job:
        truth = Truth(job)
        counted = opened("ours", OWN_PYTHON, job, truth=truth, environment=environment)
        with counted as (process, _):
            run = contestant(LOADER, process, truth, data.where.pids, touch=True)
            run(context.plan.seconds)
            before = totals(f"{prefix}.{process.pid}")[0]
            sample = run(context.plan.seconds)
            copied = totals(f"{prefix}.{process.pid}")[0] - before
    found = {
        "copied bytes per byte": (copied / sample.bytes, COPIES_GOAL),
        "faults a batch, loop": (sample.more["main_faults_per_batch"], MAIN_FAULTS_MAX),
        "faults a batch, workers": (sample.more["worker_faults_per_batch"], WORKER_FAULTS_MAX),
    }
    return [
        bounded(f"{shape.title}, {what}", LOADER, figure, limit, unit="", smoke=False)
        for what, (figure, limit) in found.items()
        if shape.workers or "workers" not in what
    ]
