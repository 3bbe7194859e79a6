/*
 * SUSPECT: a reader says which chunks it did not find here, or found wrong. Python looks into it.
 *
 * Previous hop: receive.c. Next: an event for each chunk, as many as Python takes.
 *
 * Nothing is believed: what is suspected gets looked at, and an honest chunk stays. When too much
 * waits for Python already, the rest is refused; whoever reads it next will say so again, and
 * scrubbing finds it without being told.
 */
#include <stdlib.h>

#include "core/sys.h"
#include "storage/loop.h"

static bool claim(struct ffs_group *group)
{
	uint32_t before = atomic_load(&group->suspects);
	while (before < FFS_SUSPECTS_MAX) {
		if (atomic_compare_exchange_weak(&group->suspects, &before, before + 1))
			return true;
	}
	return false;
}

void ffs_suspects_told(struct ffs_group *group, uint32_t count)
{
	atomic_fetch_sub(&group->suspects, count);
}

/* False without room for it, or memory. */
static bool tell(struct ffs_group *group, const struct ffs_read_descriptor *named)
{
	if (!claim(group))
		return false;
	struct ffs_event *event = ffs_sys_calloc(1, sizeof(*event));
	if (event == NULL) {
		ffs_suspects_told(group, 1);
		return false;
	}
	event->kind = FFS_EVENT_SUSPECT;
	event->owned = true;
	event->target = named->target;
	event->blob = named->blob;
	event->chunk = named->chunk;
	ffs_events_push(&group->events, event);
	return true;
}

uint16_t ffs_suspect(struct ffs_conn *conn, const struct ffs_request *request)
{
	struct ffs_group *group = conn->loop->group;
	for (uint32_t i = 0; i < request->count; i++) {
		struct ffs_read_descriptor named;
		ffs_read_descriptor_unpack(&named, request->descriptors + i * FFS_READ_DESCRIPTOR_BYTES);
		if (ffs_group_store(group, named.target) != NULL && !tell(group, &named))
			return FFS_ERR_BUSY;
	}
	return FFS_OK;
}
