/* How long things took, for Python: what core/latency.h collects. See ffs/_storage.pyi. */
#include "storage/module.h"

#include "core/py_latency.h"
#include "storage/loop.h"

/* {first: histogram, second: histogram} */
static PyObject *two_histograms(const char *first, const uint64_t first_sum[FFS_LATENCY_NUMBERS],
                                const char *second, const uint64_t second_sum[FFS_LATENCY_NUMBERS])
{
	return Py_BuildValue("{s:N,s:N}", first, ffs_py_histogram(first_sum), second,
	                     ffs_py_histogram(second_sum));
}

PyObject *ffs_py_loop_latency(struct ffs_group *group)
{
	uint64_t reads[FFS_LATENCY_NUMBERS] = {0}, queued[FFS_LATENCY_NUMBERS] = {0};
	for (uint32_t i = 0; i < group->loop_count; i++) {
		ffs_latency_sum(&group->loops[i].reads, reads);
		ffs_latency_sum(&group->loops[i].queued, queued);
	}
	return two_histograms("read", reads, "queued", queued);
}

PyObject *ffs_py_store_latency(struct ffs_store *store)
{
	uint64_t disk_reads[FFS_LATENCY_NUMBERS] = {0}, commits[FFS_LATENCY_NUMBERS] = {0};
	ffs_latency_sum(&store->disk_reads, disk_reads);
	ffs_latency_sum(&store->commits, commits);
	return two_histograms("disk_read", disk_reads, "commit", commits);
}

PyObject *ffs_py_loop_slowest(struct ffs_group *group)
{
	struct ffs_slow_read reads[FFS_SLOWEST_MAX];
	uint64_t now_ns = ffs_monotonic_ns();
	uint32_t count = ffs_slowest_take(&group->slowest, now_ns, reads);
	return ffs_py_slow_reads(reads, count, now_ns);
}
