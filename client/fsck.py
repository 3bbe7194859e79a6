"""Checks a whole cluster: the metadata in itself, each stored chunk against it, and what is over.

Role: `ffs fsck` calls THIS; next hops are the metadata server (`ffs.wire.maintenance`) and, for the
chunks, client/verify.py, which asks each target of a chain for the end of every chunk.

In three parts: the metadata server holds its database against what must be true of it, step by
step; every chunk of every live blob is probed on every target; each daemon holds what it stores
against the metadata (it hears of the wish with its next heartbeats).
Invariants: work that goes on gives no false alarm: each step of the metadata is one snapshot, a
chunk is missing only if its blob is live after the probe, and what left a target is no orphan.
`repair` mends metadata and drops what belongs to nothing. It never drops what a file refers to, and
it cannot bring back a chunk whose last copy is gone: such findings stay, with the files' paths.
Failure behaviour: what is wrong is in the report; a metadata server that cannot be asked is an
error of the call. A daemon that does not answer is a finding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ffs import errors
from ffs.client.layouts import Content
from ffs.client.paths import decode
from ffs.client.verify import UNREACHABLE, Checked, Finding, Survey
from ffs.errors import StaleLayoutError
from ffs.types import Attr, FileType, Segment
from ffs.wire import maintenance as wire
from ffs.wire.messages import OpenFile
from ffs.wire.method import Method
from ffs.wire.status import STATUS, StatusRequest

if TYPE_CHECKING:
    from ffs.client.core import Core
    from ffs.client.namespace import Namespace

Req = TypeVar("Req")
Rep = TypeVar("Rep")

EXAMPLES: Final = 16
"""Places that are told of each kind; all are counted."""
PAGE_BLOBS: Final = 4_096
SCAN_S_MAX: Final = 1_800
LONG_MS: Final = 240_000
"""For calls that read whole tables; shorter than the server keeps its record of a mutation."""
_SCAN_LOOK_S: Final = 0.2
_DOWN_ROUNDS: Final = 20
"""Looks for which a daemon must be down before its targets are not waited for."""
_KINDS: Final = {
    errors.ChunkMissingError.code: "chunk_missing",
    errors.ChunkLengthError.code: "chunk_length",
    errors.ChecksumError.code: "chunk_damaged",
    errors.StaleLayoutError.code: "chunk_without_chain",
    **dict.fromkeys((*UNREACHABLE, errors.TargetStoppedError.code), "target_unreachable"),
}
_UNREADABLE: Final = "chunk_unreadable"
_HINTS: Final = {
    "chunk_missing": "restore the files from their source",
    "chunk_length": "restore the files from their source",
    "chunk_damaged": "restore the files from their source",
    _UNREADABLE: "see the daemon's log; restore the files from their source",
    "target_unreachable": "start the daemon, then check again",
    "orphan": "--repair drops them",
    "lost_blob": "written after the backup that was restored; --give-up-lost drops them",
    "symlink_without_target": "remove the links",
    "segment_without_blob": "restore the files from their source",
    "blob_without_table": "restore the metadata from a backup",
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is wrong. `path` is empty for what belongs to no file."""

    path: str
    detail: str


@dataclass(slots=True)
class Problem:
    """One kind of finding: how often, where the first are, and what was done about it."""

    kind: str
    count: int = 0
    places: list[Place] = field(default_factory=list)
    repaired: int = 0
    action: str = ""
    """What the repair did to each."""
    hint: str = ""

    def add(self, path: str, detail: str, count: int = 1) -> None:
        """Count one more and tell it if there is room."""
        self.count += count
        if len(self.places) < EXAMPLES:
            self.places.append(Place(path, detail))


@dataclass(slots=True)
class Report:
    """What a check found. `clean`: nothing is wrong any more."""

    problems: list[Problem] = field(default_factory=list)
    blobs: int = 0
    """Live blobs whose chunks were asked for."""
    chunks: int = 0
    """Chunks that were asked for, each replica counted."""
    targets: int = 0
    """Targets that were scanned."""

    @property
    def clean(self) -> bool:
        """Whether everything that was found was mended."""
        return all(problem.count == problem.repaired for problem in self.problems)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {"clean": self.clean, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a check is: `done` of `total` steps, chunks or targets (total 0: not known)."""

    part: str
    done: int
    total: int


OnProgress = Callable[[Progress], None]


def fsck(
    fs: Namespace,
    *,
    repair: bool = False,
    give_up_lost: bool = False,
    on_progress: OnProgress | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Report:
    """Check a cluster, and mend what can be mended if `repair`.

    Args:    give_up_lost: with `repair`, drop also what was written after the backup that the
             metadata was restored from
    """
    return _Check(fs.core, repair, give_up_lost, on_progress or (lambda _: None), sleep).run()


class _Check:
    """One call of `fsck`."""

    def __init__(
        self,
        core: Core,
        repair: bool,
        give_up_lost: bool,
        on_progress: OnProgress,
        sleep: Callable[[float], None],
    ) -> None:
        self._core = core
        self._meta = core.meta
        self._repair = repair
        self._give_up_lost = give_up_lost
        self._on_progress = on_progress
        self._sleep = sleep
        self._report = Report()
        self._problems: dict[str, Problem] = {}

    def run(self) -> Report:
        self._check_metadata()
        self._check_chunks()
        self._check_targets()
        self._report.problems = list(self._problems.values())
        return self._report

    def _call(self, method: Method[Req, Rep], request: Req) -> Rep:
        return self._meta.call(method, request, deadline_ms=LONG_MS)

    def _problem(self, kind: str) -> Problem:
        return self._problems.setdefault(kind, Problem(kind, hint=_HINTS.get(kind, "")))

    # --- metadata -------------------------------------------------------------------------------

    def _check_metadata(self) -> None:
        step, steps = 0, 1
        while step < steps:
            reply = self._call(wire.CHECK, wire.CheckRequest(step, EXAMPLES))
            steps = reply.steps
            if reply.count:
                self._take_metadata(reply, step)
            step += 1
            self._on_progress(Progress("metadata", step, steps))

    def _take_metadata(self, reply: wire.CheckReply, step: int) -> None:
        problem = self._problem(reply.kind)
        problem.count = reply.count
        problem.places = [Place(decode(e.path), e.detail) for e in reply.examples]
        if not (self._repair and reply.repairable):
            problem.hint = problem.hint or ("--repair mends it" if reply.repairable else "")
            return
        more = True
        while more:
            request = wire.RepairRequest(self._meta.mutation(), step)
            done = self._call(wire.REPAIR, request)
            problem.repaired += done.repaired
            problem.action = done.action
            more = done.more
        left = self._call(wire.CHECK, wire.CheckRequest(step, 1)).count
        problem.count = problem.repaired + left

    # --- chunks ---------------------------------------------------------------------------------

    def _check_chunks(self) -> None:
        survey = _BlobSurvey(self._core, self._note_chunks)
        findings: list[Finding] = []
        for finding in survey.run():
            findings.append(finding)
            if len(findings) >= PAGE_BLOBS:
                self._take_chunks(findings)
                findings = []
        self._take_chunks(findings)
        self._report.blobs = survey.blobs

    def _note_chunks(self, checked: Checked) -> None:
        self._report.chunks = checked.chunks
        self._on_progress(Progress("chunks", checked.chunks, 0))

    def _take_chunks(self, findings: Sequence[Finding]) -> None:
        if not findings:
            return
        request = wire.BlobPathsRequest(sorted({finding.blob for finding in findings}))
        reply = self._call(wire.BLOB_PATHS, request)
        paths = dict(zip(request.blobs, reply.blobs, strict=True))
        for finding in findings:
            problem = self._problem(_KINDS.get(finding.error.code, _UNREADABLE))
            held = [decode(path) for path in paths[finding.blob].paths] or [""]
            where = f"blob {finding.blob} chunk {finding.chunk} target {finding.target}"
            detail = f"{where}: {finding.error.message}"
            problem.add(held[0], detail)
            for path in held[1:]:
                problem.add(path, detail, count=0)

    # --- targets --------------------------------------------------------------------------------

    def _check_targets(self) -> None:
        request = wire.StartScanRequest(
            self._meta.mutation(),
            drop=self._repair,
            give_up_lost=self._repair and self._give_up_lost,
        )
        scan = self._meta.call(wire.START_SCAN, request).scan
        status = self._wait_for_targets(scan)
        for target in status.waiting:
            self._problem("target_not_scanned").add(
                "", f"target {target}: its daemon did not answer; see `ffs status`"
            )
        for result in status.results:
            self._take_target(result)
        self._report.targets = len(status.results)

    def _wait_for_targets(self, scan: int) -> wire.ScanStatusReply:
        """Wait until all targets have answered that have a living daemon."""
        rounds_down = 0
        for _ in range(int(SCAN_S_MAX / _SCAN_LOOK_S)):
            status = self._meta.call(wire.SCAN_STATUS, wire.ScanStatusRequest(scan))
            done = len(status.results)
            self._on_progress(Progress("targets", done, done + len(status.waiting)))
            if not status.waiting:
                break
            rounds_down = 0 if self._any_alive(status.waiting) else rounds_down + 1
            if rounds_down == _DOWN_ROUNDS:
                break
            self._sleep(_SCAN_LOOK_S)
        return status

    def _any_alive(self, targets: Sequence[int]) -> bool:
        reply = self._meta.call(STATUS, StatusRequest())
        alive = {n.id for n in reply.nodes if n.role == "storage" and n.state == "up"}
        return any(t.node in alive for t in reply.routing.targets if t.target in targets)

    def _take_target(self, result: wire.TargetScan) -> None:
        name = f"target {result.target}"
        if result.error:
            self._problem("target_not_scanned").add("", f"{name}: {result.error}")
        if result.orphans:
            problem = self._problem("orphan")
            detail = f"{name}: {result.orphans} blobs of {result.orphan_bytes} bytes:"
            problem.add("", f"{detail} {_listed(result.orphan_blobs)}", result.orphans)
            problem.repaired += result.dropped
            problem.action = "dropped"
        if result.lost:
            detail = f"{name}: {result.lost} blobs of {result.lost_bytes} bytes:"
            self._problem("lost_blob").add(
                "", f"{detail} {_listed(result.lost_blobs)}", result.lost
            )
        if result.damaged_entries:
            self._problem("damaged_entry").add(
                "",
                f"{name}: {result.damaged_entries} index entries cannot be read",
                result.damaged_entries,
            )
        if result.misfits:
            self._take_misfits(name, result)

    def _take_misfits(self, name: str, result: wire.TargetScan) -> None:
        """Chunks that are too long, too short, or beyond their blob's end."""
        request = wire.BlobPathsRequest(sorted({one.blob for one in result.misfit_chunks}), 1)
        reply = self._call(wire.BLOB_PATHS, request)
        held = dict(zip(request.blobs, reply.blobs, strict=True))
        problem = self._problem("chunk_misfit")
        problem.count += result.misfits - len(result.misfit_chunks)
        for one in result.misfit_chunks:
            expected = f"should have {one.expected}" if one.expected else "should not be there"
            problem.add(
                b"".join(held[one.blob].paths).decode(errors="surrogateescape"),
                f"{name}: blob {one.blob} chunk {one.chunk} has {one.length} bytes, {expected}",
            )


def _listed(blobs: Sequence[int]) -> str:
    shown = ", ".join(map(str, blobs[:EXAMPLES]))
    return f"{shown}, ..." if len(blobs) > EXAMPLES else shown


class _BlobSurvey(Survey):
    """Probes every chunk of every live blob, whatever refers to it."""

    def __init__(self, core: Core, on_progress: Callable[[Checked], None]) -> None:
        super().__init__(core, on_progress, whole=False)
        self.blobs = 0

    def contents(self) -> Iterator[Content | Finding]:
        """Give each live blob as if it were a file of its own."""
        after, more = 0, True
        while more:
            request = wire.LiveBlobsRequest(after, PAGE_BLOBS)
            reply = self._core.meta.call(wire.LIVE_BLOBS, request)
            for blob in reply.blobs:
                self.blobs += 1
                yield self._content(blob)
            more = reply.more
            after = reply.blobs[-1].blob if reply.blobs else after

    def _content(self, blob: wire.LiveBlob) -> Content | Finding:
        path, meta = f"blob {blob.blob}", self._core.meta
        segment = Segment(blob.blob, blob.length, blob.layout)
        opened = OpenFile(_attr_of(blob), [segment])
        try:
            return Content(path, opened, meta.route().tables)
        except StaleLayoutError:  # a table younger than our routing, or one that is not there
            try:
                return Content(path, opened, meta.refresh_route().tables)
            except StaleLayoutError as error:
                return Finding(path, error, blob.blob)

    def changed(self, contents: dict[str, Content]) -> set[str]:
        """Return those whose blob is not live any more."""
        paths, blobs = list(contents), [c.segments[0].blob for c in contents.values()]
        request = wire.BlobPathsRequest(blobs, 1)
        reply = self._core.meta.call(wire.BLOB_PATHS, request, deadline_ms=LONG_MS)
        return {path for path, held in zip(paths, reply.blobs, strict=True) if not held.live}


def _attr_of(blob: wire.LiveBlob) -> Attr:
    return Attr(
        inode=0,
        type=FileType.FILE,
        mode=0,
        uid=0,
        gid=0,
        nlink=0,
        size=blob.length,
        version=0,
        atime_ns=0,
        mtime_ns=0,
        ctime_ns=0,
    )
