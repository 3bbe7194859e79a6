/*
 * Receiving frames: header, body, and a chunk's payload straight into its aligned buffer.
 *
 * Previous hop: the client's reader or writer. Next: serve.c for READ, writes.c for WRITE.
 *
 * Every size is checked before anything is allocated for it. One call takes the rest of the current
 * frame and what has arrived behind it, up to AHEAD_BYTES, so that a request costs one receive at
 * most. What comes ahead of its place (a request's descriptors, the first bytes of a chunk) is
 * copied there; all else arrives where it belongs. A chunk's blocks are held against their CRCs
 * piece by piece, while they are in cache.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/sys.h"
#include "storage/loop.h"
#include "storage/rdma.h"

#define PAYLOAD_PIECE_BYTES (256u << 10)
#define ROUND_BYTES (4u << 20) /* received from one connection before others have a turn */
#define PARTS_MAX 3
/* Room for a request of 256 ranges. Bounds what a connection queues beyond its share, too. */
#define AHEAD_BYTES (8u << 10)

static_assert(AHEAD_BYTES >= FFS_FRAME_HEADER_BYTES + 256 * FFS_READ_DESCRIPTOR_BYTES,
              "a usual request in one piece");

static bool header_makes_sense(const struct ffs_conn *conn)
{
	const struct ffs_header *header = &conn->header;
	switch (header->op) {
	case FFS_OP_LOCATE:
		return conn->local && header->count >= 1 && header->count <= FFS_LOCATE_CHUNKS_MAX &&
		       header->payload_bytes == 0 && (header->flags & ~FFS_FLAG_MAPPED) == 0 &&
		       header->body_bytes == header->count * FFS_READ_DESCRIPTOR_BYTES;
	case FFS_OP_RELEASE:
		return conn->local && header->count >= 1 && header->payload_bytes == 0 &&
		       header->flags == 0 && header->body_bytes == header->count * FFS_PIN_BYTES;
	case FFS_OP_GRANT:
		return conn->grants != NULL && ffs_grant_makes_sense(header);
	case FFS_OP_LIST: /* between daemons */
		return conn->grants == NULL && header->count == 1 && header->payload_bytes == 0 &&
		       header->flags == 0 && header->body_bytes == FFS_READ_DESCRIPTOR_BYTES;
	case FFS_OP_SUSPECT:
		return header->count >= 1 && header->count <= FFS_SUSPECT_CHUNKS_MAX &&
		       header->payload_bytes == 0 && header->flags == 0 &&
		       header->body_bytes == header->count * FFS_READ_DESCRIPTOR_BYTES;
	case FFS_OP_READ:
		return header->count >= 1 && header->payload_bytes == 0 &&
		       header->body_bytes == header->count * FFS_READ_DESCRIPTOR_BYTES &&
		       (header->flags & ~FFS_FLAG_NO_CRC) == 0;
	case FFS_OP_WRITE:
		return header->count == 1 && header->payload_bytes >= 1 && header->flags < FFS_HOPS_MAX &&
		       (!conn->has_hop || conn->hop == header->flags) &&
		       (conn->grants == NULL || header->flags == 0) &&
		       header->body_bytes == FFS_WRITE_DESCRIPTOR_BYTES +
		                                 ffs_block_count(header->payload_bytes) * sizeof(uint32_t);
	case FFS_OP_CONNECT_QP: /* of an otherwise silent connection: what it owes has its own way */
		return !conn->local && header->count == 1 && header->payload_bytes == 0 &&
		       header->flags <= FFS_CONNECT_CONFIRM && header->body_bytes == FFS_QP_END_BYTES &&
		       conn->queued == 0 && conn->unanswered == 0;
	case FFS_OP_PING:
		return header->count == 0 && header->body_bytes == 0 && header->payload_bytes == 0;
	default:
		return false;
	}
}

/* ---------------------------------------------------------------------------- start of a frame */

struct ffs_request *ffs_request_new(const struct ffs_header *header, size_t descriptor_bytes)
{
	struct ffs_request *request = ffs_sys_malloc(sizeof(*request) + descriptor_bytes);
	if (request == NULL)
		return NULL;
	memset(request, 0, sizeof(*request));
	request->header = *header;
	request->count = header->count;
	if (header->deadline_ms != 0)
		request->expires_ns = ffs_monotonic_ns() + header->deadline_ms * UINT64_C(1000000);
	return request;
}

/* READ, or another request with a body and no payload. */
static void start_read(struct ffs_conn *conn)
{
	conn->request = ffs_request_new(&conn->header, conn->header.body_bytes);
	if (conn->request == NULL)
		ffs_conn_close(conn);
	else
		conn->state = FFS_RECEIVE_BODY;
}

/* Answer a write that gets no buffer, and read past its payload. */
static void refuse_write(struct ffs_conn *conn, uint16_t status)
{
	struct ffs_write *write = conn->write;
	conn->write = NULL;
	ffs_write_answer(conn, write, status);
	conn->state = FFS_RECEIVE_DISCARD;
}

/* Try to get the buffer for the write whose header is here; false if it has to wait. */
static bool take_buffer(struct ffs_conn *conn)
{
	struct ffs_write *write = conn->write;
	enum ffs_buffer_result result =
		ffs_buffers_take(&conn->loop->group->buffers[conn->hop], conn->header.payload_bytes,
	                     conn->ticket, &write->buffer);
	if (result == FFS_BUFFER_WAIT)
		return false;
	if (result == FFS_BUFFER_GIVEN)
		conn->state = FFS_RECEIVE_BODY;
	else
		refuse_write(conn, FFS_ERR_BUSY);
	return true;
}

static void start_waiting(struct ffs_conn *conn)
{
	struct ffs_loop *loop = conn->loop;
	conn->ticket = ffs_buffers_ticket(&loop->group->buffers[conn->hop]);
	conn->state = FFS_RECEIVE_WAITING;
	struct ffs_conn **link = &loop->waiting[conn->hop];
	while (*link != NULL)
		link = &(*link)->waiting_next;
	conn->waiting_next = NULL;
	*link = conn;
	/* Kicks us if memory came back meanwhile. */
	ffs_loop_queue_changed(loop, conn->hop);
}

bool ffs_conn_want_buffer(struct ffs_conn *conn)
{
	if (take_buffer(conn))
		return true;
	start_waiting(conn);
	return false;
}

static void start_write(struct ffs_conn *conn)
{
	conn->hop = conn->header.flags;
	conn->has_hop = true;
	conn->write = ffs_write_new(conn, &conn->header);
	if (conn->write == NULL)
		ffs_conn_close(conn);
	else if (conn->grants != NULL && !ffs_grants_allow(conn, conn->header.blob, FFS_MAY_WRITE)) {
		ffs_tell_refused(conn, &conn->header);
		refuse_write(conn, FFS_ERR_GRANT);
	} else
		(void)ffs_conn_want_buffer(conn);
}

static void start_ping(struct ffs_conn *conn)
{
	struct ffs_request *reply = ffs_sys_calloc(1, sizeof(*reply));
	if (reply == NULL) {
		ffs_conn_close(conn);
		return;
	}
	reply->header = conn->header;
	reply->header.op |= FFS_REPLY_BIT;
	ffs_conn_begin(conn);
	ffs_conn_queue(conn, reply);
}

/* A CONNECT_QP waits to be answered: what came behind it would be taken for what came by RDMA. */
static bool goes_over(const struct ffs_conn *conn)
{
	return conn->queue_head != NULL && conn->queue_head->header.op == FFS_OP_CONNECT_QP;
}

/* The 64 bytes of a header are here: check them and get ready for what they announce. */
static void start_frame(struct ffs_conn *conn)
{
	conn->header_used = 0;
	conn->body_used = 0;
	conn->payload_used = 0;
	conn->checked_bytes = 0;
	if (goes_over(conn) || ffs_header_unpack(&conn->header, conn->header_bytes) != FFS_FRAME_GOOD ||
	    !header_makes_sense(conn)) {
		conn->loop->counts.errors++;
		ffs_conn_close(conn);
		return;
	}
	if (conn->header.op == FFS_OP_WRITE)
		start_write(conn);
	else if (conn->header.op == FFS_OP_PING)
		start_ping(conn);
	else
		start_read(conn);
}

/* ------------------------------------------------------------------------------ end of a frame */

void ffs_request_end(struct ffs_request *request, uint16_t status)
{
	request->header.status = status;
	request->header.op |= FFS_REPLY_BIT;
	request->header.count = 0;
	request->header.body_bytes = 0;
	request->count = 0;
}

/* Whether its descriptors name blobs, each of which has to be granted to a token's connection. */
static bool names_blobs(const struct ffs_request *request)
{
	return request->header.op != FFS_OP_GRANT && request->header.op != FFS_OP_RELEASE &&
	       request->header.op != FFS_OP_CONNECT_QP;
}

/* False if it broke the protocol. */
static bool finish_read(struct ffs_conn *conn)
{
	struct ffs_request *request = conn->request;
	conn->request = NULL;
	request->received_ns = conn->loop->now_ns;
	bool good = true;
	if (conn->grants != NULL && names_blobs(request) && !ffs_grants_allow_reads(conn, request)) {
		ffs_tell_refused_read(conn, request);
		ffs_request_end(request, FFS_ERR_GRANT);
		ffs_conn_queue(conn, request);
		return true;
	}
	switch (request->header.op) {
	case FFS_OP_GRANT:
		good = ffs_grants_take(conn, request);
		if (!good)
			ffs_tell_refused(conn, &request->header);
		free(request);
		return good;
	case FFS_OP_RELEASE:
		good = ffs_release(conn, request);
		free(request);
		return good;
	case FFS_OP_SUSPECT:
		ffs_request_end(request, ffs_suspect(conn, request));
		break;
	case FFS_OP_LIST:
		good = ffs_list_makes_sense(request);
		break;
	case FFS_OP_CONNECT_QP:
		if (ffs_rdma_is_ready(conn, request))
			break;
		conn->request = request;
		conn->state = FFS_RECEIVE_WAITING;
		return true;
	default:
		break;
	}
	ffs_conn_queue(conn, request);
	return good;
}

void ffs_conn_resume(struct ffs_conn *conn)
{
	if (conn->ahead != NULL) { /* what came behind it would be taken for what came by RDMA */
		conn->loop->counts.errors++;
		ffs_conn_close(conn);
		return;
	}
	ffs_conn_queue(conn, conn->request);
	conn->request = NULL;
	conn->state = FFS_RECEIVE_HEADER;
	ffs_conn_send(conn);
	ffs_conn_note(conn);
	ffs_conn_watch(conn);
}

void ffs_conn_finish_write(struct ffs_conn *conn, struct ffs_write *write, bool right)
{
	conn->loop->counts.write_bytes += write->put.length;
	if (!right) {
		conn->loop->counts.errors++;
		ffs_write_answer(conn, write, FFS_ERR_CHECKSUM);
	} else if (ffs_write_announce(write) != 0) {
		ffs_write_answer(conn, write, FFS_ERR_BUSY);
	} else {
		conn->unanswered++;
	}
}

static void finish_write(struct ffs_conn *conn)
{
	struct ffs_write *write = conn->write;
	conn->write = NULL;
	ffs_conn_finish_write(conn, write, conn->checked_bytes == conn->header.payload_bytes);
}

bool ffs_write_take_descriptor(struct ffs_write *write, uint32_t payload_bytes)
{
	struct ffs_write_descriptor descriptor;
	ffs_write_descriptor_unpack(&descriptor, write->body);
	write->put.chunk = descriptor.chunk;
	write->target = descriptor.target;
	write->event.chain = descriptor.chain;
	return descriptor.length == payload_bytes;
}

/* Check what has arrived of the payload, whole blocks and the end. A wrong block stays unchecked.
 */
static void check_blocks(struct ffs_conn *conn, uint32_t before)
{
	const struct ffs_write *write = conn->write;
	uint32_t end = conn->payload_used;
	if (end != conn->header.payload_bytes)
		end -= end % FFS_BLOCK_BYTES;
	/* Blocks before this piece must all have held, or the chunk is lost already. */
	uint32_t start = before - before % FFS_BLOCK_BYTES;
	if (conn->checked_bytes != start || end <= start)
		return;
	uint32_t first = start / FFS_BLOCK_BYTES;
	size_t right =
		ffs_crc32c_check(write->buffer.bytes + start, end - start, write->put.blob,
	                     write->put.chunk, first, write->put.crcs + first * sizeof(uint32_t));
	if (right == ffs_block_count(end - start))
		conn->checked_bytes = end;
}

/* ------------------------------------------------------------------------------------ receiving */

/* Where the next byte of the frame's body belongs; NULL: nowhere, nobody wants it. */
static uint8_t *body_place(struct ffs_conn *conn)
{
	if (conn->request != NULL)
		return conn->request->descriptors + conn->body_used;
	return conn->write != NULL ? conn->write->body + conn->body_used : NULL;
}

static uint8_t *payload_place(struct ffs_conn *conn)
{
	return conn->write != NULL ? conn->write->buffer.bytes + conn->payload_used : NULL;
}

/* Where the next bytes go; returns how many parts, `room` the bytes in them, `placed` those of them
 * that are the current frame's and go where they belong. The others go to the loop's scratch. */
static int lay_out(struct ffs_conn *conn, struct iovec parts[PARTS_MAX], size_t *room,
                   size_t *placed)
{
	int count = 0;
	bool ahead = true;
	uint32_t body_left = conn->header.body_bytes - conn->body_used;
	uint32_t payload_left = conn->header.payload_bytes - conn->payload_used;
	size_t scratch_room = AHEAD_BYTES;
	*placed = 0;
	if (conn->state == FFS_RECEIVE_DISCARD) {
		size_t left = (size_t)body_left + payload_left;
		size_t size = sizeof(conn->loop->scratch);
		scratch_room = left < size ? left : size;
	} else if (conn->state != FFS_RECEIVE_HEADER) {
		if (body_left > 0)
			parts[count++] = (struct iovec){body_place(conn), body_left};
		if (payload_left > 0) {
			uint32_t piece =
				payload_left < PAYLOAD_PIECE_BYTES ? payload_left : PAYLOAD_PIECE_BYTES;
			parts[count++] = (struct iovec){payload_place(conn), piece};
			ahead = piece == payload_left;
		}
	}
	for (int i = 0; i < count; i++)
		*placed += parts[i].iov_len;
	*room = *placed;
	if (ahead) {
		parts[count++] = (struct iovec){conn->loop->scratch, scratch_room};
		*room += scratch_room;
	}
	return count;
}

/* Account for bytes that belong at `place`; unless `from` is NULL they are still there. */
static uint32_t consume(uint8_t *place, const uint8_t *from, size_t got, uint32_t left)
{
	uint32_t taken = got < left ? (uint32_t)got : left;
	if (from != NULL && place != NULL)
		memcpy(place, from, taken);
	return taken;
}

/* All of the current frame is here; false if it is broken. */
static bool finish_frame(struct ffs_conn *conn)
{
	conn->state = FFS_RECEIVE_HEADER;
	ffs_conn_begin(conn);
	if (conn->request != NULL && !finish_read(conn))
		return false;
	if (conn->write != NULL)
		finish_write(conn);
	return true;
}

/*
 * Account for up to `got` bytes of the current frame's body and payload, which are where they
 * belong, or `from` on. Returns how many, 0 if the frame is broken.
 */
static size_t advance(struct ffs_conn *conn, const uint8_t *from, size_t got)
{
	uint32_t body = consume(body_place(conn), from, got, conn->header.body_bytes - conn->body_used);
	conn->body_used += body;
	bool body_done = conn->body_used == conn->header.body_bytes;
	if (conn->write != NULL && body > 0 && body_done &&
	    !ffs_write_take_descriptor(conn->write, conn->header.payload_bytes))
		return 0;
	uint32_t before = conn->payload_used;
	uint32_t payload = consume(payload_place(conn), from == NULL ? NULL : from + body, got - body,
	                           conn->header.payload_bytes - before);
	conn->payload_used += payload;
	if (conn->write != NULL && payload > 0)
		check_blocks(conn, before);
	if (conn->write != NULL && body_done)
		conn->state = FFS_RECEIVE_PAYLOAD;
	if (body_done && conn->payload_used == conn->header.payload_bytes && !finish_frame(conn))
		return 0;
	return (size_t)body + payload;
}

/* Take what has arrived ahead of its place; returns how many of the bytes, 0 on a broken frame. */
static size_t take_one(struct ffs_conn *conn, const uint8_t *bytes, size_t count)
{
	if (conn->state != FFS_RECEIVE_HEADER)
		return advance(conn, bytes, count);
	uint32_t taken = consume(conn->header_bytes + conn->header_used, bytes, count,
	                         FFS_FRAME_HEADER_BYTES - conn->header_used);
	conn->header_used += taken;
	if (conn->header_used == FFS_FRAME_HEADER_BYTES)
		start_frame(conn);
	return taken;
}

/* The same until the bytes are used up, or a write waits for its buffer; returns how many are
 * left. A broken frame closes the connection. */
static size_t take_ahead(struct ffs_conn *conn, const uint8_t *bytes, size_t count)
{
	while (count > 0 && conn->fd >= 0 && conn->state != FFS_RECEIVE_WAITING) {
		size_t taken = take_one(conn, bytes, count);
		if (taken == 0)
			ffs_conn_close(conn);
		bytes += taken;
		count -= taken;
	}
	return conn->fd < 0 ? 0 : count;
}

/* Keep what cannot be used before a write has its buffer. */
static void keep_ahead(struct ffs_conn *conn, const uint8_t *bytes, size_t count)
{
	conn->ahead = ffs_sys_malloc(sizeof(*conn->ahead) + count);
	if (conn->ahead == NULL) {
		ffs_conn_close(conn);
		return;
	}
	conn->ahead->at = 0;
	conn->ahead->count = (uint32_t)count;
	memcpy(conn->ahead->bytes, bytes, count);
}

/* The write has its buffer, or was refused: use what was kept meanwhile. */
static void go_on(struct ffs_conn *conn)
{
	struct ffs_ahead *ahead = conn->ahead;
	if (conn->rdma != NULL) {
		ffs_rdma_go_on(conn);
		return;
	}
	if (ahead == NULL)
		return;
	conn->ahead = NULL; /* closing would free it */
	size_t left = take_ahead(conn, ahead->bytes + ahead->at, ahead->count - ahead->at);
	ahead->at = ahead->count - (uint32_t)left;
	if (left > 0)
		conn->ahead = ahead;
	else
		free(ahead);
}

/* What one receive has brought: first what is in its place, then what lies in the scratch. */
static void take(struct ffs_conn *conn, size_t got, size_t placed)
{
	size_t in_place = got < placed ? got : placed;
	if (in_place > 0 && advance(conn, NULL, in_place) == 0) {
		ffs_conn_close(conn);
		return;
	}
	const uint8_t *bytes = conn->loop->scratch;
	size_t count = got - in_place;
	size_t left = take_ahead(conn, bytes, count);
	if (left > 0)
		keep_ahead(conn, bytes + (count - left), left);
}

/* One receive; the bytes it brought, 0 if there is nothing (more) or the connection is closed. */
static size_t receive_once(struct ffs_conn *conn, bool *drained)
{
	struct iovec parts[PARTS_MAX];
	size_t room;
	size_t placed;
	int count = lay_out(conn, parts, &room, &placed);
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
	ssize_t got;
	do
		got = ffs_sys_recvmsg(conn->fd, &message, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return 0;
	if (got <= 0) {
		ffs_conn_close(conn);
		return 0;
	}
	take(conn, (size_t)got, placed);
	conn->begun_bytes += (uint64_t)got;
	*drained = (size_t)got < room;
	return (size_t)got;
}

/* By RDMA: the socket carries nothing but its end, which counts whatever else is waited for. */
static void receive_end(struct ffs_conn *conn)
{
	uint8_t byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t got = ffs_sys_recvmsg(conn->fd, &message, 0);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	if (got > 0)
		conn->loop->counts.errors++;
	ffs_conn_close(conn);
}

void ffs_conn_receive(struct ffs_conn *conn)
{
	size_t total = 0;
	bool drained = false;
	if (conn->rdma != NULL) {
		receive_end(conn);
		return;
	}
	while (total < ROUND_BYTES && !drained && conn->state != FFS_RECEIVE_WAITING &&
	       conn->queued < FFS_PENDING_REQUESTS_MAX &&
	       conn->queued_descriptors < FFS_PENDING_DESCRIPTORS_MAX) {
		size_t got = receive_once(conn, &drained);
		if (got == 0 || conn->fd < 0)
			return;
		total += got;
	}
}

void ffs_loop_queue_changed(struct ffs_loop *loop, uint8_t hop)
{
	const struct ffs_conn *oldest = loop->waiting[hop];
	ffs_buffers_set_oldest(&loop->group->buffers[hop], loop->index,
	                       oldest == NULL ? FFS_NO_TICKET : oldest->ticket);
}

static void serve_hop(struct ffs_loop *loop, uint8_t hop)
{
	while (loop->waiting[hop] != NULL) {
		struct ffs_conn *conn = loop->waiting[hop];
		if (!take_buffer(conn))
			return;
		loop->waiting[hop] = conn->waiting_next;
		conn->ticket = FFS_NO_TICKET;
		ffs_loop_queue_changed(loop, hop);
		go_on(conn);
		ffs_conn_watch(conn);
	}
}

void ffs_loop_serve_waiting(struct ffs_loop *loop)
{
	for (uint8_t hop = 0; hop < FFS_HOPS_MAX; hop++)
		serve_hop(loop, hop);
}

void ffs_conn_forget(struct ffs_conn *conn)
{
	free(conn->ahead);
	conn->ahead = NULL;
	free(conn->request);
	conn->request = NULL;
	if (conn->write != NULL)
		ffs_write_free(conn->write);
	conn->write = NULL;
}
