/*
 * Chunks on their way in: from the loop that received one, past Python's decision, to a writer
 * and, in a chain, to the loop of the next daemon's peer (forward.c), both at once if Python likes.
 *
 * Python holds ids, never pointers: an id names a slot of the table and its generation, so that a
 * stale one is noticed. The memory of a chunk belongs to its write until it is answered, whatever
 * becomes of the connection meanwhile.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"

#define WRITES_ROOM_MIN 64u

static struct ffs_request *new_reply(const struct ffs_header *header)
{
	struct ffs_request *reply = ffs_sys_calloc(1, sizeof(*reply));
	if (reply == NULL)
		return NULL;
	reply->header = (struct ffs_header){
		.op = header->op | FFS_REPLY_BIT,
		.request_id = header->request_id,
		.blob = header->blob,
		.trace_id = header->trace_id,
		.chain_version = header->chain_version,
		.priority = header->priority,
	};
	return reply;
}

struct ffs_write *ffs_write_new(struct ffs_conn *conn, const struct ffs_header *header)
{
	struct ffs_write *write = ffs_sys_malloc(sizeof(*write) + header->body_bytes);
	if (write == NULL)
		return NULL;
	memset(write, 0, sizeof(*write));
	write->reply = new_reply(header);
	if (write->reply == NULL) {
		free(write);
		return NULL;
	}
	write->group = conn->loop->group;
	write->loop = conn->loop;
	write->connection_id = conn->id;
	write->hop = conn->hop;
	write->put.blob = header->blob;
	write->put.length = header->payload_bytes;
	write->put.crcs = write->body + FFS_WRITE_DESCRIPTOR_BYTES;
	write->event.chain_version = header->chain_version;
	write->mail.kind = FFS_MAIL_ANSWER;
	write->mail.about.write = write;
	write->forward.mail.kind = FFS_MAIL_FORWARD;
	write->forward.mail.about.write = write;
	return write;
}

void ffs_write_free(struct ffs_write *write)
{
	if (write->buffer.bytes != NULL)
		ffs_buffers_give_back(&write->group->buffers[write->hop], &write->buffer);
	free(write->reply);
	free(write);
}

void ffs_write_answer(struct ffs_conn *conn, struct ffs_write *write, uint16_t status)
{
	struct ffs_request *reply = write->reply;
	write->reply = NULL;
	reply->header.status = status;
	ffs_write_free(write);
	ffs_conn_queue(conn, reply);
}

/* --------------------------------------------------------------------------------- table of ids */

static int grow_table(struct ffs_group *group)
{
	uint32_t room = group->write_room == 0 ? WRITES_ROOM_MIN : group->write_room * 2;
	struct ffs_write **writes = ffs_sys_realloc(group->writes, room * sizeof(*writes));
	if (writes == NULL)
		return -ENOMEM;
	group->writes = writes;
	uint32_t *generations = ffs_sys_realloc(group->write_generations, room * sizeof(*generations));
	if (generations == NULL)
		return -ENOMEM;
	group->write_generations = generations;
	uint32_t added = room - group->write_room;
	memset(writes + group->write_room, 0, added * sizeof(*writes));
	memset(generations + group->write_room, 0, added * sizeof(*generations));
	group->write_hint = group->write_room;
	group->write_room = room;
	return 0;
}

/* A free slot, looked for from where the last one was found; with the lock held. */
static int find_slot(struct ffs_group *group, uint32_t *slot)
{
	for (uint32_t i = 0; i < group->write_room; i++) {
		uint32_t at = (group->write_hint + i) % group->write_room;
		if (group->writes[at] == NULL) {
			*slot = at;
			group->write_hint = at + 1;
			return 0;
		}
	}
	int result = grow_table(group);
	*slot = group->write_hint;
	return result;
}

/* The write that an id names, NULL if it names none; with the lock held. */
static struct ffs_write *find_write(struct ffs_group *group, uint64_t write_id)
{
	uint32_t slot = (uint32_t)write_id;
	if (slot >= group->write_room || group->writes[slot] == NULL ||
	    group->write_generations[slot] != (uint32_t)(write_id >> 32))
		return NULL;
	return group->writes[slot];
}

int ffs_write_announce(struct ffs_write *write)
{
	struct ffs_group *group = write->group;
	uint32_t slot;
	pthread_mutex_lock(&group->lock);
	int result = find_slot(group, &slot);
	if (result == 0) {
		group->writes[slot] = write;
		group->write_generations[slot]++;
		write->slot = slot;
		write->busy = FFS_WRITE_ANNOUNCING;
		write->event.kind = FFS_EVENT_WRITE;
		write->event.hop = write->hop;
		write->event.write_id = (uint64_t)group->write_generations[slot] << 32 | slot;
		write->event.connection_id = write->connection_id;
		write->event.blob = write->put.blob;
		write->event.chunk = write->put.chunk;
		write->event.target = write->target;
		write->event.length = write->put.length;
		ffs_events_push(&group->events, &write->event);
	}
	pthread_mutex_unlock(&group->lock);
	return result;
}

/* What a write is no longer in the middle of once this has been told; 0: it is not about one. */
static uint8_t told(enum ffs_event_kind kind)
{
	switch (kind) {
	case FFS_EVENT_WRITE:
		return FFS_WRITE_ANNOUNCING;
	case FFS_EVENT_PERSISTED:
		return FFS_WRITE_PERSISTING;
	case FFS_EVENT_FORWARDED:
		return FFS_WRITE_FORWARDING;
	default:
		return 0;
	}
}

ssize_t ffs_group_poll(struct ffs_group *group, struct ffs_event **copies)
{
	*copies = NULL;
	pthread_mutex_lock(&group->lock);
	ssize_t count = group->closed ? 0 : ffs_events_take(&group->events, copies);
	uint32_t suspects = 0;
	for (ssize_t i = 0; i < count; i++) {
		const struct ffs_event *event = &(*copies)[i];
		suspects += event->kind == FFS_EVENT_SUSPECT;
		uint8_t done = told(event->kind);
		if (done == 0)
			continue;
		struct ffs_write *write = find_write(group, event->write_id);
		assert(write != NULL && (write->busy & done) != 0);
		write->busy &= (uint8_t)~done;
	}
	ffs_suspects_told(group, suspects);
	pthread_mutex_unlock(&group->lock);
	return count;
}

/* ------------------------------------------------------------------------ persist, forward, ack */

static void persisted(struct ffs_put *put)
{
	struct ffs_write *write = put->context;
	struct ffs_group *group = write->group;
	pthread_mutex_lock(&group->lock);
	write->event.kind = FFS_EVENT_PERSISTED;
	write->event.status = put->status;
	ffs_events_push(&group->events, &write->event);
	group->persisting--;
	pthread_cond_signal(&group->idle);
	pthread_mutex_unlock(&group->lock);
}

void ffs_write_forwarded(struct ffs_write *write, uint16_t status)
{
	struct ffs_event *event = &write->forward.event;
	event->kind = FFS_EVENT_FORWARDED;
	event->write_id = write->event.write_id;
	event->status = status;
	ffs_events_push(&write->group->events, event);
}

struct ffs_write *ffs_write_on_peer(struct ffs_group *group, uint64_t write_id, uint64_t peer_id)
{
	pthread_mutex_lock(&group->lock);
	struct ffs_write *write = find_write(group, write_id);
	if (write != NULL &&
	    ((write->busy & FFS_WRITE_FORWARDING) == 0 || write->forward.peer_id != peer_id))
		write = NULL;
	pthread_mutex_unlock(&group->lock);
	return write;
}

/* Whether all of them are known and may begin with something; with the lock held. */
static bool may_begin(struct ffs_group *group, const uint64_t *write_ids, size_t count,
                      enum ffs_write_busy what)
{
	for (size_t i = 0; i < count; i++) {
		struct ffs_write *write = find_write(group, write_ids[i]);
		if (write == NULL || (write->busy & (FFS_WRITE_ANNOUNCING | what)) != 0)
			return false;
	}
	return !group->closed;
}

/* Mark them all, chained through their puts; NULL if one of them may not be persisted. */
static struct ffs_put *claim_puts(struct ffs_group *group, const uint64_t *write_ids, size_t count)
{
	struct ffs_put *head = NULL;
	struct ffs_put **tail = &head;
	pthread_mutex_lock(&group->lock);
	if (may_begin(group, write_ids, count, FFS_WRITE_PERSISTING)) {
		for (size_t i = 0; i < count; i++) {
			struct ffs_write *write = find_write(group, write_ids[i]);
			/* The same id twice: the first one has it. */
			if ((write->busy & FFS_WRITE_PERSISTING) != 0)
				continue;
			write->busy |= FFS_WRITE_PERSISTING;
			group->persisting++;
			write->put.done = persisted;
			write->put.context = write;
			write->put.data = write->buffer.bytes;
			*tail = &write->put;
			tail = &write->put.next;
		}
		*tail = NULL;
	}
	pthread_mutex_unlock(&group->lock);
	return head;
}

int ffs_group_persist(struct ffs_group *group, const uint64_t *write_ids, size_t count)
{
	struct ffs_put *put = claim_puts(group, write_ids, count);
	if (put == NULL)
		return count == 0 ? 0 : -ENOENT;
	while (put != NULL) {
		struct ffs_put *next = put->next; /* before the store chains it elsewhere */
		struct ffs_write *write = put->context;
		struct ffs_store *store = ffs_group_store(group, write->target);
		if (store != NULL) {
			ffs_store_put(store, put);
		} else {
			put->status = FFS_ERR_STALE_LAYOUT;
			persisted(put);
		}
		put = next;
	}
	return 0;
}

/* All of one hop, which is that of the peer's connection; its loop, or NULL. With the lock held. */
static struct ffs_loop *loop_for(struct ffs_group *group, const uint64_t *write_ids, size_t count,
                                 uint64_t peer_id)
{
	uint8_t hop = find_write(group, write_ids[0])->hop;
	for (size_t i = 1; i < count; i++) {
		if (find_write(group, write_ids[i])->hop != hop)
			return NULL;
	}
	return hop + 1u < FFS_HOPS_MAX ? ffs_peer_expect(group, peer_id, hop) : NULL;
}

int ffs_group_forward(struct ffs_group *group, const uint64_t *write_ids, size_t count,
                      uint64_t peer_id, uint32_t target)
{
	struct ffs_loop *loop = NULL;
	int result = 0;
	pthread_mutex_lock(&group->lock);
	if (!may_begin(group, write_ids, count, FFS_WRITE_FORWARDING))
		result = -ENOENT;
	else if (count > 0 && (loop = loop_for(group, write_ids, count, peer_id)) == NULL)
		result = -EINVAL;
	for (size_t i = 0; i < count && result == 0; i++) {
		struct ffs_write *write = find_write(group, write_ids[i]);
		if ((write->busy & FFS_WRITE_FORWARDING) != 0) /* the same id twice */
			continue;
		write->busy |= FFS_WRITE_FORWARDING;
		write->forward.peer_id = peer_id;
		write->forward.target = target;
		write->forward.sent = 0;
		write->forward.answered = false;
		/* With the lock held: the group is not closed, so the loop takes it. */
		(void)ffs_loop_post(loop, &write->forward.mail);
	}
	pthread_mutex_unlock(&group->lock);
	return result;
}

int ffs_group_ack(struct ffs_group *group, uint64_t write_id, uint16_t status)
{
	pthread_mutex_lock(&group->lock);
	struct ffs_write *write = find_write(group, write_id);
	int result = 0;
	if (group->closed)
		write = NULL;
	else if (write == NULL)
		result = -ENOENT;
	else if (write->busy != 0)
		result = -EBUSY;
	if (write != NULL && result == 0)
		group->writes[write->slot] = NULL;
	pthread_mutex_unlock(&group->lock);
	if (write == NULL || result != 0)
		return result;
	/* The payload goes back at once; what is left is small and waits for the loop. */
	ffs_buffers_give_back(&group->buffers[write->hop], &write->buffer);
	write->put.status = status;
	if (!ffs_loop_post(write->loop, &write->mail))
		ffs_write_free(write);
	return 0;
}
