/*
 * Every bound that a peer's bytes are held against. ffs/limits.py has the same numbers for Python;
 * tests/unit/test_limits.py compares the two. A bound is checked before anything is allocated.
 */
#ifndef FFS_CORE_LIMITS_H
#define FFS_CORE_LIMITS_H

#define FFS_BLOCK_BYTES 4096u /* unit of checksum inside a chunk */

#define FFS_FRAME_HEADER_BYTES 64u
#define FFS_FRAME_DESCRIPTORS_MAX 4096u
#define FFS_FRAME_BODY_BYTES_MAX (256u << 10)
#define FFS_FRAME_PAYLOAD_BYTES_MAX (64u << 20)

#define FFS_CHUNK_BYTES_MAX (64u << 20)
#define FFS_CHUNK_BLOCKS_MAX (FFS_CHUNK_BYTES_MAX / FFS_BLOCK_BYTES)

#define FFS_CONNECTIONS_PER_DAEMON_MAX 4096u
#define FFS_SEND_BUFFERS_MAX 1024u
#define FFS_LIST_CHUNKS_MAX 10240u
#define FFS_SUSPECT_CHUNKS_MAX 256u
#define FFS_HOPS_MAX 8u /* of a write along its chain */

/* Reading on the same host (LOCATE). */
#define FFS_LOCATE_CHUNKS_MAX 1024u
#define FFS_LOCATE_FILES_MAX 64u
#define FFS_LOCATED_PER_CONNECTION_MAX 16384u
#define FFS_LOCATED_PER_DAEMON_MAX (1u << 20)

/* Of connections that were opened by a token (grants.h), for each operation. */
#define FFS_GRANT_RANGES_MAX 1024u
#define FFS_GRANTED_PER_CONNECTION_MAX 65536u
#define FFS_GRANTED_PER_DAEMON_MAX (4u << 20)

/* The pace of peers: ms, and bytes a second from then on. */
#define FFS_FRAME_GRACE_MS 5000u
#define FFS_FRAME_RATE_MIN (64u << 10)
#define FFS_CROWDED_GRACE_MS 1000u
#define FFS_CROWDED_RATE_MIN (256u << 10)
#define FFS_IDLE_MS_MIN 1000u

#endif
