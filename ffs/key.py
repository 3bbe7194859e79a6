"""The cluster's shared secret and its file.

Used by ffs.handshake, which proves possession without ever sending it. Whoever holds the key is
root of the file system, so its bytes appear in no repr, log line or pickle.
"""

from __future__ import annotations

import hmac
import logging
import os
from typing import Final

from ffs.errors import ConfigError, ExistsError
from ffs.seams import Randomness, SystemRandomness

log = logging.getLogger("ffs.key")

KEY_BYTES: Final = 32
_SAME_HOST_LABEL: Final = b"ffs same host"


def read_secret(path: str | os.PathLike[str], what: str, bytes_max: int, *, hint: str) -> bytes:
    """Return what a file with a secret holds, up to a bound; say so if others may read it, too.

    Raises:  ConfigError if it cannot be read
    """
    try:
        with open(path, "rb") as file:
            text = file.read(bytes_max)
            mode = os.fstat(file.fileno()).st_mode
    except OSError as error:
        raise ConfigError(
            f"cannot read the {what}: {error.strerror}", hint=hint, path=os.fspath(path)
        ) from error
    if mode & 0o077:
        log.warning("%s_file_open_to_others", what.split()[-1], extra={"path": os.fspath(path)})
    return text


class ClusterKey:
    """The cluster's shared secret. Whoever holds it is root of the file system.

    Its bytes never appear in a repr, a log line or a pickle.
    """

    __slots__ = ("_secret",)

    shown: Final = b""
    """What a server must be shown to know which secret is meant: it has this one."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ConfigError(
                f"a cluster key has {KEY_BYTES} bytes, not {len(secret)}",
                hint="copy the key file from the cluster unchanged",
            )
        self._secret = bytes(secret)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ClusterKey:
        """Read a key file: 64 hexadecimal digits and a newline."""
        hint = "set FFS_KEY_FILE or key_file to the cluster.key that `ffs up` printed"
        text = read_secret(path, "cluster key", 4 * KEY_BYTES, hint=hint)
        try:
            return cls(bytes.fromhex(text.decode("ascii").strip()))
        except ValueError as error:
            raise ConfigError(
                f"the cluster key file does not hold {2 * KEY_BYTES} hexadecimal digits",
                hint="copy the key file from the cluster unchanged",
                path=os.fspath(path),
            ) from error

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], randomness: Randomness | None = None
    ) -> ClusterKey:
        """Make a new key and write it with mode 0600, whole or not at all; never over another."""
        key = cls((randomness or SystemRandomness()).token(KEY_BYTES))
        draft = f"{os.fspath(path)}.{os.getpid()}.new"
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, key._secret.hex().encode("ascii") + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
            os.link(draft, path)  # unlike a rename, this refuses to replace an existing key
        except FileExistsError as error:
            raise ExistsError("a cluster key is already there", path=os.fspath(path)) from error
        finally:
            if os.path.exists(draft):
                os.unlink(draft)
        return key

    def mac(self, *parts: bytes) -> bytes:
        """Return HMAC-SHA256 of the joined parts."""
        return hmac.digest(self._secret, b"".join(parts), "sha256")

    @property
    def same_host(self) -> bytes:
        """What names the sockets that daemons and clients of one host meet at: no secret."""
        return self.derive(_SAME_HOST_LABEL)

    def derive(self, label: bytes) -> bytes:
        """Return a key of its own for a purpose: 32 bytes that say nothing of this one.

        Source:  RFC 5869, HKDF-Expand of one block; the secret is uniform, so nothing is extracted
        """
        return self.mac(label, b"\x01")

    def current(self, *, look: bool = False) -> ClusterKey:
        """See `ffs.auth.credential.Credential`: there is one."""
        return self

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ClusterKey):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash((ClusterKey, self._secret))

    def __repr__(self) -> str:
        return "ClusterKey(<redacted>)"

    def __reduce__(self) -> str:
        raise TypeError("a cluster key is not pickled; pass the path of its file")
