/*
 * The connection manager (rdma_cm): the second way to connect a queue pair. For iWARP, which has no
 * other; for networks where what two ends know of themselves does not lead from one to the other,
 * while routing by IP addresses does; for devices that want it.
 *
 *   reader/rdma_cm.c:  bind, dial -> AT_ADDRESS -> find_route -> ON_ROUTE -> ask -> ANSWERED ->
 * finish storage/rdma_cm.c: bind, listen -> ASKED -> accept or end
 *
 * It finds the way, and carries a secret. Queue pairs stay ours (queue_pair.h): they are connected
 * by what the manager says of the way, and used as any other.
 *
 * librdmacm is loaded when it is first wanted. Built where its header is (FFS_HAVE_CM), else
 * cm_none.c says that it was not.
 *
 * Threads: a manager and its ends belong to one. A lock of the process is around each call of the
 * library, none of which waits for anybody; a fork waits for the lock, since the library has locks
 * of its own that a child would find taken for ever.
 * Fork: a child closes its copy of a manager's descriptor, and leaves all else to its parent.
 */
#ifndef FFS_RDMA_CM_H
#define FFS_RDMA_CM_H

#include <stdbool.h>
#include <stdint.h>

#include "rdma/queue_pair.h"

struct rdma_cm_id;
struct rdma_event_channel;

/* Where the news of some ends come in. */
struct ffs_cm {
	struct rdma_event_channel *channel; /* NULL: not open */
	int fd;                             /* readable when there are some */
};

enum ffs_cm_news {
	FFS_CM_NONE,
	FFS_CM_AT_ADDRESS, /* dialled: the device is known, and the address has been resolved */
	FFS_CM_ON_ROUTE,
	FFS_CM_ANSWERED, /* the other end has taken us */
	FFS_CM_ASKED,    /* `end` is a new one, to be accepted or ended */
	FFS_CM_OVER,     /* the end did not get there, was turned away, or was left; or has no device */
	FFS_CM_OTHER,
};

struct ffs_cm_event {
	enum ffs_cm_news news;
	struct rdma_cm_id *end;
	const char *name; /* as the library calls it */
	int status;       /* what it says beside it */
	bool has_secret;  /* ASKED */
	uint8_t secret[FFS_CM_SECRET_BYTES];
	uint8_t reads; /* ASKED: RDMA READs that the other end serves at once */
};

/* On a fault `text` (FFS_RDMA_TEXT_BYTES) says what is missing. */
enum ffs_rdma_fault ffs_cm_open(struct ffs_cm *cm, char *text);
/* When all its ends have been ended. */
void ffs_cm_close(struct ffs_cm *cm);
/* In a child: close the descriptor. */
void ffs_cm_forget(struct ffs_cm *cm);
/* The next news; FFS_CM_NONE if there are none now, or none can be had. */
enum ffs_cm_news ffs_cm_next(struct ffs_cm *cm, struct ffs_cm_event *event);

/* All of these: 0 or -errno. */

/* A new end at this address (16 bytes, as ffs_rdma_socket_address has it), any free port. */
int ffs_cm_bind(struct ffs_cm *cm, const uint8_t address[16], struct rdma_cm_id **end);
int ffs_cm_listen(struct rdma_cm_id *end);
int ffs_cm_dial(struct rdma_cm_id *end, const uint8_t address[16], uint16_t port, int wait_ms);
int ffs_cm_find_route(struct rdma_cm_id *end, int wait_ms);
int ffs_cm_ask(struct rdma_cm_id *end, const struct ffs_qp *qp,
               const uint8_t secret[FFS_CM_SECRET_BYTES]);
/* ANSWERED: from here on the queue pair can send and receive. */
int ffs_cm_finish(struct rdma_cm_id *end, struct ffs_qp *qp);
/* ASKED: as before; `reads` is the event's. */
int ffs_cm_accept(struct rdma_cm_id *end, struct ffs_qp *qp, uint8_t reads);

/* Of an end that is bound: its port, and the device and port that its address belongs to. */
uint16_t ffs_cm_port(struct rdma_cm_id *end);
const struct ffs_rdma_path *ffs_cm_path(const struct rdma_cm_id *end,
                                        const struct ffs_rdma_wish *wish);

/* Turn away who asked, or leave the other end, or stop to listen; its queue pair is gone by then.
 */
void ffs_cm_end(struct rdma_cm_id *end);

#endif
