"""Loop devices with a file system on each: disks of their own for the daemons of one machine.

Used by bench/cases/write_replicated.py. Each is a file in the case's directory, whose blocks were
all written once (a block that was only reserved costs the file system below a change of its tree
when it is first written), attached past the page cache where the file system below can do that,
and mounted as ext4. The devices share the disk that the directory is on.

Needs root. What was begun is undone when the `with` block ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ffs.errors import ConfigError, NativeError

_PIECE = bytes(4 << 20)
_TOOLS = ("losetup", "mkfs.ext4", "mount", "umount")


def need() -> None:
    """Refuse to go on where no loop device can be had.

    Raises:  ConfigError
    """
    if os.geteuid() != 0:
        raise ConfigError("loop devices need root", hint="run it as root")
    if missing := [tool for tool in _TOOLS if shutil.which(tool) is None]:
        raise ConfigError(f"not installed: {', '.join(missing)}", hint="util-linux and e2fsprogs")


@contextmanager
def loop_disks(directory: Path, count: int, size_bytes: int) -> Iterator[list[Path]]:
    """Have so many empty file systems of that size; yields where they are mounted."""
    need()
    with ExitStack() as stack:
        yield [_disk(stack, directory / f"disk-{number}", size_bytes) for number in range(count)]


def _disk(stack: ExitStack, directory: Path, size_bytes: int) -> Path:
    mount = directory / "mounted"
    mount.mkdir(parents=True)
    image = directory / "image"
    stack.callback(image.unlink)
    with image.open("wb") as file:
        for _ in range(-(-size_bytes // len(_PIECE))):
            file.write(_PIECE)
        os.fsync(file.fileno())
    device = _attach(image)
    stack.callback(_run, "losetup", "--detach", device)
    _run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", device)
    _run("mount", device, str(mount))
    stack.callback(_run, "umount", str(mount))
    return mount


def _attach(image: Path) -> str:
    attach = ("losetup", "--find", "--show")
    try:
        return _run(*attach, "--direct-io=on", str(image))
    except NativeError:  # the file system below only has the page cache
        return _run(*attach, str(image))


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise NativeError(f"{command[0]} failed: {result.stderr.strip()}")
    return result.stdout.strip()
