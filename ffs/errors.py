"""Typed errors: one base, one code per class, the same codes on both ports.

A class that has a natural builtin twin derives from it too, so code that knows nothing of FFS
(`except FileNotFoundError`) works. Codes travel in RPC replies and in the status field of data
frames; native/core/status.h has the ones that C uses and a test compares them. Ranges: 1-99 common,
100-199 metadata, 200-299 storage, 300-399 client, 400-499 authentication.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import Any, ClassVar

OK = 0
_CLASSES: dict[int, type[FFSError]] = {}


class FFSError(Exception):
    """Base of every error that FFS raises.

    Args:    message: what failed, on what, what was expected; hint: what to do next;
             where: facts for machines (path, node, target, blob, chunk, offset).
    Source:  docs/errors.md
    """

    code: ClassVar[int] = 1
    errno_default: ClassVar[int] = 0
    retryable: ClassVar[bool] = False

    message: str
    hint: str
    where: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "code" not in cls.__dict__:
            raise TypeError(f"error class {cls.__name__} has no code of its own")
        if cls.code in _CLASSES or cls.code in (OK, FFSError.code):
            raise TypeError(f"error code {cls.code} of {cls.__name__} is taken")
        _CLASSES[cls.code] = cls

    def __init__(self, message: str, *, hint: str = "", **where: Any) -> None:
        self.message, self.hint, self.where = message, hint, where
        if isinstance(self, OSError):
            number = self.errno_default or _errno.EIO
            path = where.get("path")
            if isinstance(path, bytes):
                path = os.fsdecode(path)
            super().__init__(number, message, *([path] if path is not None else []))
        else:
            super().__init__(message)

    def __str__(self) -> str:
        facts = " ".join(f"{k}={_show(v)}" for k, v in self.where.items())
        parts = [self.message, f"[{facts}]" if facts else "", f"({self.hint})" if self.hint else ""]
        # A peer's error may come without a word.
        return " ".join(p for p in parts if p) or type(self).__name__

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.where))


def _show(value: Any) -> str:
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)


def _rebuild(cls: type[FFSError], message: str, hint: str, where: dict[str, Any]) -> FFSError:
    return cls(message, hint=hint, **where)


# --- common -----------------------------------------------------------------------------------


class ProtocolError(FFSError):
    """A peer's bytes broke the protocol; the connection is closed."""

    code = 2


class ConfigError(FFSError, ValueError):
    """A configuration key or value is wrong; nothing was started."""

    code = 3


class UnavailableError(FFSError, ConnectionError):
    """No server could be reached, or the connection was lost; trying again may help."""

    code = 4
    errno_default = _errno.ECONNREFUSED
    retryable = True


class DeadlineError(FFSError, TimeoutError):
    """The time the caller allowed is over; whether a mutation was applied is not known."""

    code = 5
    errno_default = _errno.ETIMEDOUT


class BusyError(FFSError, BlockingIOError):
    """The server has no room for the request now; nothing was done."""

    code = 6
    errno_default = _errno.EAGAIN
    retryable = True


class InvalidError(FFSError, OSError):
    """An argument is out of its bounds; nothing was done."""

    code = 7
    errno_default = _errno.EINVAL


class NativeError(FFSError, OSError):
    """A system call failed in a way that has no class of its own."""

    code = 8
    errno_default = _errno.EIO


class TransportError(FFSError, OSError):
    """The transport that the configuration insists on is not to be had here."""

    code = 9
    errno_default = _errno.EPROTONOSUPPORT


# --- metadata ---------------------------------------------------------------------------------


class NotFoundError(FFSError, FileNotFoundError):
    """No such name."""

    code = 100
    errno_default = _errno.ENOENT


class ExistsError(FFSError, FileExistsError):
    """The name is taken, or reserved by an exclusive create in progress."""

    code = 101
    errno_default = _errno.EEXIST


class AccessError(FFSError, PermissionError):
    """The caller may not do this."""

    code = 102
    errno_default = _errno.EACCES


class DirectoryExpectedError(FFSError, NotADirectoryError):
    """A path component that must be a directory is something else."""

    code = 103
    errno_default = _errno.ENOTDIR


class FileExpectedError(FFSError, IsADirectoryError):
    """A directory stands where a file is needed."""

    code = 104
    errno_default = _errno.EISDIR


class NotEmptyError(FFSError, OSError):
    """A directory that must be empty has entries."""

    code = 105
    errno_default = _errno.ENOTEMPTY


class StaleFileError(FFSError, OSError):
    """The content behind an open handle was dropped; open the path again."""

    code = 106
    errno_default = _errno.ESTALE


class StaleLayoutError(FFSError):
    """The routing that the request was planned with is outdated; refresh and retry."""

    code = 107
    retryable = True


class LeaseExpiredError(FFSError, OSError):
    """A write session was reaped since its client was not heard of in time; write again."""

    code = 108
    errno_default = _errno.ESTALE


class LockedError(FFSError, OSError):
    """The directory or database is in use by another process."""

    code = 109
    errno_default = _errno.EBUSY


class FormatError(FFSError, OSError):
    """A stored superblock or schema is foreign, damaged or newer than this program."""

    code = 110
    errno_default = _errno.EINVAL


class BadNameError(FFSError, OSError):
    """A name or path is not absolute, empty, `.` or `..`, or holds `/` or NUL."""

    code = 111
    errno_default = _errno.EINVAL


class LoopError(FFSError, OSError):
    """A rename would move a directory into itself."""

    code = 112
    errno_default = _errno.EINVAL


class SymlinkLoopError(FFSError, OSError):
    """A path goes through too many symbolic links."""

    code = 113
    errno_default = _errno.ELOOP


class VersionError(FFSError, OSError):
    """A file is no longer at the version that the caller has seen."""

    code = 114
    errno_default = _errno.EBUSY


class NotPermittedError(FFSError, PermissionError):
    """Nobody may do this, whoever he is."""

    code = 115
    errno_default = _errno.EPERM


class NameTooLongError(BadNameError):
    """A name or a path has more bytes than there may be."""

    code = 116
    errno_default = _errno.ENAMETOOLONG


class LinksError(FFSError, OSError):
    """A file has as many names as one can have."""

    code = 117
    errno_default = _errno.EMLINK


class StillNeededError(FFSError, OSError):
    """A node, target or snapshot cannot go: it holds what nothing else could hold, or is in use."""

    code = 118
    errno_default = _errno.EBUSY


class ReadOnlyError(FFSError, OSError):
    """A snapshot cannot be changed."""

    code = 119
    errno_default = _errno.EROFS


class QuotaExceededError(FFSError, OSError):
    """A directory's quota has no room for what was to come below it; nothing was done."""

    code = 120
    errno_default = _errno.EDQUOT


class QuotaBorderError(FFSError, OSError):
    """A file would have names on both sides of a quota's border."""

    code = 121
    errno_default = _errno.EXDEV


# --- storage ----------------------------------------------------------------------------------


class NoSpaceError(FFSError, OSError):
    """A target's disk is full; nothing was stored."""

    code = 200
    errno_default = _errno.ENOSPC


class ChecksumError(FFSError, OSError):
    """Stored or received bytes do not match their checksum, and no replica had better ones."""

    code = 201
    errno_default = _errno.EIO


class ChunkMissingError(ChecksumError):
    """A chunk that a file's length says must exist is on no replica."""

    code = 202


class ChunkLengthError(ChecksumError):
    """A stored chunk is shorter or longer than its file says."""

    code = 203


class ChunkConflictError(FFSError, OSError):
    """A chunk was written again with other bytes; chunks are written exactly once."""

    code = 204
    errno_default = _errno.EEXIST


class TargetStoppedError(FFSError, OSError):
    """The target met a disk error and takes no more requests until it is repaired."""

    code = 205
    errno_default = _errno.EIO


class StaleChainError(FFSError):
    """The chain version in a write is not the one the daemon has; refresh the routing."""

    code = 206
    retryable = True


class StorageIOError(FFSError, OSError):
    """The disk under a target failed the request."""

    code = 207
    errno_default = _errno.EIO


class TooFewReplicasError(FFSError, OSError):
    """Fewer replicas of a chain serve than a write needs to count as durable; nothing was done."""

    code = 208
    errno_default = _errno.EAGAIN
    retryable = True


# --- client -----------------------------------------------------------------------------------


class ConnectionLostError(FFSError, ConnectionError):
    """A data connection broke before the range was complete."""

    code = 300
    errno_default = _errno.ECONNRESET
    retryable = True


class StalledError(FFSError, TimeoutError):
    """No byte arrived on a data connection for the stall time with requests outstanding."""

    code = 301
    errno_default = _errno.ETIMEDOUT
    retryable = True


class CancelledOperationError(FFSError):
    """The call was interrupted before this range was complete."""

    code = 302


class ClosedError(FFSError, ValueError):
    """The file system or file object has been closed."""

    code = 303


class OutOfMemoryError(FFSError, MemoryError):
    """This machine has no room for the memory that batches are to land in."""

    code = 304


# --- authentication ---------------------------------------------------------------------------


class AuthError(FFSError, PermissionError):
    """The peer did not prove that it holds the cluster key, or a token that counts."""

    code = 400
    errno_default = _errno.EACCES


class TlsError(AuthError):
    """One side has TLS and the other has not, or a certificate will not do."""

    code = 410


class GrantError(FFSError, PermissionError):
    """A storage daemon was not shown that the token's holder may have the blob."""

    code = 401
    errno_default = _errno.EACCES


def error_class(code: int) -> type[FFSError]:
    """Return the class that stands for `code`; FFSError itself for one this version lacks."""
    return _CLASSES.get(code, FFSError)


def error_from_wire(code: int, message: str, hint: str, where: dict[str, Any]) -> FFSError:
    """Rebuild the error that a peer sent."""
    return _rebuild(error_class(code), message, hint, where)


def all_error_classes() -> dict[int, type[FFSError]]:
    """Return code -> class for documentation and tests."""
    return dict(_CLASSES)
