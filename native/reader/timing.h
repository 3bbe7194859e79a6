/*
 * Where the time of each operation of a sampled call goes.
 *
 * Previous hops: drive.c (asked, ended), check.c (CRC), local.c (disk of this host). Next:
 * batch_calls.c, which hands the times to Python (client/traced.py).
 *
 * Whether a call is sampled is decided once, by its caller: all that another call pays is a look at
 * `batch->timings` for each request, range and run of checked blocks. Times are of the monotonic
 * clock.
 * Each thread of a call touches the times of its own operations alone.
 */
#ifndef FFS_READER_TIMING_H
#define FFS_READER_TIMING_H

#include <stdint.h>

/* One operation's times, as they lie in the caller's array; see ffs/_reader.pyi. */
struct ffs_timing {
	uint64_t asked_ns;  /* when its request was made; 0: it never was */
	uint64_t ended_ns;  /* when its last byte was in and checked, or it had failed */
	uint64_t queued_ns; /* at the daemon, the disk included */
	uint64_t disk_ns;
	uint64_t crc_ns;
	uint32_t leg;
	uint32_t reserved;
};

#define FFS_TIMING_BYTES 48u

struct ffs_batch;
struct ffs_leg;
struct ffs_operation;

/* Of sampled calls alone: `batch->timings` is not NULL. */

/* Operations order[first .. first + count) of the leg are in the request that is being made. */
void ffs_timing_asked(const struct ffs_leg *leg, uint32_t first, uint32_t count);
/* An operation has ended by what leg->frame says. */
void ffs_timing_ended(const struct ffs_leg *leg, const struct ffs_operation *op);
/* An operation was read from files of this host: in all so long since `begun_ns`, CRCs included. */
void ffs_timing_read(const struct ffs_batch *batch, uint32_t op, int64_t begun_ns);
/* Blocks of it were checked since `begun_ns`. */
void ffs_timing_checked(const struct ffs_batch *batch, uint32_t op, int64_t begun_ns);

#endif
