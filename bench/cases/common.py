"""What the cases share: their surroundings, the data set, samples from programs, the outcome.

A case builds contestants (functions that run for so many seconds and return a Sample), hands them
to measure.run_rounds, and describes the result as an Outcome, which bench.report renders.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ffs.bench import rawtools
from ffs.bench.latency import Latencies
from ffs.bench.link import Link
from ffs.bench.machine import Placement, pinned
from ffs.bench.measure import (
    GB,
    Comparison,
    Metric,
    Plan,
    Runner,
    Sample,
    Series,
    run_rounds,
    spinners,
)

MIB = 1 << 20
DEST_BYTES = 64 * MIB
"""Destination memory on both sides of every read pair, used round robin and touched beforehand."""
RECEIVE_BUFFER_BYTES = 2 * MIB
SEED = 20_240_601


@dataclass(frozen=True, slots=True)
class Context:
    """Under what conditions a case runs. `directory` is an empty one of its own."""

    plan: Plan
    placement: Placement
    directory: Path
    congestion: str = "cubic"
    size_bytes: int = 512 * MIB
    url: str = ""
    key_file: str = ""
    sync_every_mib: int = 0
    ffrecord_source: Path | None = None
    link: Link | None = None
    """Servers and clients are at its two ends; None: on this machine's loopback."""
    progress: Callable[[str], None] = lambda text: None

    def conditions(self, **more: str) -> dict[str, str]:
        """Return the conditions that hold for both sides, for the report."""
        return {
            "placement": str(self.placement),
            "congestion control": self.congestion,
            "spinners": "one SCHED_IDLE per CPU" if self.plan.spinners else "none",
            "plan": f"{self.plan.pairs} pairs of {self.plan.seconds:g} s"
            + (" (smoke run: the figures mean nothing)" if self.plan.smoke else ""),
            **more,
        }


@dataclass(frozen=True, slots=True)
class Figure:
    """One contestant's medians."""

    name: str
    bytes_rate: float
    operation_rate: float
    client_cpu: float
    server_cpu: float | None
    cpu_unit: str
    more: Mapping[str, float] = field(default_factory=dict)
    latency_us: list[tuple[float, float]] = field(default_factory=list)
    """Points (microseconds, share of operations that took no longer)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a case found: conditions, medians, comparisons, and every run behind them."""

    command: str
    conditions: dict[str, str]
    figures: list[Figure]
    comparisons: list[Comparison]
    runs: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


def take_turns(context: Context, contestants: Mapping[str, Runner], *, warm: bool = True) -> Series:
    """Run a case's contestants with the client pinned and the spinners on."""
    with spinners(context.plan), pinned(context.placement.client_cpus):
        return run_rounds(contestants, context.plan, warm=warm, progress=context.progress)


def data_set(
    path: Path, size_bytes: int, *, seed: int = SEED
) -> np.memmap[Any, np.dtype[np.uint8]]:
    """Write `size_bytes` of reproducible noise to `path`; return it mapped and thereby cached."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as file:
        for start in range(0, size_bytes, 16 * MIB):
            file.write(generator.bytes(min(16 * MIB, size_bytes - start)))
    return np.memmap(path, dtype=np.uint8, mode="r")


def touched(size_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return destination memory whose pages are all there already, from a page's start on.

    Why: the plain C programs have it like that. NumPy's own begins 16 bytes behind one, where the
    kernel's copy takes about a twentieth more CPU time.
    """
    memory = np.ones(size_bytes + mmap.PAGESIZE, dtype=np.uint8)
    start = -memory.ctypes.data % mmap.PAGESIZE
    return memory[start : start + size_bytes]


_RAW_FIELDS = (
    "seconds",
    "bytes",
    "operations",
    "client_cpu_s",
    "server_cpu_s",
    "checked",
    "minor_faults",
)


def raw_sample(result: Mapping[str, Any], latencies: Path | None = None) -> Sample:
    """Turn what a plain C program printed, and the latencies that it left, into a sample."""
    more = {key: value for key, value in result.items() if key not in _RAW_FIELDS}
    more["faults_per_gb"] = result["minor_faults"] / result["bytes"] * GB
    found = None
    if latencies is not None:
        found = Latencies()
        found.add_ns(np.fromfile(latencies, dtype=np.float32).astype(np.float64) * 1e3)
        latencies.unlink()
        more |= found.percentiles()
    return Sample(
        seconds=result["seconds"],
        bytes=result["bytes"],
        operations=result["operations"],
        client_cpu_s=result["client_cpu_s"],
        server_cpu_s=result["server_cpu_s"],
        more=more,
        latencies=found,
    )


def raw_options(context: Context, **options: rawtools.Option) -> dict[str, rawtools.Option]:
    """Return the options of a plain C program under this context's conditions."""
    return {
        "congestion": context.congestion,
        "receive_buffer_bytes": RECEIVE_BUFFER_BYTES,
        "dest_bytes": DEST_BYTES,
        **(context.link.raw_options() if context.link else {}),
        **rawtools.placed(context.placement),
        **options,
    }


def raw_runner(context: Context, program: str, **options: rawtools.Option) -> Runner:
    """Return a contestant that runs a plain C program under this context's conditions."""
    chosen = raw_options(context, **options)
    return lambda seconds: raw_sample(rawtools.run_with(program, {**chosen, "seconds": seconds}))


def raw_latency_runner(context: Context, **options: rawtools.Option) -> Runner:
    """Return a contestant of bench/raw/small.c that keeps what every call took."""
    left = context.directory / "latencies.raw"
    chosen = raw_options(context, latencies=left, **options)
    return lambda seconds: raw_sample(
        rawtools.run_with("small", {**chosen, "seconds": seconds}), left
    )


def figures(series: Series, names: Sequence[str]) -> list[Figure]:
    """Return the medians of contestants. CPU is per GB, or per million operations without bytes."""
    return [_figure(series, name) for name in names]


def _figure(series: Series, name: str) -> Figure:
    samples = series.samples(name)
    per_byte = samples[0].bytes > 0

    def share(cpu_s: float, sample: Sample) -> float:
        return cpu_s / sample.bytes * GB if per_byte else cpu_s / sample.operations * 1e6

    seen = all(sample.server_cpu_s is not None for sample in samples)
    return Figure(
        name=name,
        bytes_rate=series.median(name, lambda s: s.bytes_rate),
        operation_rate=series.median(name, lambda s: s.operation_rate),
        client_cpu=series.median(name, lambda s: share(s.client_cpu_s, s)),
        server_cpu=series.median(name, lambda s: share(s.server_cpu_s or 0.0, s)) if seen else None,
        cpu_unit="CPU-s/GB" if per_byte else "CPU-s per million",
        more={key: series.median(name, _extra(key)) for key in sorted(samples[0].more)},
        latency_us=_distribution(samples),
    )


def _distribution(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Return the distribution of the latencies of all runs together."""
    found = [sample.latencies for sample in samples if sample.latencies is not None]
    if not found:
        return []
    together = Latencies()
    for each in found:
        together.add(each)
    return together.curve()


def _extra(key: str) -> Metric:
    return lambda sample: sample.more[key]


def runs(series: Series) -> list[dict[str, Any]]:
    """Return every run for JSON: `{"contestant": ..., "round": ..., "steal": ..., sample}`."""
    return [
        {
            "contestant": name,
            "round": index,
            "steal": run.spent.steal,
            "seconds": run.sample.seconds,
            "bytes": run.sample.bytes,
            "operations": run.sample.operations,
            "client_cpu_s": run.sample.client_cpu_s,
            "server_cpu_s": run.sample.server_cpu_s,
            **run.sample.more,
        }
        for index, each in enumerate(series.rounds)
        for name, run in each.items()
    ]
