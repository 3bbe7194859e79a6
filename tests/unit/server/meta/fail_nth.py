"""Stores whose transactions fail at a chosen call, and one request of every method that changes.

The fault strikes inside the operation, on the real engine's own thread: the engine judges it as it
judges what its library raises.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ffs.server.meta.store import Store, Transaction
from ffs.wire import auth, operators
from ffs.wire import maintenance as upkeep
from ffs.wire import messages as wire
from ffs.wire import snapshots as versions
from ffs.wire.membership import (
    HEARTBEAT,
    REGISTER,
    HeartbeatRequest,
    RegisterReply,
    RegisterRequest,
    TargetReport,
)
from ffs.wire.messages import CreateEntry, CreateMode
from ffs.wire.method import Method
from ffs.wire.operators import TaskKind

T = TypeVar("T")
Call = Callable[[Method[Any, Any], object], Awaitable[Any]]
"""Sends a request to the service."""

ME = b"client-of-the-test"
NODE_PID = 77


class Fault:
    """The `nth` use of a transaction from now on raises `error`, once; 0 only counts."""

    def __init__(self, nth: int = 0, error: BaseException | None = None) -> None:
        self.nth = nth
        self.error = error
        self.uses = 0

    @property
    def struck(self) -> bool:
        """Whether it came to that."""
        return 0 < self.nth <= self.uses

    def use(self) -> None:
        """Count one use."""
        self.uses += 1
        if self.uses == self.nth and self.error is not None:
            raise self.error


class FailingTransaction:
    """Every method of a transaction, whichever there are, behind a fault."""

    def __init__(self, tx: Transaction, fault: Fault) -> None:
        self._tx = tx
        self._fault = fault

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tx, name)
        if not callable(found):
            return found

        def failing(*args: Any, **kwargs: Any) -> Any:
            self._fault.use()
            return found(*args, **kwargs)

        return failing


class FailingStore:
    """`Store` over another one; `fault` strikes what is written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fault = Fault()

    async def read(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.read`: never fails."""
        return await self._store.read(operation)

    async def write(self, operation: Callable[[Transaction], T]) -> T:
        """See `Store.write`."""
        fault = self.fault

        def failing(tx: Transaction) -> T:
            wrapped: Any = FailingTransaction(tx, fault)
            return operation(wrapped)

        return await self._store.write(failing)

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()


def sqlite_error(code: int, name: str, text: str) -> sqlite3.OperationalError:
    """What the sqlite3 module raises for a result code."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = name
    return error


# --- one request of every method -----------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A method that changes the database: how to get ready for it, and its request.

    `prepare` makes what the request needs below a directory of its own; what it returns is handed
    to `request`, together with the directory and a mutation id.
    """

    method: Method[Any, Any]
    prepare: Callable[[Call, bytes], Awaitable[Any]]
    request: Callable[[bytes, bytes, Any], object]
    recorded: bool = True
    """Whether the ledger answers a second time; otherwise doing it twice does no harm."""
    silent: bool = False
    """No daemon is heard any more when it comes."""


def identity(number: int) -> bytes:
    """A mutation id."""
    return number.to_bytes(16, "little")


class Ids:
    """Mutation ids that nobody has used."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> bytes:
        self._last += 1
        return identity(self._last)


new_id = Ids()


async def nothing(call: Call, path: bytes) -> None:
    """Nothing besides the directory is needed."""


async def open_sessions(call: Call, path: bytes) -> list[wire.WriteSession]:
    """One session that replaces and one that reserves its name."""
    entries = [
        CreateEntry(path + b"/new"),
        CreateEntry(path + b"/reserved", create_mode=CreateMode.EXCLUSIVE),
    ]
    reply = await call(wire.CREATE_MANY, wire.CreateManyRequest(new_id(), ME, entries))
    sessions: list[wire.WriteSession] = reply.sessions
    return sessions


async def files(call: Call, path: bytes) -> None:
    """Files a and b, with content."""
    entries = [CreateEntry(path + b"/a"), CreateEntry(path + b"/b")]
    reply = await call(wire.CREATE_MANY, wire.CreateManyRequest(new_id(), ME, entries))
    closing = [wire.CloseEntry(session.session, 1000) for session in reply.sessions]
    await call(wire.CLOSE_MANY, wire.CloseManyRequest(new_id(), ME, closing))


async def tree(call: Call, path: bytes) -> None:
    """A directory with files and another directory in it."""
    await files(call, path)
    await call(wire.MKDIR, wire.MkdirRequest(new_id(), path + b"/d/e", parents=True))
    await files(call, path + b"/d")


async def pin(call: Call, path: bytes) -> int:
    """A pin of two files."""
    await files(call, path)
    reply = await call(wire.PIN, wire.PinRequest(new_id(), path, "test"))
    number: int = reply.pin.pin
    return number


async def kept(call: Call, path: bytes) -> None:
    """A tree with a snapshot."""
    await tree(call, path)
    await call(versions.SNAPSHOT, versions.SnapshotRequest(new_id(), path, b"v"))


async def node(call: Call, path: bytes) -> RegisterReply:
    """A daemon with a target."""
    reply: RegisterReply = await call(REGISTER, registration(path))
    return reply


async def scan(call: Call, path: bytes) -> tuple[RegisterReply, int]:
    """A daemon, and a scan of all targets."""
    reply = await node(call, path)
    started = await call(upkeep.START_SCAN, upkeep.StartScanRequest(new_id()))
    return reply, started.scan


async def no_task(call: Call, path: bytes) -> None:
    """Nobody awaits a node."""
    request = operators.CancelRequest(new_id(), int(TaskKind.ADD_NODE), 1)
    await call(operators.CLUSTER_CANCEL, request)


async def task(call: Call, path: bytes) -> int:
    """A node that is awaited."""
    await no_task(call, path)
    request = operators.BeginRequest(new_id(), int(TaskKind.ADD_NODE))
    reply: operators.BeginReply = await call(operators.CLUSTER_BEGIN, request)
    return reply.subject


async def idle_node(call: Call, path: bytes) -> int:
    """A daemon without targets."""
    request = RegisterRequest(0, b"", NODE_PID + 1, "127.0.0.1", 7001, [])
    reply: RegisterReply = await call(REGISTER, request)
    return reply.node


def someone(path: bytes) -> auth.User:
    """A user of the directory's name, with a uid of its own."""
    return auth.User(path.decode().rpartition("/")[2], 1_000 + zlib.crc32(path) % 100_000, [5])


async def user(call: Call, path: bytes) -> str:
    """A user that is known."""
    made = someone(path)
    await call(auth.ADD_USER, auth.AddUserRequest(new_id(), made))
    return made.name


def registration(path: bytes) -> RegisterRequest:
    """A daemon that nobody knows, with a new target."""
    report = TargetReport(path.decode() + "/disk", 0, 1 << 30, 0, 0, False)
    return RegisterRequest(0, b"", NODE_PID, "127.0.0.1", 7000, [report])


def heartbeat(path: bytes, mutation: bytes, known: RegisterReply) -> HeartbeatRequest:
    """The daemon confirms a drop."""
    report = TargetReport(path.decode() + "/disk", known.targets[0], 1 << 30, 0, 0, False)
    return HeartbeatRequest(known.node, [report], [1 << 40], known.routing.version)


def scan_done(
    path: bytes, mutation: bytes, known: tuple[RegisterReply, int]
) -> upkeep.ScanDoneRequest:
    """The target was found in order."""
    reply, number = known
    found = upkeep.TargetScan(reply.targets[0], *(0, 0, 0, [], 0, 0, []), 0, [], 0, 0, "")
    return upkeep.ScanDoneRequest(reply.node, number, [found])


ENTRIES: Mapping[str, Entry] = {
    entry.method.name: entry
    for entry in (
        Entry(
            wire.CREATE_MANY,
            nothing,
            lambda path, mutation, _: wire.CreateManyRequest(
                mutation,
                ME,
                [
                    CreateEntry(path + b"/x/y", parents=True),
                    CreateEntry(path + b"/z", create_mode=CreateMode.EXCLUSIVE),
                ],
            ),
        ),
        Entry(
            wire.CLOSE_MANY,
            open_sessions,
            lambda path, mutation, sessions: wire.CloseManyRequest(
                mutation, ME, [wire.CloseEntry(session.session, 5000) for session in sessions]
            ),
        ),
        Entry(
            wire.ABORT_MANY,
            open_sessions,
            lambda path, mutation, sessions: wire.AbortManyRequest(
                mutation, ME, [session.session for session in sessions]
            ),
        ),
        Entry(
            wire.MKDIR,
            nothing,
            lambda path, mutation, _: wire.MkdirRequest(mutation, path + b"/x/y", parents=True),
        ),
        Entry(
            wire.RENAME,
            files,
            lambda path, mutation, _: wire.RenameRequest(mutation, path + b"/a", path + b"/b"),
        ),
        Entry(
            wire.REMOVE_MANY,
            files,
            lambda path, mutation, _: wire.RemoveManyRequest(
                mutation, [path + b"/a", path + b"/b", path + b"/none"]
            ),
        ),
        Entry(
            wire.RMDIR,
            tree,
            lambda path, mutation, _: wire.RmdirRequest(mutation, path, recursive=True),
        ),
        Entry(
            wire.SETATTR,
            files,
            lambda path, mutation, _: wire.SetattrRequest(
                mutation, path + b"/a", mode=0o600, size=300
            ),
        ),
        Entry(
            wire.COPY,
            files,
            lambda path, mutation, _: wire.CopyRequest(mutation, path + b"/a", path + b"/b"),
        ),
        Entry(
            wire.SYMLINK,
            nothing,
            lambda path, mutation, _: wire.SymlinkRequest(mutation, path + b"/s", b"../a"),
        ),
        Entry(
            wire.LINK,
            files,
            lambda path, mutation, _: wire.LinkRequest(mutation, path + b"/a", path + b"/c"),
        ),
        Entry(
            wire.SET_LAYOUT,
            nothing,
            lambda path, mutation, _: wire.SetLayoutRequest(mutation, path, 1 << 16, 1),
        ),
        Entry(
            wire.SET_QUOTA,
            tree,
            lambda path, mutation, _: wire.SetQuotaRequest(mutation, path, 1 << 40, 1_000),
        ),
        Entry(
            wire.PIN,
            files,
            lambda path, mutation, _: wire.PinRequest(mutation, path, "test", 60_000),
        ),
        Entry(
            versions.CLONE,
            tree,
            lambda path, mutation, _: versions.CloneRequest(mutation, path + b"/d", path + b"/c"),
        ),
        Entry(
            versions.SNAPSHOT,
            tree,
            lambda path, mutation, _: versions.SnapshotRequest(mutation, path, b"v"),
        ),
        Entry(
            versions.REMOVE_SNAPSHOT,
            kept,
            lambda path, mutation, _: versions.RemoveSnapshotRequest(mutation, path, b"v"),
        ),
        Entry(
            versions.TRASH,
            tree,
            lambda path, mutation, _: versions.TrashRequest(mutation, path + b"/d"),
        ),
        Entry(wire.UNPIN, pin, lambda path, mutation, number: wire.UnpinRequest(mutation, number)),
        Entry(
            auth.ADD_USER,
            nothing,
            lambda path, mutation, _: auth.AddUserRequest(mutation, someone(path)),
        ),
        Entry(
            auth.REMOVE_USER,
            user,
            lambda path, mutation, name: auth.RemoveUserRequest(mutation, name),
        ),
        Entry(
            auth.REVOKE,
            user,
            lambda path, mutation, name: auth.RevokeRequest(mutation, user=name),
        ),
        Entry(upkeep.REPAIR, files, lambda path, mutation, _: upkeep.RepairRequest(mutation, 0)),
        Entry(upkeep.START_SCAN, node, lambda path, mutation, _: upkeep.StartScanRequest(mutation)),
        Entry(upkeep.SCAN_DONE, scan, scan_done, recorded=False),
        Entry(
            wire.RENEW,
            open_sessions,
            lambda path, mutation, _: wire.RenewRequest(ME),
            recorded=False,
        ),
        Entry(
            operators.CLUSTER_BEGIN,
            no_task,
            lambda path, mutation, _: operators.BeginRequest(mutation, int(TaskKind.ADD_NODE)),
        ),
        Entry(
            operators.CLUSTER_CANCEL,
            task,
            lambda path, mutation, subject: operators.CancelRequest(
                mutation, int(TaskKind.ADD_NODE), subject
            ),
        ),
        Entry(
            operators.REMOVE_NODE,
            idle_node,
            lambda path, mutation, number: operators.RemoveNodeRequest(mutation, number),
            silent=True,
        ),
        Entry(REGISTER, nothing, lambda path, mutation, _: registration(path), recorded=False),
        Entry(HEARTBEAT, node, heartbeat, recorded=False),
    )
}
"""One line for each method that changes the database; a test looks for those that are missing."""
