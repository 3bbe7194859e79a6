/* What a connection by RDMA consists of: shared by the files rdma_*.c. See rdma.h. */
#ifndef FFS_READER_RDMA_STATE_H
#define FFS_READER_RDMA_STATE_H

#include "rdma/cm.h"
#include "rdma/queue_pair.h"
#include "rdma/region.h"
#include "reader/ask.h"
#include "reader/batch.h"
#include "reader/rdma.h"

#define FFS_RDMA_SLOTS 8u
#define FFS_RDMA_RECEIVES 1280u  /* of headers: as many may be due */
#define FFS_RDMA_FRAMES_MAX 256u /* answers to one request */
#define FFS_RDMA_SENDS 64u
/* A slot: room for the largest request, and for what a reply says about its ranges. */
#define FFS_RDMA_REQUEST_ROOM (68u << 10)
#define FFS_RDMA_REPLY_ROOM (188u << 10)
#define FFS_RDMA_SLOT_BYTES (FFS_RDMA_REQUEST_ROOM + FFS_RDMA_REPLY_ROOM)
#define FFS_RDMA_REQUEST_BYTES_MIN 4096u /* that every daemon takes in one send */

/* Of a completion. */
enum ffs_rdma_id {
	FFS_RDMA_ID_REQUEST = 0,
	FFS_RDMA_ID_WITHDRAWN = 1,
	FFS_RDMA_ID_RECEIVE = 2, /* and its place, from here on */
};

struct ffs_rdma_slot {
	uint64_t request_id;       /* 0: free */
	uint64_t bytes;            /* asked for */
	uint32_t reply_at;         /* where the next answer begins */
	uint32_t frames;           /* answers that it was promised receives for */
	uint32_t frames_due;       /* of them, those that may still come */
	struct ffs_region *region; /* of the chunk that the daemon fetches */
};

struct ffs_rdma {
	uint32_t generation;
	const struct ffs_rdma_path *path;
	struct ibv_pd *pd;
	bool windows;    /* else the protection domain is this connection's own */
	bool own_domain; /* as it was asked for */
	struct ffs_completions completions;
	struct ffs_qp qp;
	struct ffs_cm cm;          /* where `end` is; not open: they were exchanged */
	struct rdma_cm_id *end;    /* connected the queue pair, and lives as long */
	int epoll_fd;              /* of the completions' descriptor and the socket */
	struct ffs_pinned scratch; /* the slots, then a header for each receive */
	struct ffs_window scratch_window;
	uint32_t scratch_key;
	uint32_t request_bytes; /* the longest send that the daemon takes */
	uint32_t slot_count;    /* as many as there are credits */
	uint32_t receives_free; /* promised to no request */
	uint64_t window_bytes;
	struct ffs_rdma_slot slots[FFS_RDMA_SLOTS];
	bool armed; /* the descriptor tells of the next completion */

	struct ffs_region *region; /* of the call; NULL: nothing is exposed */
	struct ffs_window data_window;
	uint32_t data_key;
	bool withdrawing;
};

static inline uint8_t *ffs_rdma_request_of(const struct ffs_rdma *rdma, uint32_t slot)
{
	return rdma->scratch.memory + (size_t)slot * FFS_RDMA_SLOT_BYTES;
}

static inline uint8_t *ffs_rdma_reply_of(const struct ffs_rdma *rdma, uint32_t slot)
{
	return ffs_rdma_request_of(rdma, slot) + FFS_RDMA_REQUEST_ROOM;
}

static inline uint8_t *ffs_rdma_header_of(const struct ffs_rdma *rdma, uint32_t receive)
{
	return ffs_rdma_request_of(rdma, FFS_RDMA_SLOTS) + (size_t)receive * FFS_FRAME_HEADER_BYTES;
}

#define FFS_RDMA_SCRATCH_BYTES                                                                     \
	(FFS_RDMA_SLOTS * FFS_RDMA_SLOT_BYTES + FFS_RDMA_RECEIVES * FFS_FRAME_HEADER_BYTES)

/* --------------------------------------------------------------------------------- rdma_connect.c
 */

/* With its path chosen: all that this end needs, the queue pair able to receive. 0 or -errno. */
int ffs_rdma_open(struct ffs_rdma *rdma, int socket_fd, bool windows);
/* Ask CONNECT_QP this step; `answer` gets the answer's payload, `bytes` long. FFS_RDMA_FINE, or its
 * refusal; another *status says more: the connection is closed. */
enum ffs_rdma_fault ffs_rdma_agree(struct ffs_ask *ask, const struct ffs_rdma *rdma,
                                   enum ffs_connect_step step, uint8_t *answer, uint32_t bytes,
                                   enum ffs_status *status);

/* -------------------------------------------------------------------------------------- rdma_cm.c
 */

/* Bind to the device that leads to the daemon. On a fault `reason` says what is missing. */
enum ffs_rdma_fault ffs_rdma_bind(struct ffs_rdma *rdma, int socket_fd,
                                  const struct ffs_rdma_wish *wish, char *reason);
/* Open, have the daemon offer to take a queue pair, and connect ours to it. */
enum ffs_rdma_fault ffs_rdma_dial(struct ffs_ask *ask, struct ffs_rdma *rdma,
                                  enum ffs_status *status, char *reason);

/* ------------------------------------------------------------------------------------- rdma_leg.c
 */

/* Post the receive of a header at its place. 0 or -errno. */
int ffs_rdma_post_receive(struct ffs_rdma *rdma, uint32_t receive);

/* A free slot for a request that asks for so many bytes and may get so many answers, the caller's
 * memory being exposed by then. FFS_STEP_MORE: *slot is it; FFS_STEP_DRY: none now. */
enum ffs_step ffs_rdma_take_slot(struct ffs_leg *leg, uint64_t bytes, uint32_t frames,
                                 uint32_t *slot);
/* Let the daemon at a chunk until it has answered the slot's request. 0 or -errno. */
int ffs_rdma_lend(struct ffs_leg *leg, uint32_t slot, const struct ffs_operation *op);
/* Give back a slot whose request was not sent. */
void ffs_rdma_free_slot(struct ffs_rdma *rdma, uint32_t slot);
/* The caller's memory cannot be had, -errno: that is no fault of the connection if it is the
 * memory's own (FFS_ERR_TRANSPORT, for TCP to do); else RDMA is given up with it. */
bool ffs_rdma_is_unfit(int error);
enum ffs_step ffs_rdma_refuse(struct ffs_leg *leg, int error, size_t bytes);
/* The front of a request's body, to be packed behind its header. */
void ffs_rdma_pack_remote(const struct ffs_rdma *rdma, uint32_t slot, const void *data,
                          uint8_t *out);
/* Have the card send what is packed in the slot, `length` bytes. 0 or -errno. */
int ffs_rdma_post_request(struct ffs_rdma *rdma, uint32_t slot, uint64_t request_id,
                          uint32_t length);
/* The same for a leg: a header and `body_bytes`. */
enum ffs_step ffs_rdma_send(struct ffs_leg *leg, uint32_t slot, uint64_t request_id,
                            uint32_t body_bytes);

/* Up to `most` completions; an empty queue is armed, and looked at once more. -errno if it is
 * broken.
 */
int ffs_rdma_poll(struct ffs_rdma *rdma, struct ibv_wc *found, int most);
/* Nothing is to come by the socket but its end: whether it has not. */
enum ffs_status ffs_rdma_look_at_socket(const struct ffs_conn *conn);

/* Take completions; `take` gets each answer, whose header is in scratch. */
enum ffs_step ffs_rdma_receive(struct ffs_leg *leg,
                               enum ffs_status (*take)(struct ffs_leg *leg, uint32_t slot));
bool ffs_rdma_ready(const struct ffs_leg *leg);
enum ffs_step ffs_rdma_withdraw(struct ffs_leg *leg);
/* Give back what the slots have of the bytes that may be asked for. */
void ffs_rdma_free_slots(struct ffs_rdma *rdma);

#endif
