/*
 * Chunks for clients on this host: LOCATE tells where they lie and pins them, RELEASE unpins.
 *
 * Previous hop: receive.c (a request of a local connection), serve.c (its turn to be answered).
 * Next: the client preads the extent files itself (native/reader/local.c), by descriptors that
 * travel beside the answer.
 *
 * What is pinned for a connection is neither reused nor punched until the client gives the pin back
 * or the kernel reports the end of the connection; time has no say in it. A pin is an index into
 * the connection's own array, so a client can only give back what is its own.
 *
 * A drop does not wait for a client that merely knows where a chunk lies: its connection is ended.
 * Such a client asks, after it has read and before it returns what it has, whether its connection
 * is alive, and pins go only when the end can be seen. Who has mapped files is waited for.
 *
 * Descriptors are opened anew for each connection, for reading alone: what one client does to the
 * state of an open file (its readahead) is no other's business, and none can write.
 *
 * Failure behaviour: a chunk that cannot be located or pinned has a status of its own, and the
 * client reads it over TCP.
 * Threads: a connection's loop. Copies: none, no payload passes here.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"

#define PINS_MIN 64u
#define NO_PIN UINT32_MAX

_Static_assert(FFS_LOCATE_CHUNKS_MAX *FFS_LOCATION_BYTES <= FFS_SEND_BUFFER_BYTES,
               "the longest answer fits an output");

/* Data and CRC file of a size class of a target. */
struct held_file {
	const struct ffs_class *class;
};

struct ffs_held {
	struct ffs_chunk **pins; /* NULL: free */
	uint32_t room;
	uint32_t count;
	uint32_t hint; /* no free place before this one */
	bool mapped;   /* the client's memory shows the files: it could not take notice */
	uint32_t file_count;
	struct held_file files[FFS_LOCATE_FILES_MAX];
};

struct ffs_rights {
	uint32_t count;
	int fds[2 * FFS_LOCATE_FILES_MAX];
};

/* ----------------------------------------------------------------------------------------- pins */

/* The number that the next pin gets, NO_PIN without memory or at a bound. */
static uint32_t find_place(struct ffs_held *held)
{
	while (held->hint < held->room && held->pins[held->hint] != NULL)
		held->hint++;
	if (held->hint < held->room)
		return held->hint;
	uint32_t room = held->room == 0 ? PINS_MIN : held->room * 2;
	if (room > FFS_LOCATED_PER_CONNECTION_MAX)
		return NO_PIN;
	struct ffs_chunk **pins = ffs_sys_realloc(held->pins, room * sizeof(struct ffs_chunk *));
	if (pins == NULL)
		return NO_PIN;
	memset(pins + held->room, 0, (room - held->room) * sizeof(struct ffs_chunk *));
	held->pins = pins;
	held->room = room;
	return held->hint;
}

/* Count one more for the daemon; false at the bound. */
static bool count_one(struct ffs_group *group)
{
	if (atomic_fetch_add(&group->located, 1) < FFS_LOCATED_PER_DAEMON_MAX)
		return true;
	atomic_fetch_sub(&group->located, 1);
	return false;
}

static void unpin(struct ffs_conn *conn, uint32_t pin)
{
	struct ffs_held *held = conn->held;
	ffs_chunk_unpin(held->pins[pin]);
	held->pins[pin] = NULL;
	held->count--;
	if (pin < held->hint)
		held->hint = pin;
	atomic_fetch_sub(&conn->loop->group->located, 1);
}

bool ffs_release(struct ffs_conn *conn, const struct ffs_request *request)
{
	const struct ffs_held *held = conn->held;
	for (uint32_t i = 0; i < request->count; i++) {
		uint32_t pin = ffs_load_u32(request->descriptors + (size_t)i * FFS_PIN_BYTES);
		if (held == NULL || pin >= held->room || held->pins[pin] == NULL)
			return false;
		unpin(conn, pin);
	}
	return true;
}

void ffs_release_all(struct ffs_conn *conn)
{
	struct ffs_held *held = conn->held;
	for (uint32_t pin = 0; held->count > 0; pin++) {
		if (held->pins[pin] != NULL)
			unpin(conn, pin);
	}
	free(held->pins);
	free(held);
	conn->held = NULL;
}

/* --------------------------------------------------------------------------------------- drops */

static bool holds_dropped(const struct ffs_held *held)
{
	uint32_t left = held->count;
	for (uint32_t pin = 0; left > 0; pin++) {
		if (held->pins[pin] == NULL)
			continue;
		if (ffs_chunk_removed(held->pins[pin]))
			return true;
		left--;
	}
	return false;
}

void ffs_loop_revoke(struct ffs_loop *loop)
{
	if (!atomic_exchange(&loop->revokes, false))
		return;
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		struct ffs_conn *conn = loop->conns[i];
		if (conn != NULL && conn->held != NULL && !conn->held->mapped && holds_dropped(conn->held))
			ffs_conn_close(conn);
	}
}

/* ---------------------------------------------------------------------------------- descriptors */

static void close_rights(struct ffs_rights *rights)
{
	for (uint32_t i = 0; i < rights->count; i++)
		(void)ffs_sys_close(rights->fds[i]);
	free(rights);
}

void ffs_rights_drop(struct ffs_output *output)
{
	if (output->rights != NULL)
		close_rights(output->rights);
	output->rights = NULL;
}

ssize_t ffs_rights_send(int fd, struct msghdr *message, struct ffs_output *output)
{
	const struct ffs_rights *rights = output->rights;
	union {
		struct cmsghdr header; /* for its alignment */
		uint8_t bytes[CMSG_SPACE(sizeof(rights->fds))];
	} control;
	size_t bytes = rights->count * sizeof(int);
	memset(&control, 0, sizeof(control));
	message->msg_control = &control;
	message->msg_controllen = CMSG_SPACE(bytes);
	struct cmsghdr *part = CMSG_FIRSTHDR(message);
	part->cmsg_level = SOL_SOCKET;
	part->cmsg_type = SCM_RIGHTS;
	part->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(part), rights->fds, bytes);
	ssize_t sent = ffs_sys_sendmsg(fd, message, MSG_NOSIGNAL);
	if (sent > 0)
		ffs_rights_drop(output);
	return sent;
}

/* Open a class's two files and have them sent; FFS_OK or why the client has to do without. */
static uint16_t add_file(struct ffs_held *held, const struct ffs_store *store,
                         const struct ffs_class *class, struct ffs_output *output)
{
	if (held->file_count == FFS_LOCATE_FILES_MAX)
		return FFS_ERR_BUSY;
	if (output->rights == NULL)
		output->rights = ffs_sys_calloc(1, sizeof(*output->rights));
	struct ffs_rights *rights = output->rights;
	if (rights == NULL)
		return FFS_ERR_BUSY;
	int data_fd = ffs_class_open_to_read(class, store->directory_fd, FFS_FILE_DATA);
	int crc_fd =
		data_fd < 0 ? data_fd : ffs_class_open_to_read(class, store->directory_fd, FFS_FILE_CRC);
	if (crc_fd < 0) {
		if (data_fd >= 0)
			(void)ffs_sys_close(data_fd);
		return FFS_ERR_BUSY; /* descriptors come back; and TCP needs none */
	}
	rights->fds[rights->count++] = data_fd;
	rights->fds[rights->count++] = crc_fd;
	held->files[held->file_count++].class = class;
	return FFS_OK;
}

static uint16_t find_file(struct ffs_held *held, const struct ffs_store *store,
                          const struct ffs_class *class, struct ffs_output *output, uint16_t *file)
{
	uint32_t at = 0;
	while (at < held->file_count && held->files[at].class != class)
		at++;
	uint16_t status = at < held->file_count ? FFS_OK : add_file(held, store, class, output);
	*file = (uint16_t)at;
	return status;
}

/* --------------------------------------------------------------------------------------- LOCATE */

/* Pin a chunk that has been found, which is pinned already for the time being. */
static uint16_t hold(struct ffs_conn *conn, const struct ffs_store *store, struct ffs_chunk *chunk,
                     struct ffs_output *output, struct ffs_location *location)
{
	struct ffs_held *held = conn->held;
	const struct ffs_class *class = &store->classes[chunk->class_index];
	location->pin = find_place(held);
	if (location->pin == NO_PIN)
		return FFS_ERR_BUSY;
	if (!count_one(conn->loop->group))
		return FFS_ERR_BUSY;
	/* Last: whoever gets a descriptor must be told what for. */
	uint16_t status = find_file(held, store, class, output, &location->file);
	if (status != FFS_OK) {
		atomic_fetch_sub(&conn->loop->group->located, 1);
		return status;
	}
	held->pins[location->pin] = chunk;
	held->count++;
	location->length = chunk->length;
	location->data_offset = chunk->slot * ffs_class_stride(class, FFS_FILE_DATA);
	location->crc_offset = chunk->slot * ffs_class_stride(class, FFS_FILE_CRC);
	return FFS_OK;
}

static uint16_t locate_one(struct ffs_conn *conn, const uint8_t *descriptor,
                           struct ffs_output *output, struct ffs_location *location)
{
	struct ffs_read_descriptor wanted;
	struct ffs_range range;
	ffs_read_descriptor_unpack(&wanted, descriptor);
	struct ffs_store *store = ffs_group_store(conn->loop->group, wanted.target);
	if (store == NULL)
		return FFS_ERR_STALE_LAYOUT;
	uint16_t status = ffs_store_find(store, wanted.blob, wanted.chunk, 0, 0, false, &range);
	if (status != FFS_OK)
		return status;
	status = hold(conn, store, range.chunk, output, location);
	if (status != FFS_OK)
		ffs_store_release(&range);
	return status;
}

void ffs_locate(struct ffs_conn *conn, const struct ffs_request *request, struct ffs_output *output)
{
	struct ffs_header header = {
		.op = FFS_OP_LOCATE | FFS_REPLY_BIT,
		.priority = request->header.priority,
		.request_id = request->header.request_id,
		.trace_id = request->header.trace_id,
	};
	if (conn->held == NULL)
		conn->held = ffs_sys_calloc(1, sizeof(*conn->held));
	if (conn->held == NULL) {
		header.status = FFS_ERR_BUSY;
	} else {
		conn->held->mapped |= (request->header.flags & FFS_FLAG_MAPPED) != 0;
		header.count = (uint16_t)request->count;
		header.body_bytes = request->count * FFS_LOCATION_BYTES;
	}
	for (uint32_t i = 0; i < header.count; i++) {
		struct ffs_location location = {0};
		uint16_t status = locate_one(
			conn, request->descriptors + (size_t)i * FFS_READ_DESCRIPTOR_BYTES, output, &location);
		if (status != FFS_OK)
			location = (struct ffs_location){.status = status};
		ffs_location_pack(output->payload + (size_t)i * FFS_LOCATION_BYTES, &location);
	}
	ffs_header_pack(output->head, &header);
	output->parts[0] = (struct iovec){output->head, FFS_FRAME_HEADER_BYTES};
	output->parts[1] = (struct iovec){output->payload, header.body_bytes};
	output->part = 0;
	output->part_count = 2;
}
