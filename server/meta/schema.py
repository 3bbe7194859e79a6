"""The SQL schema, once for every engine: only column types and table options differ.

Previous hop: an engine (`sqlite`, `postgres`) calls `ensure_schema` at start. Next hop: the
operations in `ops/` use the tables. Invariants that the schema keeps: a name is unique in its
directory; a blob row exists from before its first chunk may be stored until every target has
confirmed its drop; ids come from `counters`, or from sequences where the database is shared, and
never from a table's highest row, so that none is used twice. Failure: a database written by a newer
program, or by another one, is refused (`FormatError`), never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ffs.errors import FormatError
from ffs.server.meta.store import Transaction

SCHEMA_VERSION: Final = 6

ROOT_PARENT: Final = 0
"""The parent of the root's own dentry, whose name is empty: the root is found like any name."""

RESERVED: Final = 0
"""The type of a dentry that an exclusive create in progress holds; its inode is the session's id,
negative. It stands among the names so that one unique key decides who has a name."""


class BlobState(IntEnum):
    """Where a blob stands in its life; the numbers are stored, never renumber."""

    WRITING = 1
    """Held by a write session."""
    LIVE = 2
    """Referred to by one segment or more."""
    DEAD = 3
    """Referred to by none since `changed_ns`; readers with open handles may still use it."""
    DROPPING = 4
    """Handed to the targets that may hold it; the row goes when all have confirmed."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one engine spells what SQL engines spell differently."""

    key: str
    """Type of a 64-bit primary key of one column."""
    integer: str
    octets: str
    clustered: str
    """Table option that stores rows in primary key order, where there is one."""
    emptied: str
    """Table option that empties a private table at the end of each transaction, if it must."""
    sequences: str
    """What makes the sequences of `SEQUENCES`, where ids come from them."""
    tables: str
    """The query for the names of all tables there are."""


SEQUENCES: Final = ("inode", "blob", "session")
"""Counters of which every writer takes ids: a row would make writers wait for each other."""

SQLITE: Final = Dialect(
    key="INTEGER",
    integer="INTEGER",
    octets="BLOB",
    clustered="WITHOUT ROWID",
    emptied="",
    sequences="",
    tables="SELECT name FROM sqlite_master WHERE type = 'table'",
)
POSTGRES: Final = Dialect(
    key="BIGINT",
    integer="BIGINT",
    octets="BYTEA",
    clustered="",
    emptied="ON COMMIT DELETE ROWS",
    # The root has the first inode id.
    sequences="CREATE SEQUENCE ids_inode START 2;"
    " CREATE SEQUENCE ids_blob; CREATE SEQUENCE ids_session;",
    tables="SELECT CAST(table_name AS TEXT) FROM information_schema.tables"
    " WHERE table_schema = current_schema()",
)

COUNTERS: Final = (
    "inode",
    "blob",
    "session",
    "pin",
    "node",
    "target",
    "chain",
    "chain_table",
    "routing",
    "revocation",
)

_STEP_1: Final = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value {octets} NOT NULL);
CREATE TABLE counters (name TEXT PRIMARY KEY, value {integer} NOT NULL);

CREATE TABLE inodes (
    inode {key} PRIMARY KEY,
    type {integer} NOT NULL,
    mode {integer} NOT NULL,
    uid {integer} NOT NULL,
    gid {integer} NOT NULL,
    nlink {integer} NOT NULL,
    size {integer} NOT NULL,
    version {integer} NOT NULL,
    atime_ns {integer} NOT NULL,
    mtime_ns {integer} NOT NULL,
    ctime_ns {integer} NOT NULL
);
CREATE TABLE dentries (
    parent {integer} NOT NULL,
    name {octets} NOT NULL,
    inode {integer} NOT NULL,
    type {integer} NOT NULL,
    PRIMARY KEY (parent, name)
) {clustered};

CREATE TABLE blobs (
    blob {key} PRIMARY KEY,
    state {integer} NOT NULL,
    refs {integer} NOT NULL,
    length {integer} NOT NULL,
    chunk_size_bytes {integer} NOT NULL,
    stripe {integer} NOT NULL,
    chain_table {integer} NOT NULL,
    seed {integer} NOT NULL,
    changed_ns {integer} NOT NULL
);
CREATE INDEX blobs_dead ON blobs (changed_ns) WHERE state = 3;
CREATE TABLE segments (
    inode {integer} NOT NULL,
    place {integer} NOT NULL,
    blob {integer} NOT NULL,
    length {integer} NOT NULL,
    PRIMARY KEY (inode, place)
) {clustered};

CREATE TABLE leases (client {octets} PRIMARY KEY, expires_ns {integer} NOT NULL);
CREATE INDEX leases_expiry ON leases (expires_ns);
CREATE TABLE sessions (
    session {key} PRIMARY KEY,
    client {octets} NOT NULL,
    blob {integer} NOT NULL,
    parent {integer} NOT NULL,
    name {octets} NOT NULL,
    create_mode {integer} NOT NULL,
    mode {integer} NOT NULL
);
CREATE INDEX sessions_client ON sessions (client);
CREATE TABLE reservations (
    parent {integer} NOT NULL,
    name {octets} NOT NULL,
    session {integer} NOT NULL,
    PRIMARY KEY (parent, name)
) {clustered};
CREATE INDEX reservations_session ON reservations (session);

CREATE TABLE mutations (
    principal {octets} NOT NULL,
    mutation {octets} NOT NULL,
    request_hash {octets} NOT NULL,
    recorded_ns {integer} NOT NULL,
    result {octets},
    PRIMARY KEY (principal, mutation)
);
CREATE INDEX mutations_age ON mutations (recorded_ns);

CREATE TABLE nodes (
    node {key} PRIMARY KEY,
    host TEXT NOT NULL,
    port {integer} NOT NULL,
    pid {integer} NOT NULL
);
CREATE TABLE targets (
    target {key} PRIMARY KEY,
    node {integer} NOT NULL,
    state {integer} NOT NULL,
    label TEXT NOT NULL
);
CREATE INDEX targets_node ON targets (node);
CREATE TABLE chains (chain {key} PRIMARY KEY, version {integer} NOT NULL);
CREATE TABLE chain_targets (
    chain {integer} NOT NULL,
    place {integer} NOT NULL,
    target {integer} NOT NULL,
    PRIMARY KEY (chain, place)
) {clustered};
CREATE TABLE table_chains (
    chain_table {integer} NOT NULL,
    place {integer} NOT NULL,
    chain {integer} NOT NULL,
    PRIMARY KEY (chain_table, place)
) {clustered};
CREATE TABLE drops (
    target {integer} NOT NULL,
    blob {integer} NOT NULL,
    PRIMARY KEY (target, blob)
) {clustered};
CREATE INDEX drops_blob ON drops (blob);

CREATE TABLE schema_version (version {integer} NOT NULL);
INSERT INTO schema_version (version) VALUES (1);
"""

_STEP_2: Final = """
INSERT INTO dentries (parent, name, inode, type)
    SELECT parent, name, -session, 0 FROM reservations WHERE true ON CONFLICT DO NOTHING;
DROP TABLE reservations;
INSERT INTO counters (name, value) SELECT 'pin', 0 WHERE EXISTS (SELECT 1 FROM counters);

CREATE TABLE symlinks (inode {key} PRIMARY KEY, target {octets} NOT NULL);
CREATE TABLE layouts (
    inode {key} PRIMARY KEY,
    chunk_size_bytes {integer} NOT NULL,
    stripe {integer} NOT NULL
);

CREATE TABLE pins (
    pin {key} PRIMARY KEY,
    path {octets} NOT NULL,
    owner TEXT NOT NULL,
    created_ns {integer} NOT NULL,
    expires_ns {integer} NOT NULL,
    files {integer} NOT NULL,
    stored_bytes {integer} NOT NULL
);
CREATE TABLE pin_blobs (
    pin {integer} NOT NULL,
    blob {integer} NOT NULL,
    PRIMARY KEY (pin, blob)
) {clustered};
CREATE TABLE blob_gaps (first {integer} NOT NULL, last {integer} NOT NULL);

CREATE TABLE directory_changes (
    inode {integer} NOT NULL,
    changed_ns {integer} NOT NULL,
    changes {integer} NOT NULL,
    subdirectories {integer} NOT NULL
);
CREATE INDEX directory_changes_inode ON directory_changes (inode);

CREATE TABLE meta_servers (
    address TEXT PRIMARY KEY,
    pid {integer} NOT NULL,
    heard_ns {integer} NOT NULL
);
ALTER TABLE nodes ADD COLUMN heard_ns {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN capacity_bytes {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN used_bytes {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN chunks {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN disk TEXT NOT NULL DEFAULT '';
{sequences}

UPDATE schema_version SET version = 2;
"""

_STEP_3: Final = """
ALTER TABLE nodes ADD COLUMN counters TEXT NOT NULL DEFAULT '';

UPDATE schema_version SET version = 3;
"""

# Until now a chain had one target, and 5 (OFFLINE) said that it had stopped: nobody has more than
# such a one, which is what 4 (LASTSRV) says.
_STEP_4: Final = """
ALTER TABLE targets ADD COLUMN since {integer} NOT NULL DEFAULT 1;
ALTER TABLE targets ADD COLUMN stopped {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN synced {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN damaged {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN beside {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN retiring {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN health TEXT NOT NULL DEFAULT '';
ALTER TABLE targets ADD COLUMN stored_bytes {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN away_ms {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN spare {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN holds {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN lacking {integer} NOT NULL DEFAULT 0;
ALTER TABLE targets ADD COLUMN compared {integer} NOT NULL DEFAULT 0;
UPDATE targets SET stopped = 1, state = 4 WHERE state = 5;
ALTER TABLE chains ADD COLUMN crowded {integer} NOT NULL DEFAULT 0;
ALTER TABLE chains ADD COLUMN doubtful {integer} NOT NULL DEFAULT 0;
ALTER TABLE chain_targets ADD COLUMN home {integer} NOT NULL DEFAULT 0;
ALTER TABLE chain_targets ADD COLUMN moving {integer} NOT NULL DEFAULT 0;
CREATE INDEX chain_targets_target ON chain_targets (target);
CREATE TABLE manager_leases (
    role TEXT PRIMARY KEY,
    term {integer} NOT NULL,
    holder TEXT NOT NULL,
    expires_ns {integer} NOT NULL
);
CREATE TABLE cluster_tasks (
    kind {integer} NOT NULL,
    subject {integer} NOT NULL,
    host TEXT NOT NULL,
    began_ns {integer} NOT NULL,
    total_bytes {integer} NOT NULL,
    PRIMARY KEY (kind, subject)
) {clustered};
CREATE TABLE removed_targets (target {key} PRIMARY KEY);

UPDATE schema_version SET version = 4;
"""

_STEP_5: Final = """
INSERT INTO counters (name, value)
    SELECT 'revocation', 0 WHERE EXISTS (SELECT 1 FROM counters);
CREATE TABLE users (
    name TEXT PRIMARY KEY,
    uid {integer} NOT NULL UNIQUE,
    gids TEXT NOT NULL
);
CREATE TABLE revocations (
    revocation {key} PRIMARY KEY,
    token_id {octets} NOT NULL,
    user_name TEXT NOT NULL,
    issued_until_ms {integer} NOT NULL,
    expires_ms {integer} NOT NULL
);

UPDATE schema_version SET version = 5;
"""

# `quota` of a directory is the nearest directory with a quota, itself or above: whoever holds the
# directory of a new name has it at hand.
_STEP_6: Final = """
ALTER TABLE inodes ADD COLUMN quota {integer} NOT NULL DEFAULT 0;
CREATE TABLE quotas (
    inode {key} PRIMARY KEY,
    above {integer} NOT NULL,
    bytes_max {integer} NOT NULL,
    files_max {integer} NOT NULL,
    bytes {integer} NOT NULL,
    files {integer} NOT NULL
);
CREATE TABLE quota_changes (
    quota {integer} NOT NULL,
    bytes {integer} NOT NULL,
    files {integer} NOT NULL
);
CREATE INDEX quota_changes_quota ON quota_changes (quota);

UPDATE schema_version SET version = 6;
"""

_STEPS: Final = (_STEP_1, _STEP_2, _STEP_3, _STEP_4, _STEP_5, _STEP_6)
"""Step n takes a database from version n - 1 to n; a new one takes them all. A step that has been
released never changes."""
assert len(_STEPS) == SCHEMA_VERSION

_SCRATCH: Final = """
CREATE TEMP TABLE IF NOT EXISTS doomed (
    inode {key} PRIMARY KEY,
    links {integer} NOT NULL
) {emptied};
CREATE TEMP TABLE IF NOT EXISTS cloned (
    source {key} PRIMARY KEY,
    type {integer} NOT NULL,
    links {integer} NOT NULL,
    inode {integer} NOT NULL
) {emptied};
"""


def _statements(script: str, dialect: Dialect) -> list[str]:
    filled = script.format(
        key=dialect.key,
        integer=dialect.integer,
        octets=dialect.octets,
        clustered=dialect.clustered,
        emptied=dialect.emptied,
        sequences=dialect.sequences,
    )
    return [text for part in filled.split(";") if (text := part.strip())]


def upgrade_statements(dialect: Dialect, version: int, until: int = SCHEMA_VERSION) -> list[str]:
    """Return what takes a database from `version` (0: empty) to `until`, for one transaction."""
    return [text for step in _STEPS[version:until] for text in _statements(step, dialect)]


def scratch_statements(dialect: Dialect) -> list[str]:
    """Return what a connection that writes needs once: its private tables of inodes to let go, and
    to clone.

    Why: a tree of a million files is removed, or cloned, by a handful of statements over these
    tables instead of a million round trips. They are empty between operations.
    """
    return _statements(_SCRATCH, dialect)


def ensure_schema(tx: Transaction, dialect: Dialect) -> None:
    """Make the schema in an empty database, or bring an older one up to ours, all or nothing.

    Raises:  FormatError: the database is somebody else's, or a newer program's
    """
    tables = {name for (name,) in tx.rows(dialect.tables)}
    version = 0
    if tables:
        row = None
        if "schema_version" in tables:
            row = tx.row("SELECT max(version) FROM schema_version")
        if row is None or row[0] is None:
            raise FormatError("database holds tables that are not a metadata schema")
        version = int(row[0])
    if version > SCHEMA_VERSION:
        raise FormatError(
            f"metadata schema has version {version}, this program knows {SCHEMA_VERSION}",
            hint="start the program version that wrote it, or a newer one",
        )
    for statement in upgrade_statements(dialect, version):
        tx.run(statement)
