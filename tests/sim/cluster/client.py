"""A simulated client: writes, reads, renames and removes files, several at a time.

What to do when something failed is decided by the real `RetryPolicy`, over real `Route`s, as
`client/settle.py` and `client/calls.py` ask it; the engine in between is a request and a deadline.
Every operation is recorded with when it began, when it ended and what it returned.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ffs.chains import NO_TARGET
from ffs.client.layouts import Route
from ffs.client.retry import Action, History, RetryPolicy
from ffs.errors import (
    OK,
    ChecksumError,
    ChunkMissingError,
    DeadlineError,
    FFSError,
    NotFoundError,
    StalledError,
    UnavailableError,
    error_class,
)
from ffs.layout import stripe_places
from ffs.rpc.addresses import Addresses
from ffs.types import Routing, Segment
from ffs.wire import messages as wire
from ffs.wire.method import Fault
from tests.sim.cluster.disks import Key, token, verifies
from tests.sim.cluster.fabric import META_PORT, Fabric, Host
from tests.sim.cluster.frames import Goodbye, ReadFrame, SuspectFrame, WriteFrame
from tests.sim.cluster.ledger import Ledger
from tests.sim.cluster.linearizable import NEVER, Call
from tests.sim.world import MS, SECOND, World

PATHS: Final = tuple(f"/f{i}" for i in range(8))
CHUNK_BYTES: Final = 1 << 16
CALL_NS: Final = 400 * MS
"""How long one attempt of an RPC may take."""
DATA_NS: Final = 300 * MS
STALL_NS: Final = 80 * MS
BUDGET_NS: Final = 8 * SECOND
"""How long one call may take, retries included."""
PEEK_SHARE: Final = 0.3
SLOW_SHARE: Final = 0.1
"""Of writers that take their time before they close."""


class Client(Host):
    """One client process with several operations at a time.

    Args:    servers: names of the metadata servers; lanes: operations at a time; operations: of
             each lane
    """

    def __init__(
        self,
        world: World,
        fabric: Fabric,
        name: str,
        ledger: Ledger,
        servers: list[str],
        *,
        lanes: int,
        operations: int,
    ) -> None:
        super().__init__(world, fabric, name)
        self.ledger = ledger
        self.calls: list[Call] = []
        self.failures: list[str] = []
        self.finished_lanes = 0
        self._lanes, self._operations = lanes, operations
        self._addresses = Addresses([(server, META_PORT) for server in servers])
        self._policy = RetryPolicy(20, 300, world.randomness)
        self._route = Route(Routing(0, [], [], [], []))
        self._nonce = 0
        self._connection = 0

    @property
    def done(self) -> bool:
        """Whether all lanes have come to their end."""
        return self.finished_lanes >= self._lanes

    async def main(self) -> None:
        """Begin all lanes, and keep the write sessions alive."""
        for lane in range(self._lanes):
            self.loop.create_task(self._lane(lane))
        while True:
            await asyncio.sleep(0.5)
            request = wire.RenewRequest(self._id)
            try:
                await self._call_once(wire.RENEW, request, CALL_NS)
            except (FFSError, TimeoutError):
                continue

    @property
    def _id(self) -> bytes:
        return self.name.encode()

    async def _lane(self, lane: int) -> None:
        chance = self.world.random
        for _ in range(self._operations):
            await asyncio.sleep(chance.randint(1, 120) * MS / SECOND)
            await self.one_operation()
        self.finished_lanes += 1

    async def one_operation(self) -> None:
        """Do something, whatever it is."""
        chance = self.world.random
        path, dice = chance.choice(PATHS), chance.random()
        try:
            if dice < 0.38:
                await self.write(path, append=False)
            elif dice < 0.46:
                await self.write(path, append=True)
            elif dice < 0.50:
                await self.give_up_writing(path)
            elif dice < 0.56:
                await self._remove(path)
            elif dice < 0.60:
                await self._rename(path, chance.choice([p for p in PATHS if p != path]))
            else:
                await self.read(path)
        except (FFSError, TimeoutError) as error:
            self._failed(path, error)

    def _failed(self, path: str, error: Exception) -> None:
        self.world.log("failed", self.name, path, type(error).__name__)
        self.failures.append(f"{path}: {error!r}")

    async def use_everything(self) -> None:
        """Read all files and write a new one, now that nothing may fail any more."""
        await self.write(f"/new-{self.name}", append=False)
        for path in (*PATHS, f"/new-{self.name}"):
            await self.read(path)

    async def write_some(self) -> None:
        """Write files to all chains, each within the time that one may take."""
        for number in range(4):
            await self.write(f"/some-{self.name}-{number}", append=False)

    # --- operations -------------------------------------------------------------------------------

    async def write(self, path: str, *, append: bool) -> None:
        """Write a file of some chunks, or add some to one."""
        mode = wire.CreateMode.APPEND if append else wire.CreateMode.REPLACE
        session = await self._create(path, mode)
        count = self.world.random.randint(1, 3)
        await self.send_chunks(session, count)
        if self.world.random.random() < SLOW_SHARE:
            await asyncio.sleep(self.world.random.randint(0, 1_200) * MS / SECOND)
        call = self._begin("append" if append else "write", path)
        call.blob = session.blob
        entry = wire.CloseEntry(session.session, count * CHUNK_BYTES)
        request = wire.CloseManyRequest(self._mutation(), self._id, [entry])
        reply = await self._certain(call, wire.CLOSE_MANY, request)
        self._end(call, reply.attrs[0])
        if not isinstance(reply.attrs[0], Fault):
            self.ledger.on_published(session.blob, count)

    async def send_chunks(self, session: wire.WriteSession, count: int) -> None:
        """Make all chunks of a blob durable, several at a time."""
        layout = session.layout
        chains = await self._chains_of(layout)
        self._nonce += 1
        sends = []
        for chunk in range(count):
            key = (session.blob, chunk)
            data = token(key, self._nonce)
            self.ledger.written[key] = data
            sends.append(self._send_chunk(key, data, chains[chunk % len(chains)]))
        if self.world.random.random() < PEEK_SHARE:
            sends.append(self._peek((session.blob, 0), chains[0]))
        assert layout.chunk_size_bytes == CHUNK_BYTES
        results = await asyncio.gather(*sends, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _peek(self, key: Key, chain: int) -> None:
        """Read a chunk once that is just being written; nobody promises that it is there."""
        await asyncio.sleep(self.world.random.randint(0, 8) * MS / SECOND)
        for target in self._candidates(chain, heads_only=False)[:1]:
            reply = await self._exchange(target, ReadFrame(*key, target), STALL_NS)
            if not isinstance(reply, int) and reply[0] == OK and verifies(key, reply[1]):
                self.ledger.on_read(key, reply[1])

    async def give_up_writing(self, path: str) -> None:
        """Begin a file and abort it, or leave it to be reaped."""
        session = await self._create(path, wire.CreateMode.REPLACE)
        await self.send_chunks(session, 1)
        if self.world.random.random() < PEEK_SHARE:
            request = wire.AbortManyRequest(self._mutation(), self._id, [session.session])
            await self._call(wire.ABORT_MANY, request)

    async def read(self, path: str) -> None:
        """Read all of a file; one that was replaced while it was read is read anew."""
        for _ in range(6):
            segments = await self._open(path)
            if segments is None:
                return
            try:
                for segment in segments:
                    await self._read_segment(segment)
            except FFSError:
                if await self._open(path) == segments:
                    raise
            else:
                self.world.log("read", self.name, path, [s.blob for s in segments])
                return

    async def _open(self, path: str) -> list[Segment] | None:
        call = self._begin("read", path)
        request = wire.OpenManyRequest([path.encode()])
        reply = await self._call(wire.OPEN_MANY, request)
        (found,) = reply.files
        if isinstance(found, Fault):
            self._check_absent(found)
            self._end(call)
            return None
        call.seen = tuple(segment.blob for segment in found.segments)
        self._end(call)
        segments: list[Segment] = found.segments
        return segments

    async def _remove(self, path: str) -> None:
        call = self._begin("remove", path)
        request = wire.RemoveManyRequest(self._mutation(), [path.encode()])
        reply = await self._certain(call, wire.REMOVE_MANY, request)
        self._end(call, reply.results[0])

    async def _rename(self, path: str, to: str) -> None:
        call = self._begin("rename", path, to)
        request = wire.RenameRequest(self._mutation(), path.encode(), to.encode())
        try:
            await self._certain(call, wire.RENAME, request)
        except NotFoundError:
            call.found = False
            self.calls.append(call)
        self._end(call)

    def _begin(self, kind: str, *paths: str) -> Call:
        return Call(kind, paths, self.world.now_ns)

    def _end(self, call: Call, result: Any = None) -> None:
        """Note that a call has ended, and how; one that did nothing for a reason is no call."""
        call.ended_ns = self.world.now_ns
        if isinstance(result, Fault):
            if result.code != NotFoundError.code:
                self.world.log("refused", self.name, call.kind, result.code)
                if call in self.calls:
                    self.calls.remove(call)
                return
            call.found = False
        if call not in self.calls:
            self.calls.append(call)

    def _check_absent(self, fault: Fault) -> None:
        if fault.code != NotFoundError.code:
            raise UnavailableError(f"a file cannot be opened: {fault}")

    async def _create(self, path: str, mode: wire.CreateMode) -> wire.WriteSession:
        entry = wire.CreateEntry(path.encode(), mode, chunk_size_bytes=CHUNK_BYTES)
        request = wire.CreateManyRequest(self._mutation(), self._id, [entry])
        reply = await self._call(wire.CREATE_MANY, request)
        (session,) = reply.sessions
        if isinstance(session, Fault):
            raise UnavailableError(f"no session: {session}")
        assert isinstance(session, wire.WriteSession)
        return session

    # --- metadata calls ---------------------------------------------------------------------------

    def _mutation(self) -> bytes:
        return self.world.randomness.token(16)

    async def _certain(self, call: Call, method: Any, request: Any) -> Any:
        """Call, and remember that it may have happened if nobody answers."""
        call.began_ns = self.world.now_ns
        try:
            return await self._call(method, request)
        except (UnavailableError, DeadlineError):
            call.ended_ns = NEVER
            self.calls.append(call)
            raise

    async def _call(self, method: Any, request: Any) -> Any:
        """Call a method until it answers, fails for good, or the budget is over."""
        deadline_ns = self.world.now_ns + BUDGET_NS
        rounds = 0
        while True:
            try:
                return await self._call_once(method, request, CALL_NS)
            except FFSError as error:
                remaining_ns = deadline_ns - self.world.now_ns
                decision = self._policy.decide_call(error.code, rounds, remaining_ns)
                if decision.action is not Action.WAIT:
                    raise
                rounds += 1
                await asyncio.sleep(decision.delay_ns / SECOND)

    async def _call_once(self, method: Any, request: Any, patience_ns: int) -> Any:
        address = self._addresses.order[0]
        future = self.fabric.request(self, address[0], (method, request))
        try:
            async with asyncio.timeout(patience_ns / SECOND):
                reply = await future
        except TimeoutError as error:
            self._addresses.failed(address)
            raise UnavailableError(f"{method.name} was not answered") from error
        except UnavailableError:
            self._addresses.failed(address)
            raise
        self._addresses.worked(address)
        return reply

    async def _refresh(self) -> None:
        try:
            reply = await self._call_once(wire.ROUTING, wire.RoutingRequest(), CALL_NS)
        except FFSError:
            return
        if reply.routing.version > self._route.version:
            self._route = Route(reply.routing)

    # --- chunks -----------------------------------------------------------------------------------

    async def _chains_of(self, layout: Any) -> list[int]:
        deadline_ns = self.world.now_ns + BUDGET_NS
        while layout.table not in self._route.tables:
            if self.world.now_ns > deadline_ns:
                raise UnavailableError("the routing is not known")
            await self._refresh()
            await asyncio.sleep(0.02)
        chains = self._route.tables[layout.table]
        return [chains[place] for place in stripe_places(len(chains), layout.stripe, layout.seed)]

    async def _send_chunk(self, key: Key, data: bytes, chain: int) -> None:
        """Write a chunk to the head of its chain until it is durable."""

        async def attempt(target: int, patience_ns: int) -> int:
            version = self._route.chains[chain].version
            frame = WriteFrame(self._connection, *key, target, chain, version, data)
            reply = await self._exchange(target, frame, patience_ns)
            return reply if isinstance(reply, int) else reply[0]

        await self._settle(chain, attempt, heads_only=True)

    async def _read_segment(self, segment: Segment) -> None:
        chains = await self._chains_of(segment.layout)
        for chunk in range(segment.length // CHUNK_BYTES):
            await self._read_chunk((segment.blob, chunk), chains[chunk % len(chains)])

    async def _read_chunk(self, key: Key, chain: int) -> None:
        """Read a chunk from any member that serves it, and verify it."""

        async def attempt(target: int, patience_ns: int) -> int:
            reply = await self._exchange(target, ReadFrame(*key, target), patience_ns)
            if isinstance(reply, int):
                return reply
            status, data = reply
            if status == OK and not verifies(key, data):
                status = ChecksumError.code
            if status in (ChecksumError.code, ChunkMissingError.code):
                self._tell_suspect(target, key)
            if status == OK:
                self.ledger.on_read(key, data)
            return int(status)

        await self._settle(chain, attempt, heads_only=False)

    def _tell_suspect(self, target: int, key: Key) -> None:
        node = self._route.address(target)
        if node is not None:
            self.fabric.tell(self, node[0], SuspectFrame(target, *key))

    async def _exchange(self, target: int, frame: Any, patience_ns: int) -> Any:
        """Send a frame to the node of a target; a status if there was no answer."""
        address = self._route.address(target)
        if address is None:
            return UnavailableError.code
        future = self.fabric.request(self, address[0], frame)
        try:
            async with asyncio.timeout(patience_ns / SECOND):
                return await future
        except TimeoutError:
            self.fabric.tell(self, address[0], Goodbye(self._connection))
            self._connection += 1
            return StalledError.code
        except UnavailableError:
            return UnavailableError.code

    async def _settle(self, chain: int, attempt: Any, *, heads_only: bool) -> None:
        """Run one operation as `Settler.settle` does: submit, decide, submit again."""
        history = History()
        deadline_ns = self.world.now_ns + BUDGET_NS
        target, status = self._first(chain, heads_only=heads_only), 0
        while True:
            if target == NO_TARGET:
                status = UnavailableError.code
            else:
                patience_ns = self._patience_ns(history, chain, heads_only=heads_only)
                left_ns = max(1, deadline_ns - self.world.now_ns)
                status = await attempt(target, min(patience_ns, left_ns))
            if status == OK:
                return
            decision = self._policy.decide(
                history,
                status,
                target,
                self._candidates(chain, heads_only=heads_only),
                members=self._route.members(chain),
                remaining_ns=deadline_ns - self.world.now_ns,
            )
            if decision.action is Action.FAIL:
                raise _error_of(decision.status)
            if decision.action is Action.RETRY:
                target = decision.target
                continue
            await asyncio.sleep(decision.delay_ns / SECOND)
            if decision.refresh:
                await self._refresh()
            target = self._first(chain, heads_only=heads_only)

    def _patience_ns(self, history: History, chain: int, *, heads_only: bool) -> int:
        several = len(self._candidates(chain, heads_only=heads_only)) > 1
        return self._policy.patience_ms(history, STALL_NS // MS) * MS if several else DATA_NS

    def _candidates(self, chain: int, *, heads_only: bool) -> tuple[int, ...]:
        serving = self._route.serving.get(chain, ())
        if heads_only or len(serving) < 2:
            return serving[:1]
        first = self.world.random.randrange(len(serving))
        return serving[first:] + serving[:first]

    def _first(self, chain: int, *, heads_only: bool) -> int:
        return next(iter(self._candidates(chain, heads_only=heads_only)), NO_TARGET)


def _error_of(status: int) -> FFSError:
    return error_class(status)(f"a chunk could not be moved: status {status}")
