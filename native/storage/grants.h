/*
 * What a connection that was opened by a token may read and write: blobs, as its grants name them.
 *
 * Previous hop: receive.c, or rdma_receive.c, with a GRANT, and with each request of such a
 * connection. Next: nothing.
 * A connection of the cluster key has no grants (NULL) and is not asked for any.
 *
 * A grant is 32 bytes (version, operations, count, key id, expiry, token id), `count` ranges of
 * blobs in order, and a MAC over both, under a key that follows from the cluster key and changes
 * once a day (ffs/auth/grant.py). It counts on connections of its token alone.
 *
 * Threads: a connection's loop, but for the keys, which the group's lock guards.
 */
#ifndef FFS_STORAGE_GRANTS_H
#define FFS_STORAGE_GRANTS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/blake2b.h"
#include "core/frame.h"
#include "core/limits.h"

#define FFS_GRANT_HEAD_BYTES 32u
#define FFS_GRANT_RANGE_BYTES 16u
#define FFS_GRANT_KEYS 3u
#define FFS_TOKEN_ID_BYTES 16u

enum ffs_grant_operation {
	FFS_MAY_READ = 1,
	FFS_MAY_WRITE = 2,
};

struct ffs_grant_key {
	uint32_t id; /* 0: none */
	uint8_t key[FFS_MAC_KEY_BYTES];
};

struct ffs_conn;
struct ffs_grants;
struct ffs_group;
struct ffs_request;

/* NULL without memory. */
struct ffs_grants *ffs_grants_new(const uint8_t token_id[FFS_TOKEN_ID_BYTES]);
void ffs_grants_free(struct ffs_group *group, struct ffs_grants *grants);

/* The keys that grants count by from now on. Any thread. */
void ffs_group_set_grant_keys(struct ffs_group *group,
                              const struct ffs_grant_key keys[FFS_GRANT_KEYS]);

/* Whether a GRANT's header may be one. */
bool ffs_grant_makes_sense(const struct ffs_header *header);

/* Take what a GRANT carries; false if it is no grant, or forged. One that is over, or whose key is,
 * is passed over: what it was for is refused. */
bool ffs_grants_take(struct ffs_conn *conn, const struct ffs_request *request);

/* Whether the connection, which has grants, may do something to a blob. */
bool ffs_grants_allow(const struct ffs_conn *conn, uint64_t blob, enum ffs_grant_operation what);

/* Whether it may read all that the request's read descriptors name. */
bool ffs_grants_allow_reads(const struct ffs_conn *conn, const struct ffs_request *request);

#endif
