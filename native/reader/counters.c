/* See counters.h. */
#include "reader/counters.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/copy.h"
#include "reader/rdma.h"
#include "reader/team.h"

#define FFS_COUNTER_TOTAL(name) _Atomic uint64_t name;
static struct {
	FFS_COUNTERS(FFS_COUNTER_TOTAL)
} totals;
#undef FFS_COUNTER_TOTAL

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
