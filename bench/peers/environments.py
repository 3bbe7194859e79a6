"""Virtual environments with the loaders of other projects, made on demand and kept.

One holds all whose pins agree, MosaicML Streaming has its own. They live under build/peers of a
checkout, or in the user's cache. FFRecord is not on the package index: it is built from a checkout
that the user names, with cmake, libaio and pybind11.

Failure: a loader that cannot be installed is an Absent error with the reason in a line; the
comparison goes on without it and says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

INSTALL_S_MAX = 1800
_TORCH = "torch"
"""The loaders that take any torch get the version that we have."""


class Absent(Exception):
    """A loader that cannot be had on this machine; says why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A loader to be compared with: its module in bench/peers/loaders and what it needs."""

    title: str
    module: str
    environment: str
    packages: tuple[str, ...]
    served: bool = False
    """By nginx: it has no reader of local files."""
    from_source: bool = False


PEERS = (
    Peer("MosaicML Streaming", "mosaicml", "mosaicml", ("mosaicml-streaming",)),
    Peer("LitData", "litdata", "common", (_TORCH, "litdata")),
    Peer("WebDataset", "webdataset", "common", (_TORCH, "webdataset")),
    Peer("array_record", "array_record", "common", (_TORCH, "array_record")),
    Peer("s3torchconnector", "s3torchconnector", "common", (_TORCH, "s3torchconnector"), True),
    Peer(
        "FFRecord",
        "ffrecord",
        "common",
        # It asks setuptools for its version, through a module that newer ones lack.
        (_TORCH, "setuptools<80", "wheel", "pybind11", "cmake", "ninja"),
        from_source=True,
    ),
)


def folder() -> Path:
    """Return where the environments are kept."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "bench" / "peers").is_dir() and os.access(checkout, os.W_OK):
        return checkout / "build" / "peers"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ffs-bench" / "peers"


def python_of(peer: Peer, ffrecord_source: Path | None) -> Path:
    """Return an interpreter that has a peer's packages, installed now if they were not.

    Raises:  Absent
    """
    if peer.from_source and ffrecord_source is None:
        raise Absent("not on the package index: give --ffrecord-src with a checkout of it")
    place = folder() / peer.environment
    python = place / "bin" / "python"
    wanted = "\n".join([*peer.packages, str(ffrecord_source if peer.from_source else "")])
    stamp = place / f"{peer.module}.installed"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    place.parent.mkdir(parents=True, exist_ok=True)
    if not python.exists():
        _call([sys.executable, "-m", "venv", str(place)])
    ours = f"{_TORCH}=={version(_TORCH).partition('+')[0]}"
    _pip(python, *(ours if package == _TORCH else package for package in peer.packages))
    if peer.from_source and ffrecord_source is not None:
        _build(python, ffrecord_source, place / "source")
    stamp.write_text(wanted)
    return python


def _build(python: Path, source: Path, copy: Path) -> None:
    """Build and install a copy of a checkout: the checkout itself stays as it is."""
    if not (source / "setup.py").exists():
        raise Absent(f"{source} is no checkout of it")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    _pip(python, "--no-build-isolation", "--no-deps", str(copy), path=path)


def _pip(python: Path, *arguments: str, path: str | None = None) -> None:
    _call([str(python), "-m", "pip", "install", "--quiet", *arguments], path=path)


def _call(command: list[str], *, path: str | None = None) -> None:
    environment = {**os.environ, **({"PATH": path} if path else {})}
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_S_MAX,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Absent(f"cannot be installed: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if "WARNING" not in line]
        errors = [line for line in lines if "rror" in line] or lines or ["no reason given"]
        raise Absent(f"cannot be installed: {errors[-1].strip()}")
