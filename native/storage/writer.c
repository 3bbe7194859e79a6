/*
 * The writer thread of a target: the queue of chunks and drops, and in which order they are done.
 *
 * One thread makes all changes: it takes what has been queued, commits it (commit.c), does the
 * drops that are due (drop.c), and frees what nobody reads any more. What is still queued can be
 * answered although the disk hangs under what was taken.
 */
#include <signal.h>
#include <time.h>

#include "core/frame.h"
#include "core/sys.h"
#include "storage/store.h"

uint64_t ffs_monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void finish_drop(struct ffs_store *store, struct ffs_drop *drop)
{
	if (atomic_load(&store->stopped))
		drop->status = FFS_ERR_TARGET_STOPPED;
	else
		ffs_drop_run(store, drop);
	pthread_mutex_lock(&store->lock);
	drop->finished = true;
	pthread_cond_signal(&drop->done);
	pthread_mutex_unlock(&store->lock);
}

/* Wait, with the lock held, until there is something to do or `wait_ns` are over. */
static void wait_for_work(struct ffs_store *store, uint64_t wait_ns)
{
	if (wait_ns == UINT64_MAX) {
		pthread_cond_wait(&store->wake, &store->lock);
		return;
	}
	uint64_t until = ffs_monotonic_ns() + wait_ns;
	struct timespec time = {
		.tv_sec = (time_t)(until / UINT64_C(1000000000)),
		.tv_nsec = (long)(until % UINT64_C(1000000000)),
	};
	pthread_cond_timedwait(&store->wake, &store->lock, &time);
}

/*
 * Take as many puts as a batch has room for, with the lock held: what is still queued can be
 * answered although the disk hangs.
 */
static void take_puts(struct ffs_store *store)
{
	struct ffs_put **end = &store->puts_head;
	uint64_t bytes = 0;
	for (int count = 0; *end != NULL && count < FFS_BATCH_PUTS_MAX && bytes < FFS_BATCH_BYTES_MAX;
	     count++) {
		bytes += (*end)->length;
		end = &(*end)->next;
	}
	store->taken = store->puts_head;
	store->puts_head = *end;
	*end = NULL;
	if (store->puts_head == NULL)
		store->puts_tail = &store->puts_head;
}

/* Take the first drop unless a put is older; with the lock held, after `take_puts`. */
static struct ffs_drop *take_drop(struct ffs_store *store)
{
	struct ffs_drop *drop = store->drops;
	if (drop == NULL ||
	    (store->puts_head != NULL && store->puts_head->queued_ns <= drop->queued_ns))
		return NULL;
	store->drops = drop->next;
	return drop;
}

/* When the oldest of what the writer has was queued. */
static uint64_t queued_first(const struct ffs_store *store, const struct ffs_drop *drop)
{
	const struct ffs_batch *open = &store->batches[store->open_batch];
	if (open->count > 0)
		return open->since_ns;
	if (store->taken != NULL)
		return store->taken->queued_ns;
	return drop != NULL ? drop->queued_ns : ffs_monotonic_ns();
}

static void *writer_main(void *argument)
{
	struct ffs_store *store = argument;
	uint64_t wait_ns = UINT64_MAX;
	pthread_mutex_lock(&store->lock);
	for (;;) {
		bool open = store->batches[store->open_batch].count > 0;
		if (store->puts_head == NULL && store->drops == NULL && !open) {
			if (store->closing)
				break;
			wait_for_work(store, wait_ns);
		}
		take_puts(store);
		struct ffs_drop *drop = take_drop(store);
		store->working_since_ns = queued_first(store, drop);
		bool last = store->taken == NULL || drop != NULL;
		pthread_mutex_unlock(&store->lock);
		ffs_commit_puts(store);
		if (last)
			ffs_commit_open(store);
		if (drop != NULL)
			finish_drop(store, drop);
		wait_ns = ffs_limbo_reap(store, false);
		pthread_mutex_lock(&store->lock);
		store->working_since_ns = 0;
	}
	pthread_mutex_unlock(&store->lock);
	(void)ffs_limbo_reap(store, true);
	/* A target marked clean is not searched for lost space again: the punches must be on disk. */
	if (!atomic_load(&store->stopped))
		(void)ffs_commit_seal(store, FFS_FILE_DATA);
	return NULL;
}

int ffs_writer_start(struct ffs_store *store)
{
	/* Signals are for the interpreter's main thread. */
	sigset_t all;
	sigset_t before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int result = ffs_sys_thread(&store->writer, writer_main, store);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	store->writer_running = result == 0;
	return -result;
}

void ffs_writer_stop(struct ffs_store *store)
{
	if (!store->writer_running)
		return;
	pthread_mutex_lock(&store->lock);
	store->closing = true;
	pthread_cond_signal(&store->wake);
	pthread_mutex_unlock(&store->lock);
	pthread_join(store->writer, NULL);
	store->writer_running = false;
}

static void enqueue(struct ffs_store *store, struct ffs_put *puts, size_t count, bool replaces)
{
	uint64_t now = ffs_monotonic_ns();
	pthread_mutex_lock(&store->lock);
	/* Its writer may never come to it, and would refuse it. */
	bool refused = store->closing || atomic_load(&store->stopped);
	for (size_t i = 0; i < count; i++) {
		struct ffs_put *put = &puts[i];
		put->next = NULL;
		put->queued_ns = now;
		put->entry = NULL;
		put->replaced = NULL;
		put->generation = 0;
		put->replaces = replaces;
		if (!refused) {
			*store->puts_tail = put;
			store->puts_tail = &put->next;
		}
	}
	if (!refused)
		pthread_cond_signal(&store->wake);
	pthread_mutex_unlock(&store->lock);
	for (size_t i = 0; refused && i < count; i++)
		ffs_put_complete(&puts[i], FFS_ERR_TARGET_STOPPED);
}

void ffs_store_put(struct ffs_store *store, struct ffs_put *put)
{
	enqueue(store, put, 1, false);
}

void ffs_store_put_all(struct ffs_store *store, struct ffs_put *puts, size_t count)
{
	enqueue(store, puts, count, false);
}

void ffs_store_replace(struct ffs_store *store, struct ffs_put *put)
{
	enqueue(store, put, 1, true);
}

uint64_t ffs_store_waiting_ns(struct ffs_store *store)
{
	uint64_t now = ffs_monotonic_ns();
	pthread_mutex_lock(&store->lock);
	uint64_t since = store->working_since_ns;
	pthread_mutex_unlock(&store->lock);
	return since == 0 || since > now ? 0 : now - since;
}

void ffs_store_give_up(struct ffs_store *store)
{
	ffs_store_stop(store);
	pthread_mutex_lock(&store->lock);
	struct ffs_put *puts = store->puts_head;
	store->puts_head = NULL;
	store->puts_tail = &store->puts_head;
	while (store->drops != NULL) {
		struct ffs_drop *drop = store->drops;
		store->drops = drop->next; /* before its owner may be gone */
		drop->status = FFS_ERR_TARGET_STOPPED;
		drop->finished = true;
		pthread_cond_signal(&drop->done);
	}
	pthread_mutex_unlock(&store->lock);
	while (puts != NULL) {
		struct ffs_put *next = puts->next;
		ffs_put_complete(puts, FFS_ERR_TARGET_STOPPED);
		puts = next;
	}
}
