/* What DataLoop.stats() tells. See ffs/_storage.pyi. */
#include "core/copy.h"
#include "storage/loop.h"
#include "storage/module.h"

/* What the loops count, and what Python calls it. */
#define COUNTS(X)                                                                                  \
	X(ranges, "ranges_total")                                                                      \
	X(read_bytes, "read_bytes_total")                                                              \
	X(write_bytes, "write_bytes_total")                                                            \
	X(errors, "errors_total")                                                                      \
	X(strategy_ranges[FFS_BY_MAPPING], "mapped_ranges_total")                                      \
	X(strategy_ranges[FFS_BY_SENDFILE], "sendfile_ranges_total")                                   \
	X(strategy_ranges[FFS_BY_BUFFER], "buffered_ranges_total")                                     \
	X(strategy_ranges[FFS_BY_DISK], "disk_ranges_total")                                           \
	X(strategy_bytes[FFS_BY_MAPPING], "mapped_bytes_total")                                        \
	X(strategy_bytes[FFS_BY_SENDFILE], "sendfile_bytes_total")                                     \
	X(strategy_bytes[FFS_BY_BUFFER], "buffered_bytes_total")                                       \
	X(strategy_bytes[FFS_BY_DISK], "disk_bytes_total")                                             \
	X(strategy_ranges[FFS_BY_DIRECT], "direct_ranges_total")                                       \
	X(strategy_bytes[FFS_BY_DIRECT], "direct_bytes_total")                                         \
	X(direct_refused, "direct_refused_total")                                                      \
	X(frames, "frames_total")                                                                      \
	X(send_calls, "send_calls_total")                                                              \
	X(short_sends, "short_sends_total")                                                            \
	X(queued_ns, "queued_ns_total")                                                                \
	X(slow_reads, "slow_reads_total")                                                              \
	X(forwards, "forwards_total")                                                                  \
	X(forward_bytes, "forward_bytes_total")                                                        \
	X(forward_send_calls, "forward_send_calls_total")                                              \
	X(rdma_connections, "rdma_connections_total")                                                  \
	X(rdma_bytes, "rdma_bytes_total")

static bool set_count(PyObject *stats, const char *name, uint64_t value)
{
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	bool done = number != NULL && PyDict_SetItemString(stats, name, number) == 0;
	Py_XDECREF(number);
	return done;
}

static uint64_t load(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

static bool add_counts(PyObject *stats, const struct ffs_group *group)
{
	bool done = true;
#define SET(field, name)                                                                           \
	if (done) {                                                                                    \
		uint64_t sum = 0;                                                                          \
		for (uint32_t i = 0; i < group->loop_count; i++)                                           \
			sum += load(&group->loops[i].counts.field);                                            \
		done = set_count(stats, name, sum);                                                        \
	}
	COUNTS(SET)
#undef SET
	return done;
}

static uint64_t receive_buffers_used(struct ffs_group *group)
{
	uint64_t used = 0;
	for (uint32_t hop = 0; hop < FFS_HOPS_MAX; hop++)
		used += ffs_buffers_used(&group->buffers[hop]);
	return used;
}

PyObject *ffs_py_loop_stats(struct ffs_group *group)
{
	uint64_t queued_ns_max = 0;
	uint32_t outputs = 0;
	for (uint32_t i = 0; i < group->loop_count; i++) {
		struct ffs_loop *loop = &group->loops[i];
		uint64_t queued_ns = load(&loop->counts.queued_ns_max);
		queued_ns_max = queued_ns > queued_ns_max ? queued_ns : queued_ns_max;
		outputs += atomic_load_explicit(&loop->output_count, memory_order_relaxed);
	}
	pthread_mutex_lock(&group->lock);
	uint32_t connections = group->conn_count;
	pthread_mutex_unlock(&group->lock);
	PyObject *stats = PyDict_New();
	if (stats != NULL &&
	    !(add_counts(stats, group) && set_count(stats, "connections", connections) &&
	      set_count(stats, "queued_ns_max", queued_ns_max) &&
	      set_count(stats, "copied_bytes", ffs_copied_bytes()) &&
	      set_count(stats, "buffer_bytes", receive_buffers_used(group)) &&
	      set_count(stats, "read_buffer_bytes", ffs_buffers_used(&group->read_buffers)) &&
	      set_count(stats, "ring", group->loops[0].cold.reads.ring != NULL) &&
	      set_count(stats, "ring_errno", (uint64_t)group->loops[0].cold.reads.ring_error) &&
	      set_count(stats, "located", group->located) && set_count(stats, "send_buffers", outputs)))
		Py_CLEAR(stats);
	return stats;
}
