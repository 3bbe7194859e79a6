"""Child: a small process started, waited for, restarted and stopped, on its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ffs.errors import UnavailableError
from ffs.server import child as child_module
from ffs.server.child import Child, port_is_free
from ffs.server.log_files import rotate

ROOT = Path(__file__).parents[3]
SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready 127.0.0.1:%d" % listener.getsockname()[1], flush=True)
sys.stdin.read()
"""
SUPERVISOR = """
import asyncio, os, pathlib, sys
from ffs.server.child import Child

async def supervise(directory):
    command = [sys.executable, "-c", {server!r}, "0"]
    child = Child("thing", lambda port: command, directory / "log",
                  host="127.0.0.1", port=0, pinned=False, held_fd=2)
    await child.start()
    (directory / "draft").write_text(str(child.pid))
    (directory / "draft").rename(directory / "pid")
    await child.keep_running()

asyncio.run(supervise(pathlib.Path({directory!r})))
"""
BROKEN = "import sys; sys.stderr.write('no disk\\\\n'); sys.exit(3)"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Child]:
    def made(script: str = SERVER, *, pinned: bool = False) -> Child:
        return Child(
            "thing",
            lambda port: [sys.executable, "-c", script, str(port)],
            tmp_path / "thing.log",
            host="127.0.0.1",
            port=0,
            pinned=pinned,
            held_fd=2,
        )

    return made


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 90))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  another process's doing sets no event here
        await asyncio.sleep(0.02)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_child_serves_and_stops(make: Callable[..., Child]) -> None:
    async def story() -> None:
        child = make()
        await child.start()
        pid = child.pid
        assert pid and child.port and not port_is_free("127.0.0.1", child.port)
        await child.stop()
        assert gone(pid) and child.pid == 0
        await child.stop()

    run(story())


@pytest.mark.parametrize("pinned", [True, False])
def test_child_that_dies_comes_back_on_its_port(make: Callable[..., Child], pinned: bool) -> None:
    async def story() -> None:
        child = make(pinned=pinned)
        await child.start()
        port, pid = child.port, child.pid
        keeper = asyncio.create_task(child.keep_running())
        os.kill(pid, signal.SIGKILL)
        await until(lambda: child.pid not in (0, pid) and not port_is_free("127.0.0.1", port))
        assert child.port == port and child.starts == 2
        keeper.cancel()
        await asyncio.gather(keeper, return_exceptions=True)
        await child.stop()

    run(story())


def test_child_that_keeps_failing_is_given_up(
    make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "BACKOFF_S_MIN", 0.001)

    async def story() -> None:
        dying = make("import sys; print('ready 127.0.0.1:1', flush=True); sys.exit('dead')")
        await dying.start()
        with pytest.raises(UnavailableError, match="thing is given up after 10 starts: it dies"):
            await dying.keep_running()
        assert dying.pid == 0 and dying.starts == 1 + child_module.TRIES_MAX

    run(story())


def test_child_that_others_kill_is_not_given_up(
    make: Callable[..., Child], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ffs.up")

    def served() -> int:
        return sum(record.message == "process_ready" for record in caplog.records)

    monkeypatch.setattr(child_module, "BACKOFF_S_MAX", 0.01)
    monkeypatch.setattr(child_module, "TRIES_MAX", 2)

    async def story() -> None:
        child = make()
        await child.start()
        keeping = asyncio.create_task(child.keep_running())
        for times in range(1, 6):
            os.kill(child.pid, (signal.SIGKILL, signal.SIGTERM)[times % 2])
            await until(lambda times=times: served() == times + 1)  # type: ignore[misc]
        assert not keeping.done()
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await child.kill()

    run(story())


def test_log_is_bounded_while_its_writer_goes_on(
    make: Callable[..., Child], tmp_path: Path
) -> None:
    script = (
        "import os, sys; os.write(2, b'x' * 200 + b'\\n'); print('ready 127.0.0.1:1', flush=True)\n"
        "sys.stdin.read(); os.write(2, b'last words\\n')"
    )

    async def story() -> None:
        child = make(script)
        await child.start()
        assert rotate(tmp_path / "thing.log", 100)
        assert not rotate(tmp_path / "thing.log", 100)
        assert child._process is not None and child._process.stdin is not None
        child._process.stdin.close()
        await child._process.wait()
        assert (tmp_path / "thing.log").read_bytes() == b"last words\n"
        assert (tmp_path / "thing.log.1").read_bytes() == b"x" * 200 + b"\n"
        assert child._last_words() == "last words"

    run(story())


def test_child_that_cannot_start_tells_the_end_of_its_log(make: Callable[..., Child]) -> None:
    async def story() -> None:
        child = make(BROKEN)
        with pytest.raises(UnavailableError, match=r"ended with status 3.*no disk"):
            await child.start()
        assert child.pid == 0

    run(story())


def test_child_that_says_nothing_is_not_given_the_words_of_an_earlier_one(
    make: Callable[..., Child],
) -> None:
    async def story() -> None:
        with pytest.raises(UnavailableError, match="no disk"):
            await make(BROKEN).start()
        with pytest.raises(UnavailableError, match=r"status 4 before it served \[?") as caught:
            await make("raise SystemExit(4)").start()
        assert "no disk" not in str(caught.value)

    run(story())


def test_cancelled_start_leaves_no_process(make: Callable[..., Child]) -> None:
    async def story() -> None:
        child = make("import sys; sys.stdin.read()")
        starting = asyncio.create_task(child.start())
        await until(lambda: child.pid != 0)
        pid = child.pid
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        assert gone(pid)

    run(story())


def test_child_ends_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    script = SUPERVISOR.format(server=SERVER, directory=str(tmp_path))
    supervisor = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    pid_file = tmp_path / "pid"
    give_up = time.monotonic() + 60
    while not pid_file.exists() and time.monotonic() < give_up:
        time.sleep(0.02)
    pid = int(pid_file.read_text())
    supervisor.kill()
    supervisor.wait()
    while not gone(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert gone(pid)


def test_taken_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert not port_is_free("127.0.0.1", taken.getsockname()[1])
    assert not port_is_free("203.0.113.1", 0)
