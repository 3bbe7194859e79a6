"""`ffs pack`: in a cluster and on this machine, killed, interrupted, refused."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import ffs.records as ffs_records
from tests.cli.support import Cli, command, one_line, terminal
from tests.harness import Cluster
from tests.records.samples import MIXED
from tests.records.test_pack import make_directory, make_lines, make_parquet, tree


def test_into_a_cluster_within_it_and_out_again(
    ffs: Cli, cluster: Cluster, fs_dir: str, tmp_path: Path
) -> None:
    make_directory(tmp_path / "source")
    inside = f"ffs://{fs_dir}"
    assert ffs("pack", str(tmp_path / "source"), f"{inside}/a").out == ""
    report = ffs("pack", "--json", "--to", "tar", f"{inside}/a", f"{inside}/b").json()
    seconds = report.pop("seconds")
    assert seconds >= 0
    assert report == {
        "source": "records",
        "target": "tar",
        "shards": 1,
        "skipped": 0,
        "samples": len(MIXED),
        "bytes": report["bytes"],
    }
    ffs("pack", "--to", "ffrecord", "--shard", "0.01", f"{inside}/a", f"{inside}/c")
    ffs("pack", "--to", "dir", f"{inside}/c", str(tmp_path / "back"))
    assert tree(tmp_path / "back") == tree(tmp_path / "source")
    with ffs_records.open(f"{cluster.url}{fs_dir}/c", storage_options=cluster.storage_options) as r:
        assert sorted(bytes(s) for s in r.read(range(len(r)))) == sorted(MIXED)


def test_a_killed_run_is_taken_up(
    ffs: Cli, environment: dict[str, str], fs: Any, fs_dir: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    lines = b"".join(b"%06d %s\n" % (n, b"x" * 50) for n in range(60_000))
    (tmp_path / "source" / "a.jsonl").write_bytes(lines)
    words = ("--json", "--shard", "0.05", "-j", "2", str(tmp_path / "source"), f"ffs://{fs_dir}/t")
    running = subprocess.Popen(
        command("pack", *words),
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not fs.exists(f"{fs_dir}/t/part-00004.ffr"):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    report = ffs("pack", *words).json()
    assert report["skipped"] >= 3
    with ffs_records.open(f"{fs_dir}/t", fs=fs) as records:
        assert b"".join(bytes(s) + b"\n" for s in records.read(range(len(records)))) == lines


def test_ctrl_c_ends_it_and_leaves_whole_shards(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    with (tmp_path / "source" / "a.jsonl").open("wb") as file:
        file.write(b"x\n" * 3_000_000)
    target = tmp_path / "t"
    running = subprocess.Popen(
        command("pack", "--shard", "0.1", str(tmp_path / "source"), str(target)),
        env=environment,
        stderr=subprocess.PIPE,
    )
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up and not (target / "part-00001.ffr").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=150)
    assert (running.returncode, err) == (130, b"ffs pack: interrupted\n")
    with ffs_records.open(str(target)) as records:
        records.validate()


def test_errors_are_one_line(bare: Cli, tmp_path: Path) -> None:
    make_lines(tmp_path / "lines")
    make_parquet(tmp_path / "tables")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    for name in ("a.tar", "b.tar"):
        (tmp_path / "bad" / name).write_bytes(b"no tar file")
    bare("pack", "lines", "packed")
    for text, code, words in (
        ("no such file", 1, ("missing", "t")),
        ("no file below", 1, ("empty", "t")),
        ("not from `ffs pack`", 1, ("lines", "full")),
        ("made of something else", 1, ("--shard", "1", "lines", "packed")),
        ("has no columns", 1, ("--column", "a", "lines", "t")),
        ("there is no column 'a'", 1, ("--column", "a", "tables", "t")),
        ("no file of the format tar", 1, ("--from", "tar", "lines", "t")),
        ("not a whole tar file", 1, ("bad", "t1")),
        ("more than one line", 1, ("--from", "dir", "--to", "jsonl", "lines", "t2")),
        ("invalid choice", 2, ("--to", "zip", "lines", "t")),
        ("MiB above 0", 2, ("--shard", "0", "lines", "t")),
    ):
        assert text in one_line(bare("pack", *words, check=False), "pack", code), words


def test_progress_is_drawn_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    make_lines(tmp_path / "lines")
    words = ["pack", str(tmp_path / "lines"), str(tmp_path / "packed")]
    with terminal(words, environment) as running:
        code, out, drawn = running.finish()
    assert (code, out) == (0, b"")
    assert "packing" in drawn
