"""Every bound that a peer's bytes are held against, in one place. docs/limits.md is the table.

A bound is checked before anything is allocated for what it bounds. The C side has the same
numbers in native/core/limits.h; tests/unit/test_limits.py compares them.
"""

from __future__ import annotations

from typing import Final

# Names and paths (POSIX habit).
NAME_BYTES_MAX: Final = 255
PATH_BYTES_MAX: Final = 4096

SYMLINKS_MAX: Final = 40
"""Symbolic links on the way to one file."""
LINKS_MAX: Final = 65_000
"""Names of one inode."""
SEGMENTS_COMPACT: Final = 16
"""A file that appending has made longer than this is rewritten in fewer segments."""
SEGMENTS_MAX: Final = 1_024
"""Segments of one file; more cannot be appended before it is rewritten."""
PINS_MAX: Final = 2_048
"""Pins at one time: all of them fit into one reply."""
CLONE_INODES_MAX: Final = 1_000_000
"""Inodes of a tree that is cloned, or of which a snapshot is made: one transaction does it."""
TRASHED_PAGE_MAX: Final = 100
"""Entries in one page of what a trash holds: with the longest paths it has room for them."""
OWNER_BYTES_MAX: Final = 255
"""What a pin may say about whose it is, as UTF-8."""

# RPC port.
RPC_FRAME_BYTES_MAX: Final = 16 << 20
RPC_ELEMENTS_MAX: Final = 1_000_000
RPC_BATCH_MAX: Final = 16_384
"""Entries in one batch request (stat_many, create_many, …)."""
LIST_PAGE_MAX: Final = 4_096
LIST_PAGE_BYTES_MAX: Final = 512 << 10
"""Bytes of one page of a listing: long names make a page of fewer."""
RPC_LIST_MAX: Final = 65_536
"""Entries in any one list of a message; bounds what a lying array header can make us allocate."""
RPC_WHERE_MAX: Final = 64
"""Facts in one error reply."""
RPC_IN_FLIGHT_MAX: Final = 64
"""Requests of one connection that a server works on at once; it reads no further until one ends."""
RPC_IN_FLIGHT_BYTES_MAX: Final = 32 << 20
"""Request bytes of one connection that are worked on at once, but for the last one's excess."""
RPC_SERVER_BYTES_MAX: Final = 256 << 20
"""Request bytes that one server holds, received or in work; beyond it requests get BusyError."""
RPC_REPLY_RESERVE_BYTES: Final = 512 << 10
"""Room that is set aside for a reply until it is known how long it is, besides what follows."""
RPC_REPLY_RESERVE_FACTOR: Final = 256
"""And as many times the request's bytes: no entry of a batch is answered by more."""
RPC_REPLY_BYTES_MAX: Final = 40 << 20
"""Reply bytes of one connection, set aside or not yet taken, before it has to wait."""
RPC_SERVER_REPLY_BYTES_MAX: Final = 256 << 20
"""Reply bytes of one server, set aside or not yet taken, before requests have to wait."""
RPC_CONNECTIONS_MAX: Final = 4_096
"""Connections of one RPC server that have proven the key; the longest idle one makes place."""
RPC_IDLE_CONNECTIONS_MAX: Final = 16
"""Idle connections that a blocking client keeps for its threads."""
WATCHERS_MAX: Final = 1_024
"""Calls that wait for a newer routing at one metadata server; further ones get BusyError."""
WATCH_MS_MAX: Final = 60_000
"""How long one of them waits before it is answered without one."""

# Data port.
FRAME_HEADER_BYTES: Final = 64
FRAME_DESCRIPTORS_MAX: Final = 4_096
FRAME_BODY_BYTES_MAX: Final = 256 << 10
FRAME_PAYLOAD_BYTES_MAX: Final = 64 << 20

# Layout.
CHUNK_BYTES_MIN: Final = 64 << 10
CHUNK_BYTES_MAX: Final = 64 << 20
CHUNK_BYTES_DEFAULT: Final = 1 << 20
CHUNK_INDEX_MAX: Final = (1 << 32) - 1
CHAINS_PER_TABLE_MAX: Final = 65_536

# Connections.
HANDSHAKE_MS_MAX: Final = 5_000
HANDSHAKE_FRAME_BYTES_MAX: Final = 256
TLS_GREETING_BYTES_MAX: Final = 32 << 10
"""What a stranger may send until it has proven itself, where there is TLS."""
TOKEN_BYTES_MAX: Final = 1_024
"""A token as it is shown, without its secret."""
GROUPS_MAX: Final = 64
"""Groups of a user."""
USERS_MAX: Final = 16_384
"""Users that a cluster knows."""
REVOCATIONS_MAX: Final = 4_096
"""Revoked tokens and users at one time: every server is told all of them."""
GRANT_RANGES_MAX: Final = 1_024
"""Ranges of blobs in one grant."""
GRANTS_RENEWED_MAX: Final = 256
"""Grants that one request renews."""
GRANTED_PER_CONNECTION_MAX: Final = 65_536
"""Ranges of blobs that one data connection has been granted; at the bound it begins anew."""
GRANTED_PER_DAEMON_MAX: Final = 4 << 20
HANDSHAKES_MAX: Final = 1_024
"""Connections of one port that have not proven the key yet; the oldest makes place."""
CONNECTIONS_PER_DAEMON_MAX: Final = 4_096
SEND_BUFFERS_MAX: Final = 1_024
"""Reply frames that a daemon has under way at once, some 330 KB each, shared by its loops."""
LIST_CHUNKS_MAX: Final = 10_240
"""Chunks in one page of what a target has."""
SUSPECT_CHUNKS_MAX: Final = 256
"""Chunks that one SUSPECT names."""
HOPS_MAX: Final = 8
"""Members of a chain that a write passes; each hop has receive buffers of its own."""

# Reading on the same host.
LOCATE_CHUNKS_MAX: Final = 1_024
LOCATE_FILES_MAX: Final = 64
"""Pairs of extent and CRC files whose descriptors one connection is sent."""
LOCATED_PER_CONNECTION_MAX: Final = 16_384
LOCATED_PER_DAEMON_MAX: Final = 1 << 20
"""Chunks that are pinned for clients; what is beyond is read over TCP."""

# The pace of peers: a frame that was begun has to come in, whatever else a peer may leave undone.
FRAME_GRACE_MS: Final = 5_000
FRAME_RATE_MIN: Final = 64 << 10
"""Bytes a second that a frame must come with once the grace is over."""
CROWDED_GRACE_MS: Final = 1_000
CROWDED_RATE_MIN: Final = 256 << 10
"""The same, and for replies to be taken too, while others wait for the memory."""
IDLE_MS_MIN: Final = 1_000
"""How long a connection has done nothing before it may be closed for others to have its place."""
