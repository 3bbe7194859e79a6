"""Every command of `ffs` against a cluster of processes: its output and its exit status."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Cluster, UpCluster

Cli = Callable[..., "Result"]


class Result:
    """What a command left: exit status, stdout, stderr."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.code = done.returncode
        self.raw = done.stdout
        self.out = done.stdout.decode(errors="replace")
        self.err = done.stderr.decode()

    def json(self) -> object:
        """stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture
def ffs(cluster: Cluster, fs_dir: str) -> Cli:
    """Run `ffs ...` as a process led to the shared cluster by its environment."""

    def run(*argv: str, check: bool = True, stdin: bytes = b"") -> Result:
        result = Result(
            subprocess.run(
                [sys.executable, "-m", "ffs.cli", *argv],
                check=False,
                input=stdin,
                capture_output=True,
                env={**os.environ, **cluster.environment},
                timeout=60,
            )
        )
        if check:
            assert (result.code, result.err) == (0, ""), (argv, result.out)
        return result

    return run


def tree(root: Path) -> dict[str, bytes]:
    """Make a local tree; returns what its files hold by relative path."""
    contents = {f"many/{i:03}": os.urandom(i * 37) for i in range(60)}
    contents |= {"large": os.urandom(3 << 20), "empty": b"", "deep/er/file": b"x"}
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / "hollow").mkdir()
    return contents


def read_tree(root: Path) -> dict[str, bytes]:
    """What the files below a local directory hold."""
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_tree_survives_the_way_in_and_out(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    contents = tree(tmp_path / "in")
    done = ffs("cp", "-r", "--json", str(tmp_path / "in"), f"ffs://{fs_dir}/copy")
    report = done.json()
    assert isinstance(report, dict)
    assert report["files"] == len(contents)
    assert report["bytes"] == sum(map(len, contents.values()))
    ffs("cp", "-r", f"ffs://{fs_dir}/copy", str(tmp_path / "out"))
    assert read_tree(tmp_path / "out") == contents
    assert (tmp_path / "out" / "hollow").is_dir()


def test_copy_within_a_cluster_goes_by_reference(
    ffs: Cli, fs_dir: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(5 << 20))
    ffs("cp", str(tmp_path / "file"), f"ffs://{fs_dir}/a")
    before = ffs("status", "--json").json()
    ffs("cp", f"ffs://{fs_dir}/a", f"{cluster.url}{fs_dir}/b")
    ffs("cp", f"ffs://{fs_dir}/a", f"ffs://{fs_dir}/c")
    after = ffs("status", "--json").json()
    assert isinstance(before, dict) and isinstance(after, dict)
    assert after["totals"]["blobs"] == before["totals"]["blobs"]
    for name in "bc":
        assert ffs("cat", f"{fs_dir}/{name}").raw == (tmp_path / "file").read_bytes()


def test_copy_into_a_directory_and_without_clobbering(
    ffs: Cli, fs_dir: str, tmp_path: Path
) -> None:
    for name, data in (("a", b"one"), ("b", b"two")):
        (tmp_path / name).write_bytes(data)
    ffs("cp", str(tmp_path / "a"), str(tmp_path / "b"), f"ffs://{fs_dir}")
    (tmp_path / "a").write_bytes(b"changed")
    done = ffs("cp", "-n", "--json", str(tmp_path / "a"), f"ffs://{fs_dir}/a").json()
    assert isinstance(done, dict) and (done["files"], done["skipped"]) == (0, 1)
    assert ffs("cat", f"{fs_dir}/a", f"{fs_dir}/b").raw == b"onetwo"
    refused = ffs(
        "cp", str(tmp_path / "a"), str(tmp_path / "b"), f"ffs://{fs_dir}/new", check=False
    )
    assert refused.code == 1 and refused.err.count("\n") == 1


def test_copy_errors_are_one_line(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    for argv in (
        ("cp", str(tmp_path / "missing"), f"ffs://{fs_dir}/x"),
        ("cp", f"ffs://{fs_dir}/missing", str(tmp_path / "x")),
        ("cp", str(tmp_path), f"ffs://{fs_dir}/x"),
        ("cp", str(tmp_path / "a"), str(tmp_path / "b")),
        ("cp", str(tmp_path / "a"), f"{tmp_path}/missing/"),
    ):
        done = ffs(*argv, check=False)
        assert (done.code, done.out, done.err.count("\n")) == (1, "", 1), done.err
        assert ("both local" in done.err) == (not any("ffs://" in word for word in argv))
    assert not list(tmp_path.iterdir())


def test_ls_lists_in_name_order(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", "-p", f"{fs_dir}/dir/sub", f"{fs_dir}/dir/aaa")
    assert ffs("ls", f"{fs_dir}/dir").out == "aaa/\nsub/\n"
    assert ffs("ls", "-l", f"{fs_dir}/dir").out.startswith("drwx")
    listed = ffs("ls", "--json", f"{fs_dir}/dir").json()
    assert isinstance(listed, list)
    assert [entry["type"] for entry in listed] == ["directory"] * 2
    two = ffs("ls", f"{fs_dir}/dir", f"{fs_dir}/dir/sub").out
    assert two == f"{fs_dir}/dir:\naaa/\nsub/\n\n{fs_dir}/dir/sub:\n"


def test_mkdir_says_what_is_wrong(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", f"{fs_dir}/one")
    for path in (f"{fs_dir}/one", f"{fs_dir}/no/parent"):
        done = ffs("mkdir", path, check=False)
        assert done.code == 1 and done.err.count("\n") == 1 and path.rsplit("/", 1)[0] in done.err
    assert "(add -p)" in done.err
    ffs("mkdir", "-p", f"{fs_dir}/one")


def test_rm_needs_r_for_directories_and_f_for_nothing(ffs: Cli, fs_dir: str) -> None:
    ffs("mkdir", "-p", f"{fs_dir}/dir/sub")
    refused = ffs("rm", f"{fs_dir}/dir", check=False)
    assert refused.code == 1 and "add -r" in refused.err
    ffs("rm", "-r", f"{fs_dir}/dir")
    assert ffs("rm", f"{fs_dir}/dir", check=False).code == 1
    ffs("rm", "-f", f"{fs_dir}/dir")
    assert "root" in ffs("rm", "-r", "/", check=False).err


def test_mv_renames_and_moves_into(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"f")
    ffs("cp", str(tmp_path / "f"), f"ffs://{fs_dir}/f")
    ffs("mkdir", f"{fs_dir}/dir")
    ffs("mv", f"{fs_dir}/f", f"{fs_dir}/g")
    ffs("mv", f"{fs_dir}/g", f"{fs_dir}/dir")
    assert ffs("cat", f"{fs_dir}/dir/g").raw == b"f"
    assert ffs("mv", f"{fs_dir}/f", f"{fs_dir}/h", check=False).code == 1


def test_stat_shows_attributes(ffs: Cli, fs_dir: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    ffs("cp", str(tmp_path / "f"), f"ffs://{fs_dir}/f")
    found = json.loads(ffs("stat", "--json", f"{fs_dir}/f").out)[0]
    assert (found["name"], found["size"], found["type"]) == (f"{fs_dir}/f", 5, "file")
    text = ffs("stat", f"{fs_dir}/f").out
    assert "size" in text and "5 (5 B)" in text


def test_status_tells_nodes_chains_and_totals(ffs: Cli, cluster: Cluster) -> None:
    report = ffs("status", "--json").json()
    assert isinstance(report, dict)
    assert {node["role"] for node in report["nodes"]} == {"meta", "storage"}
    assert {n["pid"] for n in report["nodes"]} == set(cluster.pids.values())
    assert all(set(node) >= {"id", "role", "pid", "state"} for node in report["nodes"])
    (chain,) = report["chains"]
    assert set(chain) == {"id", "version", "targets"}
    assert [target["state"] for target in chain["targets"]] == ["serving"]
    assert report["totals"]["capacity_bytes"] > 0
    text = ffs("status").out
    assert "storage" in text and "serving" in text


def test_cat_streams_and_stops_with_its_reader(ffs: Cli, fs_dir: str, cluster: Cluster) -> None:
    ffs("cp", "/dev/null", f"ffs://{fs_dir}/x", check=False)
    script = (
        f"import fsspec; f=fsspec.open('ffs://{fs_dir}/big','wb').open();"
        "f.write(b'z'*(20<<20)); f.close()"
    )
    environment = {**os.environ, **cluster.environment}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=60)
    process = subprocess.Popen(
        [sys.executable, "-m", "ffs.cli", "cat", f"{fs_dir}/big"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(10) == b"z" * 10
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(30), err) == (128 + signal.SIGPIPE, b"")


def test_interrupted_command_says_so(ffs: Cli, cluster: Cluster) -> None:
    cluster.pause("meta")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ffs.cli", "ls", "/"],
            stderr=subprocess.PIPE,
            env={**os.environ, **cluster.environment},
        )
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    finally:
        cluster.resume("meta")
    assert (process.returncode, err) == (130, b"ffs ls: interrupted\n")


def test_progress_is_drawn_on_a_terminal_and_nowhere_else(
    ffs: Cli, fs_dir: str, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(os.urandom(2 << 20))
    argv = [sys.executable, "-m", "ffs.cli", "cp", str(tmp_path / "f"), f"ffs://{fs_dir}/f"]
    screen, terminal = pty.openpty()
    environment = {**os.environ, **cluster.environment, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(argv, stderr=terminal, stdout=subprocess.PIPE, env=environment)
    os.close(terminal)
    drawn = b""
    try:
        while piece := os.read(screen, 4096):
            drawn += piece
    except OSError:  # EIO is how a terminal says that its other side was closed
        pass
    os.close(screen)
    assert process.communicate(timeout=30)[0] == b""
    assert process.returncode == 0
    assert "2.0/2.0 MiB" in drawn.decode()
    assert ffs(*argv[3:]).out == ""


def test_a_cluster_that_does_not_answer_is_mentioned_on_a_terminal(
    ffs: Cli, cluster: Cluster
) -> None:
    screen, terminal = pty.openpty()
    cluster.pause("meta")
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ffs.cli", "ls", "/"],
            stderr=terminal,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **cluster.environment},
        )
        os.close(terminal)
        assert b"ffs ls: no answer from the cluster yet" in os.read(screen, 4096)
    finally:
        cluster.resume("meta")
    assert process.wait(30) == 0
    os.close(screen)


def test_changes_are_reported_as_json(ffs: Cli, fs_dir: str) -> None:
    made = ffs("mkdir", "--json", f"{fs_dir}/a", f"{fs_dir}/b").json()
    assert made == {"made": [f"{fs_dir}/a", f"{fs_dir}/b"]}
    moved = ffs("mv", "--json", f"{fs_dir}/a", f"{fs_dir}/b").json()
    assert moved == {"moved": [{"source": f"{fs_dir}/a", "target": f"{fs_dir}/b/a"}]}
    removed = ffs("rm", "-rf", "--json", f"{fs_dir}/b", f"{fs_dir}/missing").json()
    assert removed == {"removed": [f"{fs_dir}/b"]}


def test_wrong_key_is_refused_in_one_line(ffs: Cli, tmp_path: Path) -> None:
    from ffs.handshake import ClusterKey

    ClusterKey.create(tmp_path / "other.key")
    done = ffs("ls", "--key-file", str(tmp_path / "other.key"), "/", check=False)
    assert done.code == 1 and done.err.startswith("ffs ls: ") and done.err.count("\n") == 1


def test_up_serves_and_refuses_a_second_one(tmp_path: Path) -> None:
    with UpCluster(tmp_path / "data") as up:
        argv = [sys.executable, "-m", "ffs.cli"]
        environment = {**os.environ, **up.environment}
        subprocess.run([*argv, "mkdir", "/made"], check=True, env=environment, timeout=60)
        listed = subprocess.run(
            [*argv, "ls", "/"], check=True, env=environment, stdout=subprocess.PIPE, timeout=60
        )
        assert listed.stdout == b"made/\n"
        second = subprocess.run(
            [*argv, "up", "--data", str(tmp_path / "data"), "--port", "0"],
            check=False,
            capture_output=True,
            timeout=60,
        )
        assert second.returncode == 1 and second.stderr.count(b"\n") == 1
        assert str(up.up.pid).encode() in second.stderr
