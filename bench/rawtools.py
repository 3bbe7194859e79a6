"""The plain C limits of bench/raw/: built on demand with the C compiler, run, parsed.

Called by bench/cases. Sources stay in the checkout and are not part of an installed wheel, so
`ffs-bench` runs from a checkout (or with FFS_BENCH_RAW naming the folder). Programs are kept under
build/bench-raw/, named by a hash of their sources and flags: a changed source is a new program.
A program that fails raises NativeError with what it said; nothing is tried twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from ffs.bench.machine import Placement
from ffs.errors import ConfigError, NativeError

Option: TypeAlias = str | int | float | Path

_WARNINGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-Wall", "-Wextra"]
_PROGRAM_FLAGS = [*_WARNINGS, "-O3", "-pthread"]
# An interposer must not have its own loops turned back into the calls that it counts.
_LIBRARY_FLAGS = [*_WARNINGS, "-O2", "-fno-builtin", "-U_FORTIFY_SOURCE", "-shared", "-fPIC"]
_SHARED = ("common.c", "raw.h")
_CRC = ("../../native/core/crc32c*.c", "../../native/core/*.h")
_FRAMES = (*_CRC, "../../native/core/frame.c")
_PARTS: Mapping[str, tuple[str, ...]] = {
    "stream": _SHARED,
    "small": _SHARED,
    "roofline": (*_SHARED, *_CRC),
    "crowd": (*_SHARED, *_FRAMES),
}
"""What a program is made of beside its own source. The checksum and the frames are the project's
own, so that a limit with a checksum is one with the fastest that there is."""
_PROGRAM_EXTRA_S = 60
"""How long a program may take beyond its timed part: mapping, warming, checking."""


def sources() -> Path:
    """Return the folder of the C sources."""
    folder = Path(os.environ.get("FFS_BENCH_RAW", Path(__file__).resolve().parent / "raw"))
    if not (folder / "raw.h").exists():
        raise ConfigError(
            "the sources of the plain C limits are not here",
            hint="run ffs-bench from a checkout, or set FFS_BENCH_RAW to its bench/raw",
            path=str(folder),
        )
    return folder


def build(name: str) -> Path:
    """Return the program `name` (or, for *count, the preload library), compiled if needed."""
    library = name.endswith("count")
    folder = sources()
    files = [folder / f"{name}.c"]
    for pattern in _PARTS.get(name, ()):
        files += sorted(folder.glob(pattern))
    command = [_compiler(), *(_LIBRARY_FLAGS if library else _PROGRAM_FLAGS)]
    command += [f"-I{folder.parent.parent / 'native'}", *os.environ.get("CFLAGS", "").split()]
    digest = hashlib.sha256(repr(command).encode())
    for file in files:
        digest.update(file.read_bytes())
    target = _output_folder(folder) / f"{name}-{digest.hexdigest()[:16]}"
    if not target.exists():
        inputs = [str(file) for file in files if file.suffix == ".c"]
        _compile([*command, *inputs], target, ["-ldl"] if library else [])
    return target


def _compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        raise ConfigError(
            "no C compiler to build the plain C limits with",
            hint="install gcc or clang, or set CC",
        )
    return found


def _output_folder(folder: Path) -> Path:
    checkout = folder.parent.parent
    base = checkout / "build" if os.access(checkout, os.W_OK) else Path(tempfile.gettempdir())
    output = base / "bench-raw"
    output.mkdir(parents=True, exist_ok=True)
    return output


def _compile(command: list[str], target: Path, libraries: list[str]) -> None:
    """Compile to a temporary name, then rename: builders at the same time do not meet."""
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    result = subprocess.run(
        [*command, "-o", str(partial), *libraries], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise NativeError(f"a plain C limit did not compile: {result.stderr}", path=str(target))
    partial.replace(target)


def run(name: str, **options: Option) -> dict[str, Any]:
    """Run a program with `name=value` arguments; return the object that it prints."""
    return run_with(name, options)


def run_with(name: str, options: Mapping[str, Option], fds: Sequence[int] = ()) -> dict[str, Any]:
    """Do as `run`, and hand open descriptors on."""
    arguments = [f"{key}={value}" for key, value in options.items()]
    if fds:
        arguments.append(f"fds={','.join(map(str, fds))}")
    limit_s = float(str(options.get("seconds", 0))) + _PROGRAM_EXTRA_S
    result = subprocess.run(
        [str(build(name)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=limit_s,
        pass_fds=fds,
    )
    if result.returncode:
        raise NativeError(f"the plain C limit {name} failed: {result.stderr.strip()}")
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def placed(placement: Placement) -> dict[str, int]:
    """Return the options that put a program's client and server on the pair's CPUs.

    With a shared placement there are none: both stay where their caller may run.
    """
    if placement.shared:
        return {}
    return {"client_cpu": placement.client_cpu, "server_cpu": placement.server_cpu}


@contextmanager
def spinner(cpu: int, limit_s: int) -> Iterator[int]:
    """Run an idle-priority spinner on one CPU; it also ends by itself, and with this process."""
    process = subprocess.Popen([str(build("idlespin")), str(cpu), str(limit_s), str(os.getpid())])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
