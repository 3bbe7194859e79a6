/*
 * Reading and writing by RDMA: the daemon moves the payload, to and from the caller's memory.
 *
 *   drive.c -> rdma_read.c, rdma_write.c -> rdma_leg.c (sends, completions, exposure) -> rdma/ ->
 *   the card -> the daemon's card -> storage/rdma*.c; what has landed goes through check.c
 *   ask.c -> rdma_ask.c (grants) -> likewise
 *
 * A connection begins as TCP and may go over before its first request (rdma_connect.c, rdma_cm.c):
 * from then on its socket carries nothing but its own end. docs/wire.md has the protocol,
 * docs/decisions/ 0010-rdma.md the reasons.
 *
 *   slots:   | request, reply | request, reply | ...        registered, a window of the connection
 *   reads:   expose -> ask ... answered -> withdraw         the caller's memory, a window of the
 *                                                           call
 *   writes:  lend -> ask -> answered                        a chunk, registered for its request
 *
 * Ownership: between expose and the end of withdraw the daemon may write to the caller's range,
 * from lend to the answer it may read from the chunk, and nobody else may. A leg that fails has its
 * queue pair destroyed before its operations get a status (ffs_conn_revoke).
 *
 * Bounds: FFS_RDMA_SLOTS requests a connection, and as many answers to them all as there are
 * receives of a header, one for each range; ffs_rdma_options.window_bytes of payload asked for over
 * all connections, but for one request of each.
 *
 * Built only where the headers of libibverbs are; else none.c, which says so.
 */
#ifndef FFS_READER_RDMA_H
#define FFS_READER_RDMA_H

#include <stdbool.h>
#include <stdint.h>

#include "core/frame.h"
#include "core/status.h"

#define FFS_RDMA_REASON_BYTES 200u

struct ffs_ask;
struct ffs_conn;
struct ffs_rdma;

/* How queue pairs are connected. */
enum ffs_rdma_way {
	FFS_RDMA_AUTO,     /* by exchange; by rdma_cm where that does not do */
	FFS_RDMA_EXCHANGE, /* each end tells the other of itself by TCP */
	FFS_RDMA_BY_CM,    /* by rdma_cm, what is agreed on by TCP */
};

struct ffs_rdma_options {
	enum ffs_rdma_way way;
	const char *device;    /* its name; empty: any */
	int32_t gid_index;     /* -1: any */
	uint64_t window_bytes; /* asked for over all connections of the process */
	bool windows;          /* use memory windows if the device has them: for reads alone */
};

/* What the connection of `ask` goes by from now on: FFS_RDMA_FINE, or why it stays TCP (as long as
 * *status is FFS_OK; any other one has closed it). `reason` (FFS_RDMA_REASON_BYTES) is empty if the
 * daemon was the one to refuse. */
enum ffs_rdma_fault ffs_rdma_connect(struct ffs_ask *ask, const struct ffs_rdma_options *options,
                                     enum ffs_status *status, char *reason);

/* One request beside the batches, and its answer, whose header is then in the connection's scratch.
 * FFS_OK, or why there is none: then the caller closes the connection (ask.h). */
enum ffs_status ffs_rdma_ask(struct ffs_ask *ask);

/* What becomes readable when there is something to receive, the socket's end included. */
int ffs_rdma_fd(const struct ffs_rdma *rdma);
/* Whether it was asked for without windows: for writes. */
bool ffs_rdma_own_domain(const struct ffs_rdma *rdma);
/* The device's name. */
const char *ffs_rdma_device_name(const struct ffs_rdma *rdma);

/* End it: no byte can come or go after this. In a child of the process that made it: close the
 * descriptors, and leave the rest to the parent. */
void ffs_rdma_close(struct ffs_rdma *rdma);

/* Memory that is used again and again: registered once (rdma/region.h). NULL without memory. */
struct ffs_declared *ffs_rdma_declare(const void *memory, size_t bytes);
void ffs_rdma_withdraw_declared(struct ffs_declared *declared);

/* Registrations of callers' memory that there are now; payload asked for and not answered. */
uint32_t ffs_rdma_regions(void);
uint64_t ffs_rdma_bytes_asked(void);
/* In a child: nothing is asked for yet. */
void ffs_rdma_forget(void);

#endif
