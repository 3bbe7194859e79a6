/*
 * WRITE by RDMA: a request says where the chunk lies, and the daemon fetches it.
 *
 * Previous hop: drive.c. Next: rdma_leg.c, the daemon's storage/rdma*.c. An answer is its header,
 * as over TCP; the chunk may be read by the daemon until then.
 *
 * Copies: none; the block CRCs are computed into the request.
 */
#include "reader/rdma_state.h"

#define DESCRIPTOR_AT (FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES)
#define CRCS_AT (DESCRIPTOR_AT + FFS_WRITE_DESCRIPTOR_BYTES)

_Static_assert(CRCS_AT + 4 * FFS_CHUNK_BLOCKS_MAX <= FFS_RDMA_REQUEST_ROOM,
               "the largest chunk's CRCs fit a request");

static bool window_has_room(const struct ffs_leg *leg, const struct ffs_operation *op)
{
	return leg->request_count == 0 || leg->outstanding_bytes + op->length <= FFS_WRITE_WINDOW_BYTES;
}

static enum ffs_step ask(struct ffs_leg *leg, uint32_t slot, const struct ffs_operation *op)
{
	const struct ffs_rdma *rdma = leg->conn->rdma;
	uint8_t *request = ffs_rdma_request_of(rdma, slot);
	uint32_t *crcs = leg->conn->scratch->crcs, blocks = ffs_block_count(op->length);
	struct ffs_write_descriptor descriptor = {
		.chunk = op->chunk, .target = op->target, .chain = op->chain, .length = op->length};
	struct ffs_header header = {
		.op = FFS_OP_WRITE,
		.priority = leg->batch->priority,
		.count = 1,
		.request_id = ffs_leg_ask(leg, leg->next, 1, op->length),
		.blob = op->blob,
		.trace_id = leg->batch->trace_id,
		.deadline_ms = ffs_leg_deadline_ms(leg),
		.chain_version = op->chain_version,
		.body_bytes = FFS_REMOTE_BYTES + FFS_WRITE_DESCRIPTOR_BYTES + 4 * blocks,
		.payload_bytes = op->length,
	};
	ffs_header_pack(request, &header);
	ffs_rdma_pack_remote(rdma, slot, op->memory, request + FFS_FRAME_HEADER_BYTES);
	ffs_write_descriptor_pack(request + DESCRIPTOR_AT, &descriptor);
	ffs_crc32c_blocks(op->memory, op->length, op->blob, op->chunk, 0, crcs);
	for (uint32_t i = 0; i < blocks; i++)
		ffs_store_u32(request + CRCS_AT + 4u * i, crcs[i]);
	leg->next++;
	return ffs_rdma_send(leg, slot, header.request_id, header.body_bytes);
}

static enum ffs_step send_next(struct ffs_leg *leg)
{
	while (leg->next < leg->count) {
		const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
		uint32_t slot;
		if (!window_has_room(leg, op))
			break;
		enum ffs_step step = ffs_rdma_take_slot(leg, 0, 1, &slot);
		if (step == FFS_STEP_MORE)
			step = ask(leg, slot, op);
		if (step == FFS_STEP_DEAD)
			return step;
		if (step == FFS_STEP_DRY)
			break;
	}
	return FFS_STEP_MORE;
}

static enum ffs_status take(struct ffs_leg *leg, uint32_t slot)
{
	(void)slot;
	return ffs_write_take_reply(leg);
}

static enum ffs_step receive_next(struct ffs_leg *leg)
{
	return ffs_rdma_receive(leg, take);
}

const struct ffs_transport ffs_rdma_writes = {
	.send = send_next,
	.receive = receive_next,
	.ready = ffs_rdma_ready,
	.step = receive_next,
	.withdraw = ffs_rdma_withdraw,
};
