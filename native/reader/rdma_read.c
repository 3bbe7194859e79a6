/*
 * READ by RDMA: requests name where each range goes, and answers come when the bytes are there.
 *
 * Previous hop: drive.c. Next: rdma_leg.c, the daemon's storage/rdma*.c; what has landed goes
 * through check.c. A reply is read by reply.c, as over TCP: entries and CRCs are copied out of the
 * daemon's reach first, and then believed as far as they are right.
 *
 * Copies of payload: none. Edges are checked where the daemon has put them, beside the CRCs.
 */
#include <string.h>

#include "reader/rdma_state.h"

#define ADDRESS_BYTES FFS_REMOTE_ADDRESS_BYTES

#define ALIGNMENT 8u /* of each answer in the room for them */

/* -------------------------------------------------------------------------------------- requests
 */

/* What an operation may need of the room for answers: its entry, CRCs and edges. */
static uint32_t room_of(const struct ffs_batch *batch, const struct ffs_operation *op)
{
	if (!batch->verify)
		return FFS_REPLY_ENTRY_BYTES + ALIGNMENT;
	uint32_t bytes = (uint32_t)ffs_op_bytes(batch, op);
	return FFS_REPLY_ENTRY_BYTES + ALIGNMENT + 4 * ffs_block_count(bytes) + (bytes - op->length);
}

/* How many of the next operations go into one request, and their bytes. */
static uint32_t choose(const struct ffs_leg *leg, uint64_t *bytes)
{
	const struct ffs_batch *batch = leg->batch;
	uint32_t room = 0, count = 0, left = leg->count - leg->next;
	*bytes = 0;
	while (count < left && count < FFS_RDMA_FRAMES_MAX) {
		const struct ffs_operation *op = &batch->ops[leg->order[leg->next + count]];
		uint64_t more = ffs_op_bytes(batch, op);
		room += room_of(batch, op);
		if (count > 0 && (*bytes + more > FFS_REQUEST_BYTES || room > FFS_RDMA_REPLY_ROOM))
			break;
		*bytes += more;
		count++;
	}
	return count;
}

_Static_assert(ALIGNMENT + FFS_REPLY_ENTRY_BYTES + 4 * (FFS_CHUNK_BLOCKS_MAX + 2) +
                       2 * FFS_BLOCK_BYTES <=
                   FFS_RDMA_REPLY_ROOM,
               "what is said about one range, whatever its size, fits the room for answers");

_Static_assert(FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES +
                       FFS_RDMA_FRAMES_MAX * (FFS_READ_DESCRIPTOR_BYTES + ADDRESS_BYTES) <=
                   FFS_RDMA_REQUEST_ROOM,
               "the largest request fits its slot");

static enum ffs_step ask(struct ffs_leg *leg, uint32_t slot, uint32_t count, uint64_t bytes)
{
	struct ffs_batch *batch = leg->batch;
	const struct ffs_rdma *rdma = leg->conn->rdma;
	uint8_t *header_at = ffs_rdma_request_of(rdma, slot);
	uint8_t *descriptors = header_at + FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES;
	uint8_t *addresses = descriptors + (size_t)count * FFS_READ_DESCRIPTOR_BYTES;
	struct ffs_header header = {.op = FFS_OP_READ,
	                            .priority = leg->conn->priority,
	                            .flags = batch->verify ? 0 : FFS_FLAG_NO_CRC,
	                            .count = (uint16_t)count,
	                            .request_id = ffs_leg_ask(leg, leg->next, count, bytes),
	                            .trace_id = batch->trace_id,
	                            .deadline_ms = ffs_leg_deadline_ms(leg),
	                            .body_bytes = FFS_REMOTE_BYTES +
	                                          count * (FFS_READ_DESCRIPTOR_BYTES + ADDRESS_BYTES)};
	ffs_header_pack(header_at, &header);
	ffs_rdma_pack_remote(rdma, slot, NULL, header_at + FFS_FRAME_HEADER_BYTES);
	for (uint32_t i = 0; i < count; i++) {
		const struct ffs_operation *op = &batch->ops[leg->order[leg->next + i]];
		struct ffs_read_descriptor descriptor = {.blob = op->blob,
		                                         .chunk = op->chunk,
		                                         .target = op->target,
		                                         .offset = op->offset,
		                                         .length = op->length};
		ffs_read_descriptor_pack(descriptors + (size_t)i * FFS_READ_DESCRIPTOR_BYTES, &descriptor);
		ffs_store_u64(addresses + (size_t)i * ADDRESS_BYTES, (uint64_t)(uintptr_t)op->memory);
	}
	leg->next += count;
	return ffs_rdma_send(leg, slot, header.request_id, header.body_bytes);
}

static enum ffs_step send_next(struct ffs_leg *leg)
{
	while (ffs_leg_has_room(leg) && (leg->next < leg->count || ffs_queue_take(leg))) {
		uint64_t bytes;
		uint32_t slot, count = choose(leg, &bytes);
		uint32_t frames = count + (uint32_t)(bytes / FFS_RDMA_PROGRESS_BYTES);
		enum ffs_step step = ffs_rdma_take_slot(leg, bytes, frames, &slot);
		if (step == FFS_STEP_MORE)
			step = ask(leg, slot, count, bytes);
		if (step == FFS_STEP_DEAD)
			return step;
		if (step == FFS_STEP_DRY) /* completions make room */
			break;
	}
	return FFS_STEP_MORE;
}

/* --------------------------------------------------------------------------------------- answers
 */

/* The next `length` bytes of the current piece are at `data`. */
static void feed(struct ffs_leg *leg, const uint8_t *data, uint32_t length)
{
	if (length > 0 && leg->batch->verify)
		ffs_check_feed(leg, data, length);
	leg->piece_done += length;
}

/* Everything that the frame's entries name is where it belongs; `edges` follow its body. */
static void land(struct ffs_leg *leg, const uint8_t *edges)
{
	struct ffs_batch *batch = leg->batch;
	batch->counts.rdma_bytes += leg->frame.payload_bytes;
	while (leg->piece_at < leg->piece_count) {
		const struct ffs_piece *piece = &leg->conn->scratch->pieces[leg->piece_at];
		const struct ffs_operation *op = &batch->ops[piece->op];
		uint32_t head = batch->verify ? ffs_head_bytes(op->offset) : 0;
		uint32_t tail = piece->bytes - head - op->length;
		feed(leg, edges, head);
		feed(leg, op->memory, op->length);
		feed(leg, edges + head, tail);
		edges += head + tail;
		batch->counts.edge_bytes += head + tail;
		ffs_reply_finish_piece(leg);
	}
	ffs_check_flush(leg);
	leg->receive = FFS_RECEIVE_HEADER;
	leg->have = 0;
}

static uint64_t edges_of(const struct ffs_leg *leg)
{
	uint64_t bytes = 0;
	for (uint32_t i = 0; i < leg->piece_count; i++) {
		const struct ffs_piece *piece = &leg->conn->scratch->pieces[i];
		bytes += piece->bytes - leg->batch->ops[piece->op].length;
	}
	return bytes;
}

static enum ffs_status take(struct ffs_leg *leg, uint32_t slot_at)
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	struct ffs_rdma_slot *slot = &rdma->slots[slot_at];
	const uint8_t *reply = ffs_rdma_reply_of(rdma, slot_at) + slot->reply_at;
	uint64_t room = FFS_RDMA_REPLY_ROOM - slot->reply_at;
	enum ffs_status status = ffs_reply_take_header(leg);
	if (status != FFS_OK || leg->receive == FFS_RECEIVE_HEADER)
		return status;
	uint32_t body = leg->frame.body_bytes;
	if (body > room)
		return FFS_ERR_PROTOCOL;
	memcpy(leg->conn->scratch->body, reply, body);
	leg->have = body;
	leg->batch->counts.wire_bytes_received += body + leg->frame.payload_bytes;
	status = ffs_reply_take_entries(leg);
	if (status != FFS_OK)
		return status;
	uint64_t used = body + edges_of(leg);
	if (used > room)
		return FFS_ERR_PROTOCOL;
	used = (used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
	slot->reply_at += (uint32_t)(used < room ? used : room);
	land(leg, reply + body);
	return FFS_OK;
}

static enum ffs_step receive_next(struct ffs_leg *leg)
{
	return ffs_rdma_receive(leg, take);
}

const struct ffs_transport ffs_rdma_reads = {
	.send = send_next,
	.receive = receive_next,
	.ready = ffs_rdma_ready,
	.step = receive_next,
	.withdraw = ffs_rdma_withdraw,
};
