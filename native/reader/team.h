/*
 * Threads that help a call: each connection of a large batch is driven by a thread of its own.
 *
 * Read path: batch_calls.c -> THIS -> drive.c, once in each thread, over its share of the legs.
 *
 *   caller:  split -> start helpers -> drive its own share -> wait, looking at signals -> merge
 *   helper:  asleep -> drive a share -> asleep
 *
 * A share is a batch over some of the legs. Legs, and the operations that belong to them, are
 * touched by one thread; all that threads share is `struct ffs_shared`. The call returns when every
 * share has ended, so nothing that it lent is in use any more: a deadline or a stall is each
 * share's own to notice, an interrupted caller tells the others to stop, which they see within
 * FFS_RECEIVE_WAIT_NS.
 *
 * Bounds: FFS_HELPERS_MAX helpers a process. They are never queued for: without a free one, and
 * where no thread can be made, the caller drives more of the legs itself.
 * Threads: helpers start at the first call that is large enough, sleep between calls, take no
 * signals, and never touch the interpreter.
 * Fork: the child has none, and makes its own. A call that goes on in the child (a signal handler
 * has forked) calls lost whatever a helper was at.
 */
#ifndef FFS_READER_TEAM_H
#define FFS_READER_TEAM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FFS_HELPERS_MAX 15u

struct ffs_batch;

/* What the threads of one call share. */
struct ffs_shared {
	_Atomic uint32_t hedge_budget; /* so many operations may still be given up */
	atomic_bool stop;              /* the caller was interrupted */
};

/* Like ffs_drive, with helpers where each thread gets `thread_bytes` or more; 0: without any. */
int ffs_team_drive(struct ffs_batch *batch, uint64_t thread_bytes);

/* In a forked child: forget helpers, and who held the lock. */
void ffs_team_forget(void);

#endif
