/*
 * Operations that several connections to one daemon share: each takes the next ones as it gets on.
 *
 * Read path: batch_calls.c -> THIS (who shares) -> team.c -> drive.c -> read.c, which takes a piece
 * whenever a connection's window has room. Dealt beforehand, a call would last as long as its
 * slowest connection: which of two gets on better is the scheduler's doing, and changes within a
 * millisecond.
 *
 * Threads: the cursor is all that connections driven by different threads share; an operation is
 * its taker's alone. Failure: what a connection has taken fails with it; the others go on with the
 * rest, and the last one to fail takes that along.
 */
#include "core/limits.h"
#include "reader/batch.h"

static bool may_share(const struct ffs_leg *leg)
{
	return leg->conn != NULL && leg->conn->local == NULL;
}

/* A leg and the helpers right behind it: those that have no operation of their own. */
static void share_one(struct ffs_leg *owner, uint32_t helpers)
{
	struct ffs_queue *queue = &owner->own_queue;
	uint32_t count = owner->count;
	uint64_t bytes = owner->bytes;
	for (uint32_t i = 0; i <= helpers; i++)
		queue->legs += may_share(&owner[i]);
	if (queue->legs < (may_share(owner) ? 2 : 1))
		return;
	queue->end = count;
	queue->mean_bytes = bytes / count;
	atomic_init(&queue->alive, queue->legs);
	atomic_init(&queue->next, 0);
	for (uint32_t i = 0; i <= helpers; i++) {
		struct ffs_leg *leg = &owner[i];
		leg->order = owner->order;
		leg->count = leg->unfinished = 0;
		leg->bytes = may_share(leg) ? bytes / queue->legs : 0;
		leg->queue = may_share(leg) ? queue : NULL;
	}
}

void ffs_share_out(struct ffs_batch *batch)
{
	if (batch->kind != FFS_OP_READ)
		return;
	for (uint32_t i = 0, next; i < batch->leg_count; i = next) {
		struct ffs_leg *owner = &batch->legs[i];
		next = i + 1;
		while (next < batch->leg_count && batch->legs[next].count == 0)
			next++;
		bool local = owner->conn != NULL && owner->conn->local != NULL;
		if (owner->count > 0 && next > i + 1 && !local)
			share_one(owner, next - i - 1);
	}
}

/* How many operations to take from `first` on: large pieces at first, which cost few requests, and
 * small ones towards the end, so that all connections end together. */
static uint32_t piece(const struct ffs_leg *leg, uint32_t first)
{
	const struct ffs_queue *queue = leg->queue;
	uint32_t left = queue->end - first, share = left / (2 * queue->legs), count = 0;
	uint64_t bytes = 0;
	do {
		bytes += leg->batch->ops[leg->order[first + count]].length;
		count++;
	} while (count < left && count < FFS_FRAME_DESCRIPTORS_MAX && bytes < FFS_PIECE_BYTES_MAX &&
	         (count < share || bytes < FFS_PIECE_BYTES_MIN));
	return count;
}

bool ffs_queue_take(struct ffs_leg *leg)
{
	struct ffs_queue *queue = leg->queue;
	uint32_t first, count;
	if (queue == NULL)
		return false;
	first = atomic_load_explicit(&queue->next, memory_order_relaxed);
	do {
		if (first == queue->end)
			return false;
		count = piece(leg, first);
	} while (!atomic_compare_exchange_weak_explicit(&queue->next, &first, first + count,
	                                                memory_order_relaxed, memory_order_relaxed));
	leg->next = first;
	leg->count = first + count;
	leg->unfinished += count;
	return true;
}

bool ffs_queue_is_empty(const struct ffs_leg *leg)
{
	const struct ffs_queue *queue = leg->queue;
	return queue == NULL || atomic_load_explicit(&queue->next, memory_order_relaxed) == queue->end;
}

/* Those that share may have as much as others, so that the daemon always has a request more than
 * socket buffers hold; towards the end an even share of what nobody has taken. */
bool ffs_leg_has_room(const struct ffs_leg *leg)
{
	const struct ffs_queue *queue = leg->queue;
	if (leg->request_count == 0)
		return true;
	if (queue == NULL)
		return leg->outstanding_bytes <= FFS_REQUEST_BYTES;
	uint32_t left = queue->end - atomic_load_explicit(&queue->next, memory_order_relaxed);
	uint64_t share = left * queue->mean_bytes / queue->legs;
	uint64_t window = share > FFS_PIECE_BYTES_MIN ? share : FFS_PIECE_BYTES_MIN;
	return leg->outstanding_bytes < (window < FFS_REQUEST_BYTES ? window : FFS_REQUEST_BYTES);
}

uint32_t ffs_queue_abandon(struct ffs_leg *leg)
{
	struct ffs_queue *queue = leg->queue;
	if (atomic_fetch_sub_explicit(&queue->alive, 1, memory_order_relaxed) > 1)
		return queue->end;
	return atomic_exchange_explicit(&queue->next, queue->end, memory_order_relaxed);
}
