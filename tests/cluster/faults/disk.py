"""A disk that fails on command: ext4 on a loop device over nbdkit, mounted by nbdfuse.

    ext4 -> loop -> disk.img (FUSE) -> nbdkit: rate and error filters -> memory

Reads or writes fail with EIO while a file with that name exists; a rate in another one slows both
down; and both hang while nbdfuse is stopped. Both ways of reading, pread and io_uring, meet the
errors, since the block device has them.
Needs root, nbdkit, nbdfuse and e2fsprogs. Fault behaviour: what was begun is undone by `close`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.cluster.faults.network import run

WAIT_S: Final = 30.0


class MountedDisk:
    """ext4 over what an nbdkit plugin serves, with its filters.

    Args:    serve: the plugin with its parameters, filters included
    """

    def __init__(self, directory: Path, serve: Sequence[str]) -> None:
        if os.geteuid() != 0:
            pytest.skip("mounting a disk needs root")
        self.mount = directory / "mounted"
        self._image = directory / "fuse" / "disk.img"
        self._undo: list[Callable[[], object]] = []
        for path in (self.mount, self._image.parent):
            path.mkdir(parents=True)
        try:
            self._start(["nbdkit", "-s", "--exit-with-parent", *serve])
        except BaseException:
            self.close()
            raise

    def _start(self, nbdkit: list[str]) -> None:
        command = ["nbdfuse", str(self._image), "--command", *nbdkit]
        server = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # each error that it made
        self._server = server
        self._undo.append(lambda: server.wait(WAIT_S))
        give_up = time.monotonic() + WAIT_S
        while not self._image.exists():
            assert server.poll() is None and time.monotonic() < give_up, "nbdfuse did not start"
            time.sleep(0.02)
        # Lazy: somebody who looks at all devices may hold this one for a moment.
        self._undo.append(lambda: run("umount", "--lazy", str(self._image.parent)))
        self._device = run("losetup", "--find", "--show", str(self._image)).strip()
        self._undo.append(lambda: run("losetup", "--detach", self._device))
        run("mkfs.ext4", "-q", "-m", "0", "-E", "nodiscard,lazy_itable_init=0", self._device)
        run("mount", self._device, str(self.mount))
        self._undo.append(lambda: run("umount", str(self.mount)))

    def close(self) -> None:
        """Unmount all, end the server."""
        while self._undo:
            self._undo.pop()()


class FaultyDisk(MountedDisk):
    """A disk in memory of so many MiB that fails, slows down, or is full on command."""

    def __init__(self, directory: Path, mebibytes: int) -> None:
        self._flags = {name: directory / name for name in ("pread", "pwrite", "rate")}
        self._fillers = 0
        faults = ["--filter=error", "--filter=rate", f"rate-file={self._flags['rate']}"]
        for call in ("pread", "pwrite"):
            faults += [f"error-{call}=EIO", f"error-{call}-rate=100%"]
            faults += [f"error-{call}-file={self._flags[call]}"]
        super().__init__(directory, ["memory", f"{mebibytes}M", *faults])

    # --- faults -----------------------------------------------------------------------------------

    def fail(self, call: str) -> None:
        """Let every read (pread) or write (pwrite) of the device fail from now on.

        The file system's own blocks stay in memory: it is chunks that cannot be read.
        """
        with Path(self._device).open("rb") as device:
            while device.read(1 << 20):
                pass
        self._flags[call].touch()
        self.forget()

    def slow_down(self, bytes_per_s: int) -> None:
        """Let it move no more than so much."""
        self._flags["rate"].write_text(f"{8 * bytes_per_s}")
        self.forget()

    def hang(self) -> None:
        """Answer nothing from now on, without an error."""
        self.forget()
        self._server.send_signal(signal.SIGSTOP)

    def fill(self) -> None:
        """Take all the space there is left."""
        self._fillers += 1
        with (self.mount / f"filler-{self._fillers}").open("wb") as file:
            for piece in (1 << 20, 1 << 12):
                self._fill_by(file.fileno(), piece)

    def _fill_by(self, descriptor: int, piece: int) -> None:
        try:
            while True:
                os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, piece)
        except OSError:
            return

    def recover(self) -> None:
        """End all faults. What the kernel has come to think of the file system stays."""
        self._server.send_signal(signal.SIGCONT)
        for path in self._flags.values():
            path.unlink(missing_ok=True)
        for path in self.mount.glob("filler-*"):
            path.unlink()

    def remount(self) -> None:
        """Mount it anew, as after the machine's restart: an aborted journal is replayed.

        Somebody who looks at all directories may be in it for a moment.
        """
        give_up = time.monotonic() + WAIT_S
        while subprocess.run(["umount", str(self.mount)], check=False).returncode != 0:
            assert time.monotonic() < give_up, "the disk is in use"
            time.sleep(0.1)
        run("mount", self._device, str(self.mount))

    def forget(self) -> None:
        """Have no chunk's bytes in memory, so that reading them goes to the disk."""
        for path in (self._image, *self.mount.rglob("*.data")):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """End the faults, unmount all, end the server."""
        self.recover()
        super().close()
