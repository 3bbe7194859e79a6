/*
 * How long things took: a histogram for all of them, and the slowest of the last minute by name.
 *
 * Previous hops: the read engine once a call (reader/batch_calls.c), the data loop once a request
 * (storage/slow.c), cold ranges once each (storage/cold.c). Next: Python, for metrics, `ffs status`
 * and `ffs doctor`.
 *
 * Bounds: FFS_LATENCY_BUCKETS counts, FFS_SLOWEST_MAX entries. What is not among the slowest costs
 * two loads and two comparisons.
 */
#ifndef FFS_CORE_LATENCY_H
#define FFS_CORE_LATENCY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* Bucket k is for less than 2^(14 + k) ns: 16 us, 33 us, ... 17 s; the last one for all others. */
#define FFS_LATENCY_SHIFT 14u
#define FFS_LATENCY_BUCKETS 22u

struct ffs_latency {
	_Atomic uint64_t sum_ns;
	_Atomic uint64_t buckets[FFS_LATENCY_BUCKETS];
};

static inline uint32_t ffs_latency_bucket(uint64_t ns)
{
	uint64_t units = ns >> FFS_LATENCY_SHIFT;
	uint32_t bucket = units == 0 ? 0 : 64 - (uint32_t)__builtin_clzll(units);
	return bucket < FFS_LATENCY_BUCKETS ? bucket : FFS_LATENCY_BUCKETS - 1;
}

/* `count` things took so long each. Threads: one adds, any may read. */
static inline void ffs_latency_add(struct ffs_latency *latency, uint64_t ns, uint64_t count)
{
	_Atomic uint64_t *bucket = &latency->buckets[ffs_latency_bucket(ns)];
	uint64_t before = atomic_load_explicit(bucket, memory_order_relaxed);
	atomic_store_explicit(bucket, before + count, memory_order_relaxed);
	before = atomic_load_explicit(&latency->sum_ns, memory_order_relaxed);
	atomic_store_explicit(&latency->sum_ns, before + ns * count, memory_order_relaxed);
}

/* The same for one thing, where several threads add. */
static inline void ffs_latency_share(struct ffs_latency *latency, uint64_t ns)
{
	atomic_fetch_add_explicit(&latency->buckets[ffs_latency_bucket(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&latency->sum_ns, ns, memory_order_relaxed);
}

/* Sum up several histograms: `sum` is the sum of durations, then of each bucket. */
#define FFS_LATENCY_NUMBERS (1 + FFS_LATENCY_BUCKETS)
void ffs_latency_sum(const struct ffs_latency *latency, uint64_t sum[FFS_LATENCY_NUMBERS]);

#define FFS_SLOWEST_MAX 16u
#define FFS_SLOWEST_KEPT_NS UINT64_C(60000000000)

/* A read that took long. */
struct ffs_slow_read {
	uint64_t ended_ns; /* of the monotonic clock */
	uint64_t took_ns;
	uint64_t queued_ns; /* until its last frame was made; of a daemon alone */
	uint64_t disk_ns;   /* of that, the longest wait for a disk */
	uint64_t trace_id;
	uint64_t blob; /* of its first range */
	uint64_t bytes;
	uint64_t connection;
	uint32_t ranges;
};

struct ffs_slowest {
	pthread_mutex_t lock;
	_Atomic uint64_t floor_ns; /* what does not take longer is of no interest ... */
	_Atomic uint64_t until_ns; /* ... until then */
	uint32_t count;
	struct ffs_slow_read reads[FFS_SLOWEST_MAX];
};

void ffs_slowest_init(struct ffs_slowest *slowest);

/* Whether a read that ends now should be noted. Threads: any. */
static inline bool ffs_slowest_wants(struct ffs_slowest *slowest, uint64_t now_ns, uint64_t took_ns)
{
	return took_ns > atomic_load_explicit(&slowest->floor_ns, memory_order_relaxed) ||
	       now_ns > atomic_load_explicit(&slowest->until_ns, memory_order_relaxed);
}
/* Note it, in place of a faster one. Threads: any; takes the lock for a moment. */
void ffs_slowest_note(struct ffs_slowest *slowest, const struct ffs_slow_read *read);
/* Copy those that ended in the last minute, the slowest first; how many. */
uint32_t ffs_slowest_take(struct ffs_slowest *slowest, uint64_t now_ns,
                          struct ffs_slow_read reads[FFS_SLOWEST_MAX]);

#endif
