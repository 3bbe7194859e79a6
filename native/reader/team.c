/* See team.h. */
#include "reader/team.h"

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "core/sys.h"
#include "reader/batch.h"

/* What the helpers of one call tell its caller. */
struct team {
	pthread_cond_t ended;
	uint32_t running;
	uint32_t generation;
};

struct helper {
	struct helper *next; /* idle ones */
	pthread_cond_t wake;
	struct ffs_batch *share; /* NULL: nothing to do */
	struct team *team;
};

static struct {
	pthread_mutex_t lock;
	struct helper *idle;
	uint32_t count;
	struct helper all[FFS_HELPERS_MAX];
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER};

void ffs_team_forget(void)
{
	pool.lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
	pool.idle = NULL;
	pool.count = 0;
}

/* -------------------------------------------------------------------------------------- helpers */

static void *help(void *argument)
{
	struct helper *helper = argument;
	pthread_mutex_lock(&pool.lock);
	for (;;) {
		while (helper->share == NULL)
			pthread_cond_wait(&helper->wake, &pool.lock);
		pthread_mutex_unlock(&pool.lock);
		(void)ffs_drive(helper->share);
		pthread_mutex_lock(&pool.lock);
		helper->share = NULL;
		helper->next = pool.idle;
		pool.idle = helper;
		/* With the lock held: once it is not, the team may be gone. */
		helper->team->running--;
		pthread_cond_signal(&helper->team->ended);
	}
	return NULL;
}

/* Start one more helper; with the lock held. It takes no signals, as they are the caller's. */
static struct helper *new_helper(void)
{
	if (pool.count == FFS_HELPERS_MAX)
		return NULL;
	struct helper *helper = &pool.all[pool.count];
	sigset_t all, before;
	pthread_t thread = 0;
	*helper = (struct helper){.wake = PTHREAD_COND_INITIALIZER};
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = ffs_sys_thread(&thread, help, helper);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0)
		return NULL;
	pthread_setname_np(thread, "ffs-reader");
	pthread_detach(thread);
	pool.count++;
	return helper;
}

/* Take up to `wanted` helpers that nobody else has: a list, and in *count how many. */
static struct helper *take_helpers(uint32_t wanted, uint32_t *count)
{
	struct helper *taken = NULL;
	pthread_mutex_lock(&pool.lock);
	for (*count = 0; *count < wanted; ++*count) {
		struct helper *helper = pool.idle;
		if (helper != NULL)
			pool.idle = helper->next;
		else if ((helper = new_helper()) == NULL)
			break;
		helper->next = taken;
		taken = helper;
	}
	pthread_mutex_unlock(&pool.lock);
	return taken;
}

/* --------------------------------------------------------------------------------------- shares */

/* How many threads the batch is worth: one for each leg that has something to do, if all together
 * have bytes enough. */
static uint32_t threads_for(const struct ffs_batch *batch, uint64_t thread_bytes)
{
	uint64_t total = 0;
	uint32_t legs = 0;
	if (thread_bytes == 0 || batch->leg_count < 2)
		return 1;
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		total += batch->legs[i].bytes;
		legs += batch->legs[i].bytes > 0;
	}
	uint64_t threads = total / thread_bytes;
	threads = threads < legs ? threads : legs;
	threads = threads < FFS_HELPERS_MAX + 1 ? threads : FFS_HELPERS_MAX + 1;
	return threads > 1 ? (uint32_t)threads : 1;
}

static int told_to_stop(void *context)
{
	const struct ffs_shared *shared = context;
	return atomic_load_explicit(&shared->stop, memory_order_relaxed);
}

/* Deal neighbouring legs to `count` shares, about as many bytes to each. */
static void split(struct ffs_batch *batch, struct ffs_batch *shares, uint32_t count)
{
	uint64_t total = 0, dealt = 0;
	for (uint32_t i = 0; i < batch->leg_count; i++)
		total += batch->legs[i].bytes;
	for (uint32_t at = 0, i = 0; i < count; i++) {
		struct ffs_batch *share = &shares[i];
		*share = *batch;
		share->legs += at;
		share->first_leg = at;
		share->polled += at;
		share->leg_count = 0;
		if (i > 0) {
			share->interrupted = told_to_stop;
			share->context = batch->shared;
		}
		while (at < batch->leg_count && (i + 1 == count || dealt < total * (i + 1) / count)) {
			dealt += batch->legs[at].bytes;
			batch->legs[at++].batch = share;
			share->leg_count++;
		}
	}
}

static void add_counts(struct ffs_counts *counts, const struct ffs_counts *more)
{
#define FFS_COUNTER_SUM(name) counts->name += more->name;
	FFS_COUNTERS(FFS_COUNTER_SUM)
#undef FFS_COUNTER_SUM
}

/* In a child, where nobody drives this share any more: how far it had come is anybody's guess. */
static void abandon(struct ffs_batch *share)
{
	for (uint32_t i = 0; i < share->leg_count; i++) {
		struct ffs_leg *leg = &share->legs[i];
		if (leg->conn != NULL)
			ffs_conn_revoke(leg->conn);
		/* Which of a queue's operations were this leg's is anybody's guess, too. */
		for (uint32_t j = 0; j < (leg->queue != NULL ? leg->queue->end : leg->count); j++)
			share->ops[leg->order[j]].status = FFS_ERR_CONNECTION_LOST;
	}
}

/* ----------------------------------------------------------------------------------------- call */

static void team_init(struct team *team, uint32_t helpers)
{
	pthread_condattr_t clock;
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&team->ended, &clock);
	pthread_condattr_destroy(&clock);
	team->running = helpers;
	team->generation = ffs_generation();
}

static void start_helpers(struct team *team, struct helper *helper, struct ffs_batch *shares)
{
	pthread_mutex_lock(&pool.lock);
	for (; helper != NULL; helper = helper->next) {
		helper->team = team;
		helper->share = shares++;
		pthread_cond_signal(&helper->wake);
	}
	pthread_mutex_unlock(&pool.lock);
}

/* Wait for the helpers; true when there are none any more. */
static bool all_ended(struct team *team)
{
	int64_t until_ns = ffs_now_ns() + FFS_TICK_NS;
	struct timespec until = {.tv_sec = until_ns / 1000000000, .tv_nsec = until_ns % 1000000000};
	int error = 0;
	pthread_mutex_lock(&pool.lock);
	while (team->running > 0 && error == 0)
		error = pthread_cond_timedwait(&team->ended, &pool.lock, &until);
	bool ended = team->running == 0;
	pthread_mutex_unlock(&pool.lock);
	return ended;
}

/* See to signals until the helpers have ended, or are not of this process any more. */
static int await_helpers(struct ffs_batch *batch, struct team *team, int stop)
{
	for (;;) {
		if (stop != 0)
			atomic_store_explicit(&batch->shared->stop, true, memory_order_relaxed);
		if (team->generation != ffs_generation() || all_ended(team))
			return stop;
		if (stop == 0)
			stop = batch->interrupted(batch->context);
	}
}

int ffs_team_drive(struct ffs_batch *batch, uint64_t thread_bytes)
{
	struct ffs_batch shares[FFS_HELPERS_MAX + 1];
	struct team team;
	uint32_t count;
	struct helper *helpers = take_helpers(threads_for(batch, thread_bytes) - 1, &count);
	if (count == 0) {
		ffs_drive_start(batch);
		return ffs_drive(batch);
	}
	team_init(&team, count);
	split(batch, shares, count + 1);
	for (uint32_t i = 0; i <= count; i++) /* the daemon works while the helpers wake up */
		ffs_drive_start(&shares[i]);
	start_helpers(&team, helpers, &shares[1]);
	int stop = ffs_drive(&shares[0]);
	stop = await_helpers(batch, &team, stop);
	bool forked = team.generation != ffs_generation();
	for (uint32_t i = 0; i <= count; i++) {
		if (i > 0 && forked)
			abandon(&shares[i]);
		else
			add_counts(&batch->counts, &shares[i].counts);
	}
	if (!forked)
		pthread_cond_destroy(&team.ended);
	return stop != 0 ? -1 : 0;
}
