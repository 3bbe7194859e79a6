/* See latency.h. */
#include "core/latency.h"

#include <string.h>

void ffs_latency_sum(const struct ffs_latency *latency, uint64_t sum[FFS_LATENCY_NUMBERS])
{
	sum[0] += atomic_load_explicit(&latency->sum_ns, memory_order_relaxed);
	for (uint32_t i = 0; i < FFS_LATENCY_BUCKETS; i++)
		sum[1 + i] += atomic_load_explicit(&latency->buckets[i], memory_order_relaxed);
}

void ffs_slowest_init(struct ffs_slowest *slowest)
{
	memset(slowest, 0, sizeof(*slowest));
	pthread_mutex_init(&slowest->lock, NULL);
}

/* With the lock held: keep what ended in the minute before `now_ns`. */
static void forget_old(struct ffs_slowest *slowest, uint64_t now_ns)
{
	uint32_t kept = 0;
	for (uint32_t i = 0; i < slowest->count; i++)
		if (now_ns < slowest->reads[i].ended_ns + FFS_SLOWEST_KEPT_NS)
			slowest->reads[kept++] = slowest->reads[i];
	slowest->count = kept;
}

/* Where one that took so long goes: a free place, or that of a faster one; NULL: nowhere. */
static struct ffs_slow_read *place(struct ffs_slowest *slowest, uint64_t took_ns)
{
	struct ffs_slow_read *fastest = slowest->reads;
	if (slowest->count < FFS_SLOWEST_MAX)
		return &slowest->reads[slowest->count++];
	for (uint32_t i = 1; i < slowest->count; i++)
		if (slowest->reads[i].took_ns < fastest->took_ns)
			fastest = &slowest->reads[i];
	return fastest->took_ns < took_ns ? fastest : NULL;
}

/* With the lock held: what is of interest from now on. */
static void set_bounds(struct ffs_slowest *slowest)
{
	uint64_t floor_ns = UINT64_MAX, first_ns = UINT64_MAX - FFS_SLOWEST_KEPT_NS;
	for (uint32_t i = 0; i < slowest->count; i++) {
		const struct ffs_slow_read *read = &slowest->reads[i];
		floor_ns = read->took_ns < floor_ns ? read->took_ns : floor_ns;
		first_ns = read->ended_ns < first_ns ? read->ended_ns : first_ns;
	}
	if (slowest->count < FFS_SLOWEST_MAX)
		floor_ns = 0;
	atomic_store_explicit(&slowest->floor_ns, floor_ns, memory_order_relaxed);
	atomic_store_explicit(&slowest->until_ns, first_ns + FFS_SLOWEST_KEPT_NS, memory_order_relaxed);
}

void ffs_slowest_note(struct ffs_slowest *slowest, const struct ffs_slow_read *read)
{
	pthread_mutex_lock(&slowest->lock);
	forget_old(slowest, read->ended_ns);
	struct ffs_slow_read *chosen = place(slowest, read->took_ns);
	if (chosen != NULL)
		*chosen = *read;
	set_bounds(slowest);
	pthread_mutex_unlock(&slowest->lock);
}

uint32_t ffs_slowest_take(struct ffs_slowest *slowest, uint64_t now_ns,
                          struct ffs_slow_read reads[FFS_SLOWEST_MAX])
{
	pthread_mutex_lock(&slowest->lock);
	forget_old(slowest, now_ns);
	uint32_t count = slowest->count;
	memcpy(reads, slowest->reads, count * sizeof(reads[0]));
	set_bounds(slowest);
	pthread_mutex_unlock(&slowest->lock);
	for (uint32_t i = 1; i < count; i++) { /* few: by insertion */
		struct ffs_slow_read read = reads[i];
		uint32_t at = i;
		for (; at > 0 && reads[at - 1].took_ns < read.took_ns; at--)
			reads[at] = reads[at - 1];
		reads[at] = read;
	}
	return count;
}
