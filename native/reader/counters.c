/* See counters.h. */
#include "reader/counters.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "core/copy.h"
#include "reader/batch.h"
#include "reader/rdma.h"
#include "reader/team.h"

#define FFS_COUNTER_TOTAL(name) _Atomic uint64_t name;
static struct {
	FFS_COUNTERS(FFS_COUNTER_TOTAL)
} totals;
#undef FFS_COUNTER_TOTAL

static struct ffs_latency calls;
static struct ffs_slowest slowest = {.lock = PTHREAD_MUTEX_INITIALIZER};

static _Atomic uint32_t generation = 1;
static atomic_bool installed;

void ffs_counters_add(const struct ffs_counts *counts)
{
#define FFS_COUNTER_ADD(name)                                                                      \
	if (counts->name != 0)                                                                         \
		atomic_fetch_add_explicit(&totals.name, counts->name, memory_order_relaxed);
	FFS_COUNTERS(FFS_COUNTER_ADD)
#undef FFS_COUNTER_ADD
}

void ffs_counters_read(struct ffs_counts *counts)
{
#define FFS_COUNTER_READ(name)                                                                     \
	counts->name = atomic_load_explicit(&totals.name, memory_order_relaxed);
	FFS_COUNTERS(FFS_COUNTER_READ)
#undef FFS_COUNTER_READ
}

static uint64_t bytes_of(const struct ffs_batch *batch)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < batch->op_count; i++)
		bytes += batch->ops[i].length;
	return bytes;
}

void ffs_counters_note_read(const struct ffs_batch *batch)
{
	uint64_t now_ns = (uint64_t)ffs_now_ns();
	uint64_t took_ns = now_ns - (uint64_t)batch->start_ns;
	ffs_latency_share(&calls, took_ns);
	if (batch->op_count == 0 || !ffs_slowest_wants(&slowest, now_ns, took_ns))
		return;
	const struct ffs_slow_read read = {
		.ended_ns = now_ns,
		.took_ns = took_ns,
		.trace_id = batch->trace_id,
		.blob = batch->ops[0].blob,
		.bytes = bytes_of(batch),
		.ranges = batch->op_count,
	};
	ffs_slowest_note(&slowest, &read);
}

void ffs_counters_read_latency(uint64_t sum[FFS_LATENCY_NUMBERS])
{
	ffs_latency_sum(&calls, sum);
}

uint32_t ffs_counters_slowest(uint64_t now_ns, struct ffs_slow_read reads[FFS_SLOWEST_MAX])
{
	return ffs_slowest_take(&slowest, now_ns, reads);
}

uint32_t ffs_generation(void)
{
	return atomic_load_explicit(&generation, memory_order_relaxed);
}

/* Runs in the child between fork and its first instruction of ours, alone: takes no locks. */
static void start_again_in_child(void)
{
	atomic_fetch_add_explicit(&generation, 1, memory_order_relaxed);
#define FFS_COUNTER_ZERO(name) atomic_store_explicit(&totals.name, 0, memory_order_relaxed);
	FFS_COUNTERS(FFS_COUNTER_ZERO)
#undef FFS_COUNTER_ZERO
	ffs_copied_bytes_reset();
	memset(&calls, 0, sizeof(calls));
	ffs_slowest_init(&slowest); /* a thread that is not here may have the lock */
	ffs_team_forget();
	ffs_rdma_forget();
}

int ffs_fork_guard_install(void)
{
	if (atomic_exchange(&installed, true))
		return 0;
	int error = pthread_atfork(NULL, NULL, start_again_in_child);
	if (error != 0)
		atomic_store(&installed, false);
	return error;
}
