"""Debian's kernel for the guest: fetched as a package, unpacked, never installed.

Next hop: image.py packs what is unpacked here. A directory is complete or absent: it is made under
another name and renamed. Raises GuestError when the package cannot be had.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MODULES: Final = (
    # What the guest stands on: disks, network card, file systems.
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "crc32c_generic", "crc32_generic"),
    *("erofs", "overlay", "ext4", "af_packet"),
    # What tests make of its network.
    *("veth", "sch_netem", "sch_tbf"),
    # Soft-RoCE, without and with the connection manager.
    *("udp_tunnel", "ip6_udp_tunnel", "ib_core", "ib_uverbs", "rdma_rxe", "configfs"),
    *("ib_cm", "iw_cm", "rdma_cm", "rdma_ucm"),
)
"""In this order: rdma_rxe needs crc32 without saying so, and fails later for want of it."""

FETCH_S: Final = 300


class GuestError(Exception):
    """The guest, or what it is made of, cannot be had; says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot and the modules to load, each after those that it depends on."""

    image: Path
    modules: tuple[Path, ...]


def fetch(cache: Path) -> Kernel:
    """Return the kernel of `linux-image-amd64`; download and unpack it unless `cache` has it."""
    tree = cache / "kernel"
    if not tree.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        scratch = cache / "kernel.new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        _unpack(_download(scratch), scratch)
        scratch.rename(tree)
    (image,) = (tree / "boot").glob("vmlinuz-*")
    return Kernel(image, _closure(tree, image.name.removeprefix("vmlinuz-")))


def _download(directory: Path) -> Path:
    depends = _output("apt-cache", "depends", "linux-image-amd64")
    found = re.search(r"Depends: (linux-image-\S+)", depends)
    if found is None:
        raise GuestError("apt knows no linux-image-amd64; run apt-get update")
    unsandboxed = ("-o", "APT::Sandbox::User=root")  # the directory is not the _apt user's
    _output("apt-get", *unsandboxed, "download", found[1], cwd=directory)
    return next(directory.glob("*.deb"))


def _unpack(package: Path, into: Path) -> None:
    _output("dpkg-deb", "--extract", str(package), str(into))
    package.unlink()
    (modules,) = (into / "lib" / "modules").iterdir()
    _output("depmod", "-b", str(into), modules.name)
    wanted = {into / "boot" / f"vmlinuz-{modules.name}", modules / "modules.dep"}
    wanted |= set(_closure(into, modules.name))
    for path in [p for p in into.rglob("*") if p.is_file() and p not in wanted]:
        path.unlink()


def _closure(tree: Path, release: str) -> tuple[Path, ...]:
    """Return the files of MODULES and of all that they depend on, in the order of loading."""
    top = tree / "lib" / "modules" / release
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in (top / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[Path(path).stem.replace("-", "_")] = (path, rest.split())
    order: dict[str, None] = {}
    for name in MODULES:
        if name not in depends:
            continue  # built into this kernel
        path, needed = depends[name]
        order |= dict.fromkeys([*reversed(needed), path])
    return tuple(top / path for path in order)


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=True, timeout=FETCH_S
        )
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed") from None
    except subprocess.SubprocessError as error:
        told = getattr(error, "stderr", "") or error
        raise GuestError(f"{' '.join(command)} failed: {told}") from None
    return done.stdout
