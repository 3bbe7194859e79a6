/*
 * Where chunks are received, or read from the disk to be sent: page-aligned buffers, bounded in
 * all, given out first come, first served.
 *
 * A connection whose chunk does not fit takes a ticket and is not read from. Only the oldest ticket
 * may take memory, so that a large chunk is not starved by a stream of small ones; whoever gives
 * memory back kicks the loop that holds the oldest ticket.
 *
 * Sizes are powers of two; buffers are kept for reuse, since fresh pages cost a fault each, and
 * those that nobody has taken for a while are let go.
 * Threads: any.
 */
#ifndef FFS_STORAGE_BUFFERS_H
#define FFS_STORAGE_BUFFERS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage/arena.h"

#define FFS_LOOPS_MAX 64u
#define FFS_BUFFER_SIZES 15u /* 4 KiB .. 64 MiB */
#define FFS_NO_TICKET UINT64_MAX

struct ffs_buffer {
	uint8_t *bytes;
	uint32_t size_index;
};

struct ffs_buffers {
	pthread_mutex_t lock;
	uint64_t limit_bytes;
	uint64_t lone_bytes; /* one buffer may be so large when nothing else is in use */
	uint64_t used_bytes;
	struct ffs_arena *arena; /* where they come from; NULL: from malloc, and some are kept */
	uint64_t kept_bytes;
	uint64_t unused_bytes; /* of those kept, so many have not been taken since the last settling */
	void *kept[FFS_BUFFER_SIZES]; /* lists through the buffers' first word */
	uint64_t next_ticket;
	uint64_t oldest[FFS_LOOPS_MAX]; /* each loop's oldest ticket */
	uint32_t loop_count;
	void (*kick)(void *context, uint32_t loop);
	void *kick_context;
};

enum ffs_buffer_result {
	FFS_BUFFER_GIVEN,
	FFS_BUFFER_WAIT,  /* does not fit now, or older tickets are waiting */
	FFS_BUFFER_NEVER, /* larger than the bound, or the machine is out of memory */
};

/* With an arena its size is the limit, and no buffer is larger than its largest piece. */
void ffs_buffers_init(struct ffs_buffers *buffers, uint64_t limit_bytes, struct ffs_arena *arena,
                      uint32_t loop_count, void (*kick)(void *, uint32_t), void *kick_context);
void ffs_buffers_fini(struct ffs_buffers *buffers);
/* Before the first one is given out: let a buffer of up to `lone_bytes` pass the limit by itself.
 */
void ffs_buffers_admit(struct ffs_buffers *buffers, uint64_t lone_bytes);

/* Map the arena that they come from, if that was not done; 0 or -errno. */
int ffs_buffers_map(struct ffs_buffers *buffers);

/* Ask for `length` bytes: with FFS_NO_TICKET at first, then with the ticket. */
enum ffs_buffer_result ffs_buffers_take(struct ffs_buffers *buffers, uint32_t length,
                                        uint64_t ticket, struct ffs_buffer *buffer);
uint64_t ffs_buffers_ticket(struct ffs_buffers *buffers);
/* A loop says which of its tickets is the oldest now, after every change. */
void ffs_buffers_set_oldest(struct ffs_buffers *buffers, uint32_t loop, uint64_t ticket);
void ffs_buffers_give_back(struct ffs_buffers *buffers, struct ffs_buffer *buffer);
/* Let go of kept buffers that nobody has taken since the last call: what traffic needs stays. */
void ffs_buffers_settle(struct ffs_buffers *buffers);
/* How large a buffer is, as it was rounded up. */
uint64_t ffs_buffer_bytes(const struct ffs_buffer *buffer);
uint64_t ffs_buffers_used(struct ffs_buffers *buffers);
/* Whether anybody waits. */
bool ffs_buffers_wanted(struct ffs_buffers *buffers);

#endif
