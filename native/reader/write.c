/*
 * WRITE: whole chunks out of the caller's memory, their block CRCs computed just before they are
 * sent.
 *
 * Several frames are in flight (FFS_WRITE_REQUESTS_MAX, FFS_WRITE_WINDOW_BYTES); a reply is a
 * header whose status says whether the chunk is durable. A reply may overtake the rest of its own
 * chunk (a refusal): the chunk is sent to its end all the same, so that the stream stays in step.
 *
 * Copies: none; the kernel takes header, CRCs and payload from where they are in one sendmsg.
 */
#include "core/limits.h"
#include "reader/batch.h"

_Static_assert(FFS_FRAME_HEADER_BYTES + FFS_WRITE_DESCRIPTOR_BYTES + 4 * FFS_CHUNK_BLOCKS_MAX <=
                   sizeof(((struct ffs_scratch *)0)->send),
               "the largest chunk's CRCs fit the send scratch");

static bool may_ask(const struct ffs_leg *leg)
{
	if (leg->next == leg->count || ffs_leg_sending(leg))
		return false;
	const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
	return leg->request_count == 0 ||
	       (leg->request_count < FFS_WRITE_REQUESTS_MAX &&
	        leg->outstanding_bytes + op->length <= FFS_WRITE_WINDOW_BYTES);
}

struct ffs_header ffs_write_pack(struct ffs_leg *leg, uint8_t *frame, uint32_t front_bytes)
{
	const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
	uint32_t *crcs = leg->conn->scratch->crcs, blocks = ffs_block_count(op->length);
	uint8_t *descriptor_at = frame + FFS_FRAME_HEADER_BYTES + front_bytes;
	struct ffs_write_descriptor descriptor = {
		.chunk = op->chunk, .target = op->target, .chain = op->chain, .length = op->length};
	struct ffs_header header = {
		.op = FFS_OP_WRITE,
		.priority = leg->conn->priority,
		.count = 1,
		.request_id = ffs_leg_ask(leg, leg->next, 1, op->length),
		.blob = op->blob,
		.trace_id = leg->batch->trace_id,
		.deadline_ms = ffs_leg_deadline_ms(leg),
		.chain_version = op->chain_version,
		.body_bytes = front_bytes + FFS_WRITE_DESCRIPTOR_BYTES + 4 * blocks,
		.payload_bytes = op->length,
	};
	ffs_header_pack(frame, &header);
	ffs_write_descriptor_pack(descriptor_at, &descriptor);
	ffs_crc32c_blocks(op->memory, op->length, op->blob, op->chunk, 0, crcs);
	for (uint32_t i = 0; i < blocks; i++)
		ffs_store_u32(descriptor_at + FFS_WRITE_DESCRIPTOR_BYTES + 4u * i, crcs[i]);
	leg->next++;
	return header;
}

static void build_request(struct ffs_leg *leg)
{
	const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
	struct ffs_header header = ffs_write_pack(leg, leg->conn->scratch->send, 0);
	leg->send_at = 0;
	leg->send_end = FFS_FRAME_HEADER_BYTES + header.body_bytes;
	leg->send_payload = op->memory;
	leg->send_payload_bytes = op->length;
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

/* A reply is its header: one operation, one status. */
enum ffs_status ffs_write_take_reply(struct ffs_leg *leg)
{
	enum ffs_status status = ffs_leg_take_header(leg);
	if (status != FFS_OK)
		return status;
	if (leg->frame.count != 0 || leg->frame.body_bytes != 0 || leg->frame.payload_bytes != 0)
		return FFS_ERR_PROTOCOL;
	struct ffs_operation *op = &leg->batch->ops[leg->order[leg->requests[leg->request_at].first]];
	ffs_leg_finish(leg, op, leg->request_at, leg->frame.status);
	return FFS_OK;
}

static enum ffs_step receive_next(struct ffs_leg *leg)
{
	size_t left = FFS_FRAME_HEADER_BYTES - leg->have, received;
	struct iovec part = {.iov_base = leg->conn->scratch->header + leg->have, .iov_len = left};
	enum ffs_step step = ffs_leg_receive(leg, &part, 1, left, &received);
	if (step == FFS_STEP_DEAD)
		return step;
	leg->have += (uint32_t)received;
	if (leg->have < FFS_FRAME_HEADER_BYTES)
		return step;
	enum ffs_status status = ffs_write_take_reply(leg);
	return status == FFS_OK ? FFS_STEP_MORE : ffs_leg_fail(leg, status);
}

const struct ffs_transport ffs_tcp_writes = {
	.send = send_next, .receive = receive_next, .waits = true};
