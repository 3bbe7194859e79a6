"""The SQL schema, once for every engine: only column types and table options differ.

Previous hop: an engine (`sqlite`) applies these statements at start. Next hop: the operations in
`ops/` use the tables. Invariants that the schema keeps: a name is unique in its directory; a blob
row exists from before its first chunk may be stored until every target has confirmed its drop; ids
come from `counters` and never from a table's highest row, so that none is used twice. Failure: a
database written by a newer program is refused by the engine (`FormatError`), never guessed at.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

SCHEMA_VERSION: Final = 1

ROOT_PARENT: Final = 0
"""The parent of the root's own dentry, whose name is empty: the root is found like any name."""


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
    scratch: str
    """Prefix that makes a table private to a connection."""


SQLITE: Final = Dialect(
    key="INTEGER",
    integer="INTEGER",
    octets="BLOB",
    clustered="WITHOUT ROWID",
    scratch="CREATE TEMP TABLE IF NOT EXISTS",
)

COUNTERS: Final = ("inode", "blob", "session", "node", "target", "chain", "chain_table", "routing")

_TABLES: Final = """
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
INSERT INTO schema_version (version) VALUES ({version});
"""

_SCRATCH: Final = """
{scratch} doomed (inode {key} PRIMARY KEY, links {integer} NOT NULL);
"""


def _statements(script: str, dialect: Dialect) -> list[str]:
    filled = script.format(
        key=dialect.key,
        integer=dialect.integer,
        octets=dialect.octets,
        clustered=dialect.clustered,
        scratch=dialect.scratch,
        version=SCHEMA_VERSION,
    )
    return [text for part in filled.split(";") if (text := part.strip())]


def create_statements(dialect: Dialect) -> list[str]:
    """Return what makes an empty database ours, in order, for one transaction."""
    return _statements(_TABLES, dialect)


def scratch_statements(dialect: Dialect) -> list[str]:
    """Return what a connection that writes needs once: its private table of inodes to let go.

    Why: a tree of a million files is removed by a handful of statements over this table instead
    of a million round trips. It is empty between operations.
    """
    return _statements(_SCRATCH, dialect)
