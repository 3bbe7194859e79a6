"""`ffs up` as its user sees it: one command, one directory, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ffs.key import ClusterKey
from ffs.rpc.blocking import RpcClient
from ffs.wire.status import STATUS, StatusReply, StatusRequest
from tests.harness import Process, ProcessError

WAIT_S = 60.0
FAST = ("--set", "meta.heartbeat_ms=100", "--set", "meta.node_lease_ms=500")


class Up:
    """A running `ffs up` and what can be seen of it from outside."""

    def __init__(
        self, directory: Path, *arguments: str, module: Sequence[str] = ("ffs.server.up",)
    ) -> None:
        self.directory = directory
        log_dir = directory.with_name(directory.name + "-log")
        log_dir.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", *module, "--data", str(directory)]
        self.process = Process("up", [*argv, *FAST, *arguments], log_dir)

    def start(self) -> Up:
        self.process.start()
        return self

    @property
    def url(self) -> str:
        return self.process.ready.split()[0]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("ffs://").split(":")
        return host, int(port)

    @property
    def key_file(self) -> Path:
        return self.directory / "cluster.key"

    @property
    def errors(self) -> str:
        return self.process.log_tail()

    def status(self) -> StatusReply:
        client = RpcClient([self.address], ClusterKey.load(self.key_file), connect_ms=2000)
        try:
            return client.call(STATUS, StatusRequest(), deadline_ms=5000)
        finally:
            client.close()

    def pids(self) -> dict[str, int]:
        """Role and id -> process id, as the metadata server tells."""
        return {f"{node.role}-{node.id}": node.pid for node in self.status().nodes}

    def pid_of(self, daemon: str) -> int:
        """The process id of a storage daemon by its directory: node ids come in any order."""
        target = str(self.directory / daemon / "target-1").encode()
        (pid,) = [
            pid
            for pid in self.pids().values()
            if target in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]
        return pid


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start supervisors; they and what they left behind are ended after the test."""
    made: list[Up] = []

    def make(*arguments: str, name: str = "dir", **how: Any) -> Up:
        made.append(Up(tmp_path / name, *arguments, **how))
        return made[-1]

    yield make
    for one in made:
        one.process.kill()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


def serving(one: Up, daemons: int) -> Callable[[], bool]:
    """Whether all daemons are known as up and their targets work."""

    def check() -> bool:
        with contextlib.suppress(ConnectionError, TimeoutError):
            states = [node.state for node in one.status().nodes if node.role == "storage"]
            return states == ["up"] * daemons
        return False

    return check


def test_up_prints_how_to_reach_it_and_stops_cleanly(up: Callable[..., Up]) -> None:
    one = up("--storage", "2").start()
    out = (one.directory.with_name("dir-log") / "up.out").read_text()
    port = one.address[1]
    assert out == (
        f"ready ffs://127.0.0.1:{port} key={one.key_file}\n"
        f"export FFS_URL=ffs://127.0.0.1:{port}\n"
        f"export FFS_KEY_FILE={one.key_file}\n"
    )
    assert stat.S_IMODE(one.key_file.stat().st_mode) == 0o600
    pids = one.pids()
    assert sorted(pids) == ["meta-0", "storage-1", "storage-2"]
    for name in ("meta", "storage-1", "storage-2"):
        assert (one.directory / "log" / f"{name}.log").exists()
    assert (one.directory / "storage-2" / "target-1" / "superblock").exists()
    assert one.process.terminate() == 0
    assert not any(alive(pid) for pid in pids.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_on_signals_with_status_0(up: Callable[..., Up], number: int) -> None:
    one = up().start()
    pids = one.pids()
    one.process.signal(number)
    wait_for(lambda: not one.process.alive, "up did not stop")
    assert one.process.returncode == 0
    assert not any(alive(pid) for pid in pids.values())


def test_up_stops_when_its_standard_input_ends(up: Callable[..., Up]) -> None:
    one = up("--exit-with-parent").start()
    pids = one.pids()
    one.process._close_stdin()
    wait_for(lambda: not one.process.alive, "up did not stop")
    assert one.process.returncode == 0
    assert not any(alive(pid) for pid in pids.values())


def test_second_up_on_the_same_directory_is_refused(up: Callable[..., Up]) -> None:
    first = up().start()
    for _ in range(2):  # the refused one leaves the first one's process id where it was
        second = up()
        second.process.start(wait=False)
        wait_for(lambda one=second: not one.process.alive, "the second up did not end")
        assert second.process.returncode == 1
        assert f"another `ffs up` (pid {first.process.pid}) runs in this directory" in second.errors
    assert first.pids()["meta-0"]


@pytest.mark.parametrize("role", ["storage-1", "meta-0"])
def test_up_restarts_what_dies_on_the_same_port(up: Callable[..., Up], role: str) -> None:
    one = up().start()
    before = {f"{n.role}-{n.id}": n for n in one.status().nodes}
    os.kill(before[role].pid, signal.SIGKILL)

    def came_back() -> bool:
        with contextlib.suppress(ConnectionError, TimeoutError):
            return one.pids().get(role, before[role].pid) != before[role].pid
        return False

    wait_for(came_back, f"{role} was not restarted")
    wait_for(serving(one, 1), "the cluster does not serve again")
    after = {f"{n.role}-{n.id}": n for n in one.status().nodes}
    assert after[role].address == before[role].address
    assert after.keys() == before.keys()
    assert one.process.terminate() == 0


def test_servers_raise_a_low_limit_of_open_files(up: Callable[..., Up]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        one = up().start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for pid in one.pids().values():
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] >= min(hard, 8_192)
    assert one.process.terminate() == 0


def test_the_command_says_which_process_died_and_where_its_log_is(up: Callable[..., Up]) -> None:
    one = up(module=("ffs.cli", "up")).start()
    os.kill(one.pids()["storage-1"], signal.SIGKILL)
    wait_for(lambda: "process_died" in one.errors, "the death was not told")
    log_path = one.directory / "log" / "storage-1.log"
    assert f'child=storage-1 ended_by="signal SIGKILL" log={log_path}' in one.errors
    wait_for(lambda: "process_restarted child=storage-1" in one.errors, "its return was not told")
    assert one.process.terminate() == 0


def test_after_a_killed_supervisor_children_end_and_a_new_one_works(
    up: Callable[..., Up],
) -> None:
    first = up().start()
    before, pids = first.status(), first.pids()
    first.process.signal(signal.SIGKILL)
    second = up().start()
    assert not any(alive(pid) for pid in pids.values())
    assert second.url == first.url
    after = second.status()
    assert after.cluster_id == before.cluster_id
    assert [n.id for n in after.nodes] == [n.id for n in before.nodes]
    wait_for(lambda: not any(alive(pid) for pid in pids.values()), "old children live")
    assert second.process.terminate() == 0


def test_stop_and_start_keeps_url_key_and_ids(up: Callable[..., Up]) -> None:
    one = up("--storage", "2").start()
    url, key, before = one.url, one.key_file.read_bytes(), one.status()
    assert one.process.terminate() == 0
    again = up().start()
    assert again.url == url and again.key_file.read_bytes() == key
    after = again.status()
    assert after.cluster_id == before.cluster_id
    members = [
        [(chain.chain, chain.targets) for chain in r.routing.chains] for r in (before, after)
    ]
    assert members[0] == members[1]
    assert [n.address for n in after.nodes] == [n.address for n in before.nodes]
    assert again.process.terminate() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--replicas", "2", "--storage", "1"), "2 replicas do not go with 1 storage daemons"),
        (("--replicas", "-1"), "-1 replicas"),
        (("--port", "70000"), "port 70000"),
        (("--storage", "1000"), "1000 storage daemons"),
        (("--set", "meta.no_such_key=1"), "unknown option meta.no_such_key"),
        (("--set", "meta.port"), "has no ="),
        (("--config", "/no/such/file"), "cannot read the configuration"),
    ],
)
def test_up_refuses_what_cannot_work(
    up: Callable[..., Up], arguments: tuple[str, ...], message: str
) -> None:
    one = up(*arguments)
    with pytest.raises(ProcessError, match="exited with 1"):
        one.process.start()
    assert re.search(message, one.errors), one.errors
    assert not one.directory.exists()


def test_up_refuses_a_taken_port(up: Callable[..., Up]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        one = up("--port", str(port))
        with pytest.raises(ProcessError, match="exited with 1"):
            one.process.start()
    assert f"port {port} of 127.0.0.1 is taken" in one.errors


def test_a_target_that_is_gone_is_not_taken_for_a_new_one(up: Callable[..., Up]) -> None:
    one = up("--storage", "2").start()
    target = one.directory / "storage-2" / "target-1"
    target.rename(one.directory / "elsewhere")  # as if its disk had been unmounted
    os.kill(one.pid_of("storage-2"), signal.SIGKILL)
    message = "the directory of storage-2 holds no target, but held target"
    wait_for(lambda: message in one.errors, "the loss was not told")
    assert not target.exists()
    (one.directory / "elsewhere").rename(target)
    wait_for(serving(one, 2), "storage-2 did not come back with its target")
    assert one.process.terminate() == 0
    shutil.rmtree(target.parent)
    again = up()
    with pytest.raises(ProcessError, match="exited with 1"):
        again.process.start()
    assert message in again.errors and str(target) in again.errors
    assert not target.parent.exists()


def test_a_daemon_that_keeps_failing_is_given_up(up: Callable[..., Up]) -> None:
    module = ("tests.cluster.impatient_up",)
    one = up("--storage", "2", module=module).start()
    pids, names = one.pids(), ("storage-1", "storage-2")
    daemons = {name: one.pid_of(name) for name in names}
    for name in names:
        shutil.rmtree(one.directory / name)
        os.kill(daemons[name], signal.SIGKILL)
        wait_for(lambda name=name: f"{name} is given up after 3 starts" in one.errors, name)
        if name == "storage-1":
            assert f"process_given_up child={name}" in one.errors and one.process.alive
    wait_for(lambda: not one.process.alive, "up went on without any daemon")
    assert one.process.returncode == 1
    assert "ffs up: storage-2 is given up" in one.errors
    assert not any(alive(pid) for pid in pids.values())


def test_up_refuses_to_leave_out_data(up: Callable[..., Up]) -> None:
    one = up("--storage", "2").start()
    assert one.process.terminate() == 0
    fewer = up("--storage", "1")
    with pytest.raises(ProcessError, match="exited with 1"):
        fewer.process.start()
    assert "the directory has data of 2 storage daemons, not 1" in fewer.errors


def test_ports_that_cannot_be_saved_stop_nothing(up: Callable[..., Up]) -> None:
    (draft := up().directory / "ports.new").mkdir(parents=True)
    one = up().start()
    pids = one.pids()
    assert one.process.terminate() == 0
    assert not any(alive(pid) for pid in pids.values())
    assert "ports_not_saved" in one.errors and str(draft) in one.errors


def test_failed_start_leaves_no_process_and_names_the_log(up: Callable[..., Up]) -> None:
    one = up().start()
    assert one.process.terminate() == 0
    superblock = one.directory / "storage-1" / "target-1" / "superblock"
    superblock.write_bytes(b"\xff" * superblock.stat().st_size)
    again = up()
    with pytest.raises(ProcessError, match="exited with 1"):
        again.process.start()
    assert "storage-1 ended with status 1" in again.errors
    assert str(again.directory / "log" / "storage-1.log") in again.errors
    # Nothing holds the directory's locks any more: whatever was started has ended.
    third = up()
    third.process.start(wait=False)
    wait_for(lambda: not third.process.alive, "the third up did not end")
    assert "another `ffs up`" not in third.errors and "earlier" not in third.errors
