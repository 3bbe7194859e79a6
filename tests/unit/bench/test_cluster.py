"""The cluster that a case measures: started as a user would, pinned, accounted, watched."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ffs.bench.cases.common import Context
from ffs.bench.cluster import Servers, metered, servers
from ffs.bench.machine import Placement, threads
from ffs.bench.measure import Plan
from ffs.errors import ConfigError, UnavailableError


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Plan.quick(), Placement.choose(), tmp_path)


def test_every_thread_of_the_servers_is_on_their_cpu(context: Context) -> None:
    with servers(context) as where:
        assert where.pids is not None
        assert len(where.pids) == 2
        found = [os.sched_getaffinity(t) for pid in where.pids for t in threads(pid)]
        assert len(found) > 2
        assert set().union(*found) == {context.placement.server_cpu}
        # Spinners give way to those of our session; a Ctrl-C goes to those of our group.
        assert {os.getsid(pid) for pid in where.pids} == {os.getsid(0)}
        assert os.getpgid(0) not in {os.getpgid(pid) for pid in where.pids}
    for pid in where.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def kill_storage(context: Context) -> None:
    with servers(context) as where:
        os.kill(where.storage_pid, signal.SIGKILL)
        time.sleep(0.2)


def test_a_server_that_dies_meanwhile_spoils_the_run(context: Context) -> None:
    with pytest.raises(UnavailableError, match=r"ffs\.server\.storage ended with -9"):
        kill_storage(context)


def test_a_setting_that_is_none_is_named(context: Context) -> None:
    cluster = servers(context, settings={"meta.no_such_key": 1})
    with pytest.raises(UnavailableError, match=r"ffs\.server\.meta .*no_such_key"):
        cluster.__enter__()


def test_work_is_charged_to_client_and_servers() -> None:
    def work(until: float) -> tuple[int, int, dict[str, float]]:
        rounds = 0
        while time.perf_counter() < until:
            rounds += 1
        return 10, rounds, {"p50_us": 1.0}

    mine = metered(work, ())(0.05)
    assert mine.seconds >= 0.05
    assert mine.bytes == 10
    assert mine.operations > 0
    assert mine.client_cpu_s > 0
    assert mine.server_cpu_s == 0
    assert mine.more["p50_us"] == 1.0
    assert mine.more["faults_per_gb"] >= 0
    assert "wire_per_byte" not in mine.more, "nothing went over a wire"
    assert metered(work, None)(0.01).server_cpu_s is None
    served = metered(work, (os.getpid(),))(0.05)
    assert served.server_cpu_s is not None
    assert served.server_cpu_s > 0


def test_servers_elsewhere_are_said_to_be_unseen() -> None:
    assert "not counted" in Servers("ffs://far:1", "key", None).notes[0]
    assert Servers("ffs://far:1", "key", (1,)).notes == []
    with pytest.raises(ConfigError, match="ffs://HOST:PORT"):
        _ = Servers("ffs://far", "key", None).address
