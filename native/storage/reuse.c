#include "storage/reuse.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/mix64.h"
#include "core/sys.h"

/* 4 MiB of marks, of which only those pages are touched that are used. */
#define MARKS (1u << 19)
/* A mark is the range's name in 24 bits and the clock in units of 1 MiB in the other 40. */
#define CLOCK_SHIFT 20
#define CLOCK_MASK ((UINT64_C(1) << 40) - 1)

void ffs_reuse_init(struct ffs_reuse *reuse, uint64_t horizon_bytes)
{
	reuse->horizon_bytes = horizon_bytes;
	atomic_store(&reuse->read_bytes, 0);
	reuse->marks = ffs_sys_calloc(MARKS, sizeof(reuse->marks[0]));
}

void ffs_reuse_fini(struct ffs_reuse *reuse)
{
	free((void *)reuse->marks);
	reuse->marks = NULL;
}

bool ffs_reuse_note(struct ffs_reuse *reuse, uint64_t blob, uint32_t chunk, uint32_t offset,
                    uint32_t bytes)
{
	uint64_t now = atomic_fetch_add_explicit(&reuse->read_bytes, bytes, memory_order_relaxed);
	if (reuse->marks == NULL)
		return false;
	uint64_t name = ffs_mix64(blob ^ ffs_mix64((uint64_t)chunk << 32 | offset));
	_Atomic uint64_t *mark = &reuse->marks[name % MARKS];
	/* Never 0, which is a mark nobody has made. */
	uint64_t check = (name >> 40 | 1) << 40;
	uint64_t before = atomic_load_explicit(mark, memory_order_relaxed);
	uint64_t clock = (now >> CLOCK_SHIFT) & CLOCK_MASK;
	atomic_store_explicit(mark, check | clock, memory_order_relaxed);
	return (before & ~CLOCK_MASK) == check &&
	       ((clock - before) & CLOCK_MASK) <= reuse->horizon_bytes >> CLOCK_SHIFT;
}

uint64_t ffs_reuse_default_horizon(void)
{
	long pages = sysconf(_SC_PHYS_PAGES);
	return pages < 0 ? 0 : (uint64_t)pages * (uint64_t)getpagesize() / 2;
}
