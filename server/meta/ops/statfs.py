"""statfs: how full the cluster is, from what its targets last reported.

Previous hop: `service`, with the reports. Next hop: SQL for what is counted there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ffs.server.meta.store import Transaction
from ffs.wire.membership import TargetReport
from ffs.wire.messages import StatfsReply

_REPLICAS: Final = """
SELECT count(*) FROM chain_targets WHERE chain = (
    SELECT chain FROM table_chains WHERE place = 0
    AND chain_table = (SELECT max(chain_table) FROM table_chains)
)
"""


def statfs(tx: Transaction, reports: Sequence[TargetReport]) -> StatfsReply:
    """Return sums over all disks, each once however many targets it has.

    What is left counts only where a target takes chunks.
    """
    disks: dict[object, tuple[int, int, bool]] = {}
    for report in reports:
        disk = report.disk or report.target
        capacity_bytes, used_bytes, works = disks.get(disk, (0, 0, False))
        disks[disk] = (
            max(capacity_bytes, report.capacity_bytes),
            max(used_bytes, report.used_bytes),
            works or not report.stopped,
        )
    inodes, replicas = tx.row("SELECT count(*) FROM inodes"), tx.row(_REPLICAS)
    assert inodes is not None and replicas is not None
    return StatfsReply(
        capacity_bytes=sum(capacity for capacity, _, _ in disks.values()),
        used_bytes=sum(used for _, used, _ in disks.values()),
        available_bytes=sum(max(0, cap - used) for cap, used, works in disks.values() if works),
        inodes=inodes[0],
        replicas=max(1, replicas[0]),
    )
