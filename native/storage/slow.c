/*
 * Telling where time goes: how long ranges wait, how long reads take, the slowest of the last
 * minute, and which took too long.
 *
 * Called by reply.c once a frame and by serve.c once a request, never for a single range. A slow
 * read is an event for Python, which logs it with the client's trace id. When many are slow a few
 * are told and all are counted.
 */
#include "core/sys.h"
#include "storage/loop.h"

#define SECOND_NS UINT64_C(1000000000)
#define TOLD_PER_SECOND_MAX 10u

void ffs_loop_note_queued(struct ffs_loop *loop, const struct ffs_request *request, uint32_t ranges,
                          uint64_t now_ns)
{
	struct ffs_loop_counts *counts = &loop->counts;
	uint64_t waited_ns = now_ns - request->received_ns;
	ffs_count(&counts->queued_ns, waited_ns * ranges);
	ffs_latency_add(&loop->queued, waited_ns, ranges);
	if (waited_ns > atomic_load_explicit(&counts->queued_ns_max, memory_order_relaxed))
		atomic_store_explicit(&counts->queued_ns_max, waited_ns, memory_order_relaxed);
}

static void note_slow(struct ffs_conn *conn, const struct ffs_last_frame *last, uint64_t now_ns)
{
	const struct ffs_slow_read read = {
		.ended_ns = now_ns,
		.took_ns = now_ns - last->received_ns,
		.queued_ns = last->built_ns - last->received_ns,
		.disk_ns = last->disk_ns,
		.trace_id = last->trace_id,
		.blob = last->blob,
		.bytes = last->bytes,
		.connection = conn->id,
		.ranges = last->ranges,
	};
	ffs_slowest_note(&conn->loop->group->slowest, &read);
}

static bool may_tell(struct ffs_loop *loop, uint64_t now_ns)
{
	if (now_ns - loop->slow_ns >= SECOND_NS) {
		loop->slow_ns = now_ns;
		loop->slow_told = 0;
	}
	return loop->slow_told++ < TOLD_PER_SECOND_MAX;
}

void ffs_conn_finish_read(struct ffs_conn *conn, const struct ffs_last_frame *last)
{
	struct ffs_loop *loop = conn->loop;
	uint64_t now_ns = ffs_monotonic_ns();
	uint64_t took_ns = now_ns - last->received_ns;
	ffs_latency_add(&loop->reads, took_ns, 1);
	if (ffs_slowest_wants(&loop->group->slowest, now_ns, took_ns))
		note_slow(conn, last, now_ns);
	if (took_ns < atomic_load_explicit(&loop->group->slow_read_ns, memory_order_relaxed))
		return;
	ffs_count(&loop->counts.slow_reads, 1);
	if (!may_tell(loop, now_ns))
		return;
	struct ffs_event *event = ffs_sys_calloc(1, sizeof(*event));
	if (event == NULL)
		return; /* it was counted */
	event->kind = FFS_EVENT_SLOW_READ;
	event->owned = true;
	event->connection_id = conn->id;
	event->blob = last->blob;
	event->length = last->ranges;
	event->slow.trace_id = last->trace_id;
	event->slow.bytes = last->bytes;
	event->slow.took_ms = took_ns / 1000000;
	event->slow.queued_ms = (last->built_ns - last->received_ns) / 1000000;
	ffs_events_push(&loop->group->events, event);
}
