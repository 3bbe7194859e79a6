/*
 * Data connections that have gone over to RDMA (docs/wire.md, "The same by RDMA").
 *
 *   TCP: CONNECT_QP -> receive.c -> serve.c -> rdma_connect.c: a queue pair; or first an offer to
 *   take one by rdma_cm -> rdma_cm.c
 *   the card -> rdma_card.c -> rdma_receive.c -> the connection's queue of requests, or a write
 *   serve.c -> rdma_send.c -> cold.c: every range is read into the arena -> RDMA WRITE from there
 *
 * The daemon moves all bytes, and none of its memory can be reached from elsewhere: registrations
 * are for local use alone. What the card reads or writes on a connection's behalf stays untouched
 * until the completion has come, or the queue pair is gone.
 *
 * Ends: the end of the TCP connection, a failed completion, or a request that breaks the protocol
 * closes both. Threads: the loop's alone. Fork: as the loop. Copies: block CRCs, and the edges of
 * ranges longer than FFS_COLD_WHOLE_BYTES_MAX.
 */
#ifndef FFS_STORAGE_RDMA_H
#define FFS_STORAGE_RDMA_H

#include "storage/loop.h"

#ifdef FFS_HAVE_VERBS

/* Whether CONNECT_QP can be answered. If not, the connection is to wait with it, and is resumed
 * (ffs_conn_resume) when it can. */
bool ffs_rdma_is_ready(struct ffs_conn *conn, const struct ffs_request *request);
/* Answer it, by TCP. */
void ffs_rdma_answer(struct ffs_conn *conn, const struct ffs_request *request,
                     struct ffs_output *output);
/* Send what is queued, as far as the card takes it. */
void ffs_rdma_send(struct ffs_conn *conn);
/* The write that has waited for its buffer has it, or was refused. */
void ffs_rdma_go_on(struct ffs_conn *conn);
/* The connection closes: before anything that it has lent to the card is freed. */
void ffs_rdma_close(struct ffs_conn *conn);

/* A card of a loop: what epoll tells about it; at the loop's end. */
void ffs_rdma_serve(struct ffs_rdma_card *card);
/* Whether nothing of the connection, which has gone over, is under way. */
bool ffs_rdma_is_idle(const struct ffs_conn *conn);
/* Take what has come and had no turn yet. */
void ffs_rdma_catch_up(struct ffs_loop *loop);
/* What comes by rdma_cm to a loop. */
void ffs_rdma_cm_serve(struct ffs_rdma_cm *cm);
/* Send to those for whom a connection that closed has left a frame, and let go of broken cards. */
void ffs_rdma_feed(struct ffs_loop *loop);
void ffs_rdma_loop_leave(struct ffs_loop *loop);
/* When all loops have ended, before the arena is unmapped. */
void ffs_rdma_group_fini(struct ffs_group *group);

#else

void ffs_rdma_answer(struct ffs_conn *conn, const struct ffs_request *request,
                     struct ffs_output *output);

static inline bool ffs_rdma_is_ready(struct ffs_conn *conn, const struct ffs_request *request)
{
	(void)conn;
	(void)request;
	return true;
}

static inline void ffs_rdma_send(struct ffs_conn *conn)
{
	(void)conn;
}

static inline void ffs_rdma_go_on(struct ffs_conn *conn)
{
	(void)conn;
}

static inline void ffs_rdma_close(struct ffs_conn *conn)
{
	(void)conn;
}

static inline void ffs_rdma_serve(struct ffs_rdma_card *card)
{
	(void)card;
}

static inline void ffs_rdma_cm_serve(struct ffs_rdma_cm *cm)
{
	(void)cm;
}

static inline bool ffs_rdma_is_idle(const struct ffs_conn *conn)
{
	(void)conn;
	return true;
}

static inline void ffs_rdma_catch_up(struct ffs_loop *loop)
{
	(void)loop;
}

static inline void ffs_rdma_feed(struct ffs_loop *loop)
{
	(void)loop;
}

static inline void ffs_rdma_loop_leave(struct ffs_loop *loop)
{
	(void)loop;
}

static inline void ffs_rdma_group_fini(struct ffs_group *group)
{
	(void)group;
}

#endif

/* A frame that refuses CONNECT_QP: the connection goes on as it is. */
void ffs_rdma_refuse(const struct ffs_request *request, enum ffs_rdma_fault fault,
                     struct ffs_output *output);

#endif
