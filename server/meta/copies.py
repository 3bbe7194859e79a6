"""The server's own backups: one an interval, by one server of several, the newest ones kept.

Previous hop: `service` runs `Copies.run` beside its chores. Next hop: a process of its own
(`python -m ffs.server.meta.copies`) that calls `backup`, at low priority and on a snapshot, so that
no mutation waits for it: in this process it would take turns with the event loop.

Which server does it: when the next one is due is a setting; whoever moves it on does the work. So a
server that dies over it costs one copy, and a restart never begins an interval anew.
Failure: a copy that fails is logged, shown in `ffs status` until one succeeds, and tried again
after `RETRY_S_MAX`; the copies there are stay as they are. A copy under its final name is whole.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgpack

from ffs.config import MetaConfig
from ffs.errors import FFSError
from ffs.seams import Clock
from ffs.server.meta.backup import backup
from ffs.server.meta.backup_file import PARTIAL_SUFFIX
from ffs.server.meta.store import Store, Transaction

log = logging.getLogger("ffs.meta.copies")

RETRY_S_MAX: Final = 300
_LOOK_S_MAX: Final = 30.0
_NICENESS: Final = 10
_DUE: Final = "backup_due"
_STATE: Final = "backup_state"
_NAME: Final = re.compile(r"meta-\d{8}T\d{6}Z\.ffsbackup")
_PARTIAL: Final = re.compile(_NAME.pattern + re.escape(PARTIAL_SUFFIX))
_SECOND_NS: Final = 1_000_000_000
_WORDS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class CopyState:
    """When the last copy was made (0: never), and why the last attempt failed (empty: not)."""

    made_ns: int = 0
    error: str = ""


def load_state(tx: Transaction) -> CopyState:
    """Return what became of the last copies."""
    row = tx.row("SELECT value FROM settings WHERE name = ?", (_STATE,))
    return CopyState() if row is None else CopyState(*msgpack.unpackb(row[0]))


def copies_of(store: Store, clock: Clock, config: MetaConfig) -> Copies | None:
    """Return what makes the copies that the configuration wants; None where it wants none.

    A relative directory is one of the data directory's, which a shared database has not.
    """
    directory = Path(config.data_dir) / config.backup_dir
    if not config.backup_dir or not (config.data_dir or directory.is_absolute()):
        return None
    return Copies(
        store,
        clock,
        source=config.database or config.data_dir,
        directory=directory,
        interval_s=config.backup_interval_s,
        keep=config.backup_keep,
    )


class Copies:
    """Makes a copy whenever one is due.

    Args:    source: what `backup` takes; directory: where the copies go; keep: how many stay
    Threads: the event loop's; Fork: starts a process, which shares nothing with this one
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        source: str,
        directory: Path,
        interval_s: int,
        keep: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._source = source
        self._directory = directory
        self._interval_ns = interval_s * _SECOND_NS
        self._retry_ns = min(interval_s, RETRY_S_MAX) * _SECOND_NS
        self._look_s = min(interval_s / 10, _LOOK_S_MAX)
        self._keep = keep

    async def run(self) -> None:
        """Look from time to time whether a copy is due, until cancelled."""
        while True:
            try:
                if await self._is_mine():
                    await self._copy()
            except FFSError as error:
                log.warning("backup_put_off", extra={"reason": str(error)})
            except Exception:  # a bug here must not end what keeps the names safe
                log.exception("backup_broken")
            await asyncio.sleep(self._look_s)

    async def _is_mine(self) -> bool:
        """Return whether a copy is due and no other server has taken it."""
        now_ns = self._clock.wall_ns()
        next_ns = now_ns + self._interval_ns
        if not await self._store.read(lambda tx: _is_due(tx, now_ns, next_ns)):
            return False
        return await self._store.write(lambda tx: _take(tx, now_ns, next_ns))

    async def _copy(self) -> None:
        begun_ns = self._clock.wall_ns()
        path = self._directory / _name(begun_ns)
        error = await self._run_process(path)
        if not error:
            error = self._prune()
        now_ns = self._clock.wall_ns()
        if error:
            log.error("backup_failed", extra={"path": str(path), "reason": error})
        else:
            milliseconds = (now_ns - begun_ns) // 1_000_000
            log.info("backup_made", extra={"path": str(path), "ms": milliseconds})
        await self._store.write(lambda tx: self._record(tx, begun_ns, now_ns, error))

    async def _run_process(self, path: Path) -> str:
        """Make the copy in another process and return why it failed, if it did."""
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", __name__, str(path)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            return f"cannot start a process: {error.strerror}"
        try:
            # Not as an argument: an address may hold a password, and arguments are public.
            _, words = await process.communicate(self._source.encode())
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if process.returncode == 0:
            return ""
        lines = words[-_WORDS_MAX:].decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"the process ended with status {process.returncode}"

    def _prune(self) -> str:
        """Remove the oldest copies, and what unfinished ones left; return why that failed."""
        try:
            names = sorted(os.listdir(self._directory))
            stale = [name for name in names if _PARTIAL.fullmatch(name)]
            copies = [name for name in names if _NAME.fullmatch(name)]
            for name in stale + copies[: -self._keep]:
                (self._directory / name).unlink(missing_ok=True)
        except OSError as error:
            return f"cannot remove old copies: {error.strerror}"
        return ""

    def _record(self, tx: Transaction, begun_ns: int, now_ns: int, error: str) -> None:
        made_ns = load_state(tx).made_ns if error else begun_ns
        _set(tx, _STATE, msgpack.packb((made_ns, error)))
        if error:
            _set(tx, _DUE, _packed(now_ns + self._retry_ns))


def _is_due(tx: Transaction, now_ns: int, next_ns: int) -> bool:
    row = tx.row("SELECT value FROM settings WHERE name = ?", (_DUE,))
    return row is None or not _packed(now_ns) < bytes(row[0]) <= _packed(next_ns)


def _take(tx: Transaction, now_ns: int, next_ns: int) -> bool:
    """Move the due time on; return whether it was due. The first look only begins an interval.

    A time farther off than an interval is due too: the clock was set back.
    """
    begun = tx.insert(
        "settings", ("name", "value"), [(_DUE, _packed(next_ns))], conflict="DO NOTHING"
    )
    if begun:
        return False
    return bool(
        tx.run(
            "UPDATE settings SET value = ? WHERE name = ? AND (value <= ? OR value > ?)",
            (_packed(next_ns), _DUE, _packed(now_ns), _packed(next_ns)),
        )
    )


def _set(tx: Transaction, name: str, value: bytes) -> None:
    tx.insert(
        "settings",
        ("name", "value"),
        [(name, value)],
        conflict="(name) DO UPDATE SET value = excluded.value",
    )


def _packed(time_ns: int) -> bytes:
    """A time as a setting holds it: equal widths, so that octets compare as the times do."""
    return time_ns.to_bytes(8, "big")


def _name(time_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ns // _SECOND_NS, datetime.UTC)
    return f"meta-{moment:%Y%m%dT%H%M%SZ}.ffsbackup"


def main() -> int:
    """Make one copy of what standard input names, at the path that the argument names."""
    os.nice(_NICENESS)
    source = sys.stdin.buffer.read().decode()
    try:
        backup(source, Path(sys.argv[1]))
    except FFSError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
