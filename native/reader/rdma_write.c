/*
 * WRITE by RDMA: a request says where the chunk lies, and the daemon fetches it.
 *
 * Previous hop: drive.c. Next: rdma_leg.c, the daemon's storage/rdma*.c. An answer is its header,
 * as over TCP; of a long chunk others come before it, which say that it is being fetched. The
 * daemon may read the chunk, and nothing beside it, until then: each chunk is
 * registered by itself, in a protection domain that only this connection has, which needs no memory
 * that can be written to, as a window would. Memory that cannot be registered at all, as read-only
 * mappings of files on older kernels, is no fault of the connection: FFS_ERR_TRANSPORT says so of
 * each operation, and TCP does it.
 *
 * Copies: none; the block CRCs are computed into the request.
 */
#include "reader/rdma_state.h"

_Static_assert(FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES + FFS_WRITE_DESCRIPTOR_BYTES +
                       4 * FFS_CHUNK_BLOCKS_MAX <=
                   FFS_RDMA_REQUEST_ROOM,
               "the largest chunk's CRCs fit a request");

static bool window_has_room(const struct ffs_leg *leg, const struct ffs_operation *op)
{
	return leg->request_count == 0 || leg->outstanding_bytes + op->length <= FFS_WRITE_WINDOW_BYTES;
}

static enum ffs_step ask(struct ffs_leg *leg, uint32_t slot, const struct ffs_operation *op)
{
	const struct ffs_rdma *rdma = leg->conn->rdma;
	uint8_t *request = ffs_rdma_request_of(rdma, slot);
	struct ffs_header header = ffs_write_pack(leg, request, FFS_REMOTE_BYTES);
	ffs_rdma_pack_remote(rdma, slot, op->memory, request + FFS_FRAME_HEADER_BYTES);
	return ffs_rdma_send(leg, slot, header.request_id, header.body_bytes);
}

/* The next chunk lies where no card can fetch it from. What is not asked for yet is for TCP; what
 * is goes on. */
static enum ffs_step decline(struct ffs_leg *leg)
{
	if (leg->request_count == 0)
		return ffs_leg_fail(leg, FFS_ERR_TRANSPORT);
	for (; leg->next < leg->count; leg->next++) {
		struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
		op->state = FFS_OP_FINAL;
		op->status = FFS_ERR_TRANSPORT;
		leg->unfinished--;
	}
	return FFS_STEP_DRY;
}

/* The next chunk, into this slot. */
static enum ffs_step send_chunk(struct ffs_leg *leg, uint32_t slot)
{
	const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
	int error = ffs_rdma_lend(leg, slot, op);
	if (error == 0)
		return ask(leg, slot, op);
	ffs_rdma_free_slot(leg->conn->rdma, slot);
	return ffs_rdma_is_unfit(error) ? decline(leg) : ffs_rdma_refuse(leg, error, op->length);
}

static enum ffs_step send_next(struct ffs_leg *leg)
{
	while (leg->next < leg->count) {
		const struct ffs_operation *op = &leg->batch->ops[leg->order[leg->next]];
		uint32_t slot;
		if (!window_has_room(leg, op))
			break;
		uint32_t frames = 1 + op->length / FFS_RDMA_PROGRESS_BYTES;
		enum ffs_step step = ffs_rdma_take_slot(leg, 0, frames, &slot);
		if (step == FFS_STEP_MORE)
			step = send_chunk(leg, slot);
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
