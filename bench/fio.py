"""fio: what the disk under a directory does without any of our code.

Used by bench/cases (roofline, cold). Reads bypass the page cache and keep `depth` requests in
flight by io_uring, or by libaio where io_uring is refused. fio reports its own time, so that its
start is not counted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ffs.bench.cases.common import Context
from ffs.bench.measure import Runner, Sample
from ffs.errors import ConfigError, NativeError

_EXTRA_S = 60
_ENGINES = ("io_uring", "libaio")


def need() -> None:
    """Refuse to go on without fio."""
    if shutil.which("fio") is None:
        raise ConfigError("fio is not installed", hint="as root: apt-get install fio")


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which reads fio makes of a file."""

    rw: str
    range_bytes: int
    depth: int

    def command(self, path: Path, engine: str) -> list[str]:
        """Return the command but for the length of the run."""
        return [
            "fio",
            "--name=read",
            f"--filename={path}",
            f"--rw={self.rw}",
            f"--bs={self.range_bytes}",
            f"--iodepth={self.depth}",
            f"--ioengine={engine}",
            "--direct=1",
            "--readonly",
            "--randseed=1",
            "--output-format=json",
        ]


def runner(context: Context, path: Path, pattern: Pattern) -> Runner:
    """Return a contestant that reads `path`: each place once a run, on both sides' CPUs."""
    cpus = sorted({context.placement.client_cpu, context.placement.server_cpu})
    command = pattern.command(path, _engine(path, pattern))
    command.append(f"--cpus_allowed={','.join(map(str, cpus))}")

    def run(seconds: float) -> Sample:
        return sample(_run([*command, f"--runtime={round(seconds * 1e3)}ms"], seconds))

    return run


def _engine(path: Path, pattern: Pattern) -> str:
    """Return the first engine that this kernel lets fio use."""
    need()
    refused = ""
    for engine in _ENGINES:
        try:
            _run([*pattern.command(path, engine), "--io_size=1m"], 0)
        except NativeError as error:
            refused = str(error)
        else:
            return engine
    raise NativeError(f"fio can read neither by io_uring nor by libaio: {refused}")


def _run(command: list[str], seconds: float) -> Mapping[str, Any]:
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds + _EXTRA_S
    )
    if result.returncode:
        said = result.stderr.strip() or result.stdout.strip()[-500:]
        raise NativeError(f"fio failed: {said}")
    report: Mapping[str, Any] = json.loads(result.stdout)
    return report


def sample(report: Mapping[str, Any]) -> Sample:
    """Turn the JSON of a reading fio into a sample."""
    job = report["jobs"][0]
    read = job["read"]
    cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
    return Sample(read["runtime"] / 1e3, read["io_bytes"], read["total_ios"], cpu_s, 0.0)
