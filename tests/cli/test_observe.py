"""`ffs trace`, `ffs status --slow`, `ffs top` and `ffs doctor` on the shared cluster."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from typing import Any

from ffs.cli.trace import SHOWN_MAX
from tests.cli.support import Cli, terminal
from tests.harness import Cluster

BYTES = 24 * 65_536 + 1


def test_trace_read_shows_the_slowest_ranges_and_where_time_went(
    ffs: Cli, fs: Any, fs_dir: str
) -> None:
    where = fs_dir
    fs.pipe_file(f"{where}/many", os.urandom(BYTES), chunk_size_bytes=65_536)
    lines = ffs("trace", "read", f"{where}/many").out.splitlines()
    assert re.match(rf"trace [0-9a-f]{{16}}: {where}/many$", lines[0])
    assert lines[1].endswith(", 25 ranges")
    assert lines[3].split()[:5] == ["offset", "size", "node", "target", "by"]
    assert lines[4 + SHOWN_MAX] == "... and 5 faster ones: --all shows them"
    assert lines[-2].split()[-6:] == ["python", "queue", "network", "server", "disk", "crc"]
    assert 94 <= sum(int(share.rstrip("%")) for share in lines[-1].split()[-6:]) <= 106
    assert len(ffs("trace", "read", "--all", f"{where}/many").out.splitlines()) == len(lines) + 4


def test_trace_read_reads_a_part_and_reports_in_json(ffs: Cli, place: Callable[..., str]) -> None:
    where = place(file=b"x" * 100_000)
    report = ffs(
        "trace", "read", "--json", "--offset", "1000", "--length", "50", f"{where}/file"
    ).json()
    (one,) = report["ranges"]
    assert (report["bytes"], one["offset"], one["length"]) == (50, 1_000, 50)
    assert report["path"] == f"{where}/file" and report["took_ns"] >= report["python_ns"] > 0
    assert one["transport"] == "same host" and one["tries"] == 1
    nothing = place(empty=b"")
    assert ffs("trace", "read", "--json", f"{nothing}/empty").json()["ranges"] == []
    refused = ffs("trace", "read", "--offset", "200000", f"{where}/file", check=False)
    assert refused.code == 1 and "not inside" in refused.err


def test_status_shows_the_slowest_reads_and_nothing_else(
    ffs: Cli, place: Callable[..., str], cluster: Cluster
) -> None:
    where = place(file=os.urandom(300_000))
    ffs("cat", "--set", "client.same_host=off", f"{where}/file")
    found = ffs("status", "--slow", "--json").json()
    keys = {"node", "age_us", "took_us", "server_us", "disk_us", "sending_us", "bytes", "ranges"}
    assert all(keys <= one.keys() for one in found)
    assert found == sorted(found, key=lambda one: -one["took_us"])
    out = ffs("status", "--slow").out
    assert out.startswith(("node", "no daemon has served")) and "cluster" not in out


def test_top_in_a_pipe_looks_twice_and_ends(ffs: Cli) -> None:
    report = ffs("top", "--interval", "1s", "--json").json()
    (node,) = report["nodes"]
    assert node["id"] == 1 and sum(report["targets"].values()) == 1
    lines = ffs("top", "--interval", "1s").out.splitlines()
    assert re.match(r"[01] of 1 node up, targets: 1 ", lines[1])
    assert lines[3].split()[:3] == ["node", "state", "clients"] and lines[4].split()[0] == "1"


def test_top_on_a_terminal_draws_until_ctrl_c(environment: dict[str, str]) -> None:
    with terminal(("top", "--interval", "1s"), environment, screen=True) as shown:
        shown.wait_for(b"1 of 1 node up")
        shown.process.send_signal(signal.SIGINT)
        code, _, _ = shown.finish()
    assert code == 0


def test_doctor_has_looked_at_everything(ffs: Cli) -> None:
    done = ffs("doctor", "--json", check=False)
    report = done.json()
    checks = {one["check"] for one in report["findings"]}
    host = {"congestion control", "io_uring", "locked memory", "huge pages", "network links"}
    assert host | {"versions", "clocks", "nodes", "targets", "disks"} <= checks
    assert "MTU to 127.0.0.1" in checks
    problems = [one for one in report["findings"] if one["verdict"] == "problem"]
    assert report["problems"] == len(problems) and all(one["advice"] for one in problems)
    assert (done.code, done.err) == (1 if problems else 0, "")


def test_doctor_names_a_client_that_sends_by_bbr(ffs: Cli) -> None:
    done = ffs("doctor", "--set", "client.congestion=bbr", check=False)
    assert done.code == 1
    assert "problem  congestion control this client sends data by TCP's bbr" in done.out
    assert (
        '-> set client.congestion = "cubic"' in done.out and "problem" in done.out.split("\n")[-2]
    )
