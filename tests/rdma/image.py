"""The guest's disks and initial memory: this machine's Python, its packages and a few programs.

Previous hop: kernel.py, whose modules go into the initial memory; next: guest.py boots what is made
here. The checkout itself is not in it: it is sent to a running guest (guest.py), so that an image
is made again only when packages change. A finished image is renamed into place.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.rdma.kernel import GuestError, Kernel

HERE: Final = Path(__file__).resolve().parent

PACKAGES: Final = (
    *("bash", "coreutils", "dash", "e2fsprogs", "grep", "gzip", "hostname", "iproute2", "kmod"),
    *("libc-bin", "libgcc-s1", "mount", "netbase", "procps", "sed", "strace", "tar", "util-linux"),
    *("ibverbs-providers", "ibverbs-utils", "libibverbs1", "librdmacm1", "perftest"),
    *("rdmacm-utils", "liburing2", "libasan8", "libubsan1"),
)
"""Debian packages whose programs and libraries the guest has; what they load comes along."""

DISTRIBUTIONS: Final = (
    *("ffs", "msgpack", "uvloop", "cryptography", "rich", "aiofiles", "asyncpg", "pyarrow"),
    *(
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "pytest-benchmark",
        "pytest-asyncio",
        "hypothesis",
    ),
)
"""Python distributions that the guest has, with all that they require."""

LATER: Final = ("torch", "torchdata", "safetensors")
"""Python distributions of the second disk, which only some tests need."""

NOT_NEEDED: Final = ("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/usr/share/info/")
ETC: Final = ("passwd", "group", "nsswitch.conf", "hosts", "protocols", "services", "ld.so.cache")


def disks(cache: Path, *, later: bool) -> list[Path]:
    """Return the read-only disks, made unless `cache` has them; `later` adds torch's."""
    wanted = ["base", "later"] if later else ["base"]
    return [_disk(cache, name) for name in wanted]


def _disk(cache: Path, name: str) -> Path:
    image = cache / f"{name}-{_fingerprint()}.erofs"
    if image.exists():
        return image
    for old in cache.glob(f"{name}-*.erofs"):
        old.unlink()
    stage = cache / f"{name}.stage"
    shutil.rmtree(stage, ignore_errors=True)
    _stage(stage, _base_files() if name == "base" else _later_files())
    unfinished = image.with_suffix(".new")
    _run("mkfs.erofs", "--quiet", str(unfinished), str(stage))
    unfinished.rename(image)
    shutil.rmtree(stage)
    return image


def _fingerprint() -> str:
    """Name what the disks are made of: this file, and the packages that Python would find."""
    installed = sorted(entry.name for entry in _site_packages().iterdir())
    facts = [Path(__file__).read_text(), sys.version, sys.prefix, *installed]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _site_packages() -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return Path(sys.prefix) / "lib" / version / "site-packages"


def _base_files() -> set[Path]:
    """Return all files of the base disk, by their paths on this machine."""
    files = set(_debian_files()) | {Path("/etc", name) for name in ETC}
    library = Path(sys.base_prefix) / "lib" / _site_packages().parent.name
    files |= _tree(library, lambda entry: entry not in ("test", "site-packages", "dist-packages"))
    files |= {Path(sys.prefix) / "pyvenv.cfg", *(Path(sys.prefix) / "bin").glob("python*")}
    files |= _installed(_required(DISTRIBUTIONS))
    return files | _libraries(files)


def _later_files() -> set[Path]:
    return _installed(_required(LATER) - _required(DISTRIBUTIONS))


def _debian_files() -> Iterator[Path]:
    for package in PACKAGES:
        try:
            listed = _run("dpkg", "-L", package)
        except GuestError:
            raise GuestError(f"package {package} is not installed; run .ci/setup.sh test") from None
        for line in listed.splitlines():
            if not line.startswith(NOT_NEEDED) and os.path.isfile(line):
                yield Path(line)


def _required(names: Iterable[str]) -> set[str]:
    """Return the names of the distributions and of all that they require on this machine."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name)
    return found


def _installed(names: Iterable[str]) -> set[Path]:
    """Return the files of distributions."""
    files = [
        Path(str(file.locate())) for name in names for file in importlib.metadata.files(name) or ()
    ]
    return {path for path in files if path.is_file() and path.suffix != ".a"}


def _tree(top: Path, wanted: Callable[[str], bool]) -> set[Path]:
    found = set()
    for entry in top.iterdir():
        if wanted(entry.name):
            found |= {p for p in (entry, *entry.rglob("*")) if p.is_file() and p.suffix != ".a"}
    return found


def _libraries(files: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that the programs and libraries among the files load."""
    binaries = [str(p) for p in files if p.suffix == ".so" or ".so." in p.name or _is_elf(p)]
    found = set()
    for start in range(0, len(binaries), 500):
        told = subprocess.run(
            ["ldd", *binaries[start : start + 500]], capture_output=True, text=True, check=False
        ).stdout  # it fails when one of them is static
        found |= set(re.findall(r"(/\S+) \(0x", told))
    return {Path(name) for name in found if os.path.exists(name)}


def _is_elf(path: Path) -> bool:
    if not os.access(path, os.X_OK):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _stage(stage: Path, files: Iterable[Path]) -> None:
    """Link the files, and what symbolic links among them lead to, below `stage`."""
    for path in files:
        todo = path.parent.resolve() / path.name  # /bin/sh lies in /usr/bin
        while not (place := stage / str(todo)[1:]).is_symlink() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(todo, place, follow_symlinks=False)
            except OSError:  # another file system, or not ours to link
                shutil.copy2(todo, place, follow_symlinks=False)
            if place.is_symlink():
                next_place = todo.parent / os.readlink(todo)
                todo = next_place.parent.resolve() / next_place.name
    for name in ("bin", "sbin", "lib", "lib64"):
        if Path("/", name).is_symlink() and not (stage / name).exists():
            (stage / name).symlink_to(f"usr/{name}")


def initramfs(cache: Path, kernel: Kernel) -> Path:
    """Return the initial memory: busybox, the modules in order, and this directory's programs."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise GuestError("busybox is not installed; run .ci/setup.sh test")
    tree = cache / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    shutil.copy(busybox, tree / "busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    for name in ("agent.py", "start.sh"):
        shutil.copy(HERE / name, tree / name)
    for number, module in enumerate(kernel.modules):
        shutil.copy(module, tree / f"{number:02}-{module.name}")
    names = "\n".join(sorted(path.name for path in tree.iterdir()))
    packed = subprocess.run(
        [busybox, "cpio", "-o", "-H", "newc"],
        input=names.encode(),
        cwd=tree,
        capture_output=True,
        check=True,
    ).stdout
    image = cache / "initramfs.cpio"
    image.write_bytes(packed)
    return image


def _run(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is not installed; run .ci/setup.sh test") from None
    except subprocess.CalledProcessError as error:
        raise GuestError(f"{' '.join(command)} failed: {error.stderr}") from None
