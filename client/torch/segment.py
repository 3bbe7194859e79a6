"""Shared memory without a name: a memfd, allocated at once and mapped in every process that needs
it.

Role: client/torch/ring.py lays its slots out in one; client/torch/landing.py takes one for a batch
that found no slot.

Some facts about shared memory:
- a memfd does not count against the size of /dev/shm (64 MiB in many containers), has no name that
  a killed program could leave behind, and is gone with its last mapping;
- a mapping of a file that is not allocated yet fails on touch, by SIGBUS; fallocate fails before,
  by an error number;
- every process faults once for each page that it touches (the kernel maps up to 16 around), a
  forked one too: the page table of shared mappings is not copied. MAP_POPULATE takes all of them at
  once.

Pickles only towards a process that is being started: the descriptor travels, the bytes stay.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import weakref
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Final

from ffs.client.rdma import Region
from ffs.errors import OutOfMemoryError

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_HUGE_PAGE: Final = 2 << 20


class Segment:
    """Memory of `size_bytes` that other processes can map.

    Raises:  OutOfMemoryError when this machine, or this container, cannot hold it
    Fork: usable in the child, at the price of a fault for each 64 KiB: `map_again` spares them
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        _check_room(self.size_bytes)
        try:
            fd = os.memfd_create("ffs-ring", os.MFD_CLOEXEC)
            self._keep(fd)
            os.ftruncate(fd, self.size_bytes)
            if self.size_bytes >= _HUGE_PAGE:
                _prefer_huge_pages(fd, self.size_bytes)
            os.posix_fallocate(fd, 0, self.size_bytes)
            self._use(_map(fd, self.size_bytes))
        except OSError as error:
            raise _no_room(self.size_bytes, error.strerror or str(error)) from error

    def _keep(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, _close, fd).atexit = False

    def _use(self, memory: mmap.mmap) -> None:
        # Whoever reads into it by RDMA, if anybody does, registers all of it once.
        self._region = Region(memory)
        self.memory = memory

    def map_again(self) -> None:
        """Map it anew with all pages in place: for a process that inherited it by fork."""
        try:
            self._use(_map(self.fd, self.size_bytes))
        except OSError as error:
            raise _no_room(self.size_bytes, error.strerror or str(error)) from error

    def __getstate__(self) -> tuple[int, Any]:
        return self.size_bytes, DupFd(self.fd)

    def __setstate__(self, state: tuple[int, Any]) -> None:
        self.size_bytes, passed = state
        self._keep(passed.detach())
        self.map_again()


def _map(fd: int, size_bytes: int) -> mmap.mmap:
    return mmap.mmap(fd, size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _prefer_huge_pages(fd: int, size_bytes: int) -> None:
    """Have it allocated in huge pages where this machine allows that for shared memory."""
    with mmap.mmap(fd, size_bytes) as memory, contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)


def _check_room(size_bytes: int) -> None:
    """Refuse what would have the kernel kill somebody.

    fallocate fails by an error number only where memory may not be overcommitted.
    """
    available = _available_bytes()
    if size_bytes > available:
        raise _no_room(size_bytes, f"{available >> 20} MiB are available")


def _available_bytes() -> int:
    """Return what this machine has left, and no more than its container may have at all."""
    available = 1 << 62
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(x.split()[1]) << 10 for x in lines if x.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        available = min(available, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    return available


def _no_room(size_bytes: int, why: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"cannot allocate {size_bytes >> 20} MiB of shared memory: {why}",
        hint="use smaller batches, fewer workers or a smaller prefetch_factor",
    )
