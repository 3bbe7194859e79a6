/* A set of loops: making and ending them, their stores, handing out connections. */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"
#include "storage/rdma.h"

_Static_assert(1u << FFS_SLOT_BITS == FFS_CONNECTIONS_PER_DAEMON_MAX &&
                   FFS_CONNECTIONS_PER_DAEMON_MAX == FFS_PEERS_MAX,
               "an id holds its slot");

static void kick_loop(void *context, uint32_t loop)
{
	struct ffs_group *group = context;
	ffs_loop_kick(&group->loops[loop]);
}

static void init_memory(struct ffs_group *group, const struct ffs_group_options *options)
{
	uint32_t loop_count = options->loop_count;
	uint64_t left = options->write_buffer_bytes;
	for (uint32_t hop = 0; hop < FFS_HOPS_MAX; hop++) {
		uint64_t share = hop + 1 < FFS_HOPS_MAX ? left / 2 : left;
		left -= share;
		ffs_buffers_init(&group->buffers[hop], share, NULL, loop_count, kick_loop, group);
		ffs_buffers_admit(&group->buffers[hop], options->write_buffer_bytes);
	}
	ffs_arena_init(&group->read_arena, options->read_buffer_bytes);
	ffs_buffers_init(&group->read_buffers, options->read_buffer_bytes, &group->read_arena,
	                 loop_count, kick_loop, group);
	ffs_reuse_init(&group->reuse, ffs_reuse_default_horizon());
}

static void fini_memory(struct ffs_group *group)
{
	for (uint32_t hop = 0; hop < FFS_HOPS_MAX; hop++)
		ffs_buffers_fini(&group->buffers[hop]);
	ffs_buffers_fini(&group->read_buffers);
	ffs_arena_fini(&group->read_arena);
	ffs_reuse_fini(&group->reuse);
}

static int init_parts(struct ffs_group *group, const struct ffs_group_options *options)
{
	int result = ffs_events_init(&group->events);
	if (result != 0)
		return result;
	group->loops = ffs_sys_calloc(options->loop_count, sizeof(*group->loops));
	if (group->loops == NULL) {
		ffs_events_fini(&group->events);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++)
		group->free_conn_slots[i] = (uint16_t)i;
	pthread_mutex_init(&group->lock, NULL);
	pthread_cond_init(&group->idle, NULL);
	ffs_slowest_init(&group->slowest);
	init_memory(group, options);
	return 0;
}

struct ffs_group *ffs_group_open(const struct ffs_group_options *options, int *error)
{
	struct ffs_group *group = ffs_sys_calloc(1, sizeof(*group));
	int result = group == NULL ? -ENOMEM : init_parts(group, options);
	if (result != 0) {
		free(group);
		*error = -result;
		return NULL;
	}
	group->owner = getpid();
	group->io = options->io;
	group->rdma = options->rdma;
	strncpy(group->congestion, options->congestion, FFS_CONGESTION_BYTES_MAX);
	group->slow_read_ns = options->slow_read_ns;
	while (result == 0 && group->loop_count < options->loop_count) {
		struct ffs_loop *loop = &group->loops[group->loop_count];
		result = ffs_loop_start(loop, group, group->loop_count, options->reads);
		if (result == 0)
			group->loop_count++;
	}
	if (result == 0)
		return group;
	ffs_group_close(group);
	ffs_group_free(group);
	*error = -result;
	return NULL;
}

static void detach_stores(struct ffs_group *group)
{
	pthread_mutex_lock(&group->lock);
	struct ffs_attachment *list = group->attachments;
	group->attachments = NULL;
	pthread_mutex_unlock(&group->lock);
	while (list != NULL) {
		struct ffs_attachment *next = list->next;
		ffs_store_unlisten(list->store, list);
		ffs_store_unref(list->store);
		free(list->stopped_event);
		free(list);
		list = next;
	}
}

void ffs_group_close(struct ffs_group *group)
{
	if (group->owner != getpid())
		return;
	pthread_mutex_lock(&group->lock);
	bool closed = group->closed;
	group->closed = true;
	pthread_mutex_unlock(&group->lock);
	if (closed)
		return;
	for (uint32_t i = 0; i < group->loop_count; i++)
		ffs_loop_stop(&group->loops[i]);
	pthread_mutex_lock(&group->lock);
	while (group->persisting > 0)
		pthread_cond_wait(&group->idle, &group->lock);
	pthread_mutex_unlock(&group->lock);
	/* Nobody else is left: loops are joined, writers are done with what was handed to them. */
	ffs_events_discard(&group->events);
	for (uint32_t i = 0; i < group->write_room; i++) {
		if (group->writes[i] != NULL)
			ffs_write_free(group->writes[i]);
		group->writes[i] = NULL;
	}
	detach_stores(group);
}

void ffs_group_free(struct ffs_group *group)
{
	if (group->owner == getpid()) {
		ffs_rdma_group_fini(group); /* it has a thread that may kick loops */
		for (uint32_t i = 0; i < group->loop_count; i++)
			ffs_loop_fini(&group->loops[i]);
		ffs_events_fini(&group->events);
		fini_memory(group);
		pthread_mutex_destroy(&group->lock);
		pthread_cond_destroy(&group->idle);
		free(group->writes);
		free(group->write_generations);
		free(group->loops);
		free(group);
	}
}

/* --------------------------------------------------------------------------------------- stores */

static void on_stop(void *context, uint32_t target_id)
{
	struct ffs_attachment *attachment = context;
	struct ffs_event *event = attachment->stopped_event;
	attachment->stopped_event = NULL;
	event->kind = FFS_EVENT_TARGET_STOPPED;
	event->target = target_id;
	event->owned = true;
	ffs_events_push(&attachment->group->events, event);
}

static void on_pinned_drop(void *context)
{
	struct ffs_group *group = ((struct ffs_attachment *)context)->group;
	for (uint32_t i = 0; i < group->loop_count; i++) {
		atomic_store(&group->loops[i].revokes, true);
		ffs_loop_kick(&group->loops[i]);
	}
}

static struct ffs_attachment *new_attachment(struct ffs_group *group, struct ffs_store *store)
{
	struct ffs_attachment *attachment = ffs_sys_calloc(1, sizeof(*attachment));
	if (attachment == NULL)
		return NULL;
	attachment->stopped_event = ffs_sys_calloc(1, sizeof(*attachment->stopped_event));
	if (attachment->stopped_event == NULL) {
		free(attachment);
		return NULL;
	}
	attachment->group = group;
	attachment->store = store;
	return attachment;
}

/* Put an attachment where the loops find it; with the lock held. */
static int place_attachment(struct ffs_group *group, struct ffs_attachment *attachment)
{
	uint32_t target_id = attachment->store->superblock.target_id;
	uint32_t count = atomic_load_explicit(&group->target_count, memory_order_relaxed);
	uint32_t at = 0;
	while (at < count && group->targets[at].target_id != target_id)
		at++;
	if (at == FFS_TARGETS_MAX)
		return -ENOSPC;
	group->targets[at].target_id = target_id;
	atomic_store_explicit(&group->targets[at].attachment, attachment, memory_order_release);
	if (at == count)
		atomic_store_explicit(&group->target_count, count + 1, memory_order_release);
	attachment->next = group->attachments;
	group->attachments = attachment;
	return 0;
}

int ffs_group_add_store(struct ffs_group *group, struct ffs_store *store)
{
	struct ffs_attachment *attachment = new_attachment(group, store);
	if (attachment == NULL)
		return -ENOMEM;
	int result = ffs_store_listen(store, on_stop, on_pinned_drop, attachment) ? 0 : -EBUSY;
	if (result == 0) {
		pthread_mutex_lock(&group->lock);
		result = place_attachment(group, attachment);
		pthread_mutex_unlock(&group->lock);
		if (result != 0)
			ffs_store_unlisten(store, attachment);
	}
	if (result != 0) {
		free(attachment->stopped_event);
		free(attachment);
		return result;
	}
	ffs_store_ref(store);
	return 0;
}

/* The slot of a target, NULL if it was never here. */
static const struct ffs_target_slot *find_target(const struct ffs_group *group, uint32_t target_id)
{
	uint32_t count = atomic_load_explicit(&group->target_count, memory_order_acquire);
	for (uint32_t i = 0; i < count; i++) {
		if (group->targets[i].target_id == target_id)
			return &group->targets[i];
	}
	return NULL;
}

struct ffs_store *ffs_group_store(struct ffs_group *group, uint32_t target_id)
{
	const struct ffs_target_slot *slot = find_target(group, target_id);
	return slot == NULL ? NULL
	                    : atomic_load_explicit(&slot->attachment, memory_order_acquire)->store;
}

int ffs_group_set_chain_version(struct ffs_group *group, uint32_t target_id, uint32_t version)
{
	const struct ffs_target_slot *slot = find_target(group, target_id);
	if (slot == NULL)
		return -ENOENT;
	atomic_store(&group->targets[slot - group->targets].chain_version, version);
	return 0;
}

uint32_t ffs_group_chain_version(const struct ffs_group *group, uint32_t target_id)
{
	const struct ffs_target_slot *slot = find_target(group, target_id);
	return slot == NULL ? 0 : atomic_load(&slot->chain_version);
}

/* ---------------------------------------------------------------------------------- connections */

/*
 * No waiting in it, and options that make it faster: it works without (a Unix socket has none). A
 * connection should have begun with this congestion control (ffs/rpc/door.py): one that began with
 * BBR goes on pacing itself by timers.
 */
int ffs_group_tune(const struct ffs_group *group, int fd)
{
	int on = 1;
	if (ffs_sys_set_blocking(fd, false) != 0)
		return -errno;
	(void)ffs_sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (group->congestion[0] != '\0')
		(void)ffs_sys_setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, group->congestion,
		                         (socklen_t)strlen(group->congestion));
	return 0;
}

static struct ffs_conn *new_conn(int fd, bool local, const uint8_t *token_id)
{
	struct ffs_conn *conn = ffs_sys_calloc(1, sizeof(*conn));
	if (conn == NULL)
		return NULL;
	conn->closed_event = ffs_sys_calloc(1, sizeof(*conn->closed_event));
	if (token_id != NULL)
		conn->grants = ffs_grants_new(token_id);
	if (conn->closed_event == NULL || (token_id != NULL && conn->grants == NULL)) {
		free(conn->closed_event);
		free(conn->grants);
		free(conn);
		return NULL;
	}
	conn->fd = fd;
	conn->local = local;
	conn->queue_tail = &conn->queue_head;
	conn->ticket = FFS_NO_TICKET;
	ffs_cold_conn_init(&conn->cold);
	conn->mail.kind = FFS_MAIL_ADOPT;
	conn->mail.about.conn = conn;
	return conn;
}

/* Give the connection an id and a loop; with the lock held. */
static int place_conn(struct ffs_group *group, struct ffs_conn *conn)
{
	if (group->closed)
		return -ESHUTDOWN;
	if (group->conn_count == FFS_CONNECTIONS_PER_DAEMON_MAX)
		return -EMFILE;
	uint16_t slot = group->free_conn_slots[group->conn_count++];
	conn->id = ++group->next_serial << FFS_SLOT_BITS | slot;
	conn->loop = ffs_loop_of(group, conn->id);
	return 0;
}

int64_t ffs_group_adopt(struct ffs_group *group, int fd, bool local, const uint8_t *token_id)
{
	int result = ffs_group_tune(group, fd);
	if (result != 0)
		return result;
	struct ffs_conn *conn = new_conn(fd, local, token_id);
	if (conn == NULL)
		return -ENOMEM;
	pthread_mutex_lock(&group->lock);
	result = place_conn(group, conn);
	pthread_mutex_unlock(&group->lock);
	/* Read before posting: from there on the connection is the loop's, and may be gone. */
	uint64_t id = conn->id;
	if (result == 0 && ffs_loop_post(conn->loop, &conn->mail))
		return (int64_t)id;
	free(conn->closed_event);
	ffs_grants_free(group, conn->grants);
	free(conn);
	return result != 0 ? result : -ESHUTDOWN;
}

int ffs_group_close_conn(struct ffs_group *group, uint64_t connection_id)
{
	struct ffs_mail *mail = ffs_sys_calloc(1, sizeof(*mail));
	if (mail == NULL)
		return -ENOMEM;
	mail->kind = FFS_MAIL_CLOSE;
	mail->about.connection_id = connection_id;
	if (!ffs_loop_post(ffs_loop_of(group, connection_id), mail))
		free(mail); /* the loop ends, and its connections with it */
	return 0;
}
