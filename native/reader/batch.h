/*
 * One call of the engine: its operations, and one leg for each connection that they go to.
 *
 * Read path: client/reader.py -> batch_calls.c -> plan.c (parse, check) -> queue.c (who shares) ->
 * team.c (threads) -> drive.c (poll loop) -> read.c (requests, replies) -> check.c (block CRCs) ->
 * the caller's memory.
 * read.c is one of several transports: on a daemon's own host local.h is in its place, by RDMA
 * rdma.h; for writing write.c and rdma.h, without check.c.
 *
 * Everything here belongs to one call and, but for what team.h says, to one thread. A leg's state
 * says where in its reply stream it is; it starts and ends between frames, since a leg that ends
 * elsewhere closes its connection. That is what keeps "one reply owns a destination": an operation
 * is final only when its bytes are in, or when the connection that could still deliver them is
 * closed, and no call returns before all are.
 *
 * Bounds on a connection: FFS_READ_REQUESTS_MAX requests of FFS_REQUEST_BYTES, or
 * FFS_WRITE_REQUESTS_MAX chunks of FFS_WRITE_WINDOW_BYTES in all, are outstanding.
 */
#ifndef FFS_READER_BATCH_H
#define FFS_READER_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "core/status.h"
#include "reader/connection.h"
#include "reader/counters.h"
#include "reader/device_memory.h"
#include "reader/local.h"
#include "reader/team.h"
#include "reader/timing.h"

#define FFS_OP_BYTES 40u /* of one operation in the caller's array, reads and writes alike */

#define FFS_REQUEST_BYTES (8u << 20) /* payload asked for by one READ request, unless one range */
#define FFS_READ_REQUESTS_MAX 4u
/* Where connections share, what is asked for is bound to one of them: pieces of this size, so that
 * none is left with much when the others have ended. */
#define FFS_PIECE_BYTES_MIN (1u << 20)
#define FFS_PIECE_BYTES_MAX (2u << 20)
#define FFS_WRITE_REQUESTS_MAX 128u
#define FFS_REQUESTS_MAX 128u
#define FFS_WRITE_WINDOW_BYTES (32u << 20)

#define FFS_TICK_NS INT64_C(50000000) /* signals and close wishes are looked for this often */

enum ffs_op_state {
	FFS_OP_WAITING = 0,
	FFS_OP_ASKED,   /* in a request that is outstanding */
	FFS_OP_CLAIMED, /* named by an entry of a reply frame; its bytes follow */
	FFS_OP_FINAL,
};

struct ffs_operation {
	uint64_t blob;
	uint8_t *memory; /* destination of a read, source of a write: `length` bytes of the caller */
	uint32_t chunk;
	uint32_t target;
	uint32_t offset; /* reads */
	uint32_t length;
	union {
		uint32_t chain;   /* writes */
		uint32_t located; /* local reads: where the table has the chunk, for one wave */
	};
	uint32_t chain_version; /* writes */
	uint16_t leg;
	uint16_t status;
	uint8_t state;
	bool damaged; /* a block did not match its CRC; the rest is still received */
};

/* An outstanding request: operations order[first .. first + count) of its leg. */
struct ffs_request {
	uint64_t id;
	uint32_t first;
	uint32_t count;
	uint32_t unanswered;
};

enum ffs_receive_state {
	FFS_RECEIVE_HEADER,  /* leg->have bytes of it are in */
	FFS_RECEIVE_ENTRIES, /* leg->have bytes of the body are in */
	FFS_RECEIVE_PAYLOAD, /* likewise; the rest of the body, its CRCs, come before the payload */
};

/* What a step of receiving or sending came to. */
enum ffs_step {
	FFS_STEP_MORE, /* as much as asked for: go on at once */
	FFS_STEP_DRY,  /* less: poll before going on */
	FFS_STEP_DEAD, /* the leg has failed and is closed */
};

/* Whole blocks that wait to be checked four at a time. */
struct ffs_lanes {
	uint32_t count;
	uint32_t op[FFS_CRC_LANES];
	uint32_t seed[FFS_CRC_LANES];
	uint32_t expected[FFS_CRC_LANES];
	const uint8_t *data[FFS_CRC_LANES];
};

/* Operations that several legs take in turn; lives in the first of them. */
struct ffs_queue {
	_Atomic uint32_t next; /* first operation of their common `order` that nobody has taken */
	uint32_t end;
	uint32_t legs;
	uint64_t mean_bytes;    /* of an operation */
	_Atomic uint32_t alive; /* those that have not failed */
};

struct ffs_transport;

struct ffs_leg {
	struct ffs_conn *conn; /* NULL: dead before the call, of use to nobody */
	struct ffs_batch *batch;
	struct ffs_queue *queue; /* NULL: it has its operations from the beginning */
	struct ffs_queue own_queue;
	const uint32_t *order; /* indices into batch->ops */
	uint32_t count;        /* with a queue: where the piece that was taken last ends */
	uint32_t next;         /* first operation in `order` not asked for yet */
	uint32_t unfinished;   /* operations of its own, or taken, that are not final */
	uint64_t bytes;        /* of its operations, or its share of the queue's */
	bool open;
	bool exposed; /* the other end can reach memory of the caller */
	const struct ffs_transport *transport;

	struct ffs_request requests[FFS_REQUESTS_MAX];
	uint32_t request_count;
	uint64_t outstanding_bytes;
	int64_t last_byte_ns;
	int64_t stall_ns; /* without a byte; 0: no operation of this leg could go elsewhere */

	size_t send_at, send_end; /* what of scratch->send has still to go */
	const uint8_t *send_payload;
	size_t send_payload_bytes;

	enum ffs_receive_state receive;
	uint32_t have; /* 0 between frames */
	struct ffs_header frame;
	uint32_t request_at; /* index in `requests` of the frame's request */
	uint32_t piece_count, piece_at, piece_done;
	uint32_t payload_done;
	uint32_t crc; /* running CRC of the block that is partly in */
	struct ffs_lanes lanes;
};

struct ffs_batch {
	struct ffs_operation *ops;
	uint32_t op_count;
	struct ffs_leg *legs;
	uint32_t leg_count;
	uint32_t legs_open;
	struct pollfd *polled;
	uint32_t *order;
	void *memory;        /* what holds all of the above */
	const uint8_t *lent; /* of the caller's memory: from its first byte that is used to the last */
	const uint8_t *lent_end;
	const struct ffs_device_memory *device; /* not NULL: what is read into is a device's */

	enum ffs_op kind; /* FFS_OP_READ or FFS_OP_WRITE */
	bool verify;
	uint64_t trace_id;
	int64_t deadline_ns;
	int64_t start_ns;
	int64_t hedge_ns; /* from here on a slow leg's last operations may be given up; 0: off */
	struct ffs_shared *shared; /* with the other threads of the call */
	int64_t now_ns;
	int64_t tick_ns;
	bool waits;     /* receives wait for bytes */
	bool signalled; /* a system call was interrupted in this turn */
	struct ffs_counts counts;
	struct ffs_timing *timings; /* one for each operation; NULL: the call is not sampled */
	uint32_t first_leg;         /* of a share: the place of its first leg in the call */

	/* Called at least every FFS_TICK_NS; non-zero stops the call (a signal handler has raised). */
	int (*interrupted)(void *context);
	void *context;
};

/* ---------------------------------------------------------------------------------------- plan.c
 */

/* Take zeroed memory for a batch whose `kind` is set. Returns -1 if there is none. */
int ffs_batch_init(struct ffs_batch *batch, uint32_t op_count, uint32_t leg_count);
void ffs_batch_fini(struct ffs_batch *batch);

/* Copy and check the operations of the caller's array. `memory` is what their ranges may name (it
 * is only read from in a batch of writes). Nothing is sent yet. Returns NULL, or what is wrong with
 * operation *bad. */
const char *ffs_plan(struct ffs_batch *batch, const uint8_t *raw, uint8_t *memory,
                     size_t memory_bytes, uint32_t *bad);

/* Write the final statuses back; returns how many are 0. */
uint32_t ffs_plan_results(const struct ffs_batch *batch, uint8_t *raw);

/* --------------------------------------------------------------------------------------- queue.c
 */

/* Have connections that no operation names share those of the nearest one before them. Both must
 * lead to one daemon, over TCP; a dead one leaves all to the others. Not for writes. */
void ffs_share_out(struct ffs_batch *batch);

/* Take the next operations of the leg's queue; false if there are none, or no queue. */
bool ffs_queue_take(struct ffs_leg *leg);
bool ffs_queue_is_empty(const struct ffs_leg *leg);

/* Whether so little of a leg's reads is outstanding that it asks for more. */
bool ffs_leg_has_room(const struct ffs_leg *leg);

/* The leg has failed: the first of the operations, up to the queue's end, that fail with it since
 * nobody is left to take them. */
uint32_t ffs_queue_abandon(struct ffs_leg *leg);

/* --------------------------------------------------------------------------------------- drive.c
 */

/* Set clock, deadline and hedge time; both in ms from now, hedge 0 for never. */
void ffs_batch_start_clock(struct ffs_batch *batch, int64_t deadline_ms, int64_t hedge_ms);

int64_t ffs_now_ns(void);

/* Open the legs and send what fits their windows, without waiting. */
void ffs_drive_start(struct ffs_batch *batch);

/* Run to the end. Returns 0, or -1 if interrupted; every operation is final in both cases. */
int ffs_drive(struct ffs_batch *batch);

/* Close the leg's connection if anything could still come, give `status` to what is not final. */
enum ffs_step ffs_leg_fail(struct ffs_leg *leg, enum ffs_status status);

/* One operation that was asked for in leg->requests[request_at] has ended. */
void ffs_leg_finish(struct ffs_leg *leg, struct ffs_operation *op, uint32_t request_at,
                    uint16_t status);

/* One sendmsg of what is pending; shared by reads and writes. */
enum ffs_step ffs_leg_flush(struct ffs_leg *leg);
static inline bool ffs_leg_sending(const struct ffs_leg *leg)
{
	return leg->send_at < leg->send_end || leg->send_payload_bytes > 0;
}

/* One recvmsg into `count` parts of `bytes` in all; *received tells how much came. */
enum ffs_step ffs_leg_receive(struct ffs_leg *leg, struct iovec *parts, size_t count, size_t bytes,
                              size_t *received);

/* Check a frame header that is complete in scratch: 0, or the status to fail the leg with. Sets
 * leg->frame and leg->request_at. */
enum ffs_status ffs_leg_take_header(struct ffs_leg *leg);

/* Register a request of order[first .. first + count) that is about to be sent; returns its id. */
uint64_t ffs_leg_ask(struct ffs_leg *leg, uint32_t first, uint32_t count, uint64_t bytes);
uint32_t ffs_leg_deadline_ms(const struct ffs_leg *leg);
uint64_t ffs_op_bytes(const struct ffs_batch *batch, const struct ffs_operation *op);

/* ---------------------------------------------------------------------------------- transports */

/* How requests and replies of a leg travel: all that the loop of drive.c does not know. */
struct ffs_transport {
	/* Send what the window has room for; take what has arrived. */
	enum ffs_step (*send)(struct ffs_leg *leg);
	enum ffs_step (*receive)(struct ffs_leg *leg);
	/* Work that no descriptor tells of: whether there is some, and some ms of it. NULL: never. */
	bool (*ready)(const struct ffs_leg *leg);
	enum ffs_step (*step)(struct ffs_leg *leg);
	/* All operations are final: begin to take back what `leg->exposed` says; receive sees to the
	 * end of it. NULL where nothing is ever exposed. */
	enum ffs_step (*withdraw)(struct ffs_leg *leg);
	bool waits; /* in its receive, if batch->waits */
};

extern const struct ffs_transport ffs_tcp_reads;   /* read.c */
extern const struct ffs_transport ffs_tcp_writes;  /* write.c */
extern const struct ffs_transport ffs_local_reads; /* local_locate.c, local.c */
extern const struct ffs_transport ffs_rdma_reads;  /* rdma_read.c */
extern const struct ffs_transport ffs_rdma_writes; /* rdma_write.c */

/* ---------------------------------------------------------------------------------------- reply.c
 */

/* A header is complete in scratch: FFS_OK, or what to fail the leg with. A refusal finishes its
 * operations and leaves leg->receive where it was; else the entries come next. */
enum ffs_status ffs_reply_take_header(struct ffs_leg *leg);
/* All entries are in, and perhaps some of the CRCs: leg->have bytes of the body. */
enum ffs_status ffs_reply_take_entries(struct ffs_leg *leg);
/* The piece at leg->piece_at is in and checked. */
void ffs_reply_finish_piece(struct ffs_leg *leg);

/* write.c: pack the WRITE of the leg's next chunk, which counts as asked for, at `frame`: header,
 * room for `front_bytes` of the body, then descriptor and block CRCs. */
struct ffs_header ffs_write_pack(struct ffs_leg *leg, uint8_t *frame, uint32_t front_bytes);
/* A WRITE's reply, a header, is complete in scratch (write.c). */
enum ffs_status ffs_write_take_reply(struct ffs_leg *leg);

/* --------------------------------------------------------------------- local_locate.c for local.c
 */

enum ffs_step ffs_local_send(struct ffs_leg *leg);
enum ffs_step ffs_local_receive(struct ffs_leg *leg);

/* --------------------------------------------------------------------------------------- check.c
 */

/* `length` payload bytes of the current piece have arrived at `data`: check whole blocks, continue
 * the CRC of a partial one. Moves nothing but the CRC state. */
void ffs_check_feed(struct ffs_leg *leg, const uint8_t *data, uint32_t length);
/* Check what waits in the lanes. Must run before an operation's status is looked at. */
void ffs_check_flush(struct ffs_leg *leg);

#endif
