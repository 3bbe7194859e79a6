"""`ffs-bench dataloader --compare`: the same samples through ours and through other loaders.

Each stores the same bytes in its own format, with its defaults or what its documentation advises,
and loads them in random order with two workers into batches of tensors of shape (64, bytes). Ours
reads from a daemon over TCP and checks the CRC of every block; the others read local files from the
page cache (s3torchconnector: objects from an nginx on this machine), so their storage costs nothing
and ours does. Every loop reads a byte of each page of a batch: memory that is new for each batch
costs the loop's process faults as soon as anything is done with it. WebDataset's order is that of
shuffled files and a buffer of 1,000 samples: it has no other; LitData and MosaicML Streaming
shuffle as they do by default.

Nobody is left out in silence: a loader that cannot be installed, or fails, is a note with its
reason. Losing cases are printed like the others.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from ffs.bench.cases.common import Context, Outcome, figures, runs, take_turns
from ffs.bench.cases.dataloader import LARGE
from ffs.bench.cases.loading import (
    OWN_PYTHON,
    Shape,
    Truth,
    contestant,
    job_of,
    needs_torch,
    opened,
    own_job,
)
from ffs.bench.cases.reading import DataSet, file_system, stored
from ffs.bench.machine import pinned
from ffs.bench.measure import (
    Better,
    Comparison,
    Runner,
    Series,
    by_client_cpu,
    by_cpu,
    by_operations,
)
from ffs.bench.peers import servers
from ffs.bench.peers.environments import PEERS, Absent, Peer, python_of
from ffs.errors import ConfigError, UnavailableError

OURS = "FFS, TCP"
GOAL = 2.0


def measure(context: Context) -> Outcome:
    """Let all loaders that can be had take turns, one shape after another."""
    needs_torch()
    context = replace(context, placement=replace(context.placement, shared=True))
    found = Outcome("dataloader --compare", {}, [], [], [])
    versions: dict[str, str] = {}
    with stored(context) as data:
        found.notes.extend(data.where.notes)
        for shape in LARGE:
            with ExitStack() as stack:
                stack.enter_context(pinned(context.placement.client_cpus))
                entered = _enter(stack, shape.of(context), context, data)
                series = take_turns(context, entered.contestants)
            versions |= entered.versions
            found.notes.extend(entered.notes)
            found.figures.extend(figures(series, list(entered.contestants)))
            found.runs.extend(runs(series))
            ours, *others = entered.contestants
            for theirs in others:
                found.comparisons.extend(_compare(series, ours, theirs))
    conditions = context.conditions(
        loaders=", ".join(sorted(set(versions.values()))),
        order="random, as each loader has it; an epoch after the other, workers kept",
        data=f"{context.size_bytes} bytes; an epoch of every loader verified beforehand, and the "
        "last batch of every timed run",
    )
    return replace(found, conditions=conditions)


def _compare(series: Series, ours: str, theirs: str) -> list[Comparison]:
    smaller = Better.SMALLER
    title = theirs.replace(": ", ", beside ")
    return [
        series.compare(f"{title}, speed", ours, theirs, by_operations, goal=GOAL),
        series.compare(f"{title}, client's CPU", ours, theirs, by_client_cpu, better=smaller),
        series.compare(f"{title}, CPU of both", ours, theirs, by_cpu, better=smaller),
    ]


@dataclass(slots=True)
class _Entered:
    """The loaders that take part, ours first, and why others do not."""

    contestants: dict[str, Runner] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _enter(stack: ExitStack, shape: Shape, context: Context, data: DataSet) -> _Entered:
    """Start every loader on the same samples."""
    found, name = _Entered(), f"loaders-{shape.sample_bytes}"
    fs = stack.enter_context(file_system(data.where, context))
    job = stack.enter_context(own_job(shape, data, context, fs, name))
    truth = Truth(job)
    process, version = stack.enter_context(opened("ours", OWN_PYTHON, job, truth=truth))
    found.versions[OURS] = f"ffs {version}"
    title = f"{shape.title}: {OURS}"
    found.contestants[title] = contestant(OURS, process, truth, data.where.pids, touch=True)
    for peer in PEERS:
        context.progress(f"preparing {peer.title}")
        try:
            _enter_peer(stack, found, peer, shape, context, data, truth)
        except (Absent, ConfigError, UnavailableError) as error:
            hint = getattr(error, "hint", "")
            reason = f"{error}" + (f" ({hint.splitlines()[-1]})" if hint else "")
            found.notes.append(f"{shape.title}: {peer.title} is absent: {reason}")
    return found


def _enter_peer(
    stack: ExitStack,
    found: _Entered,
    peer: Peer,
    shape: Shape,
    context: Context,
    data: DataSet,
    truth: Truth,
) -> None:
    """Start one loader of another project, and the server that it needs."""
    python = python_of(peer, context.ffrecord_source)
    place = context.directory / f"loaders-{shape.sample_bytes}-{peer.module}"
    place.mkdir()
    served_by: tuple[int, ...] = ()
    with ExitStack() as tried:
        directory, more = place / "samples", {}
        if peer.served:
            with pinned(context.placement.server_cpus):
                nginx = tried.enter_context(servers.nginx(place / "nginx", data.plain))
            directory = place / "nginx" / "www" / servers.BUCKET / "samples"
            more = {"endpoint": f"http://{servers.HOST}:{nginx.port}", "bucket": servers.BUCKET}
            served_by = (nginx.pid,)
        job = job_of(shape, data, directory, more)
        process, version = tried.enter_context(opened(peer.module, python, job, truth=truth))
        stack.push(tried.pop_all())
    found.versions[peer.title] = version
    title = f"{shape.title}: {peer.title}"
    found.contestants[title] = contestant(peer.title, process, truth, served_by, touch=True)
