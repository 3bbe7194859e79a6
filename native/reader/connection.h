/*
 * One authenticated data connection and the scratch memory that belongs to it.
 *
 *            acquire                    release (all replies in)
 *    IDLE ------------> BUSY (one call) -------------------------> IDLE
 *      |                  | fault, deadline, signal: close          |
 *      +------ close -----+--------------> CLOSED <------ close ----+
 *
 * Between calls nothing is outstanding on a connection: a call that can not bring it there closes
 * it. So no state but the descriptor and the next request id outlives a call.
 *
 * Ownership: `fd` belongs to the connection from init on. Scratch is taken at the first call and
 * reused, so that reading allocates nothing; pages that no frame needs are never touched.
 * Threads: acquire makes one call the owner; others are told so. `close` of a busy connection only
 * asks: the owner closes it within a tick (FFS_TICK_NS), so no descriptor is closed under a user.
 * Fork: a connection of another generation is never used; closing it there leaves the parent's
 * connection alive, since no shutdown is sent.
 */
#ifndef FFS_READER_CONNECTION_H
#define FFS_READER_CONNECTION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/frame.h"
#include "core/limits.h"
#include "reader/local.h"
#include "reader/rdma.h"

/* Bytes per receive: the CRC then runs over bytes that are still in cache. */
#define FFS_STEP_BYTES (256u << 10)
#define FFS_UNCHECKED_STEP_BYTES (1u << 20) /* where there is no CRC to run */
#define FFS_IOVECS_MAX 512u

/* One OK entry of the reply frame that is being received. */
struct ffs_piece {
	uint32_t op;         /* which operation of the batch */
	uint32_t bytes;      /* in the payload, edges included */
	uint32_t crc_offset; /* of its first block CRC in the body */
};

/* A receive that waits gives up after so long, to let its caller look at the clock. */
#define FFS_RECEIVE_WAIT_NS INT64_C(25000000)

struct ffs_scratch {
	uint8_t header[FFS_FRAME_HEADER_BYTES];
	uint8_t send[FFS_FRAME_HEADER_BYTES + FFS_FRAME_DESCRIPTORS_MAX * FFS_READ_DESCRIPTOR_BYTES];
	struct iovec
		iovecs[FFS_IOVECS_MAX + 3]; /* three more: CRCs, the next header, its first entry */
	struct ffs_piece pieces[FFS_FRAME_DESCRIPTORS_MAX];
	uint32_t crcs[FFS_CHUNK_BLOCKS_MAX];
	uint8_t body[FFS_FRAME_BODY_BYTES_MAX];
	uint8_t edges[FFS_STEP_BYTES];
};

struct ffs_conn {
	_Atomic int fd; /* -1: closed; written by the owner, read by anyone who asks */
	uint32_t generation;
	uint64_t next_request_id;
	uint8_t priority; /* of its requests: enum ffs_priority */
	struct ffs_scratch *scratch;
	struct ffs_local *local; /* not NULL: to a daemon on this host (local.h) */
	struct ffs_rdma *rdma;   /* not NULL: it went over to RDMA (rdma.h) */
	uint8_t rdma_fault;      /* enum ffs_rdma_fault: why it ended, if RDMA was the reason */
	char rdma_reason[FFS_RDMA_REASON_BYTES];
	atomic_bool busy;
	atomic_bool close_wanted;
	int64_t served_ns;                /* written by the owner: what it took in the last call */
	_Atomic uint64_t bytes_in_flight; /* asked for and unanswered, for whoever spreads the load */
};

enum ffs_conn_claim {
	FFS_CONN_CLAIMED,
	FFS_CONN_DEAD,      /* closed, or of another process generation: usable by nobody */
	FFS_CONN_IN_USE,    /* another call owns it */
	FFS_CONN_NO_MEMORY, /* no scratch */
};

/* The descriptor, -1 once closed. */
static inline int ffs_conn_fd(const struct ffs_conn *conn)
{
	return atomic_load_explicit(&conn->fd, memory_order_relaxed);
}

/* What becomes readable when something has come. */
static inline int ffs_conn_wait_fd(const struct ffs_conn *conn)
{
	return conn->rdma != NULL ? ffs_rdma_fd(conn->rdma) : ffs_conn_fd(conn);
}

/* Take over `fd` (`conn` is zeroed memory), blocking but for no longer than FFS_RECEIVE_WAIT_NS.
 * Returns 0, or -errno and leaves `fd` open. */
int ffs_conn_init(struct ffs_conn *conn, int fd, bool local, bool mapped);

/* Close and free. The connection must not be busy in this process. */
void ffs_conn_fini(struct ffs_conn *conn);

/* True while a call may try it. */
bool ffs_conn_alive(const struct ffs_conn *conn);

/* Become the owner for one call; FFS_CONN_CLAIMED must be paired with ffs_conn_release. */
enum ffs_conn_claim ffs_conn_claim(struct ffs_conn *conn);
void ffs_conn_release(struct ffs_conn *conn);

/* Owner only: after this no byte can arrive any more. */
void ffs_conn_revoke(struct ffs_conn *conn);

/* Anyone: close now, or as soon as the owner looks. */
void ffs_conn_close(struct ffs_conn *conn);

#endif
