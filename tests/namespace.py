"""A metadata database without a server: operations run directly in real transactions.

For tests of what operations mean; those of how they are served start processes. `check` holds the
whole database against the invariants that every operation must keep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ffs.errors import FFSError, error_class
from ffs.rpc.aio import Peer
from ffs.rpc.codec import LENGTH, decode_reply, encode_reply, parse_reply
from ffs.seams import Randomness, SystemRandomness
from ffs.server.meta.ops import (
    clone,
    close,
    copy,
    create,
    layout,
    link,
    mkdir,
    pin,
    quota,
    readlink,
    remove,
    rename,
    rmdir,
    sessions,
    snapshot,
    statfs,
    status,
    storage,
    symlink,
    trash,
    usage,
)
from ffs.server.meta.ops import list as listing
from ffs.server.meta.ops import open as opening
from ffs.server.meta.ops import setattr as attributes
from ffs.server.meta.ops import stat as stats
from ffs.server.meta.ops.access import ROOT, Caller
from ffs.server.meta.ops.check import CHECKS, plan_for_whole_tables
from ffs.server.meta.ops.context import Context, Defaults
from ffs.server.meta.schema import RESERVED, BlobState
from ffs.server.meta.service import MetaService
from ffs.server.meta.store import Transaction
from ffs.types import Attr, FileType
from ffs.wire import messages as wire
from ffs.wire import snapshots as versions
from ffs.wire.membership import RegisterReply, RegisterRequest, TargetReport
from ffs.wire.messages import CreateMode
from ffs.wire.method import Fault, Method
from tests.databases import Database, new_database, noting, undone

T = TypeVar("T")
Rep = TypeVar("Rep")

SECOND_NS = 1_000_000_000
SESSION_TTL_NS = 60 * SECOND_NS
LEASE_NS = SESSION_TTL_NS + SESSION_TTL_NS // sessions.LEASE_MARGIN
"""How long a lease that was just written lasts."""
CLUSTER_ID = b"0123456789abcdef"
ME = b"client-one"
OTHER = b"client-two"
NO_MUTATION = b""
"""Operations do not look at the id: the ledger in front of them does."""


async def call(service: MetaService, method: Method[Any, Rep], request: object) -> Rep:
    """Call a handler of a service as its RPC server does; return what its client gets."""
    reply = await service.handlers()[method.name](request, Peer("test", 1))
    return parse_reply(method, decode_reply(encode_reply(1, method, reply)[LENGTH.size :]))


class Namespace:
    """One empty database, and short words for what tests do to it. Time stands until it is moved.

    Args:    database: of either engine, or a directory for a new SQLite file
    """

    def __init__(
        self,
        database: Database | Path,
        *,
        targets: int = 1,
        randomness: Randomness | None = None,
    ) -> None:
        self.now_ns = 1_000 * SECOND_NS
        if isinstance(database, Path):
            database = new_database("sqlite", database)
        self.database = database
        self.randomness = randomness or SystemRandomness()
        self.stripe = 0
        self.caller: Caller = ROOT
        self.transact(lambda tx: status.initialise(tx, CLUSTER_ID, self.now_ns))
        if targets:
            self.register(*(f"disk-{i}" for i in range(targets)))

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()

    # --- transactions ---------------------------------------------------------------------------

    def transact(self, operation: Callable[[Transaction], T]) -> T:
        """Run in a transaction of its own; undone whole if it raises."""
        return self.database.transact(operation)

    @property
    def tx(self) -> Transaction:
        """What runs single statements."""
        return self.database.tx

    @contextlib.contextmanager
    def statements(self) -> Iterator[list[str]]:
        """Collect the statements of what is done meanwhile."""
        with noting(self.database) as statements:
            yield statements

    def context(self) -> Context:
        """What mutations get to know."""
        return Context(self.now_ns, self.randomness, self.defaults(), self.caller)

    def defaults(self) -> Defaults:
        """What the configuration says."""
        return Defaults(1 << 20, self.stripe, SESSION_TTL_NS)

    def mutate(self, operation: Callable[[Transaction, Context, Any], T], request: object) -> T:
        """Run one mutating operation."""
        return self.transact(lambda tx: operation(tx, self.context(), request))

    def look(self, operation: Callable[[Transaction, Caller, Any], T], request: object) -> T:
        """Run one reading operation."""
        return operation(self.tx, self.caller, request)

    def undone(self, action: Callable[[], T]) -> T:
        """Return what an action comes to, and take back what it changed."""
        return undone(self.database, action)

    # --- the operations, in short words ---------------------------------------------------------

    def register(self, *labels: str, node: int = 0, pid: int = 1) -> RegisterReply:
        """Bring up a daemon with new targets."""
        reports = [TargetReport(label, 0, 1, 0, 0, False) for label in labels]
        request = RegisterRequest(node, b"", pid, "127.0.0.1", 7000, reports)
        return self.transact(
            lambda tx: storage.register(
                tx, request, cluster_id=CLUSTER_ID, heartbeat_ms=1_000, now_ns=self.now_ns
            )
        )

    def create(
        self, *entries: wire.CreateEntry | bytes, client: bytes = ME
    ) -> list[wire.WriteSession | Fault]:
        """create_many."""
        full = [wire.CreateEntry(e) if isinstance(e, bytes) else e for e in entries]
        request = wire.CreateManyRequest(NO_MUTATION, client, full)
        return self.mutate(create.create_many, request).sessions

    def open_session(self, path: bytes, *, client: bytes = ME, **fields: Any) -> wire.WriteSession:
        """create_many of one entry that must succeed."""
        return good(self.create(wire.CreateEntry(path, **fields), client=client)[0])

    def close_sessions(self, *entries: wire.CloseEntry, client: bytes = ME) -> list[Attr | Fault]:
        """close_many."""
        request = wire.CloseManyRequest(NO_MUTATION, client, list(entries))
        return self.mutate(close.close_many, request).attrs

    def publish(self, session: wire.WriteSession, length: int, *, client: bytes = ME) -> Attr:
        """close_many of one session that must succeed."""
        entry = wire.CloseEntry(session.session, length)
        return good(self.close_sessions(entry, client=client)[0])

    def write(self, path: bytes, length: int = 100, **fields: Any) -> Attr:
        """Create and close a file."""
        return self.publish(self.open_session(path, **fields), length)

    def abort(self, *session_ids: int, client: bytes = ME) -> None:
        """abort_many."""
        request = wire.AbortManyRequest(NO_MUTATION, client, list(session_ids))
        self.mutate(sessions.abort_many, request)

    def renew(self, client: bytes = ME) -> int:
        """renew."""
        return self.mutate(sessions.renew, wire.RenewRequest(client)).sessions

    def reap(self) -> int:
        """What the server does from time to time."""
        return self.transact(lambda tx: sessions.reap(tx, self.now_ns))

    def mkdir(self, path: bytes, **fields: Any) -> Attr:
        """mkdir."""
        return self.mutate(mkdir.mkdir, wire.MkdirRequest(NO_MUTATION, path, **fields)).attr

    def rename(self, source: bytes, target: bytes, **fields: Any) -> None:
        """rename."""
        self.mutate(rename.rename, wire.RenameRequest(NO_MUTATION, source, target, **fields))

    def remove(self, *paths: bytes) -> list[None | Fault]:
        """remove_many."""
        request = wire.RemoveManyRequest(NO_MUTATION, list(paths))
        return self.mutate(remove.remove_many, request).results

    def rmdir(self, path: bytes, *, recursive: bool = False) -> int:
        """rmdir."""
        request = wire.RmdirRequest(NO_MUTATION, path, recursive)
        return self.mutate(rmdir.rmdir, request).removed

    def setattr(self, path: bytes, **fields: Any) -> Attr:
        """setattr."""
        request = wire.SetattrRequest(NO_MUTATION, path, **fields)
        return self.mutate(attributes.setattr_path, request).attr

    def copy(self, source: bytes, target: bytes, **fields: Any) -> Attr:
        """copy."""
        request = wire.CopyRequest(NO_MUTATION, source, target, **fields)
        return self.mutate(copy.copy, request).attr

    def symlink(self, path: bytes, target: bytes, **fields: Any) -> Attr:
        """symlink."""
        request = wire.SymlinkRequest(NO_MUTATION, path, target, **fields)
        return self.mutate(symlink.symlink, request).attr

    def readlink(self, path: bytes) -> bytes:
        """readlink."""
        return self.look(readlink.readlink, wire.ReadlinkRequest(path)).target

    def link(self, source: bytes, target: bytes, **fields: Any) -> Attr:
        """link."""
        return self.mutate(link.link, wire.LinkRequest(NO_MUTATION, source, target, **fields)).attr

    def append(self, path: bytes, length: int = 10, **fields: Any) -> Attr:
        """Create and close a session that appends."""
        session = self.open_session(path, create_mode=CreateMode.APPEND)
        return good(self.close_sessions(wire.CloseEntry(session.session, length, **fields))[0])

    def layout(self, path: bytes) -> wire.LayoutReply:
        """layout."""
        return layout.layout(self.tx, self.caller, self.defaults(), wire.LayoutRequest(path))

    def set_layout(self, path: bytes, **fields: Any) -> wire.LayoutReply:
        """set_layout."""
        request = wire.SetLayoutRequest(NO_MUTATION, path, **fields)
        return self.mutate(layout.set_layout, request)

    def quotas(self, path: bytes) -> list[wire.QuotaInfo]:
        """quota."""
        return self.look(quota.quota, wire.QuotaRequest(path)).quotas

    def set_quota(self, path: bytes, **fields: Any) -> list[wire.QuotaInfo]:
        """set_quota."""
        request = wire.SetQuotaRequest(NO_MUTATION, path, **fields)
        return self.mutate(quota.set_quota, request).quotas

    def pin(self, path: bytes, owner: str = "job", **fields: Any) -> wire.PinInfo:
        """pin."""
        return self.mutate(pin.pin, wire.PinRequest(NO_MUTATION, path, owner, **fields)).pin

    def unpin(self, number: int) -> None:
        """unpin."""
        self.mutate(pin.unpin, wire.UnpinRequest(NO_MUTATION, number))

    def pins(self) -> list[wire.PinInfo]:
        """pins."""
        return pin.pins(self.tx, wire.PinsRequest()).pins

    def reap_pin(self) -> int:
        """What the server does from time to time."""
        return self.transact(lambda tx: pin.reap_pin(tx, self.now_ns))

    def clone(self, source: bytes, target: bytes, **fields: Any) -> versions.CloneReply:
        """clone."""
        request = versions.CloneRequest(NO_MUTATION, source, target, **fields)
        return self.mutate(clone.clone, request)

    def snapshot(self, path: bytes, name: bytes) -> versions.CloneReply:
        """snapshot."""
        return self.mutate(snapshot.snapshot, versions.SnapshotRequest(NO_MUTATION, path, name))

    def remove_snapshot(self, path: bytes, name: bytes) -> int:
        """remove_snapshot."""
        request = versions.RemoveSnapshotRequest(NO_MUTATION, path, name)
        return self.mutate(snapshot.remove_snapshot, request).removed

    def trash(self, path: bytes) -> bytes:
        """trash."""
        return self.mutate(trash.trash, versions.TrashRequest(NO_MUTATION, path)).entry

    def trashed(self, **fields: Any) -> versions.TrashedReply:
        """trashed."""
        return self.look(trash.trashed, versions.TrashedRequest(**fields))

    def reap_trash(self, removed_before_ns: int) -> bytes:
        """What the server does from time to time."""
        return self.transact(lambda tx: trash.reap_trash(tx, self.now_ns, removed_before_ns))

    def usage(self, path: bytes) -> wire.Usage:
        """usage_many of one path that must be there."""
        return good(self.usage_many(path)[0])

    def usage_many(self, *paths: bytes) -> list[wire.Usage | Fault]:
        """usage_many."""
        return self.look(usage.usage_many, wire.UsageManyRequest(list(paths))).usages

    def statfs(self, *reports: TargetReport) -> wire.StatfsReply:
        """statfs."""
        return statfs.statfs(self.tx, reports)

    def stat_many(self, *paths: bytes, follow: bool = True) -> list[Attr | Fault]:
        """stat_many."""
        return self.look(stats.stat_many, wire.StatManyRequest(list(paths), follow)).attrs

    def stat(self, path: bytes, *, follow: bool = True) -> Attr:
        """stat_many of one path that must be there."""
        return good(self.stat_many(path, follow=follow)[0])

    def exists(self, path: bytes) -> bool:
        """Whether stat finds something."""
        return isinstance(self.stat_many(path)[0], Attr)

    def open_many(self, *paths: bytes) -> list[wire.OpenFile | Fault]:
        """open_many."""
        return self.look(opening.open_many, wire.OpenManyRequest(list(paths))).files

    def segments(self, path: bytes) -> list[tuple[int, int]]:
        """(blob, length) of each segment of a file that must be there."""
        return [(s.blob, s.length) for s in good(self.open_many(path)[0]).segments]

    def list(self, path: bytes, **fields: Any) -> wire.ListReply:
        """list."""
        return self.look(listing.list_page, wire.ListRequest(path, **fields))

    def names(self, path: bytes) -> Sequence[bytes]:
        """All names of a directory."""
        return [entry.name for entry in self.list(path, limit=4_096).entries]

    def blob_state(self, blob: int) -> BlobState | None:
        """Where a blob stands; None once its row is gone."""
        row = self.tx.row("SELECT state FROM blobs WHERE blob = ?", (blob,))
        return None if row is None else BlobState(row[0])

    # --- invariants -----------------------------------------------------------------------------

    def check(self) -> None:
        """Hold every table against what must be true between transactions."""
        self.transact(check_database)


def check_database(tx: Transaction) -> None:
    """Hold a database, seen in a transaction that may write, against every invariant."""
    plan_for_whole_tables(tx)
    for invariant, sql in _INVARIANTS.items():
        assert isinstance(sql, str)
        broken = tx.rows(sql)
        assert not broken, f"{invariant}: {broken[:5]}"
    for counter, table in (("inode", "inodes"), ("blob", "blobs"), ("session", "sessions")):
        used = tx.row(f"SELECT coalesce(max({counter}), 0) FROM {table}")
        assert used is not None
        assert used[0] <= tx.highest(counter), f"an id of {table} was not given out"


def good(entry: T | Fault) -> T:
    """Return a batch's entry that is no fault; raise the error that it stands for otherwise."""
    if isinstance(entry, Fault):
        raise error_class(entry.code)(entry.message)
    return entry


def kind(entry: object) -> type[FFSError] | None:
    """Return the error class of a fault, None for anything else."""
    return error_class(entry.code) if isinstance(entry, Fault) else None


_DIRECTORY = int(FileType.DIRECTORY)
_SYMLINK = int(FileType.SYMLINK)
_INVARIANTS = {
    **{one.kind: one.query for one in CHECKS if one.kind.startswith("quota")},
    "references equal segments and pins": """
        SELECT b.blob, b.refs FROM blobs b WHERE b.refs <>
        (SELECT count(*) FROM segments s WHERE s.blob = b.blob)
        + (SELECT count(*) FROM pin_blobs p WHERE p.blob = b.blob)""",
    "pinned blobs belong to pins": """
        SELECT p.* FROM pin_blobs p LEFT JOIN pins ON pins.pin = p.pin WHERE pins.pin IS NULL""",
    "exactly the symbolic links hold a target, of their size": f"""
        SELECT i.inode FROM inodes i LEFT JOIN symlinks s ON s.inode = i.inode
        WHERE (i.type = {_SYMLINK}) <> (s.inode IS NOT NULL)
        OR (i.type = {_SYMLINK} AND i.size <> length(s.target))
        UNION ALL SELECT s.inode FROM symlinks s LEFT JOIN inodes i ON i.inode = s.inode
        WHERE i.inode IS NULL""",
    "layouts belong to directories": f"""
        SELECT l.inode FROM layouts l LEFT JOIN inodes i ON i.inode = l.inode
        WHERE i.inode IS NULL OR i.type <> {_DIRECTORY}""",
    "a blob is live exactly while referred to": f"""
        SELECT blob, state, refs FROM blobs WHERE (refs > 0) <> (state = {BlobState.LIVE:d})""",
    "a blob is being written exactly while a session holds it": f"""
        SELECT b.blob, b.state FROM blobs b LEFT JOIN sessions s ON s.blob = b.blob
        WHERE (b.state = {BlobState.WRITING:d}) <> (s.session IS NOT NULL)""",
    "segments name blobs that exist": """
        SELECT s.* FROM segments s LEFT JOIN blobs b ON b.blob = s.blob
        WHERE s.blob <> 0 AND b.blob IS NULL""",
    "segments fit their blobs": """
        SELECT s.*, b.length FROM segments s JOIN blobs b ON b.blob = s.blob
        WHERE s.length > b.length OR s.length < 1""",
    "sizes add up": f"""
        SELECT i.inode, i.size FROM inodes i LEFT JOIN segments s ON s.inode = i.inode
        WHERE i.type <> {_SYMLINK} GROUP BY i.inode HAVING i.size <> coalesce(sum(s.length), 0)
        OR (i.type = {_DIRECTORY} AND i.size <> 0)""",
    "segments belong to files": """
        SELECT s.* FROM segments s LEFT JOIN inodes i ON i.inode = s.inode
        WHERE i.inode IS NULL OR i.type <> 1""",
    "names stand for inodes of their type": """
        SELECT d.* FROM dentries d LEFT JOIN inodes i ON i.inode = d.inode
        WHERE d.type <> 0 AND (i.inode IS NULL OR i.type <> d.type)""",
    "every inode has a name, a directory exactly one": f"""
        SELECT i.inode FROM inodes i LEFT JOIN dentries d ON d.inode = i.inode GROUP BY i.inode
        HAVING count(d.name) < 1 OR (i.type = {_DIRECTORY} AND count(d.name) <> 1)""",
    "parents are directories": f"""
        SELECT d.* FROM dentries d LEFT JOIN inodes i ON i.inode = d.parent
        WHERE d.parent <> 0 AND (i.inode IS NULL OR i.type <> {_DIRECTORY})""",
    "files and links count their names": f"""
        SELECT i.inode, i.nlink FROM inodes i JOIN dentries d ON d.inode = i.inode
        WHERE i.type <> {_DIRECTORY} GROUP BY i.inode HAVING i.nlink <> count(*)""",
    "directories count their subdirectories": f"""
        SELECT i.inode, i.nlink, count(d.inode) FROM inodes i
        LEFT JOIN dentries d ON d.parent = i.inode AND d.type = {_DIRECTORY}
        WHERE i.type = {_DIRECTORY} GROUP BY i.inode HAVING i.nlink + (
            SELECT coalesce(sum(c.subdirectories), 0) FROM directory_changes c
            WHERE c.inode = i.inode
        ) <> 2 + count(d.inode)""",
    "reserved names belong to exclusive sessions": f"""
        SELECT d.* FROM dentries d LEFT JOIN sessions s ON s.session = -d.inode
        WHERE d.type = {RESERVED} AND (s.session IS NULL
        OR s.create_mode <> {CreateMode.EXCLUSIVE:d}
        OR s.parent <> d.parent OR s.name <> d.name)""",
    "every session's client has a lease": """
        SELECT s.session FROM sessions s LEFT JOIN leases l ON l.client = s.client
        WHERE l.client IS NULL""",
    "drops wait for blobs that are being dropped": f"""
        SELECT d.* FROM drops d LEFT JOIN blobs b ON b.blob = d.blob
        WHERE b.blob IS NULL OR b.state <> {BlobState.DROPPING:d}""",
    "nothing is left in the scratch table": "SELECT * FROM doomed",
}
