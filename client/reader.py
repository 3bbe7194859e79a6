"""Reads ranges of opened files straight into the caller's memory.

Role, in the read path: client/filesystem.py -> THIS -> client/planner.py (what to read where) and
client/settle.py (the loop around ffs._reader, which moves and checks the bytes).

Invariants: nothing is read before every range has been checked against its file and against `out`;
`out` is never touched after a call has ended, however it ended; after an error its bytes are
unspecified.

Failure behaviour: ChecksumError (and ChunkMissingError, ChunkLengthError) name path, blob, chunk,
target, node and file offset; UnavailableError and DeadlineError name the node's address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ffs import _reader, errors
from ffs.client import mapped, planner, trace
from ffs.client.handles import HandleTable
from ffs.client.layouts import Content, Route
from ffs.client.planner import PENDING, Plan
from ffs.client.rdma import DeviceMemory
from ffs.client.replicas import Patience, Replicas
from ffs.client.settle import Settler, left_to_tcp
from ffs.errors import (
    CancelledOperationError,
    FFSError,
    InvalidError,
    StalledError,
    TransportError,
)

Out = memoryview | DeviceMemory
"""What is read into."""
THREAD_BYTES_MIN: Final = 4 << 20
"""From twice as many bytes on, a call over several connections has a thread for each: waking one
takes about as long as 256 KiB take to arrive."""
_MESSAGES: Final = {
    errors.ChecksumError.code: "bytes do not match their checksum on any replica",
    errors.ChunkMissingError.code: "a chunk of the file is on none of its replicas",
    errors.ChunkLengthError.code: "a stored chunk does not have the length that its file says",
    errors.ProtocolError.code: "the storage daemon's reply broke the protocol",
    errors.UnavailableError.code: "no storage daemon that serves the chunk can be reached",
    errors.ConnectionLostError.code: "the connection to the storage daemon broke",
    errors.StalledError.code: "the storage daemon stopped sending",
    errors.DeadlineError.code: "the read did not end in time",
    errors.TargetStoppedError.code: "the target of the chunk has stopped after a disk error",
    errors.StorageIOError.code: "the disk that holds the chunk failed the read",
    errors.TransportError.code: "no card can write to the caller's memory",
}
_TARGET_MESSAGES: Final = {
    errors.ChecksumError.code: "bytes do not match their checksum",
    errors.ChunkMissingError.code: "the chunk is missing",
    errors.ChunkLengthError.code: "the chunk is shorter than the file says",
    errors.ProtocolError.code: "the storage daemon's reply broke the protocol",
    errors.UnavailableError.code: "the target cannot be reached",
    errors.ConnectionLostError.code: "the connection to the target broke",
    errors.DeadlineError.code: "the read did not end in time",
    errors.TargetStoppedError.code: "the target has stopped after a disk error",
    errors.StorageIOError.code: "the disk failed the read",
}
_HINTS: Final = {
    errors.ChecksumError.code: "restore the file from its source; `ffs status` shows the targets",
    errors.ChunkMissingError.code: "restore the file from its source",
    errors.UnavailableError.code: "check with `ffs status` that the daemon runs",
    errors.DeadlineError.code: "check with `ffs status`; read_deadline_ms is the limit",
    errors.TargetStoppedError.code: "see the daemon's log for the disk error",
    errors.GrantError.code: "open the file again: what was granted is long over",
    errors.TransportError.code: 'read into other memory, or by transport="auto"',
}


def check_room(view: Out, total: int) -> None:
    """Refuse a buffer that the ranges do not fit into."""
    if total > view.nbytes:
        raise InvalidError(
            f"out has {view.nbytes} bytes, the ranges need {total}",
            hint="ranges are packed back to back",
        )


class ReadJob:
    """A plan on its way through the engine (see settle.Job)."""

    __slots__ = (
        *("_out", "_plan", "_replicas", "_trace_id", "_verify", "device", "ops", "reads"),
        "timings",
    )
    writes = False

    def __init__(
        self, plan: Plan, out: Out, replicas: Replicas, *, verify: bool, trace_id: int
    ) -> None:
        self.ops: npt.NDArray[Any] = plan.ops
        self.timings: npt.NDArray[Any] | None = None
        """Where the engine takes down times, if it is to (client/traced.py)."""
        self.device = isinstance(out, DeviceMemory)
        self.reads = not self.device
        self._trace_id = trace_id
        self._plan = plan
        self._out = out
        self._replicas = replicas
        self._verify = verify

    def chain(self, index: int) -> int:
        """Return the chain of the chunk that operation `index` reads."""
        op = self.ops[index]
        return planner.chain_of(self._content(index), int(op["blob"]), int(op["chunk"]))

    def candidates(self, route: Route, chain: int) -> Sequence[int]:
        """Return every serving target: any replica's bytes are the right ones."""
        return self._replicas.order(route.serving.get(chain, ()), route)

    def movable(self, route: Route) -> npt.NDArray[np.bool_] | bool:
        """Return which operations have more than one serving target."""
        if route.replicated_everywhere:
            return True
        elsewhere: npt.NDArray[np.bool_] = route.replica_counts[route.places(self._plan.chains)] > 1
        return elsewhere

    def aim(self, index: int, target: int, route: Route) -> None:
        """Read from `target` next."""
        self.ops["target"][index] = target
        self.ops["status"][index] = PENDING

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, patience: Patience
    ) -> int:
        """Run what is pending."""
        return _reader.read_batch(
            connections,
            self.ops,
            self._out,
            deadline_ms=deadline_ms,
            stall_ms=patience.stall_ms,
            hedge_ms=patience.hedge_ms,
            hedge_ranges=patience.hedge_ranges,
            verify=self._verify,
            trace_id=self._trace_id,
            thread_bytes=THREAD_BYTES_MIN,
            timings=self.timings,
        )

    def error(self, index: int, status: int, route: Route) -> FFSError:
        """Return the error for operation `index`, with all that names the place."""
        op, content = self.ops[index], self._content(index)
        target = int(op["target"])
        node = route.node_of_target.get(target, 0)
        blob, chunk = int(op["blob"]), int(op["chunk"])
        piece = next(p for p in content.pieces if p.blob == blob)
        where: dict[str, Any] = {
            "path": content.path,
            "blob": blob,
            "chunk": chunk,
            "target": target,
            "node": node,
            "offset": piece.start + (chunk << piece.shift) + int(op["offset"]),
            "trace_id": trace.as_fact(self._trace_id),
        }
        if address := route.address_of_node.get(node):
            where["address"] = f"{address[0]}:{address[1]}"
        cls = errors.error_class(status)
        message = _MESSAGES.get(status, "the storage daemon refused the read")
        if cls is FFSError:
            where["status"] = status
        return cls(message, hint=_HINTS.get(status, ""), **where)

    def _content(self, index: int) -> Content:
        return self._plan.content(int(self.ops["tag"][index]))


class TargetJob:
    """Operations each of which goes to one target and no other (see settle.Job).

    Each operation is a chain of its own here, -1 - index, with that target as its only member: what
    another target has says nothing of this one.
    """

    reads = False  # it is the daemon's answer that is wanted
    writes = False
    device = False

    def __init__(self, ops: npt.NDArray[Any], chains: Sequence[int], out: memoryview) -> None:
        self.ops = ops
        self._targets: list[int] = ops["target"].tolist()
        self._chains = chains
        self._out = out
        self._trace_id = trace.take()

    def chain(self, index: int) -> int:
        """Return what stands for the operation's own chain of one."""
        return -1 - index

    def candidates(self, route: Route, chain: int) -> Sequence[int]:
        """Return the operation's target while it serves its real chain."""
        index = -1 - chain
        target = self._targets[index]
        return (target,) if target in route.serving.get(self._chains[index], ()) else ()

    def aim(self, index: int, target: int, route: Route) -> None:
        """Read from `target`."""
        self.ops["target"][index] = target
        self.ops["status"][index] = PENDING

    def movable(self, route: Route) -> bool:
        """Return False: another target's answer is none."""
        return False

    def submit(
        self, connections: Sequence[_reader.Connection], deadline_ms: int, patience: Patience
    ) -> int:
        """Run what is pending, checking every block."""
        return _reader.read_batch(
            connections,
            self.ops,
            self._out,
            deadline_ms=deadline_ms,
            verify=True,
            trace_id=self._trace_id,
            thread_bytes=THREAD_BYTES_MIN,
        )

    def error(self, index: int, status: int, route: Route) -> FFSError:
        """Return the error without its place, which is the finding's to say."""
        cls = errors.error_class(status)
        return cls(
            _TARGET_MESSAGES.get(status, f"the target refused the read with status {status}"),
            trace_id=trace.as_fact(self._trace_id),
        )


class Reader:
    """The read engine's front: one per file system object.

    Threads: any number of concurrent calls; Fork: see settle.Settler
    """

    def __init__(self, settler: Settler, *, deadline_ms: int, verify: bool) -> None:
        self.settler = settler
        self._deadline_ms = deadline_ms
        self.verify = verify

    def read_range(self, content: Content, offset: int, length: int, out: memoryview) -> None:
        """Read one checked range of one file into the start of `out`.

        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe, reconnects
        """
        settler = self.settler
        route = settler.route()
        choose = settler.replicas.choose
        planned = planner.plan_one(content, offset, length, route, choose)
        if planned is None:
            plan = planner.plan_ranges((content,), (offset,), (length,), route)
            return self.run(plan, out)
        target, serving, packed = planned
        address = route.address_of_node[route.node_of_target[target]]
        connection = settler.connections.idle(address)
        trace_id = trace.take()
        if connection is not None:
            try:
                if serving > 1 and settler.stall_ms:
                    done = self._read_replicated(connection, address, packed, length, out, trace_id)
                else:
                    done = _reader.read_batch(
                        (connection,),
                        packed,
                        out,
                        deadline_ms=self._deadline_ms,
                        verify=self.verify,
                        trace_id=trace_id,
                    )
            finally:
                settler.connections.checkin(address, connection)
            if done == 1:
                return None
        plan = Plan(packed, length, (), lambda _: content)
        if connection is not None:
            _leave_to_tcp(plan, connection)
        deadline_ns = self.deadline_ns(length)
        self._settle(plan, out, trace_id, deadline_ns, retried=connection is not None)
        return None

    def map_range(self, content: Content, offset: int, length: int) -> memoryview | None:
        """Return a checked range that is not empty as memory; None if it cannot be mapped."""
        return mapped.map_range(
            self.settler,
            content,
            offset,
            length,
            deadline_ms=self._deadline_ms,
            verify=self.verify,
        )

    def _read_replicated(
        self,
        connection: _reader.Connection,
        address: tuple[str, int],
        packed: bytearray,
        length: int,
        out: memoryview,
        trace_id: int,
    ) -> int:
        """Read one range from one of several nodes, no longer than is usual; return 1 if done."""
        settler = self.settler
        replicas, clock = settler.replicas, settler.clock
        hedge_ms, hedge_ranges = replicas.hedge(length)
        started_ns, hedged = clock.monotonic_ns(), 0
        try:
            done = _reader.read_batch(
                (connection,),
                packed,
                out,
                deadline_ms=self._deadline_ms,
                stall_ms=settler.stall_ms,
                hedge_ms=hedge_ms,
                hedge_ranges=min(hedge_ranges, 1),
                verify=self.verify,
                trace_id=trace_id,
            )
            status = planner.OP.unpack(packed)[planner.OP_STATUS]
            hedged = status == CancelledOperationError.code
        finally:
            took_ns = clock.monotonic_ns() - started_ns
            replicas.finished(length, 1, took_ns, hedged=hedged, set_aside=hedge_ranges)
        if done:
            replicas.served(address, length, took_ns)
        elif hedged:
            replicas.late(address, 0, took_ns)
        elif status == StalledError.code:
            replicas.failed(address)
        settler.probe()
        return done

    def read_ranges(
        self,
        contents: Sequence[Content],
        offsets: Sequence[int],
        lengths: Sequence[int],
        out: Out,
    ) -> int:
        """Read ranges of files back to back into `out`; return the bytes read."""
        if len(contents) == 1 and not isinstance(out, DeviceMemory):
            planner.check_range(contents[0], offsets[0], lengths[0])
            check_room(out, lengths[0])
            self.read_range(contents[0], offsets[0], lengths[0], out)
            return lengths[0]
        plan = planner.plan_ranges(contents, offsets, lengths, self.settler.route())
        self.run(plan, out)
        return plan.total

    def read_scattered(
        self,
        contents: Sequence[Content],
        offsets: Sequence[int],
        lengths: Sequence[int],
        places: Sequence[int],
        out: memoryview,
    ) -> None:
        """Read ranges of files, each to its own place of `out`, in one call of the engine.

        Raises:  InvalidError for places outside `out`, before anything is read
        """
        if any(p < 0 or p + n > out.nbytes for p, n in zip(places, lengths, strict=True)):
            raise InvalidError(f"out has {out.nbytes} bytes, a range's place is outside of them")
        plan = planner.plan_ranges(contents, offsets, lengths, self.settler.route())
        self.run(planner.scatter(plan, places, lengths), out)

    def read_table(self, ranges: npt.NDArray[Any], table: HandleTable, out: Out) -> int:
        """Read a structured array of ranges over handles; return the bytes read."""
        plan = planner.plan_table(ranges, table, self.settler.route())
        self.run(plan, out)
        return plan.total

    def read_parsed(self, rows: bytearray, files: Sequence[Content], out: Out) -> int:
        """Read what `ffs._reader.parse_ranges` made of ranges; return the bytes read."""
        plan = planner.plan_parsed(rows, files, self.settler.route())
        self.run(plan, out)
        return plan.total

    def survey(
        self, ops: npt.NDArray[Any], chains: Sequence[int], out: memoryview
    ) -> list[tuple[int, FFSError]]:
        """Read from exactly the targets that `ops` name, every block checked.

        Args:    ops: of OP_DTYPE; chains: that of each operation
        Returns: the error of each operation that failed, by its index
        """
        failures: list[tuple[int, FFSError]] = []
        total = int(ops["length"].sum(dtype=np.uint64))
        self.settler.settle(TargetJob(ops, chains, out), self.deadline_ns(total), failures)
        return failures

    def run(self, plan: Plan, out: Out) -> None:
        """Carry out a plan."""
        check_room(out, plan.total)
        if isinstance(out, DeviceMemory):
            self._read_into_device(plan, out)
            return
        planner.zero_fill(out, plan.zeros)
        if plan.packed:
            trace_id, deadline_ns = trace.take(), self.deadline_ns(plan.total)
            done = self._read_plainly(plan, out, trace_id)
            if not done:
                self._settle(plan, out, trace_id, deadline_ns, retried=done is not None)

    def _read_plainly(self, plan: Plan, out: memoryview, trace_id: int) -> bool | None:
        """Read where one target serves everything and has idle connections: the loop around the
        engine costs Python five times as much a call. Return whether all came; if not, the plan
        says what did. None: nothing was tried.

        Copies:  0 in user space; Threads: the engine releases the GIL; Fork: safe, reconnects
        """
        settler = self.settler
        address, count = settler.route().sole_address, len(plan.packed) // planner.OP.size
        connections = settler.idle(address, count, plan.total) if address is not None else None
        if address is None or not connections:
            return None
        try:
            done = _reader.read_batch(
                connections,
                plan.packed,
                out,
                deadline_ms=self._allowed_ms(plan.total),
                verify=self.verify,
                trace_id=trace_id,
                thread_bytes=THREAD_BYTES_MIN,
            )
        finally:
            for connection in connections:
                settler.connections.checkin(address, connection)
        if done == count:
            return True
        _leave_to_tcp(plan, connections[0])
        return False

    def _read_into_device(self, plan: Plan, out: DeviceMemory) -> None:
        """Read by RDMA alone, and over connections that no other call has memory exposed on.

        Why: the CPU can neither check nor fill memory of a device; through a copy here it would
        have to go anyway, as it does by `readv_into` and the device's own copy.
        Copies:  0; Threads, Fork: as any read
        """
        if self.verify:
            raise InvalidError(
                "what lands in a device's memory cannot be checked by the CPU",
                hint="verify=False for this file system, or read into pinned memory and copy",
            )
        if plan.zeros:
            raise InvalidError(
                "a range has a hole, which only the CPU could fill",
                hint="read it into pinned memory and copy",
            )
        if not plan.packed:
            return
        deadline_ns = self.deadline_ns(plan.total)
        try:
            self._settle(plan, out, trace.take(), deadline_ns, retried=False)
        except TransportError as error:
            why = self.settler.connections.why_no_device() or error.message
            raise TransportError(
                f"no RDMA into the device's memory: {why}",
                hint="read into pinned memory and copy",
                **error.where,
            ) from error

    def _settle(
        self, plan: Plan, out: Out, trace_id: int, deadline_ns: int, *, retried: bool
    ) -> None:
        settler = self.settler
        route = settler.route()
        if route.replicated and not retried:
            settler.replicas.spread(plan.ops, plan.chains, route)
        job = ReadJob(plan, out, settler.replicas, verify=self.verify, trace_id=trace_id)
        settler.settle(job, deadline_ns)

    def deadline_ns(self, total: int) -> int:
        """Return when a read of so many bytes must have ended, of the monotonic clock."""
        return self.settler.clock.monotonic_ns() + self._allowed_ms(total) * 1_000_000

    def _allowed_ms(self, total: int) -> int:
        # The deadline is for a reading of ordinary size; each further GiB has as much time again.
        return self._deadline_ms * (1 + (total >> 30))


def _leave_to_tcp(plan: Plan, connection: _reader.Connection) -> None:
    """Have done again what this connection failed to do, and another kind of them might, or this
    one once it was shown what that takes."""
    statuses = plan.ops["status"]
    again = left_to_tcp(statuses, local=connection.local)
    statuses[again | (statuses == errors.GrantError.code)] = PENDING
