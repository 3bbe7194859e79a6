"""S13: what RDMA exposes. What a fabric does is tried in the guest (tests/rdma); here it is that no
memory of a daemon is registered for anybody but itself."""

from __future__ import annotations

import re
from pathlib import Path

NATIVE = Path(__file__).resolve().parents[2] / "native"
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


def rights_in(folder: str) -> dict[str, set[str]]:
    """Rights to registered memory that a folder's code names, by file."""
    found: dict[str, set[str]] = {}
    for path in sorted((NATIVE / folder).rglob("*.[ch]")):
        code = COMMENT.sub("", path.read_text(encoding="utf-8"))
        rights = set(re.findall(r"\bIBV_ACCESS_\w+", code))
        if rights:
            found[path.name] = rights
    return found


def test_s13_no_memory_of_a_daemon_can_be_reached() -> None:
    daemon = rights_in("storage")
    assert daemon, "the daemon registers memory somewhere"
    assert set().union(*daemon.values()) == {"IBV_ACCESS_LOCAL_WRITE"}


def test_s13_a_daemons_queue_pairs_take_no_remote_access() -> None:
    """Only a queue pair that `exposes` memory lets the other side in; a daemon's never do."""
    code = "".join(
        COMMENT.sub("", path.read_text(encoding="utf-8"))
        for path in sorted((NATIVE / "storage").glob("rdma*.[ch]"))
    )
    assert ".exposes" not in code and "->exposes" not in code
    reader = "".join(path.read_text() for path in sorted((NATIVE / "reader").glob("rdma*.c")))
    assert "exposes = true" in reader, "a client's do: that is how its range is written"
