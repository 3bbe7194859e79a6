"""Memory that all processes of a host which use one dataset have in common: an anonymous file.

A forked child has it already. A process that was started otherwise opens it through /proc as long
as the one that made it lives, and only if the token that it was given is the memory's own.

Why a file without a name: nothing is left behind, whoever is killed, and two users never meet.
Fork: usable in the child. Threads: plain memory.
"""

from __future__ import annotations

import mmap
import os
import weakref
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, fcntl
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ffs.seams import SystemRandomness

HEAD_BYTES = 64
TOKEN_BYTES = 32


class Token(NamedTuple):
    """Where a process finds the memory, and how it knows that it is the right one."""

    process: int
    descriptor: int
    secret: bytes


class SharedMemory:
    """`size` bytes, zero at first; pages that are never touched take no memory."""

    def __init__(self, descriptor: int, token: Token, size: int) -> None:
        self.token = token
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, size + HEAD_BYTES)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._memory, dtype=np.uint8)[HEAD_BYTES:]

    @classmethod
    def create(cls, size: int) -> SharedMemory:
        """Make memory that others can find."""
        descriptor = os.memfd_create("ffs-records", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        secret = SystemRandomness().token(TOKEN_BYTES)
        try:
            os.ftruncate(descriptor, size + HEAD_BYTES)
            os.pwrite(descriptor, secret, 0)
            # Of another length it could end a process that touches it.
            fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor, Token(os.getpid(), descriptor, secret), size)

    @classmethod
    def attach(cls, token: Token) -> SharedMemory | None:
        """Return memory that another process made; None if it is not there any more."""
        path = f"/proc/{token.process}/fd/{token.descriptor}"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        size = os.fstat(descriptor).st_size
        if size < HEAD_BYTES or os.pread(descriptor, TOKEN_BYTES, 0) != token.secret:
            os.close(descriptor)
            return None
        return cls(descriptor, token, size - HEAD_BYTES)

    def close(self) -> None:
        """Close the descriptor: nobody finds the memory any more, who has it keeps it."""
        self._finalizer()
