/*
 * Whether the page cache has the bytes of a range, so that sending them waits for no disk.
 *
 * Asking the kernel costs about as much as a small range may cost in all. So the whole chunk is
 * asked about, and for ~67 ms the chunk remembers that everything was there; for a second while the
 * chunks that are asked about again have all kept their pages, so that a large data set in memory
 * costs no call for each range either. What is evicted within that time is faulted in while it is
 * sent, by the kernel: a wait, never a wrong byte. Of a chunk
 * that was there in part (which takes longer to find out: 10 us a MiB) each range is asked about by
 * itself, and the chunk as a whole again after a second.
 *
 * cachestat(2) tells, from Linux 6.5 on (0.25 us even for megabytes in large folios). Where it is
 * missing or forbidden mincore(2) does on the mapping (1 us a MiB once its pages are mapped, 20
 * before). With neither the answer is UNKNOWN, and preadv2(RWF_NOWAIT) finds out.
 *
 * Threads: any; answers about one chunk from several are equally good.
 */
#ifndef FFS_STORAGE_RESIDENCY_H
#define FFS_STORAGE_RESIDENCY_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/store.h"

enum ffs_residency {
	FFS_RESIDENT,     /* data and CRCs, all of them, a moment ago */
	FFS_NOT_RESIDENT, /* a page at least is missing */
	FFS_RESIDENCY_UNKNOWN,
};

enum ffs_residency_means {
	FFS_MEANS_CACHESTAT,
	FFS_MEANS_MINCORE,
	FFS_MEANS_NONE,
};

/* Ask about the data and, if it comes with them, the CRCs of a pinned range. `now_ns` may lag. */
enum ffs_residency ffs_residency_of(const struct ffs_range *range, uint64_t now_ns);
/* A file of this chunk could not be read while it was sent: read it before it is sent from now on.
 */
void ffs_residency_distrust(struct ffs_chunk *chunk);
bool ffs_residency_distrusted(const struct ffs_chunk *chunk);

/* What a store that is being opened tries first. */
enum ffs_residency_means ffs_residency_first_means(void);
/* Only for tests: let stores opened from now on begin with this. */
void ffs_residency_force(enum ffs_residency_means means);

#endif
