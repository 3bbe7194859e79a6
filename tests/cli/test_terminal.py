"""What is drawn while a command works: on a terminal that can be drawn on, and nowhere else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ffs.key import ClusterKey
from tests.cli.support import PROCESS_S_MAX, command, terminal
from tests.harness import Cluster

Place = Callable[..., str]
ESCAPE = "\x1b"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A local file of 2 MiB."""
    (tmp_path / "f").write_bytes(os.urandom(2 << 20))
    return tmp_path / "f"


def test_progress_is_drawn_on_a_terminal(
    fs_dir: str, environment: dict[str, str], source: Path
) -> None:
    with terminal(("cp", str(source), f"ffs://{fs_dir}/f"), environment) as shown:
        code, out, drawn = shown.finish()
    assert (code, out) == (0, b"")
    assert "2.0/2.0 MiB" in drawn and ESCAPE in drawn


def test_whatever_takes_long_is_drawn(
    place: Place, environment: dict[str, str], cluster: Cluster, tmp_path: Path
) -> None:
    path = place(**{"sub/a": b"a", "b": os.urandom(1 << 20)})
    for argv, *texts in (
        (("verify", path), "checking", "1.0 MB"),
        (("du", path), "adding up"),
        (("fsck",), "metadata", "chunks", "targets"),
        (("meta", "backup", str(cluster.meta_dir), str(tmp_path / "names")), "backing up"),
        (("rm", "-r", path), "removing"),
    ):
        with terminal(argv, environment) as shown:
            code, _, drawn = shown.finish()
        assert code == 0 and ESCAPE in drawn
        assert all(text in drawn for text in texts), (argv, drawn)


@pytest.mark.parametrize(
    ("options", "changes"),
    [(("--quiet",), {}), (("--json",), {}), ((), {"TERM": "dumb"})],
    ids=["quiet", "json", "dumb"],
)
def test_nothing_is_drawn_where_nobody_wants_it(
    options: tuple[str, ...],
    changes: dict[str, str],
    fs_dir: str,
    environment: dict[str, str],
    source: Path,
) -> None:
    argv = ("cp", *options, str(source), f"ffs://{fs_dir}/f")
    with terminal(argv, environment | changes) as shown:
        code, out, drawn = shown.finish()
    assert (code, drawn) == (0, "")
    assert out.startswith(b"{") == ("--json" in options)


def test_a_pipe_gets_no_progress(fs_dir: str, environment: dict[str, str], source: Path) -> None:
    done = subprocess.run(
        command("cp", str(source), f"ffs://{fs_dir}/f"),
        check=True,
        capture_output=True,
        env=environment,
        timeout=PROCESS_S_MAX,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


def test_no_color_takes_the_colours_away(
    fs_dir: str, environment: dict[str, str], source: Path
) -> None:
    argv = ("cp", str(source), f"ffs://{fs_dir}/f")
    with terminal(argv, environment | {"NO_COLOR": "1"}) as shown:
        code, _, drawn = shown.finish()
    assert code == 0 and "2.0/2.0 MiB" in drawn
    assert f"{ESCAPE}[3" not in drawn and f"{ESCAPE}[9" not in drawn


@pytest.mark.parametrize("argv", [("cp", "ffs:///f", "f"), ("cat", "/f")])
def test_a_terminal_is_told_whom_the_command_waits_for(
    argv: tuple[str, ...], tmp_path: Path, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        ClusterKey.create(tmp_path / "key")
        changes = {"FFS_URL": f"ffs://{address}", "FFS_KEY_FILE": str(tmp_path / "key")}
        with terminal(argv, environment | changes) as shown:
            shown.wait_for(f"waiting for the metadata server at {address} (".encode())
            shown.process.send_signal(signal.SIGINT)
            code, out, drawn = shown.finish()
    assert (code, out) == (130, b"")
    assert drawn.endswith(f"ffs {argv[0]}: interrupted\r\n")


@contextmanager
def silent_storage(cluster: Cluster, fs: Any) -> Iterator[None]:
    """Storage says nothing meanwhile. It may be given up for that: it serves again afterwards."""
    cluster.pause("storage")
    try:
        yield
    finally:
        cluster.resume("storage")
        while not all(fs.core.meta.refresh_route().serving.values()):
            time.sleep(0.05)


def test_a_terminal_is_told_of_storage_that_is_silent(
    place: Place, cluster: Cluster, fs: Any, environment: dict[str, str]
) -> None:
    path = place(file=b"late")
    argv = ("cat", f"{path}/file")
    with silent_storage(cluster, fs), terminal(argv, environment) as shown:
        shown.wait_for(f"waiting for the storage daemons of {path}/file (".encode())
        cluster.resume("storage")
        code, out, _ = shown.finish()
    assert (code, out) == (0, b"late")


def test_interrupted_command_says_so_in_one_line(
    cluster: Cluster, environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            command("ls", "/"),
            stderr=subprocess.PIPE,
            env=environment | {"FFS_URL": f"ffs://127.0.0.1:{silent.getsockname()[1]}"},
        )
        with silent.accept()[0]:  # it has come so far that it connects
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PROCESS_S_MAX)
    assert (process.returncode, err) == (130, b"ffs ls: interrupted\n")


def test_interrupted_copy_leaves_nothing_half_written(
    place: Place, cluster: Cluster, fs: Any, environment: dict[str, str], tmp_path: Path
) -> None:
    path = place(large=os.urandom(24 << 20))
    (tmp_path / "out").mkdir()
    with silent_storage(cluster, fs):  # the copy has begun and cannot end
        argv = ("cp", f"ffs://{path}/large", "out/large")
        with terminal(argv, environment, cwd=tmp_path) as shown:
            while not list((tmp_path / "out").iterdir()):
                assert shown.process.poll() is None
            shown.process.send_signal(signal.SIGINT)
            code, _, drawn = shown.finish()
    assert code == 130
    assert drawn.count("ffs cp: interrupted") == 1 and "Traceback" not in drawn
    assert list((tmp_path / "out").iterdir()) == []


def test_cat_ends_quietly_with_its_reader(place: Place, environment: dict[str, str]) -> None:
    path = place(big=b"z" * (20 << 20))
    process = subprocess.Popen(
        command("cat", f"{path}/big"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10) == b"z" * 10
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(PROCESS_S_MAX), err) == (128 + signal.SIGPIPE, b"")
