/*
 * Which ranges are read again soon, and so deserve a place in the page cache.
 *
 * A range that is read from the disk for the first time leaves a mark. If it has to be read from
 * the disk once more before as many bytes as memory has room for were read in between, a cache
 * would have had it: it is worth caching. A data set that is read epoch by epoch and fits into
 * memory is thus in memory from its third epoch on; one that does not fit never drives anything
 * out of the cache.
 *
 * The marks are a table of fixed size in which the newer one wins: what is lost costs another
 * direct read. Threads: any; torn or lost marks are harmless.
 */
#ifndef FFS_STORAGE_REUSE_H
#define FFS_STORAGE_REUSE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct ffs_reuse {
	_Atomic uint64_t *marks;     /* NULL: nothing is ever worth caching */
	_Atomic uint64_t read_bytes; /* in all, the clock of this table */
	uint64_t horizon_bytes;
};

/* What is read again within `horizon_bytes` is reused. Without memory it knows nothing. */
void ffs_reuse_init(struct ffs_reuse *reuse, uint64_t horizon_bytes);
void ffs_reuse_fini(struct ffs_reuse *reuse);
/* Note that a range is read from the disk; true if that was so a short while ago, too. */
bool ffs_reuse_note(struct ffs_reuse *reuse, uint64_t blob, uint32_t chunk, uint32_t offset,
                    uint32_t bytes);
/* Half of the machine's memory. */
uint64_t ffs_reuse_default_horizon(void);

#endif
