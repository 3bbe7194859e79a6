"""Space: how much is used and free, quotas, how new files are laid out, what is pinned.

Role: part of the file system object (client/filesystem.py); every call is one metadata call, but
for `du` of single files.
"""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import asdict
from typing import Any

from ffs.client.attributes import Attributes
from ffs.client.links import ABSENT
from ffs.errors import FFSError, InvalidError
from ffs.wire.messages import LayoutReply, PinInfo, QuotaInfo


class Space(Attributes):
    """Usage, layouts, quotas and pins of the file system object."""

    # --- usage ----------------------------------------------------------------------------------

    def statfs(self) -> dict[str, int]:
        """Return how full the cluster is, summed over all targets as they last reported.

        `capacity_bytes`, `used_bytes` and `available_bytes` count every replica; `replicas` says
        how many each new chunk will have; `inodes` counts files, directories and links.
        """
        return asdict(self.core.meta.statfs())

    def usage(self, path: Any) -> dict[str, int]:
        """Return what lies at and below a path: `files`, `directories`, `symlinks`, and bytes.

        An inode with several names below the path counts once. `size_bytes` adds up file sizes,
        `stored_bytes` the blobs, each once: copies by reference and zeros cost nothing.
        """
        path = self._strip_protocol(path)
        found = self.core.meta.usage_many((path,))[0]
        if isinstance(found, FFSError):
            raise found
        return asdict(found)

    def du(
        self,
        path: Any,
        total: bool = True,
        maxdepth: int | None = None,
        withdirs: bool = False,
        refresh: bool = False,
    ) -> Any:
        """Return the bytes of all files below a path, or with `total=False` {path: bytes}.

        The total of a whole tree is the server's, and counts an inode with several names once; what
        is not there has no bytes. Directories and links have none of their own.
        """
        path = self._strip_protocol(path)
        if total and maxdepth is None:
            found = self.core.meta.usage_many((path,))[0]
            if not isinstance(found, FFSError):
                return found.size_bytes
            if isinstance(found, ABSENT):
                return 0
            raise found
        infos = self.find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True)
        sizes = {name: 0 if info["islink"] else info["size"] for name, info in infos.items()}
        return sum(sizes.values()) if total else sizes

    # --- layouts --------------------------------------------------------------------------------

    def get_layout(self, path: Any) -> dict[str, Any]:
        """Return `chunk_size_bytes` and `stripe` of a file, or of new files in a directory.

        `origin` is the path that says so, empty where the cluster's default holds.
        """
        return _layout(self.core.meta.layout(self._strip_protocol(path)))

    def set_layout(
        self, path: Any, *, chunk_size_bytes: int = 0, stripe: int = -1
    ) -> dict[str, Any]:
        """Say how files made below a directory from now on are laid out; return what holds now.

        Args:    chunk_size_bytes: a power of two, 0: not said here; stripe: chains that a file's
                 chunks are spread over, 0: all, -1: not said here. What is not said is inherited.
        """
        return _layout(
            self.core.meta.set_layout(
                self._strip_protocol(path), chunk_size_bytes=chunk_size_bytes, stripe=stripe
            )
        )

    # --- quotas ---------------------------------------------------------------------------------

    def quotas(self, path: Any) -> list[dict[str, Any]]:
        """Return the quotas that hold at a path, the nearest first: each of them counts.

        `path` is the directory that has it, `bytes_max` and `files_max` are None where it bounds
        nothing; `bytes_used` adds up file sizes, `files_used` counts everything below it.
        """
        return [_quota(info) for info in self.core.meta.quotas(self._strip_protocol(path))]

    def set_quota(
        self, path: Any, *, bytes_max: int | None = None, files_max: int | None = None
    ) -> list[dict[str, Any]]:
        """Bound what may be below a directory, instead of what was said; return as `quotas` does.

        For holders of the cluster key. None: no bound; both: no quota any more. What goes beyond is
        refused with QuotaExceededError (errno EDQUOT). A file cannot have names on both sides of
        a quota's border (QuotaBorderError, errno EXDEV).
        """
        for most in (bytes_max, files_max):
            if most is not None and most < 0:
                raise InvalidError(f"a quota of {most}", path=path)
        set_ = self.core.meta.set_quota(
            self._strip_protocol(path),
            bytes_max=-1 if bytes_max is None else bytes_max,
            files_max=-1 if files_max is None else files_max,
        )
        return [_quota(info) for info in set_]

    # --- pins -----------------------------------------------------------------------------------

    def pin(self, path: Any, ttl_s: float | None = None, *, owner: str = "") -> dict[str, Any]:
        """Keep the content that the files at and below a path have now, whatever becomes of them.

        Why: a job that holds handles, or a list of files, reads on although files are replaced.
        Args:    ttl_s: for so long, None: until it is taken off; owner: who, for people to read
        Returns: `pin`, its number for `unpin`, and what `pins` says of it
        """
        ttl_ms = 0
        if ttl_s is not None:
            ttl_ms = round(ttl_s * 1_000)
            if ttl_ms <= 0:
                raise InvalidError(f"a pin for {ttl_s} seconds", path=path)
        path = self._strip_protocol(path)
        return _pin(self.core.meta.pin(path, owner=owner or _whoami(), ttl_ms=ttl_ms))

    def unpin(self, pin: int) -> None:
        """Take a pin off by its number; NotFoundError if there is none such."""
        self.core.meta.unpin(pin)

    def pins(self) -> list[dict[str, Any]]:
        """Return all pins, oldest first.

        `created` and `expires` are seconds since the epoch, `expires` None for ever; `files` and
        `stored_bytes` say how much each keeps.
        """
        return [_pin(info) for info in self.core.meta.pins()]


def _layout(reply: LayoutReply) -> dict[str, Any]:
    origin = reply.origin.decode(errors="surrogateescape")
    return {
        "chunk_size_bytes": reply.chunk_size_bytes,
        "stripe": reply.stripe,
        "origin": origin,
    }


def _quota(info: QuotaInfo) -> dict[str, Any]:
    return {
        "path": info.path.decode(errors="surrogateescape"),
        "bytes_max": None if info.bytes_max < 0 else info.bytes_max,
        "bytes_used": info.bytes_used,
        "files_max": None if info.files_max < 0 else info.files_max,
        "files_used": info.files_used,
    }


def _pin(info: PinInfo) -> dict[str, Any]:
    return {
        "pin": info.pin,
        "path": info.path.decode(errors="surrogateescape"),
        "owner": info.owner,
        "created": info.created_ns / 1e9,
        "expires": info.expires_ns / 1e9 if info.expires_ns else None,
        "files": info.files,
        "stored_bytes": info.stored_bytes,
    }


def _whoami() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
