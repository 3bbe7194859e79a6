"""`ffs fsck`: what it finds, how it says so, and what it mends."""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.cli.support import Cli, one_line
from tests.cli.test_verify import damaged
from tests.harness import Cluster

Place = Callable[..., str]
FAST = {"meta.heartbeat_ms": 50, "meta.node_lease_ms": 500}


def test_fsck_tells_damage_and_where_it_is(
    bare: Cli, new_cluster: Callable[..., Cluster], monkeypatch: object
) -> None:
    own = new_cluster(config=FAST)
    options = ("--url", own.url, "--key-file", str(own.key_file))
    content = os.urandom(10_000)
    bare("cp", *options, "-", "ffs:///rotten", stdin=content)
    assert bare("fsck", *options).out == "1 blob, 1 chunk, 1 target: all is well\n"
    with damaged(own.target_dir(), content[-1_000:]):
        done = bare("fsck", *options, check=False)
        report = bare("fsck", "--json", "--repair", *options, check=False)
    assert (done.code, done.err) == (1, "")
    kind, place, last = done.out.splitlines()
    assert kind == "chunk_damaged: 1 (restore the files from their source)"
    assert place.startswith("  /rotten: blob ") and "do not match" in place
    assert last == "1 blob, 1 chunk, 1 target: something is wrong"
    assert report.code == 1
    found = report.json()
    assert set(found) == {"clean", "problems", "blobs", "chunks", "targets"}
    (problem,) = found["problems"]
    assert set(problem) == {"kind", "count", "places", "repaired", "action", "hint"}
    assert (found["clean"], problem["kind"], problem["repaired"]) == (False, "chunk_damaged", 0)
    assert problem["places"][0]["path"] == "/rotten"
    clean = bare("fsck", "--json", *options).json()
    assert clean == {"clean": True, "problems": [], "blobs": 1, "chunks": 1, "targets": 1}


def test_giving_up_goes_with_repair(ffs: Cli) -> None:
    one_line(ffs("fsck", "--give-up-lost", check=False), "fsck", 2)
