/*
 * Queue pairs of the reliable kind, their completions, and memory that is registered for them.
 *
 * A queue pair belongs to one connection and one thread at a time; completions may be shared by
 * many queue pairs of one thread (a daemon's loop). Selective signalling: one send in some is
 * signalled, so that places in the send queue come back; what must be known to have ended is asked
 * for (IBV_SEND_SIGNALED).
 *
 * Failure: a queue pair that reports any failed completion is of no more use: close it.
 * ffs_qp_close returns when the card touches no memory on its behalf any more.
 * Fork: in a child only the descriptors may be closed (ffs_completions_forget).
 */
#ifndef FFS_RDMA_QUEUE_PAIR_H
#define FFS_RDMA_QUEUE_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rdma/calls.h"
#include "rdma/device.h"

#define FFS_QP_DEPTH_MAX 1024u /* of a send queue of ours */
#define FFS_QP_INLINE_BYTES 256u

/* A completion queue, and the descriptor that tells that there is something in it. */
struct ffs_completions {
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
};

int ffs_completions_open(struct ffs_completions *completions, const struct ffs_rdma_device *device,
                         uint32_t depth);
void ffs_completions_close(struct ffs_completions *completions);
/* In a child: close the descriptor. */
void ffs_completions_forget(struct ffs_completions *completions);

static inline int ffs_completions_fd(const struct ffs_completions *completions)
{
	return completions->channel->fd;
}

/* Up to `most` completions; -EIO if the queue is broken. */
static inline int ffs_completions_poll(struct ffs_completions *completions, struct ibv_wc *found,
                                       int most)
{
	int count = ffs_poll_cq(completions->cq, most, found);
	return count < 0 ? -EIO : count;
}

/* Take the descriptor's events and have it tell of the next completion. Those that came before
 * are not told of: poll again after this. 0, or -errno, if the device is gone for one. */
int ffs_completions_arm(struct ffs_completions *completions);

struct ffs_qp {
	const struct ffs_rdma_path *path;
	struct ibv_qp *qp;
	bool exposes;
	uint32_t psn;
	uint32_t depth;
	uint32_t inline_bytes; /* a send of so many is copied when it is posted */
	uint32_t used;         /* places of the send queue */
	uint32_t silent;       /* posted since the last one that was signalled */
	uint32_t head, tail;   /* of the ring: one entry for each signalled send that is under way */
	uint16_t *covers;      /* how many places each of them gives back */
};

struct ffs_qp_wants {
	const struct ffs_rdma_path *path;
	struct ibv_pd *pd;
	const struct ffs_completions *completions;
	struct ibv_srq *srq; /* NULL: a receive queue of its own */
	uint32_t sends;      /* depth, at most FFS_QP_DEPTH_MAX */
	uint32_t receives;   /* without srq */
	uint32_t sges;       /* of one send */
	bool exposes;        /* the other end may read and write what it has keys for */
};

/* Make one and have it take receives (INIT). 0 or -errno. */
int ffs_qp_open(struct ffs_qp *qp, const struct ffs_qp_wants *wants);
/* Our end, but for the credits. */
void ffs_qp_describe(const struct ffs_qp *qp, struct ffs_qp_end *end);
/* To another state. What a queue pair of ours exposes, and how long it tries, is filled in here,
 * whoever found the way. 0 or -errno. */
int ffs_qp_move(struct ffs_qp *qp, struct ibv_qp_attr *attributes, int mask);
/* To the other end (RTS). 0 or -errno. */
int ffs_qp_connect(struct ffs_qp *qp, const struct ffs_qp_end *peer);
/* To the error state: it answers nobody any more, and what was posted is flushed. */
void ffs_qp_stop(struct ffs_qp *qp);
void ffs_qp_close(struct ffs_qp *qp);

static inline uint32_t ffs_qp_room(const struct ffs_qp *qp)
{
	return qp->depth - qp->used;
}

/* Post one send; its wr_id is the caller's. 0, -EAGAIN without room, or -errno. */
int ffs_qp_post(struct ffs_qp *qp, struct ibv_send_wr *send);
/* A completion of a send of this queue pair was polled (each must be told). */
void ffs_qp_sent(struct ffs_qp *qp);

/* Memory of our own that the card reads and writes: by the page, huge pages where allowed, not
 * inherited by children. */
struct ffs_pinned {
	uint8_t *memory;
	size_t bytes;
	struct ibv_mr *mr;
};

/* 0 or -errno (ffs_rdma_explain). `access`: enum ibv_access_flags. */
int ffs_pinned_open(struct ffs_pinned *pinned, struct ibv_pd *pd, size_t bytes, int access);
void ffs_pinned_close(struct ffs_pinned *pinned);

/* Give the other end of this queue pair, and nobody else, access to memory: a type-2 window. */
struct ffs_window {
	struct ibv_mw *mw;
	uint32_t key;
	bool bound;
};

int ffs_window_open(struct ffs_window *window, struct ibv_pd *pd);
/* Posts the binding: in force before any send that is posted after it. */
int ffs_window_bind(struct ffs_window *window, struct ffs_qp *qp, struct ibv_mr *mr,
                    const void *memory, size_t bytes, unsigned int access);
/* Posts the end of it, signalled with `id`; it is over when that completion has come. */
int ffs_window_end(struct ffs_window *window, struct ffs_qp *qp, uint64_t id);
/* Between ffs_qp_stop and ffs_qp_close, or when nothing is bound: a driver may keep a queue pair
 * for as long as a window is bound to it. */
void ffs_window_close(struct ffs_window *window);

#endif
