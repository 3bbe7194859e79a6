"""Failing every use of every system call wrapper in turn: which ones, how, and what may be left.

A scenario runs once with the switch counting; then once for each use of each wrapper and each way
in which that call can fail.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

COUNT_ONLY = 1 << 60
WAIT_S = 60.0
OURS = re.compile(r"#1 .*(/native/|/_storage\.|/_reader\.)")
SHORT = 0
"""In place of an errno: the call goes through with one byte."""

WAYS: dict[str, tuple[int, ...]] = {
    "alloc": (errno.ENOMEM,),
    "thread": (errno.EAGAIN,),
    "recvmsg": (SHORT, errno.EINTR, errno.EAGAIN, errno.ECONNRESET, errno.ENOMEM),
    "sendmsg": (SHORT, errno.EINTR, errno.EAGAIN, errno.EPIPE, errno.ENOBUFS),
    "sendfile": (SHORT, errno.EINTR, errno.EAGAIN, errno.EIO, errno.ECONNRESET),
    "setsockopt": (errno.ENOPROTOOPT,),
    "shutdown": (errno.ENOTCONN,),
    "fcntl": (errno.EPERM,),
    "poll": (errno.EINTR, errno.ENOMEM),
    "epoll_create": (errno.EMFILE,),
    "epoll_ctl": (errno.ENOMEM, errno.ENOSPC),
    "epoll_wait": (errno.EINTR,),
    "eventfd": (errno.EMFILE,),
    "open": (errno.EMFILE, errno.EIO, errno.EINTR, errno.ENOSPC),
    "close": (errno.EIO, errno.EINTR),
    "pread": (SHORT, errno.EINTR, errno.EIO),
    "preadv2": (SHORT, errno.EINTR, errno.EAGAIN, errno.EOPNOTSUPP),
    "mmap": (errno.ENOMEM, errno.ENODEV),
    "cachestat": (errno.ENOSYS, errno.EPERM, errno.EINTR),
    "mincore": (errno.ENOMEM, errno.EAGAIN),
    "io_uring_setup": (errno.ENOSYS, errno.EPERM, errno.ENOMEM),
    "io_uring_register": (errno.ENOMEM, errno.EINVAL),
    "io_uring_enter": (errno.EINTR, errno.EAGAIN, errno.EBUSY),
    "io_uring_read": (SHORT, errno.EINTR, errno.EAGAIN, errno.EINVAL, errno.EIO),
    "pwritev": (SHORT, errno.EINTR, errno.ENOSPC, errno.EIO),
    "fdatasync": (errno.EIO, errno.ENOSPC),
    "fsync": (errno.EIO, errno.EINTR),
    "fallocate": (errno.EINTR, errno.ENOSPC, errno.EOPNOTSUPP, errno.EIO),
    "ftruncate": (errno.ENOSPC, errno.EIO),
    "rename": (errno.EIO, errno.ENOSPC),
    "fstat": (errno.EIO,),
    "flock": (errno.ENOLCK, errno.EINTR),
    "mkdir": (errno.ENOSPC, errno.EIO),
    "lseek": (errno.EINVAL,),
    "sync_file_range": (errno.EIO,),
    "fadvise": (errno.ENOMEM,),
    "madvise": (errno.EINVAL,),
    "lock": (errno.ENOMEM, errno.EINVAL),
}
VERBS: dict[str, tuple[int, ...]] = {
    "ibv_alloc_pd": (errno.ENOMEM,),
    "ibv_reg_mr": (errno.ENOMEM, errno.EFAULT, errno.EIO),
    "ibv_create_comp_channel": (errno.EMFILE,),
    "ibv_create_cq": (errno.ENOMEM,),
    "ibv_create_srq": (errno.ENOMEM,),
    "ibv_create_qp": (errno.ENOMEM,),
    "ibv_modify_qp": (errno.EINVAL, errno.ETIMEDOUT),
    "ibv_alloc_mw": (errno.ENOMEM,),
    "ibv_post_send": (errno.EINVAL, errno.ENOMEM),
    "ibv_post_recv": (errno.EINVAL, errno.ENOMEM),
    "ibv_req_notify_cq": (errno.EIO,),
    "ibv_poll_cq": (SHORT, errno.EIO),
}
"""Those of RDMA, which tests/rdma/test_fail_nth.py makes fail; SHORT: work has failed."""


@dataclass(frozen=True)
class Fault:
    """One use of one wrapper, and how it goes wrong."""

    call: str
    nth: int
    error: int


def uses_of(module: ModuleType, scenario: Callable[[], object]) -> dict[str, int]:
    """How often a scenario uses each wrapper when nothing fails."""
    module.fault_set("*", COUNT_ONLY, errno.EIO)
    try:
        scenario()
    finally:
        module.fault_set("*", 0, 0)
    counts: dict[str, int] = module.fault_counts()
    return counts


def faults(call: str, uses: int) -> Iterator[Fault]:
    """Every use of a call, in every way."""
    for nth in range(1, uses + 1):
        for error in WAYS.get(call) or VERBS[call]:
            yield Fault(call, nth, error)


@contextmanager
def injected(module: ModuleType, fault: Fault) -> Iterator[None]:
    """The fault is armed inside, and off afterwards."""
    module.fault_set(fault.call, fault.nth, fault.error)
    try:
        yield
    finally:
        module.fault_set("*", 0, 0)


def held() -> tuple[int, int]:
    """Descriptors and threads of this process."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


def wait_until(condition: Callable[[], bool], what: object) -> None:
    """Wait for what another thread is about to do."""
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.001)


class Ledger:
    """What this process held when a test began: every run has to come back to it."""

    def __init__(self) -> None:
        self._descriptors, self._threads = held()

    def settle(self, what: object) -> None:
        """Wait for threads that are about to end; what was opened must be closed by then."""
        wait_until(lambda: held()[1] <= self._threads, (what, "a thread is left"))
        assert held()[0] <= self._descriptors, (what, "a descriptor is left")


def lost_memory() -> list[str]:
    """Blocks that our C code took and nobody can reach; none is found without LeakSanitizer.

    Other libraries lose some at their start, so only blocks that were asked for by a function of
    our modules itself are told. None of our objects may be alive, and Python's own memory has to
    come from malloc (PYTHONMALLOC): elsewhere the sanitizer does not look for pointers.
    """
    check = getattr(ctypes.CDLL(None), "__lsan_do_recoverable_leak_check", None)
    if check is None:
        return []
    gc.collect()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as report:
        os.dup2(report.fileno(), 2)
        try:
            check()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        report.seek(0)
        blocks = report.read().decode().split("\n\n")
    return [block for block in blocks if OURS.search(block)]
