"""Every case of `ffs-bench` runs against real processes and says something sane. Never how fast."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffs.bench import cli
from ffs.bench.cases.bare_sqlite import BareSqlite
from ffs.bench.cases.common import MIB, Context, data_set
from ffs.bench.cases.meta import CALL_PATHS, Tree
from ffs.bench.cases.reading import Caller, DataSet, file_system
from ffs.bench.cases.write import fio_sample
from ffs.bench.cluster import Servers
from ffs.bench.machine import Placement
from ffs.bench.measure import Plan, Verdict
from ffs.errors import ChecksumError
from tests.harness import Cluster

Smoke = Callable[..., dict[str, Any]]


@pytest.fixture
def smoke(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Smoke:
    """Run a case as the command line would; it must leave nothing behind."""

    def run(*arguments: str) -> dict[str, Any]:
        status = cli.main([*arguments, "--quick", "--json", "--dir", str(tmp_path)])
        output = capsys.readouterr()
        assert status == 0, output.err
        assert not list(tmp_path.iterdir())
        found: dict[str, Any] = json.loads(output.out)
        return found

    return run


def figure(found: dict[str, Any], name: str) -> dict[str, Any]:
    (one,) = (each for each in found["figures"] if each["name"] == name)
    assert one["operation_rate"] > 0
    assert one["client_cpu"] > 0
    found_figure: dict[str, Any] = one
    return found_figure


def must_be_sane(found: dict[str, Any], comparisons: int) -> None:
    """Ratios are numbers, and a smoke run decides nothing."""
    assert len(found["comparisons"]) == comparisons
    for each in found["comparisons"]:
        assert each["pairs"] + each["dropped"] == 2
        if each["ratio"] is not None:
            low, high = each["ratio"]["low"], each["ratio"]["high"]
            assert 0 < low <= each["ratio"]["median"] <= high < math.inf
        assert each["verdict"] in (None, Verdict.UNRESOLVED)


@pytest.mark.parametrize("case", ["seq", "seq-2"])
def test_seq(smoke: Smoke, case: str) -> None:
    found = smoke(case)
    must_be_sane(found, comparisons=7)
    ours = [f"readv_into, 8 a call, CRC {crc}" for crc in ("off", "on")]
    for name in (*ours, "plain C, sendfile", "plain C, 8 a call"):
        one = figure(found, name)
        assert one["bytes_rate"] > 0
        assert one["server_cpu"] > 0
        assert one["more"]["faults_per_gb"] >= 0
    assert 1 <= figure(found, ours[1])["more"]["wire_per_byte"] < 1.1
    assert f"{16 * MIB} delivered bytes verified" in found["conditions"]["data"]


def test_medium_as_a_goal(smoke: Smoke) -> None:
    """What `goals` prints for each case: the result, and a record for each comparison."""
    found = smoke("goals", "medium")
    must_be_sane(found, comparisons=4)
    record = next(each for each in found["records"] if each["goal"] is not None)
    assert (record["case"], record["name"]) == ("medium", "speed, CRC on")
    assert (record["goal"], record["unit"]) == (0.8, "GB/s")
    assert record["figure"] > 0
    assert record["reference_figure"] > 0
    assert record["costs"]["client_cpu_s_per_gb"] > 0
    assert record["costs"]["wire_bytes_per_byte"] >= 1
    assert record["reference_costs"]["server_cpu_s_per_gb"] > 0
    assert record["machine"]["kernel"]
    assert record["settings"]["connections"] == "1"


def test_random(smoke: Smoke) -> None:
    found = smoke("random")
    redis = "redis-benchmark, GET" in {each["name"] for each in found["figures"]}
    must_be_sane(found, comparisons=7 if redis else 6)
    assert figure(found, "aligned, CRC on")["operation_rate"] > 0
    assert figure(found, "unaligned, CRC on")["more"]["wire_per_byte"] > 1.9, "two blocks a range"


def test_single(smoke: Smoke) -> None:
    found = smoke("single")
    must_be_sane(found, comparisons=3)
    for name in ("readv_into, CRC on", "plain C, mmap + writev"):
        one = figure(found, name)
        assert 0 < one["more"]["p50_us"] <= one["more"]["p99_us"] <= one["more"]["p99_9_us"]
        curve = one["latency_us"]
        assert [share for _, share in curve] == sorted(share for _, share in curve)
        assert [us for us, _ in curve] == sorted(us for us, _ in curve)


def test_grants(smoke: Smoke) -> None:
    found = smoke("grants")
    must_be_sane(found, comparisons=2)
    goals = {each["name"]: each["goal"] for each in found["comparisons"]}
    assert goals == {"CPU, 256 a call": 1.03, "CPU, one a call": None}
    assert figure(found, "256 a call, by a token")["server_cpu"] > 0


def test_tls(smoke: Smoke) -> None:
    found = smoke("tls")
    must_be_sane(found, comparisons=4)
    for size in ("1 MiB", "4 KiB"):
        for way in ("in clear", "through TLS"):
            assert figure(found, f"{size}, {way}")["bytes_rate"] > 0


def test_planning(smoke: Smoke) -> None:
    found = smoke("planning")
    more = figure(found, "three kinds of calls in turn")["more"]
    assert more["wire_per_byte"] < 1.1, "the same bytes travel"
    assert min(more["array_us"], more["tuples_us"], more["engine_us"]) > 0
    assert [each["unit"] for each in found["comparisons"]] == ["us a range"] * 2


def test_cold(smoke: Smoke) -> None:
    found = smoke("cold")
    must_be_sane(found, comparisons=4)
    assert figure(found, "4 KiB, fio, O_DIRECT")["operation_rate"] > 0


def test_checkpoint(smoke: Smoke) -> None:
    found = smoke("checkpoint")
    must_be_sane(found, comparisons=8)
    for name in ("save", "pipe_file", "save, fsspec", "load", "readv_into", "load, fsspec"):
        assert figure(found, name)["bytes_rate"] > 0
    assert "delivered bytes verified" in found["conditions"]["data"]


def test_shaped(smoke: Smoke) -> None:
    """No flow is faster than its link: the shaping is real, and payload is what is counted."""
    assert os.geteuid() == 0, "only root can make network namespaces"
    found = smoke("shaped")
    assert len(found["comparisons"]) == 4 * 3
    slow = figure(found, "1 Gbit/s, MTU 1500: plain C, sendfile")
    bucket_gb = 8 * MIB / 1e9 / Plan.quick().seconds  # which a flow that was held up finds full
    assert slow["bytes_rate"] < 0.125 + bucket_gb
    assert not list(Path("/run/netns").glob(f"ffs-bench-{os.getpid()}-*"))


def test_crowd(smoke: Smoke) -> None:
    found = smoke("crowd")
    assert len(found["comparisons"]) == 2 * 2 + 1
    assert figure(found, "40 connections, daemon")["server_cpu"] > 0
    plain = [each for each in found["figures"] if "40 connections, plain epoll" in each["name"]]
    assert [each["server_cpu"] > 0 for each in plain] == [True]
    assert found["comparisons"][-1]["figure"] < 1 << 20


def test_memory(smoke: Smoke) -> None:
    found = smoke("memory")
    (bound,) = found["comparisons"]
    assert 1 < bound["figure"] < 1000
    assert bound["reference_figure"] == 200


def test_unknown_goals_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["goals", "seq", "wishes"]) == 2
    assert "no such goals: wishes" in capsys.readouterr().err


def test_a_goal_that_cannot_be_measured_here_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ffs.bench.fio.shutil.which", lambda name: None)
    assert cli.main(["goals", "cold", "--quick"]) == 0
    output = capsys.readouterr()
    assert "cold is not run: fio is not installed" in output.err
    assert "not run: fio is not installed" in output.out
    assert cli.main(["goals", "cold", "--quick", "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith("not run: fio is not installed")


@pytest.mark.parametrize(("case", "shapes"), [("seq", 1), ("random", 2)])
def test_compare(smoke: Smoke, case: str, shapes: int) -> None:
    """Nine ways to read the same bytes; every one has delivered the right ones, or this fails."""
    found = smoke(case, "--compare")
    must_be_sane(found, comparisons=shapes * 7 * 3)
    assert len(found["figures"]) == shapes * 9
    assert all(each["bytes_rate"] > 0 and each["client_cpu"] > 0 for each in found["figures"])


def test_meta(smoke: Smoke) -> None:
    found = smoke("meta")
    must_be_sane(found, comparisons=14)
    for engine in ("SQLite", "PostgreSQL"):
        one = figure(found, f"{engine}: stat_many")
        assert one["bytes_rate"] == 0
        assert one["cpu_unit"] == "CPU-s per million"
        for what in ("bare, same paths", "create_many + close_many", "bare, same rows"):
            assert figure(found, f"{engine}: {what}")["operation_rate"] > 0
    assert figure(found, "PostgreSQL: four writers of it")["server_cpu"] > 0


def test_snapshot(smoke: Smoke) -> None:
    found = smoke("snapshot")
    must_be_sane(found, comparisons=4)
    for engine in ("SQLite", "PostgreSQL"):
        for what in ("snapshot", "bare INSERT ... SELECT"):
            assert figure(found, f"{engine}: {what}")["operation_rate"] > 0


def test_write(smoke: Smoke) -> None:
    found = smoke("write")
    must_be_sane(found, comparisons=1)
    assert figure(found, "fio")["bytes_rate"] > 0
    assert figure(found, "pipe_file")["bytes_rate"] > 0
    assert "fdatasync every" in found["conditions"]["fio"]
    assert "syncs of extent files" in found["conditions"]["cadence"]


def test_copies_on_the_large_path(smoke: Smoke) -> None:
    """Counting is exact, so this one is a real check: no payload is copied in user space."""
    found = smoke("copies")
    assert len(found["comparisons"]) == 3
    for each in found["comparisons"]:
        assert each["verdict"] == Verdict.MET, each
    (counted,) = found["runs"]
    assert counted["payload_bytes"] == counted["engine_payload"] == 2 * 8 * MIB


def test_a_running_cluster_can_be_measured(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["--url", cluster.url, "--key-file", str(cluster.key_file), "--dir", str(tmp_path)]
    assert cli.main(["seq", "--quick", "--json", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert figure(found, "readv_into, 8 a call, CRC on")["server_cpu"] > 0


def test_a_cluster_without_key_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FFS_KEY_FILE", raising=False)
    assert cli.main(["seq", "--quick", "--url", "ffs://127.0.0.1:1"]) == 2
    assert "--key-file" in capsys.readouterr().err


def test_wrong_bytes_are_never_measured(cluster: Cluster, tmp_path: Path) -> None:
    """Where the cluster's file is not the plain one, the run ends before anything is timed."""
    plain = tmp_path / "plain"
    data_set(plain, 2 * MIB)
    where = Servers(cluster.url, str(cluster.key_file), ())
    context = Context(Plan.quick(), Placement.choose(), tmp_path)
    offsets = np.array([[0, MIB]], dtype=np.uint64)
    with file_system(where, context) as fs:
        fs.pipe_file("/bench-other", plain.read_bytes()[:-1] + b"?")
        caller = Caller(fs, DataSet(where, plain, "/bench-other", 2 * MIB), offsets)
        with pytest.raises(ChecksumError, match="other bytes"):
            caller.verify(MIB)
        fs.rm_file("/bench-other")


def test_the_bare_namespace_resolves_what_it_made(tmp_path: Path) -> None:
    with BareSqlite(tmp_path / "bare.sqlite") as bare:
        bare.make_directories([b"/a", b"/a/b", b"/c"])
        bare.create_many(b"/a/b", [b"x", b"y"])
        bare.create_many(b"/c", [b"x"])
        first, second, third = bare.stat_many([b"/a/b/x", b"/c/x", b"/a/b/y"])
    assert [row[0] for row in (first, second, third)] == [0, 1, 2]
    assert len({row[1] for row in (first, second, third)}) == 3
    assert first[2] == 1


def test_the_tree_has_depth_four_and_repeats() -> None:
    tree = Tree("root", smoke=True)
    assert all(path.count("/") == 4 for path in tree.files)
    assert len(set(tree.files)) == len(tree.files)
    first, again = tree.calls(2), Tree("root", smoke=True).calls(2)
    assert first == again
    assert [len(call) for call in first] == [CALL_PATHS, CALL_PATHS]


def test_fio_report_becomes_a_sample() -> None:
    job = {
        "write": {"runtime": 2000, "io_bytes": 1 << 30},
        "usr_cpu": 5.0,
        "sys_cpu": 20.0,
        "job_runtime": 2000,
    }
    sample = fio_sample({"jobs": [job]})
    assert sample.bytes_rate == pytest.approx((1 << 30) / 2e9)
    assert sample.cpu_s == pytest.approx(0.5)
