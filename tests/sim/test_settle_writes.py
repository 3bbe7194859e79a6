"""Writes in the settle loop, under virtual time: heads that stop, are replaced, or are too few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ffs import errors
from ffs.client.layouts import Route
from ffs.client.settle import WRITE_STALL_MS
from ffs.client.writer import WRITE_OP_DTYPE, ChunkJob
from ffs.errors import FFSError, StaleChainError, TooFewReplicasError, UnavailableError
from ffs.types import ChainInfo, TargetInfo, TargetState
from tests.sim.test_settle import CHUNK, DEADLINE_NS, STALL_MS, Daemon, ModelEngine, Rig
from tests.sim.world import MS, SECOND

S, O = TargetState.SERVING, TargetState.OFFLINE  # noqa: E741
SILENT = errors.StalledError.code


class ModelWrite(ModelEngine, ChunkJob):
    """A write of the model."""


class WriteRig(Rig):
    """A client that writes; `routings` are what the metadata server tells from some time on."""

    def __init__(self, daemons: dict[int, Daemon]) -> None:
        super().__init__(daemons)
        self.changes: list[tuple[int, tuple[TargetState, ...]]] = []

    def _refresh(self) -> Route:
        for at_ns, states in self.changes:
            if at_ns <= self.world.now_ns:
                self.tell(*states)
        return super()._refresh()

    def tell(self, *states: TargetState, least: int = 1) -> None:
        """Have the routing say that the members are in these states."""
        targets = [
            TargetInfo(number, 100 + number, state) for number, state in enumerate(states, start=1)
        ]
        order = sorted(targets, key=lambda target: (target.state, target.target))
        version = self.routing.version + 1
        self.routing = replace(
            self.routing,
            version=version,
            targets=targets,
            chains=[ChainInfo(1, version, [target.target for target in order])],
            min_replicas=least,
        )

    def write(self, chunks: int = 4) -> tuple[ModelWrite, FFSError | None]:
        """Write chunks; return the job and how it failed, if it did."""
        route, started_ns = Route(self.routing), self.world.now_ns
        ops = np.zeros(chunks, dtype=WRITE_OP_DTYPE)
        ops["blob"], ops["chunk"], ops["chain"], ops["length"] = 7, np.arange(chunks), 1, CHUNK
        job = ModelWrite(ops, memoryview(bytes(CHUNK)), {7: "/f"})
        job.world, job.daemons, job.stalls = self.world, self.daemons, []
        job.locate = lambda target: Route(self.routing).address(target)
        for index in range(chunks):
            job.aim(index, route.target(1), route)
        failure = None
        try:
            self.settler.settle(job, started_ns + DEADLINE_NS)
        except FFSError as error:
            failure = error
        assert self.connections.out == 0, "a connection was not given back"
        self.took_ns = self.world.now_ns - started_ns
        return job, failure


def test_writes_wait_for_a_head_alone_until_the_deadline() -> None:
    rig = WriteRig({1: Daemon(takes_ns=9 * SECOND)})
    job, failure = rig.write()
    assert failure is None and job.stalls == [0] and rig.took_ns == 9 * SECOND


@pytest.mark.parametrize("replaced_s", [0, 2, 5, 7])
def test_writes_go_to_the_new_head_soon_after_there_is_one(replaced_s: int) -> None:
    rig = WriteRig({1: Daemon(SILENT), 2: Daemon(), 3: Daemon()})
    rig.changes = [(replaced_s * SECOND, (O, S, S))]
    job, failure = rig.write()
    assert failure is None and set(job.ops["target"].tolist()) == {2}
    assert set(job.ops["chain_version"].tolist()) == {rig.routing.version}
    assert set(job.stalls[:-1]) == {WRITE_STALL_MS}
    late_ms = WRITE_STALL_MS + (1_000 if replaced_s else 100)
    assert rig.took_ns <= replaced_s * SECOND + late_ms * MS


def test_head_that_waits_for_another_member_is_not_doubted_by_readers() -> None:
    rig = WriteRig({1: Daemon(SILENT), 2: Daemon()})
    rig.changes = [(5 * SECOND, (O, S))]
    rig.write()
    counters = rig.replicas.counters
    assert counters.doubts == counters.stalled == 0 and rig.replicas.due() == []
    assert STALL_MS < WRITE_STALL_MS


def test_head_that_cannot_be_reached_is_replaced_without_waiting_for_the_deadline() -> None:
    rig = WriteRig({1: Daemon(silent=True), 2: Daemon()})
    rig.changes = [(3 * SECOND, (O, S))]
    _, failure = rig.write()
    assert failure is None and rig.took_ns <= 7 * SECOND


@pytest.mark.parametrize("status", [StaleChainError.code, UnavailableError.code])
def test_chain_in_motion_is_tried_again_with_new_routing(status: int) -> None:
    rig = WriteRig({1: Daemon(status, heals_ns=4 * SECOND), 2: Daemon()})
    _, failure = rig.write()
    assert failure is None and rig.refreshes >= 4
    assert 4 * SECOND <= rig.took_ns <= 6 * SECOND


def test_too_few_replicas_are_waited_for_and_then_counted() -> None:
    few = TooFewReplicasError.code
    rig = WriteRig({1: Daemon(few, heals_ns=3 * SECOND), 2: Daemon(), 3: Daemon()})
    rig.tell(S, O, O, least=2)
    _, failure = rig.write()
    assert failure is None and rig.took_ns >= 3 * SECOND
    rig.daemons[1] = Daemon(few)
    _, failure = rig.write()
    assert isinstance(failure, TooFewReplicasError)
    facts = {"chain": 1, "replicas": 3, "serving": 1, "needed": 2, "path": "/f"}
    assert facts.items() <= failure.where.items()
