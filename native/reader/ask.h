/*
 * One small request on one connection, and its answer: LIST and SUSPECT, which daemons and readers
 * ask of daemons beside the batches; GRANT, which goes by RDMA, too (rdma_ask.c).
 *
 *   resync, repair, grants -> ask_calls.c -> THIS -> (wire) -> receive.c of the daemon
 *
 * The connection is the caller's for the call; nothing is outstanding on it before and after. What
 * goes wrong closes it, so that no late answer can be taken for another one's.
 *
 * Threads: runs in the caller's, without the interpreter's lock. Fork: as connection.h.
 */
#ifndef FFS_READER_ASK_H
#define FFS_READER_ASK_H

#include <stdbool.h>
#include <stdint.h>

#include "core/frame.h"
#include "core/status.h"
#include "reader/connection.h"
#include "reader/counters.h"

struct ffs_ask {
	struct ffs_conn *conn;      /* claimed */
	struct ffs_header request;  /* but for its id and deadline; its body is in scratch->send */
	uint32_t payload_bytes_max; /* of the answer */
	bool unanswered;            /* by TCP there is none: a GRANT */
	int64_t deadline_ns;
	/* Called at least every FFS_ASK_TICK_NS while it waits; non-zero stops it. */
	int (*interrupted)(void *context);
	void *context;
	int64_t tick_ns;
	struct ffs_header answer;
	struct ffs_counts counts;
};

#define FFS_ASK_TICK_NS INT64_C(50000000)
/* Where the request's body is to be put, and the answer's payload is found. */
#define FFS_ASK_BODY_AT FFS_FRAME_HEADER_BYTES

/* Send the request and take its answer, whose payload is then in scratch->body. Returns the
 * answer's status, or why there is none: then the connection is closed. */
enum ffs_status ffs_ask(struct ffs_ask *ask);

/* What is waited for is not ready, or a signal came: FFS_OK to go on, or why not. */
enum ffs_status ffs_ask_look_around(struct ffs_ask *ask, bool signalled);

/* The page of a LIST: whether its keys are chunks, in order, behind (blob, chunk). */
bool ffs_ask_page_is_right(const uint8_t *page, uint32_t bytes, uint64_t blob, uint32_t chunk);

#define FFS_ASK_KEY_BYTES 24u /* u64 blob, u32 chunk, u32 length, u32 digest, u32 0 */

#endif
