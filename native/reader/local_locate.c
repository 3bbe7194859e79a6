/*
 * Finding out where chunks lie: waves, LOCATE and its answer (local.h).
 *
 * Previous hop: drive.c. Next: the daemon's locate.c; then local.c reads.
 *
 * Whatever the answer says is held against what was asked and against the bounds before any of it
 * is believed, and descriptors belong to the table from the receive on, so that none is lost.
 */
#include <errno.h>
#include <string.h>

#include "core/sys.h"
#include "reader/batch.h"

#define NONE UINT32_MAX

static struct ffs_local *local_of(const struct ffs_leg *leg)
{
	return leg->conn->local;
}

/* ---------------------------------------------------------------------------------------- waves */

/* The wave takes an operation in; false if its chunk is unknown and cannot be asked for now. */
static bool take_in(struct ffs_local *local, struct ffs_operation *op)
{
	uint32_t at = ffs_local_find(local, op->blob, op->chunk, op->target);
	bool asks = at == NONE || (local->located[at].state == FFS_LOCATED_FAILED &&
	                           local->located[at].wave != local->wave);
	if (asks && local->asked_count == FFS_LOCATE_CHUNKS_MAX)
		return false;
	if (at != NONE) /* not with the first use: what is read once must not drive others out */
		local->located[at].recent = true;
	else
		at = ffs_local_add(local, op->blob, op->chunk, op->target);
	if (at == NONE)
		return false;
	struct ffs_located *located = &local->located[at];
	if (asks) {
		located->state = FFS_LOCATED_ASKED;
		local->asked[local->asked_count++] = at;
	}
	located->wave = local->wave;
	op->located = at;
	return true;
}

/* Choose the operations of the next wave; false if there is no memory for even one. */
static bool begin_wave(struct ffs_leg *leg)
{
	struct ffs_local *local = local_of(leg);
	local->wave++;
	local->asked_count = local->release_count = local->piece_bytes = 0;
	local->read_at = local->ahead = leg->next;
	while (leg->next < leg->count && take_in(local, &leg->batch->ops[leg->order[leg->next]]))
		leg->next++;
	leg->last_byte_ns = leg->batch->now_ns;
	return leg->next > local->read_at;
}

/* -------------------------------------------------------------------------------------- request */

static uint8_t *pack_release(const struct ffs_leg *leg, uint8_t *out)
{
	const struct ffs_local *local = local_of(leg);
	if (local->release_count == 0)
		return out;
	struct ffs_header header = {.op = FFS_OP_RELEASE,
	                            .priority = leg->conn->priority,
	                            .count = (uint16_t)local->release_count,
	                            .trace_id = leg->batch->trace_id,
	                            .body_bytes = local->release_count * FFS_PIN_BYTES};
	ffs_header_pack(out, &header);
	out += FFS_FRAME_HEADER_BYTES;
	for (uint32_t i = 0; i < local->release_count; i++, out += FFS_PIN_BYTES)
		ffs_store_u32(out, local->release[i]);
	return out;
}

static uint8_t *pack_locate(struct ffs_leg *leg, uint8_t *out)
{
	const struct ffs_local *local = local_of(leg);
	uint32_t wave_count = leg->next - local->read_at;
	struct ffs_header header = {.op = FFS_OP_LOCATE,
	                            .flags = local->mapped ? FFS_FLAG_MAPPED : 0,
	                            .priority = leg->conn->priority,
	                            .count = (uint16_t)local->asked_count,
	                            .request_id = ffs_leg_ask(leg, local->read_at, wave_count, 0),
	                            .trace_id = leg->batch->trace_id,
	                            .deadline_ms = ffs_leg_deadline_ms(leg),
	                            .body_bytes = local->asked_count * FFS_READ_DESCRIPTOR_BYTES};
	ffs_header_pack(out, &header);
	out += FFS_FRAME_HEADER_BYTES;
	for (uint32_t i = 0; i < local->asked_count; i++, out += FFS_READ_DESCRIPTOR_BYTES) {
		const struct ffs_located *located = &local->located[local->asked[i]];
		struct ffs_read_descriptor wanted = {
			.blob = located->blob, .chunk = located->chunk, .target = located->target};
		ffs_read_descriptor_pack(out, &wanted);
	}
	return out;
}

_Static_assert(2 * FFS_FRAME_HEADER_BYTES + FFS_LOCATE_CHUNKS_MAX * FFS_PIN_BYTES +
                       FFS_LOCATE_CHUNKS_MAX * FFS_READ_DESCRIPTOR_BYTES <=
                   sizeof(((struct ffs_scratch *)0)->send),
               "RELEASE and LOCATE fit the send scratch together");

enum ffs_step ffs_local_send(struct ffs_leg *leg)
{
	struct ffs_local *local = local_of(leg);
	bool between = leg->request_count == 0 && (leg->next == 0 || local->read_at == leg->next);
	if (between && leg->next < leg->count) {
		if (!begin_wave(leg))
			return ffs_leg_fail(leg, FFS_ERR_BUSY);
		if (local->asked_count > 0) {
			uint8_t *send = leg->conn->scratch->send;
			leg->send_at = 0;
			leg->send_end = (size_t)(pack_locate(leg, pack_release(leg, send)) - send);
		}
	}
	return ffs_leg_sending(leg) ? ffs_leg_flush(leg) : FFS_STEP_MORE;
}

/* --------------------------------------------------------------------------------------- answer */

/* Keep the descriptors that came beside the bytes; false if some did not fit this process. */
static bool keep_arrived(struct ffs_local *local, struct msghdr *message)
{
	bool whole = (message->msg_flags & MSG_CTRUNC) == 0;
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL;
	     part = CMSG_NXTHDR(message, part)) {
		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
			if (local->arrived_count < 2 * FFS_LOCATE_FILES_MAX) {
				local->arrived[local->arrived_count++] = fd;
			} else {
				(void)ffs_sys_close(fd);
				whole = false;
			}
		}
	}
	return whole;
}

/* One receive of up to `left` bytes of the answer and what comes beside them. */
static enum ffs_step receive_some(struct ffs_leg *leg, size_t left, size_t *received)
{
	struct ffs_batch *batch = leg->batch;
	struct ffs_scratch *scratch = leg->conn->scratch;
	uint32_t head = leg->have < FFS_FRAME_HEADER_BYTES ? FFS_FRAME_HEADER_BYTES - leg->have : 0;
	uint32_t in_body = leg->have - (FFS_FRAME_HEADER_BYTES - head);
	struct iovec parts[2] = {{scratch->header + (FFS_FRAME_HEADER_BYTES - head), head},
	                         {scratch->body + in_body, left - head}};
	union {
		struct cmsghdr header; /* for its alignment */
		uint8_t bytes[CMSG_SPACE(2 * FFS_LOCATE_FILES_MAX * sizeof(int))];
	} control;
	struct msghdr message = {.msg_iov = parts,
	                         .msg_iovlen = 2,
	                         .msg_control = &control,
	                         .msg_controllen = sizeof(control)};
	*received = 0;
	batch->counts.syscalls_recv++;
	int flags = MSG_CMSG_CLOEXEC | (batch->waits ? 0 : MSG_DONTWAIT);
	ssize_t got = ffs_sys_recvmsg(ffs_conn_fd(leg->conn), &message, flags);
	if (batch->waits) {
		batch->signalled = got < 0 && errno == EINTR;
		batch->now_ns = ffs_now_ns();
	}
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return FFS_STEP_DRY;
	if (got <= 0)
		return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	if (!keep_arrived(local_of(leg), &message))
		return ffs_leg_fail(leg, FFS_ERR_BUSY); /* no descriptor is free here */
	*received = (size_t)got;
	batch->counts.wire_bytes_received += (uint64_t)got;
	leg->last_byte_ns = batch->now_ns;
	return (size_t)got == left ? FFS_STEP_MORE : FFS_STEP_DRY;
}

/* Believe one location if it can be true. `files` counts those that are known or have come. */
static bool believe(struct ffs_located *located, const struct ffs_location *location,
                    uint32_t *files, uint32_t files_max)
{
	if (location->status == FFS_STATUS_PENDING)
		return false;
	located->status = location->status;
	located->state = FFS_LOCATED_FAILED;
	if (location->status != FFS_OK)
		return true;
	if (location->file > *files || location->file >= files_max ||
	    location->length > FFS_CHUNK_BYTES_MAX || location->data_offset > INT64_MAX / 2 ||
	    location->crc_offset > INT64_MAX / 2)
		return false;
	*files += location->file == *files; /* numbers are given in order, with the first use */
	located->state = FFS_LOCATED_KNOWN;
	located->file = location->file;
	located->pin = location->pin;
	located->length = location->length;
	located->data_offset = location->data_offset;
	located->crc_offset = location->crc_offset;
	return true;
}

static enum ffs_status take_locations(struct ffs_leg *leg)
{
	struct ffs_local *local = local_of(leg);
	uint32_t files = local->file_count;
	for (uint32_t i = 0; i < local->asked_count; i++) {
		struct ffs_location location;
		ffs_location_unpack(&location, leg->conn->scratch->body + (size_t)i * FFS_LOCATION_BYTES);
		if (!believe(&local->located[local->asked[i]], &location, &files, FFS_LOCATE_FILES_MAX))
			return FFS_ERR_PROTOCOL;
	}
	if (local->arrived_count != 2 * (files - local->file_count))
		return FFS_ERR_PROTOCOL;
	for (uint32_t i = 0; local->file_count < files; i += 2) {
		local->data_fds[local->file_count] = local->arrived[i];
		local->crc_fds[local->file_count++] = local->arrived[i + 1];
	}
	local->arrived_count = 0;
	return FFS_OK;
}

/* The header is in: does it answer what was asked? */
static enum ffs_status take_header(struct ffs_leg *leg, size_t *body_bytes)
{
	const struct ffs_local *local = local_of(leg);
	const struct ffs_header *frame = &leg->frame;
	*body_bytes = local->asked_count * FFS_LOCATION_BYTES;
	if (ffs_header_unpack(&leg->frame, leg->conn->scratch->header) != FFS_FRAME_GOOD ||
	    frame->op != (FFS_OP_LOCATE | FFS_REPLY_BIT) || frame->payload_bytes != 0 ||
	    frame->status == FFS_STATUS_PENDING || frame->request_id != leg->requests[0].id)
		return FFS_ERR_PROTOCOL;
	if (frame->status != FFS_OK)
		*body_bytes = 0;
	uint32_t count = frame->status == FFS_OK ? local->asked_count : 0;
	return frame->count == count && frame->body_bytes == *body_bytes ? FFS_OK : FFS_ERR_PROTOCOL;
}

static enum ffs_status take_answer(struct ffs_leg *leg)
{
	struct ffs_local *local = local_of(leg);
	leg->batch->counts.frames++;
	leg->request_count = 0;
	leg->have = 0;
	if (leg->frame.status == FFS_OK)
		return take_locations(leg);
	for (uint32_t i = 0; i < local->asked_count; i++) {
		local->located[local->asked[i]].state = FFS_LOCATED_FAILED;
		local->located[local->asked[i]].status = leg->frame.status;
	}
	return local->arrived_count == 0 ? FFS_OK : FFS_ERR_PROTOCOL;
}

enum ffs_step ffs_local_receive(struct ffs_leg *leg)
{
	if (leg->request_count == 0) /* nothing is due: it is the end, or what nobody asked for */
		return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	size_t body_bytes = local_of(leg)->asked_count * FFS_LOCATION_BYTES, received;
	enum ffs_step step =
		receive_some(leg, FFS_FRAME_HEADER_BYTES + body_bytes - leg->have, &received);
	if (step == FFS_STEP_DEAD)
		return step;
	leg->have += (uint32_t)received;
	if (leg->have < FFS_FRAME_HEADER_BYTES)
		return FFS_STEP_DRY;
	enum ffs_status status = take_header(leg, &body_bytes);
	if (status == FFS_OK && leg->have > FFS_FRAME_HEADER_BYTES + body_bytes)
		status = FFS_ERR_PROTOCOL;
	if (status == FFS_OK && leg->have == FFS_FRAME_HEADER_BYTES + body_bytes)
		status = take_answer(leg);
	return status == FFS_OK ? FFS_STEP_DRY : ffs_leg_fail(leg, status);
}
