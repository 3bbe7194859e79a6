/*
 * READ: requests of many descriptors out, replies straight into the caller's memory.
 *
 * Read path: drive.c (poll loop) -> THIS -> (wire) -> the daemon's receive.c and serve.c; what has
 * arrived goes through check.c.
 *
 * What a reply says is reply.c's; only the pieces that it makes name destinations.
 *
 * Few receives: the CRCs come together with the payload, which one recvmsg spreads over up to
 * FFS_IOVECS_MAX parts, edges to scratch; where a frame ends and more are due, the next header and
 * its first entry come with it. If one small range is all that is outstanding, the layout of its
 * reply is known beforehand and one recvmsg takes all of it. Nothing is read ahead that could be
 * payload, so nothing is ever moved: what may come in place of what was expected (a refusal) is
 * shorter, and then only the beginning of another header lies in the wrong place.
 */
#include <string.h>

#include "core/limits.h"
#include "reader/batch.h"

#define DESCRIPTORS_AT FFS_FRAME_HEADER_BYTES

/* ------------------------------------------------------------------------------------- requests */

/* Whether another request may go; takes operations for it where the leg has none left. */
static bool may_ask(struct ffs_leg *leg)
{
	if (ffs_leg_sending(leg) || leg->request_count == FFS_READ_REQUESTS_MAX ||
	    !ffs_leg_has_room(leg))
		return false;
	return leg->next < leg->count || ffs_queue_take(leg);
}

static void pack_descriptor(uint8_t *out, const struct ffs_operation *op)
{
	struct ffs_read_descriptor descriptor = {.blob = op->blob,
	                                         .chunk = op->chunk,
	                                         .target = op->target,
	                                         .offset = op->offset,
	                                         .length = op->length};
	ffs_read_descriptor_pack(out, &descriptor);
}

/* As many of the next operations as one request holds; at least one. */
static void build_request(struct ffs_leg *leg)
{
	struct ffs_batch *batch = leg->batch;
	uint8_t *send = leg->conn->scratch->send;
	uint32_t first = leg->next, count = 0;
	uint64_t bytes = 0;
	while (first + count < leg->count && count < FFS_FRAME_DESCRIPTORS_MAX) {
		const struct ffs_operation *op = &batch->ops[leg->order[first + count]];
		uint64_t more = ffs_op_bytes(batch, op);
		if (count > 0 && bytes + more > FFS_REQUEST_BYTES)
			break;
		pack_descriptor(send + DESCRIPTORS_AT + (size_t)count * FFS_READ_DESCRIPTOR_BYTES, op);
		bytes += more;
		count++;
	}
	struct ffs_header header = {.op = FFS_OP_READ,
	                            .priority = leg->conn->priority,
	                            .flags = batch->verify ? 0 : FFS_FLAG_NO_CRC,
	                            .count = (uint16_t)count,
	                            .request_id = ffs_leg_ask(leg, first, count, bytes),
	                            .trace_id = batch->trace_id,
	                            .deadline_ms = ffs_leg_deadline_ms(leg),
	                            .body_bytes = count * FFS_READ_DESCRIPTOR_BYTES};
	ffs_header_pack(send, &header);
	leg->next = first + count;
	leg->send_at = 0;
	leg->send_end = DESCRIPTORS_AT + header.body_bytes;
}

static enum ffs_step send_next(struct ffs_leg *leg)
{
	for (;;) {
		if (may_ask(leg))
			build_request(leg);
		if (!ffs_leg_sending(leg))
			return FFS_STEP_MORE;
		enum ffs_step step = ffs_leg_flush(leg);
		if (step != FFS_STEP_MORE)
			return step;
	}
}

/* -------------------------------------------------------------------------------------- payload */

/* Where a payload's bytes go: the parts of one receive. */
struct parts {
	struct iovec *iovecs;
	size_t count;
	uint32_t bytes; /* payload in all */
	uint32_t edge_bytes;
};

/* The next contiguous stretch of a piece from `done` on: false means scratch, true the caller. */
static bool stretch(const struct ffs_batch *batch, const struct ffs_operation *op, uint32_t bytes,
                    uint32_t done, uint32_t *length)
{
	uint32_t head = batch->verify ? ffs_head_bytes(op->offset) : 0;
	uint32_t end = head + op->length;
	if (done < head || done >= end) {
		*length = (done < head ? head : bytes) - done;
		return false;
	}
	*length = end - done;
	return true;
}

static void add_part(struct parts *parts, void *base, uint32_t length)
{
	parts->iovecs[parts->count++] = (struct iovec){.iov_base = base, .iov_len = length};
	parts->bytes += length;
}

/* Lay out up to `limit` bytes of payload from where the leg is, behind the `first` iovecs that are
 * the caller's; edges share the scratch in turn. */
static struct parts lay_out(struct ffs_leg *leg, uint32_t limit, size_t first)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	struct parts parts = {.iovecs = scratch->iovecs + first};
	uint32_t done = leg->piece_done;
	for (uint32_t at = leg->piece_at; at < leg->piece_count; at++, done = 0) {
		const struct ffs_piece *piece = &scratch->pieces[at];
		const struct ffs_operation *op = &leg->batch->ops[piece->op];
		uint32_t head = leg->batch->verify ? ffs_head_bytes(op->offset) : 0;
		while (done < piece->bytes) {
			uint32_t length;
			bool wanted = stretch(leg->batch, op, piece->bytes, done, &length);
			length = length < limit - parts.bytes ? length : limit - parts.bytes;
			if (length == 0 || parts.count == FFS_IOVECS_MAX)
				return parts;
			add_part(&parts,
			         wanted ? op->memory + (done - head) : scratch->edges + parts.edge_bytes,
			         length);
			parts.edge_bytes += wanted ? 0 : length;
			done += length;
		}
	}
	return parts;
}

/* `bytes` have arrived in the laid out parts: check them, and finish the pieces that are whole. */
static void land(struct ffs_leg *leg, const struct parts *parts, size_t bytes)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	for (size_t i = 0; i < parts->count && bytes > 0; i++) {
		const struct iovec *part = &parts->iovecs[i];
		uint32_t length = (uint32_t)(part->iov_len < bytes ? part->iov_len : bytes);
		if (leg->batch->verify)
			ffs_check_feed(leg, part->iov_base, length);
		uint8_t *base = part->iov_base;
		if (base >= scratch->edges && base < scratch->edges + sizeof(scratch->edges))
			leg->batch->counts.edge_bytes += length;
		leg->piece_done += length;
		bytes -= length;
		if (leg->piece_done == scratch->pieces[leg->piece_at].bytes)
			ffs_reply_finish_piece(leg);
	}
	ffs_check_flush(leg);
	if (leg->piece_at == leg->piece_count) {
		leg->receive = FFS_RECEIVE_HEADER;
		leg->have = 0;
	}
}

/* More replies are due after the frame whose payload is being received. */
static bool more_after_frame(const struct ffs_leg *leg)
{
	uint32_t unanswered = 0;
	for (uint32_t i = 0; i < leg->request_count; i++)
		unanswered += leg->requests[i].unanswered;
	return unanswered > leg->piece_count - leg->piece_at;
}

/* ------------------------------------------------------------------------------- receiving */

/* Fail the leg unless the status is 0. */
static enum ffs_step checked(struct ffs_leg *leg, enum ffs_status status, enum ffs_step step)
{
	return status == FFS_OK ? step : ffs_leg_fail(leg, status);
}

/* Room for the next frame's header and first entry, or for what is missing of them. */
static size_t add_front(struct ffs_leg *leg, struct iovec *iovecs, uint32_t have)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	iovecs[0] = (struct iovec){scratch->header + have, FFS_FRAME_HEADER_BYTES - have};
	iovecs[1] = (struct iovec){scratch->body, FFS_REPLY_ENTRY_BYTES};
	return iovecs[0].iov_len + iovecs[1].iov_len;
}

/* `bytes` bytes of a header are in, and after a whole one the first `spill` bytes of its body. */
static enum ffs_status take_front(struct ffs_leg *leg, uint32_t bytes, uint32_t spill)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	leg->have = bytes;
	if (bytes < FFS_FRAME_HEADER_BYTES)
		return FFS_OK;
	enum ffs_status status = ffs_reply_take_header(leg);
	if (status != FFS_OK)
		return status;
	leg->have = spill;
	if (leg->receive == FFS_RECEIVE_HEADER) /* a refusal has no body: the next header begins */
		memcpy(scratch->header, scratch->body, spill);
	else if (spill >= leg->frame.count * FFS_REPLY_ENTRY_BYTES)
		return ffs_reply_take_entries(leg);
	return FFS_OK;
}

/* `bytes` more have arrived in that room. */
static enum ffs_status land_front(struct ffs_leg *leg, size_t bytes)
{
	uint32_t have = leg->have + (uint32_t)bytes;
	uint32_t head = have < FFS_FRAME_HEADER_BYTES ? have : FFS_FRAME_HEADER_BYTES;
	return take_front(leg, head, have - head);
}

static enum ffs_step receive_front(struct ffs_leg *leg)
{
	struct iovec iovecs[2];
	size_t received, total = add_front(leg, iovecs, leg->have);
	enum ffs_step step = ffs_leg_receive(leg, iovecs, 2, total, &received);
	if (step == FFS_STEP_DEAD)
		return step;
	return checked(leg, land_front(leg, received), step);
}

static enum ffs_step receive_entries(struct ffs_leg *leg)
{
	uint32_t entries = leg->frame.count * FFS_REPLY_ENTRY_BYTES;
	size_t left = entries - leg->have, received;
	struct iovec part = {.iov_base = leg->conn->scratch->body + leg->have, .iov_len = left};
	enum ffs_step step = ffs_leg_receive(leg, &part, 1, left, &received);
	if (step == FFS_STEP_DEAD)
		return step;
	leg->have += (uint32_t)received;
	if (leg->have < entries)
		return step;
	return checked(leg, ffs_reply_take_entries(leg), step);
}

/* `bytes` have arrived over the rest of the CRCs, the laid out payload, and the next front. */
static enum ffs_status land_all(struct ffs_leg *leg, const struct parts *parts, size_t bytes)
{
	size_t crcs = leg->frame.body_bytes - leg->have;
	crcs = crcs < bytes ? crcs : bytes;
	leg->have += (uint32_t)crcs;
	bytes -= crcs;
	size_t landed = bytes < parts->bytes ? bytes : parts->bytes;
	leg->payload_done += (uint32_t)landed;
	land(leg, parts, landed);
	/* At once, and not with the next receive: a refusal is all front, and nothing may follow it. */
	return bytes > landed ? land_front(leg, bytes - landed) : FFS_OK;
}

static enum ffs_step receive_payload(struct ffs_leg *leg)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	uint32_t crcs = leg->frame.body_bytes - leg->have;
	uint32_t limit = leg->batch->verify ? FFS_STEP_BYTES : FFS_UNCHECKED_STEP_BYTES;
	size_t first = crcs > 0 ? 1 : 0;
	struct parts parts = lay_out(leg, limit, first);
	size_t count = first + parts.count, total = crcs + parts.bytes, received;
	if (crcs > 0)
		scratch->iovecs[0] = (struct iovec){scratch->body + leg->have, crcs};
	if (parts.bytes == leg->frame.payload_bytes - leg->payload_done && more_after_frame(leg)) {
		total += add_front(leg, scratch->iovecs + count, 0);
		count += 2;
	}
	enum ffs_step step = ffs_leg_receive(leg, scratch->iovecs, count, total, &received);
	if (received == 0)
		return step;
	return checked(leg, land_all(leg, &parts, received), step);
}

/* --------------------------------------------------------------------- one range, one receive */

/* The operation whose reply is all that can come, if that reply is small; else NULL. */
static struct ffs_operation *only_op(const struct ffs_leg *leg, uint32_t *op_index)
{
	if (leg->have != 0 || leg->request_count != 1 || leg->requests[0].count != 1)
		return NULL;
	*op_index = leg->order[leg->requests[0].first];
	struct ffs_operation *op = &leg->batch->ops[*op_index];
	return ffs_op_bytes(leg->batch, op) <= FFS_STEP_BYTES ? op : NULL;
}

/* The parts of an OK reply: header, body, and what lay_out will say again when the body is in. */
static size_t expect(struct ffs_leg *leg, uint32_t op_index, uint32_t body_bytes, size_t *total)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	uint32_t bytes = (uint32_t)ffs_op_bytes(leg->batch, &leg->batch->ops[op_index]);
	scratch->pieces[0] = (struct ffs_piece){.op = op_index, .bytes = bytes};
	leg->piece_at = leg->piece_done = 0;
	leg->piece_count = 1;
	struct parts parts = lay_out(leg, FFS_STEP_BYTES, 2);
	scratch->iovecs[0] = (struct iovec){scratch->header, FFS_FRAME_HEADER_BYTES};
	scratch->iovecs[1] = (struct iovec){scratch->body, body_bytes};
	*total = FFS_FRAME_HEADER_BYTES + body_bytes + parts.bytes;
	return parts.count + 2;
}

/* Header complete, `rest` bytes after it are where `expect` put them. */
static enum ffs_status take_whole(struct ffs_leg *leg, uint32_t body_expected, size_t rest)
{
	enum ffs_status status = ffs_reply_take_header(leg);
	if (status != FFS_OK)
		return status;
	if (leg->receive == FFS_RECEIVE_HEADER) { /* refused; anything more was not asked for */
		leg->have = 0;
		return rest == 0 ? FFS_OK : FFS_ERR_PROTOCOL;
	}
	uint32_t body = leg->frame.body_bytes;
	bool failed = body == FFS_REPLY_ENTRY_BYTES && leg->frame.payload_bytes == 0;
	if (leg->frame.count != 1 || (body != body_expected && !failed))
		return FFS_ERR_PROTOCOL;
	leg->have = rest < body ? (uint32_t)rest : body;
	rest -= leg->have;
	if (leg->have < FFS_REPLY_ENTRY_BYTES)
		return FFS_OK;
	status = ffs_reply_take_entries(leg);
	if (status != FFS_OK)
		return status;
	if (leg->receive == FFS_RECEIVE_PAYLOAD && rest > 0) {
		struct parts parts = lay_out(leg, FFS_STEP_BYTES, 2);
		uint32_t landed = (uint32_t)(rest < parts.bytes ? rest : parts.bytes);
		leg->payload_done = landed;
		land(leg, &parts, landed);
		rest -= landed;
	}
	return rest == 0 ? FFS_OK : FFS_ERR_PROTOCOL;
}

static enum ffs_step receive_whole(struct ffs_leg *leg, uint32_t op_index)
{
	const struct ffs_operation *op = &leg->batch->ops[op_index];
	uint32_t blocks = ffs_block_count((uint32_t)ffs_op_bytes(leg->batch, op));
	uint32_t body_bytes = FFS_REPLY_ENTRY_BYTES + (leg->batch->verify ? 4 * blocks : 0);
	size_t total, received;
	size_t count = expect(leg, op_index, body_bytes, &total);
	enum ffs_step step = ffs_leg_receive(leg, leg->conn->scratch->iovecs, count, total, &received);
	if (step == FFS_STEP_DEAD)
		return step;
	if (received < FFS_FRAME_HEADER_BYTES) {
		leg->have = (uint32_t)received;
		return step;
	}
	return checked(leg, take_whole(leg, body_bytes, received - FFS_FRAME_HEADER_BYTES), step);
}

static enum ffs_step receive_next(struct ffs_leg *leg)
{
	uint32_t op_index;
	switch (leg->receive) {
	case FFS_RECEIVE_ENTRIES:
		return receive_entries(leg);
	case FFS_RECEIVE_PAYLOAD:
		return receive_payload(leg);
	default:
		if (only_op(leg, &op_index) != NULL)
			return receive_whole(leg, op_index);
		return receive_front(leg);
	}
}

const struct ffs_transport ffs_tcp_reads = {
	.send = send_next, .receive = receive_next, .waits = true};
