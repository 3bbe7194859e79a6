/*
 * Telling which requests were refused for want of a grant: Python writes them into the audit log.
 *
 * Called by receive.c, never for a request that is served. As of slow reads (slow.c) a few a second
 * are told, and the next one says how many were not: who is refused all the time costs no more.
 */
#include "core/sys.h"
#include "storage/loop.h"

#define SECOND_NS UINT64_C(1000000000)
#define TOLD_PER_SECOND_MAX 10u

static bool may_tell(struct ffs_loop *loop)
{
	if (loop->now_ns - loop->refused_ns >= SECOND_NS) {
		loop->refused_ns = loop->now_ns;
		loop->refused_told = 0;
	}
	if (loop->refused_told < TOLD_PER_SECOND_MAX) {
		loop->refused_told++;
		return true;
	}
	loop->refused_left_out++;
	return false;
}

static void tell(struct ffs_conn *conn, const struct ffs_header *header, uint64_t blob)
{
	struct ffs_loop *loop = conn->loop;
	if (!may_tell(loop))
		return;
	struct ffs_event *event = ffs_sys_calloc(1, sizeof(*event));
	if (event == NULL) {
		loop->refused_left_out++;
		return;
	}
	event->kind = FFS_EVENT_REFUSED;
	event->owned = true;
	event->connection_id = conn->id;
	event->write_id = header->request_id;
	event->hop = header->op;
	event->blob = blob;
	event->length = loop->refused_left_out;
	loop->refused_left_out = 0;
	ffs_events_push(&loop->group->events, event);
}

void ffs_tell_refused(struct ffs_conn *conn, const struct ffs_header *header)
{
	tell(conn, header, header->blob);
}

void ffs_tell_refused_read(struct ffs_conn *conn, const struct ffs_request *request)
{
	struct ffs_read_descriptor wanted = {0};
	for (uint32_t i = 0; i < request->count; i++) {
		ffs_read_descriptor_unpack(&wanted,
		                           request->descriptors + (size_t)i * FFS_READ_DESCRIPTOR_BYTES);
		if (!ffs_grants_allow(conn, wanted.blob, FFS_MAY_READ))
			break;
	}
	tell(conn, &request->header, wanted.blob);
}
