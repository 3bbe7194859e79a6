"""Everything that keeps a daemon's targets whole, put together: recovery, scrubbing, repair.

Previous hops: server/storage/daemon.py (routings, suspects), membership.py (asks what to report).
Next hops: recovery.py, scrubber.py, repair.py, which share one view of the routing and the turns at
the nodes that they pull from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ffs.config import StorageConfig
from ffs.key import ClusterKey
from ffs.server.storage.compare import Comparer
from ffs.server.storage.neighbours import View
from ffs.server.storage.recovery import Pulling, Recovery
from ffs.server.storage.repair import Repairer, listed
from ffs.server.storage.scrubber import Scrubber
from ffs.server.storage.targets import Targets
from ffs.tls_relay import TlsRelay
from ffs.types import Routing
from ffs.wire.membership import ChunkName, TargetHealth, TargetReport


class Upkeep:
    """Keeps one daemon's targets whole.

    Args:    reads_wait: tells whether a reader waits for a disk now; call_soon: has something
             called in the event loop; on_synced: called there when a target has become complete;
             gone_among: asks, from a thread, which blobs were dropped or are being dropped;
             relay: encrypts what is pulled from other daemons, None: it comes in clear
    Threads: those of its parts; all methods are the event loop's, `close` waits for the threads
    """

    def __init__(
        self,
        config: StorageConfig,
        key: ClusterKey,
        targets: Targets,
        *,
        reads_wait: Callable[[], bool],
        call_soon: Callable[[Callable[[], None]], object],
        on_synced: Callable[[], None],
        gone_among: Callable[[Iterable[int]], set[int]],
        relay: TlsRelay | None = None,
    ) -> None:
        self._targets = targets
        self._view = View()
        pulling = Pulling(
            key,
            config.congestion,
            config.resync_share_percent / 100,
            view=lambda: self._view,
            relay=relay,
        )
        self._recovery = Recovery(
            lambda: targets.working,
            pulling,
            call_soon=call_soon,
            remember=targets.remember_synced,
            on_synced=on_synced,
        )
        self._repairer = Repairer(
            lambda: targets.working,
            pulling,
            targets.restores,
            is_gone=lambda blob: blob in gone_among([blob]),
        )
        self._comparer = Comparer(
            lambda: targets.working,
            self._repairer,
            pulling,
            gone_among,
            lambda: call_soon(on_synced),
        )
        self._scrubber = Scrubber(
            lambda: targets.working,
            targets.path_of,
            self._repairer,
            pulling,
            bytes_per_s=config.scrub_bytes_per_s,
            interval_s=config.scrub_interval_s,
            reads_wait=reads_wait,
        )

    def start(self) -> None:
        """Begin to look after the targets that are there."""
        self._repairer.start()
        self._comparer.start()
        self._scrubber.start()

    def routing_changed(self, routing: Routing) -> None:
        """Start, go on with, or stop what the routing asks for."""
        self._view = View(routing)
        self._recovery.view_changed()

    def target_stopped(self) -> None:
        """End what is being done with a target that works no more."""
        self._recovery.view_changed()

    def target_revived(self, target: int) -> None:
        """Begin anew with a target that works again."""
        self._recovery.revived(target)

    def compare(self, targets: Sequence[int]) -> None:
        """Compare targets with the other members of their chains, which are in doubt."""
        self._comparer.ask(targets)

    def suspect(self, target: int, blob: int, chunk: int) -> None:
        """A reader did not get a chunk as it should; if too many wait, scrubbing finds it."""
        self._repairer.suspect(target, blob, chunk)

    def close(self) -> None:
        """Stop everything and wait until nothing uses a store any more."""
        self._recovery.close()
        self._comparer.close()
        self._scrubber.close()
        self._repairer.close()

    def amend(self, report: TargetReport) -> TargetReport:
        """Add to what a target reports of itself how whole it is."""
        target = report.target
        progress = self._recovery.progress(target)
        scrub, health = self._scrubber.state(target), self._repairer.health(target)
        unrepairable = listed(health)
        return replace(
            report,
            synced=self._recovery.synced(target),
            compared=self._comparer.compared(target),
            health=TargetHealth(
                sync_chunks_left=progress.chunks_left if progress else 0,
                sync_bytes_left=progress.bytes_left if progress else 0,
                scrubbed_chunks=scrub.chunks,
                scrub_began_ns=scrub.began_ns,
                scrub_ended_ns=scrub.ended_ns,
                bad_total=health.bad_total,
                missing_total=health.missing_total,
                repaired_total=health.repaired_total,
                unrepairable=len(health.unrepairable),
                unrepairable_chunks=[ChunkName(*key) for key in unrepairable],
            ),
        )
