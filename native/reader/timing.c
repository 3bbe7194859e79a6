/* See timing.h. */
#include "reader/timing.h"

#include "reader/batch.h"

_Static_assert(sizeof(struct ffs_timing) == FFS_TIMING_BYTES, "what ffs/_reader.pyi says");

void ffs_timing_asked(const struct ffs_leg *leg, uint32_t first, uint32_t count)
{
	const struct ffs_batch *batch = leg->batch;
	uint64_t now_ns = (uint64_t)ffs_now_ns();
	for (uint32_t i = first; i < first + count; i++) {
		uint32_t op = leg->order[i];
		batch->timings[op].asked_ns = now_ns;
		batch->timings[op].leg = (uint32_t)(leg - batch->legs) + batch->first_leg;
	}
}

void ffs_timing_ended(const struct ffs_leg *leg, const struct ffs_operation *op)
{
	struct ffs_timing *timing = &leg->batch->timings[op - leg->batch->ops];
	timing->ended_ns = (uint64_t)ffs_now_ns();
	timing->queued_ns = leg->frame.queued_ns;
	timing->disk_ns = leg->frame.disk_ns;
}

void ffs_timing_read(const struct ffs_batch *batch, uint32_t op, int64_t begun_ns)
{
	struct ffs_timing *timing = &batch->timings[op];
	if (timing->asked_ns == 0) /* where it lies was known */
		timing->asked_ns = (uint64_t)begun_ns;
	timing->ended_ns = (uint64_t)ffs_now_ns();
	timing->disk_ns += timing->ended_ns - (uint64_t)begun_ns;
}

void ffs_timing_checked(const struct ffs_batch *batch, uint32_t op, int64_t begun_ns)
{
	struct ffs_timing *timing = &batch->timings[op];
	uint64_t now_ns = (uint64_t)ffs_now_ns();
	timing->crc_ns += now_ns - (uint64_t)begun_ns;
	if (timing->ended_ns != 0) /* its last block waited in the lanes */
		timing->ended_ns = now_ns;
}
