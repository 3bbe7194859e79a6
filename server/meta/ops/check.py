"""check: hold the whole database against what must be true of it, one kind of damage a request.

Previous hop: `service`, for `client/fsck.py`, which asks for one step after the other. Next hop:
one query of whole tables, on a snapshot; so mutations that go on meanwhile give no false alarm, and
none waits. Each step is a request of its own so that none holds a snapshot, or a caller, for long.
What is found is counted; the first few are told with their paths. `repair` mends what it can, in
the order of the steps: later ones count again what earlier ones have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ffs.errors import InvalidError
from ffs.server.meta.schema import COUNTERS, RESERVED, BlobState
from ffs.server.meta.store import Row, Transaction
from ffs.types import ROOT_INODE, FileType
from ffs.wire.maintenance import CheckExample, CheckReply, CheckRequest

EXAMPLES_MAX: Final = 64
_LEVELS_MAX: Final = 128
"""Directories above an example that are looked up; each level reads all names once."""
_UNKNOWN: Final = b"?"
_WHOLE_TABLES: Final = """
SELECT set_config('enable_seqscan', 'on', true), set_config('enable_bitmapscan', 'on', true),
    set_config('enable_hashjoin', 'on', true), set_config('enable_mergejoin', 'on', true),
    set_config('plan_cache_mode', 'force_custom_plan', true)
"""

_FILE, _DIRECTORY, _SYMLINK = int(FileType.FILE), int(FileType.DIRECTORY), int(FileType.SYMLINK)
_WRITING, _LIVE = int(BlobState.WRITING), int(BlobState.LIVE)
_DEAD, _DROPPING = int(BlobState.DEAD), int(BlobState.DROPPING)


class About(Enum):
    """What the first columns of a finding name; the others are facts."""

    NAME = 2
    """(parent, name)."""
    INODE = 1
    BLOB = 11
    NOTHING = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true. `query` finds where it is not.

    `says` is a sentence with a place for each fact.
    """

    kind: str
    about: About
    query: str | Callable[[Transaction], list[Row]]
    says: str

    def find(self, tx: Transaction, limit: int) -> list[Row]:
        """Return the first findings."""
        if not isinstance(self.query, str):
            return self.query(tx)[:limit]
        return tx.rows(f"{self.query} LIMIT ?", (limit,))

    def count(self, tx: Transaction) -> int:
        """Return how many there are."""
        if not isinstance(self.query, str):
            return len(self.query(tx))
        row = tx.row(f"SELECT count(*) FROM ({self.query}) AS found")
        assert row is not None
        return int(row[0])


def check(tx: Transaction, request: CheckRequest) -> CheckReply:
    """Run one step; see `CheckRequest`."""
    from ffs.server.meta.ops.repair import REPAIRS

    one = step_of(request.step)
    limit = max(1, min(request.examples, EXAMPLES_MAX))
    plan_for_whole_tables(tx)
    rows = one.find(tx, limit)
    count = one.count(tx) if len(rows) == limit else len(rows)
    return CheckReply(
        steps=len(CHECKS),
        kind=one.kind,
        count=count,
        examples=_examples(tx, one, rows),
        repairable=one.kind in REPAIRS,
    )


def plan_for_whole_tables(tx: Transaction) -> None:
    """Let queries of this transaction read and join whole tables.

    Why: the shared engine's plans are made for a few keys of any number of rows.
    """
    if tx.shared:
        tx.row(_WHOLE_TABLES)


def step_of(step: int) -> Check:
    """Return a check by its number. Raises InvalidError."""
    if not 0 <= step < len(CHECKS):
        raise InvalidError(f"there is no step {step}, the last one is {len(CHECKS) - 1}")
    return CHECKS[step]


# --- what is told of a finding --------------------------------------------------------------------


def _examples(tx: Transaction, one: Check, rows: Sequence[Row]) -> list[CheckExample]:
    if one.about is About.NAME:
        directories = paths_of(tx, {row[0] for row in rows})
        return [
            CheckExample(_join(directories[row[0]], bytes(row[1])), one.says.format(*row[2:]))
            for row in rows
        ]
    if one.about is About.INODE:
        paths = paths_of(tx, {row[0] for row in rows})
        said = f"inode {{}}: {one.says}"
        return [CheckExample(paths[row[0]], said.format(*row)) for row in rows]
    if one.about is About.BLOB:
        uses = paths_of_blobs(tx, [row[0] for row in rows], 1)
        said = f"blob {{}}: {one.says}"
        return [CheckExample(b"".join(uses[row[0]]), said.format(*row)) for row in rows]
    return [CheckExample(b"", one.says.format(*row)) for row in rows]


_NAMES_OF: Final = f"""
WITH keys(inode) AS (VALUES {{keys}})
SELECT inode, parent, name FROM dentries
WHERE type <> {RESERVED} AND inode IN (SELECT inode FROM keys)
ORDER BY parent, name
"""
_FILES_OF: Final = """
WITH keys(blob) AS (VALUES {keys})
SELECT DISTINCT blob, inode FROM segments WHERE blob IN (SELECT blob FROM keys)
ORDER BY blob, inode
"""


def paths_of(tx: Transaction, inodes: Collection[int]) -> dict[int, bytes]:
    """Return one path of each inode; one that does not begin at the root begins with `?`."""
    above: dict[int, tuple[int, bytes]] = {}
    asked: set[int] = {ROOT_INODE}
    wanted = set(inodes) - asked
    for _ in range(_LEVELS_MAX):
        if not wanted:
            break
        for inode, parent, name in tx.rows_for(_NAMES_OF, [(inode,) for inode in wanted]):
            above.setdefault(inode, (parent, bytes(name)))
        asked |= wanted
        wanted = {above[inode][0] for inode in wanted if inode in above} - asked
    return {inode: _path(inode, above) for inode in inodes}


def _path(inode: int, above: dict[int, tuple[int, bytes]]) -> bytes:
    path, seen = b"", set()
    while inode != ROOT_INODE:
        if inode in seen or inode not in above:
            return _UNKNOWN + path
        seen.add(inode)
        inode, name = above[inode]
        path = b"/" + name + path
    return path or b"/"


def _join(directory: bytes, name: bytes) -> bytes:
    return (b"" if directory == b"/" else directory) + b"/" + name


def paths_of_blobs(tx: Transaction, blobs: Collection[int], limit: int) -> dict[int, list[bytes]]:
    """Return up to `limit` paths of files that hold each blob; none for a blob of no file."""
    files: dict[int, list[int]] = {blob: [] for blob in blobs}
    for blob, inode in tx.rows_for(_FILES_OF, [(blob,) for blob in files]):
        if len(files[blob]) < limit:
            files[blob].append(inode)
    paths = paths_of(tx, {inode for held in files.values() for inode in held})
    return {blob: [paths[inode] for inode in held] for blob, held in files.items()}


# --- the checks -----------------------------------------------------------------------------------


def _counters_behind(tx: Transaction) -> list[Row]:
    """Return (counter, value, highest id used) where an id could be given out twice."""
    behind: list[Row] = []
    known = {name for (name,) in tx.rows("SELECT name FROM counters")}
    for counter, (table, column) in USED_IDS.items():
        row = tx.row(f"SELECT coalesce(max({column}), 0) FROM {table}")
        assert row is not None
        value = tx.highest(counter) if counter in known else -1
        if value < row[0] or value < 0:
            behind.append((counter, value, row[0]))
    return behind


USED_IDS: Final = {
    "inode": ("inodes", "inode"),
    "blob": ("blobs", "blob"),
    "session": ("sessions", "session"),
    "pin": ("pins", "pin"),
    "node": ("nodes", "node"),
    "target": ("targets", "target"),
    "chain": ("chains", "chain"),
    "chain_table": ("table_chains", "chain_table"),
    "revocation": ("revocations", "revocation"),
}
"""Counter -> where its ids are in use. `routing` counts versions, which are in no table."""
assert set(USED_IDS) == set(COUNTERS) - {"routing"}

CHECKS: Final = (
    Check(
        "root",
        About.NOTHING,
        f"""
        SELECT 1 AS one WHERE
        NOT EXISTS (SELECT 1 FROM inodes WHERE inode = {ROOT_INODE} AND type = {_DIRECTORY})
        OR NOT EXISTS (SELECT 1 FROM dentries WHERE parent = 0 AND length(name) = 0
                       AND inode = {ROOT_INODE} AND type = {_DIRECTORY})""",
        "the root directory has lost its inode or its name",
    ),
    Check(
        "counter",
        About.NOTHING,
        _counters_behind,
        "counter {} is at {}, id {} is in use: ids would be given out twice",
    ),
    Check(
        "name_without_inode",
        About.NAME,
        f"""
        SELECT d.parent, d.name, d.inode FROM dentries d
        LEFT JOIN inodes i ON i.inode = d.inode
        WHERE d.type <> {RESERVED} AND i.inode IS NULL""",
        "the name stands for inode {}, which is not there",
    ),
    Check(
        "name_type",
        About.NAME,
        f"""
        SELECT d.parent, d.name, d.type, i.type FROM dentries d
        JOIN inodes i ON i.inode = d.inode WHERE d.type <> {RESERVED} AND d.type <> i.type""",
        "the name says type {}, its inode {}",
    ),
    Check(
        "reserved_name",
        About.NAME,
        f"""
        SELECT d.parent, d.name, -d.inode FROM dentries d
        LEFT JOIN sessions s ON s.session = -d.inode AND s.parent = d.parent AND s.name = d.name
        WHERE d.type = {RESERVED} AND s.session IS NULL""",
        "the name is reserved by write session {}, which is not there",
    ),
    Check(
        "name_without_directory",
        About.NAME,
        f"""
        SELECT d.parent, d.name, d.inode, d.type FROM dentries d
        LEFT JOIN inodes i ON i.inode = d.parent AND i.type = {_DIRECTORY}
        WHERE d.parent <> 0 AND d.type <> {RESERVED} AND i.inode IS NULL""",
        "the directory of this name is not there (inode {}, type {})",
    ),
    Check(
        "directory_with_names",
        About.INODE,
        f"""
        SELECT inode, count(*) FROM dentries WHERE type = {_DIRECTORY}
        GROUP BY inode HAVING count(*) > 1""",
        "the directory has {} names",
    ),
    Check(
        "inode_without_name",
        About.INODE,
        f"""
        SELECT i.inode, i.type, i.size FROM inodes i
        LEFT JOIN (SELECT inode FROM dentries WHERE type <> {RESERVED} GROUP BY inode) AS d
            ON d.inode = i.inode
        WHERE d.inode IS NULL""",
        "no name leads to it (type {}, {} bytes)",
    ),
    Check(
        "unreachable_directory",
        About.INODE,
        f"""
        WITH RECURSIVE tree(inode) AS (
            SELECT CAST({ROOT_INODE} AS BIGINT)
            UNION SELECT d.inode FROM tree
            JOIN dentries d ON d.parent = tree.inode AND d.type = {_DIRECTORY})
        SELECT i.inode FROM inodes i LEFT JOIN tree ON tree.inode = i.inode
        WHERE i.type = {_DIRECTORY} AND tree.inode IS NULL""",
        "no path leads from the root to this directory",
    ),
    Check(
        "link_count",
        About.INODE,
        f"""
        SELECT i.inode, i.nlink, d.names FROM inodes i
        JOIN (SELECT inode, count(*) AS names FROM dentries WHERE type <> {RESERVED}
              GROUP BY inode) AS d ON d.inode = i.inode
        WHERE i.type <> {_DIRECTORY} AND i.nlink <> d.names""",
        "counts {} names, it has {}",
    ),
    Check(
        "subdirectory_count",
        About.INODE,
        f"""
        SELECT i.inode, i.nlink + coalesce(c.pending, 0), 2 + coalesce(d.held, 0) FROM inodes i
        LEFT JOIN (SELECT parent, count(*) AS held FROM dentries WHERE type = {_DIRECTORY}
                   GROUP BY parent) AS d ON d.parent = i.inode
        LEFT JOIN (SELECT inode, CAST(sum(subdirectories) AS BIGINT) AS pending
                   FROM directory_changes GROUP BY inode) AS c ON c.inode = i.inode
        WHERE i.type = {_DIRECTORY}
        AND i.nlink + coalesce(c.pending, 0) <> 2 + coalesce(d.held, 0)""",
        "counts {} links, by its subdirectories it has {}",
    ),
    Check(
        "symlink_without_target",
        About.INODE,
        f"""
        SELECT i.inode FROM inodes i LEFT JOIN symlinks s ON s.inode = i.inode
        WHERE i.type = {_SYMLINK} AND s.inode IS NULL""",
        "the symbolic link does not say where it leads",
    ),
    Check(
        "attribute_without_inode",
        About.NOTHING,
        f"""
        SELECT s.inode, 'symlinks' AS held FROM symlinks s
        LEFT JOIN inodes i ON i.inode = s.inode AND i.type = {_SYMLINK} WHERE i.inode IS NULL
        UNION ALL
        SELECT l.inode, 'layouts' AS held FROM layouts l
        LEFT JOIN inodes i ON i.inode = l.inode WHERE i.inode IS NULL""",
        "inode {} of table {} is not there",
    ),
    Check(
        "segment_without_file",
        About.INODE,
        f"""
        SELECT s.inode, count(*), CAST(sum(s.length) AS BIGINT) FROM segments s
        LEFT JOIN inodes i ON i.inode = s.inode AND i.type = {_FILE}
        WHERE i.inode IS NULL GROUP BY s.inode""",
        "{} segments of {} bytes belong to this inode, which is no file",
    ),
    Check(
        "segment_without_blob",
        About.INODE,
        """
        SELECT s.inode, s.place, s.length, s.blob FROM segments s
        LEFT JOIN blobs b ON b.blob = s.blob WHERE s.blob <> 0 AND b.blob IS NULL""",
        "segment {} of {} bytes is lost: blob {} is not known",
    ),
    Check(
        "file_size",
        About.INODE,
        f"""
        SELECT i.inode, i.size, coalesce(s.held, 0) FROM inodes i
        LEFT JOIN (SELECT inode, CAST(sum(length) AS BIGINT) AS held FROM segments
                   GROUP BY inode) AS s ON s.inode = i.inode
        WHERE i.type = {_FILE} AND i.size <> coalesce(s.held, 0)""",
        "its size is {}, its segments have {} bytes",
    ),
    Check(
        "session_without_blob",
        About.NOTHING,
        f"""
        SELECT s.session, s.blob FROM sessions s
        LEFT JOIN blobs b ON b.blob = s.blob AND b.state = {_WRITING} WHERE b.blob IS NULL""",
        "write session {} has no blob to write: {} is not there or was written before",
    ),
    Check(
        "session_without_lease",
        About.NOTHING,
        """
        SELECT s.session FROM sessions s LEFT JOIN leases l ON l.client = s.client
        WHERE l.client IS NULL""",
        "write session {} would never end: its client has no lease",
    ),
    Check(
        "pin_blob",
        About.NOTHING,
        """
        SELECT p.pin, p.blob FROM pin_blobs p LEFT JOIN pins ON pins.pin = p.pin
        LEFT JOIN blobs b ON b.blob = p.blob WHERE pins.pin IS NULL OR b.blob IS NULL""",
        "pin {} and blob {} belong together, one of them is not there",
    ),
    Check(
        "blob_references",
        About.BLOB,
        """
        SELECT b.blob, b.refs, coalesce(h.held, 0) FROM blobs b
        LEFT JOIN (SELECT blob, count(*) AS held
                   FROM (SELECT blob FROM segments WHERE blob <> 0
                         UNION ALL SELECT blob FROM pin_blobs) AS each_one
                   GROUP BY blob) AS h ON h.blob = b.blob
        WHERE b.refs <> coalesce(h.held, 0)""",
        "counts {} references, it has {}",
    ),
    Check(
        "blob_state",
        About.BLOB,
        f"""
        SELECT b.blob, b.state, b.refs FROM blobs b LEFT JOIN sessions s ON s.blob = b.blob
        WHERE b.state NOT BETWEEN {_WRITING} AND {_DROPPING}
        OR (b.refs > 0) <> (b.state = {_LIVE})
        OR (s.session IS NULL AND b.state = {_WRITING})""",
        "state {} does not go with {} references",
    ),
    Check(
        "blob_length",
        About.BLOB,
        """
        SELECT b.blob, b.length, max(s.length) FROM segments s JOIN blobs b ON b.blob = s.blob
        WHERE s.length > b.length GROUP BY b.blob, b.length""",
        "has {} bytes, a segment reads {} of it",
    ),
    Check(
        "blob_without_table",
        About.BLOB,
        """
        SELECT b.blob, b.chain_table FROM blobs b
        WHERE b.chain_table NOT IN (SELECT chain_table FROM table_chains)""",
        "nobody knows where it lies: chain table {} is not there",
    ),
    Check(
        "drop",
        About.NOTHING,
        f"""
        SELECT d.target, d.blob FROM drops d
        LEFT JOIN blobs b ON b.blob = d.blob AND b.state = {_DROPPING} WHERE b.blob IS NULL""",
        "target {} is told to drop blob {}, which is not to be dropped",
    ),
    Check(
        "dropping_without_drop",
        About.BLOB,
        f"""
        SELECT b.blob FROM blobs b LEFT JOIN drops d ON d.blob = b.blob
        WHERE b.state = {_DROPPING} AND d.blob IS NULL""",
        "is to be dropped, and no target is told to",
    ),
    Check(
        "quota_without_directory",
        About.NOTHING,
        f"""
        SELECT q.inode FROM quotas q LEFT JOIN inodes i ON i.inode = q.inode
            AND i.type = {_DIRECTORY} WHERE i.inode IS NULL""",
        "there is a quota for inode {}, which is no directory",
    ),
    Check(
        "quota_of_directory",
        About.INODE,
        f"""
        WITH RECURSIVE tree(inode, quota) AS (
            SELECT CAST({ROOT_INODE} AS BIGINT), CAST(coalesce(
                (SELECT inode FROM quotas WHERE inode = {ROOT_INODE}), 0) AS BIGINT)
            UNION SELECT d.inode, CASE WHEN q.inode IS NULL THEN tree.quota ELSE q.inode END
            FROM tree JOIN dentries d ON d.parent = tree.inode AND d.type = {_DIRECTORY}
            LEFT JOIN quotas q ON q.inode = d.inode)
        SELECT i.inode, i.quota, tree.quota FROM tree JOIN inodes i ON i.inode = tree.inode
        WHERE i.quota <> tree.quota""",
        "belongs to quota {}, by its place to {}",
    ),
    Check(
        "quota_above",
        About.INODE,
        f"""
        SELECT q.inode, q.above, coalesce(i.quota, 0) FROM quotas q
        JOIN dentries d ON d.inode = q.inode AND d.type = {_DIRECTORY}
        LEFT JOIN inodes i ON i.inode = d.parent WHERE q.above <> coalesce(i.quota, 0)""",
        "its quota is below quota {}, by its place below {}",
    ),
    Check(
        "quota_border",
        About.INODE,
        f"""
        SELECT d.inode, min(i.quota), max(i.quota) FROM dentries d
        JOIN inodes i ON i.inode = d.parent WHERE d.type NOT IN ({RESERVED}, {_DIRECTORY})
        GROUP BY d.inode HAVING min(i.quota) <> max(i.quota)""",
        "has names in quota {} and in quota {}",
    ),
    Check(
        "quota_usage",
        About.INODE,
        f"""
        WITH RECURSIVE placed(inode, quota) AS (
            SELECT d.inode, max(i.quota) FROM dentries d JOIN inodes i ON i.inode = d.parent
            WHERE d.type <> {RESERVED} AND i.quota <> 0 GROUP BY d.inode),
        own(quota, bytes, files) AS (
            SELECT p.quota, CAST(sum(CASE WHEN i.type = {_FILE} THEN i.size ELSE 0 END) AS BIGINT),
                count(*)
            FROM placed p JOIN inodes i ON i.inode = p.inode GROUP BY p.quota),
        chain(quota, top) AS (
            SELECT inode, inode FROM quotas
            UNION SELECT c.quota, q.above FROM chain c JOIN quotas q ON q.inode = c.top
            WHERE q.above <> 0),
        below(top, bytes, files) AS (
            SELECT c.top, CAST(sum(o.bytes) AS BIGINT), CAST(sum(o.files) AS BIGINT)
            FROM chain c JOIN own o ON o.quota = c.quota GROUP BY c.top),
        pending(quota, bytes, files) AS (
            SELECT quota, CAST(sum(bytes) AS BIGINT), CAST(sum(files) AS BIGINT)
            FROM quota_changes GROUP BY quota)
        SELECT q.inode, q.bytes + coalesce(p.bytes, 0), q.files + coalesce(p.files, 0),
            coalesce(b.bytes, 0), coalesce(b.files, 0)
        FROM quotas q LEFT JOIN below b ON b.top = q.inode LEFT JOIN pending p ON p.quota = q.inode
        WHERE q.bytes + coalesce(p.bytes, 0) <> coalesce(b.bytes, 0)
            OR q.files + coalesce(p.files, 0) <> coalesce(b.files, 0)""",
        "counts {} bytes and {} files, below it are {} and {}",
    ),
)
"""In the order in which they are asked and repaired."""
