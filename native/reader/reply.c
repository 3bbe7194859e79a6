/*
 * What a READ's reply says: which operations it answers, and where their bytes and CRCs are.
 *
 * Previous hop: read.c, or rdma_read.c, which have a header or a body complete in scratch. Next:
 * they again, for the payload, of which the pieces made here are the plan.
 *
 * A reply frame's body names the operations whose bytes follow (see core/frame.h). Every field of
 * it is hostile until checked: only then is a piece made from an entry, and only pieces name
 * destinations.
 */
#include "reader/batch.h"

/* A whole request answered by its header. */
static enum ffs_status take_refusal(struct ffs_leg *leg)
{
	const struct ffs_request request = leg->requests[leg->request_at];
	if (leg->frame.count != 0 || leg->frame.body_bytes != 0 || leg->frame.payload_bytes != 0)
		return FFS_ERR_PROTOCOL;
	for (uint32_t i = request.first; i < request.first + request.count; i++) {
		struct ffs_operation *op = &leg->batch->ops[leg->order[i]];
		if (op->state != FFS_OP_FINAL)
			ffs_leg_finish(leg, op, leg->request_at, leg->frame.status);
	}
	return FFS_OK;
}

enum ffs_status ffs_reply_take_header(struct ffs_leg *leg)
{
	enum ffs_status status = ffs_leg_take_header(leg);
	if (status != FFS_OK)
		return status;
	if (leg->frame.status != 0)
		return take_refusal(leg);
	if (leg->frame.count == 0 || leg->frame.body_bytes < leg->frame.count * FFS_REPLY_ENTRY_BYTES)
		return FFS_ERR_PROTOCOL;
	leg->receive = FFS_RECEIVE_ENTRIES;
	return FFS_OK;
}

/* An OK entry carries the range, its edge in front, and at most the rest of its last block. */
static bool bytes_are_right(const struct ffs_batch *batch, const struct ffs_operation *op,
                            uint32_t bytes)
{
	if (!batch->verify)
		return bytes == op->length;
	return bytes >= ffs_head_bytes(op->offset) + op->length && bytes <= ffs_op_bytes(batch, op);
}

/* Claim the operation that an entry names. NULL if it may not name it. */
static struct ffs_operation *claim(struct ffs_leg *leg, const struct ffs_reply_entry *entry,
                                   uint32_t *op_index)
{
	const struct ffs_request *request = &leg->requests[leg->request_at];
	if (entry->index >= request->count || entry->status == FFS_STATUS_PENDING)
		return NULL;
	*op_index = leg->order[request->first + entry->index];
	struct ffs_operation *op = &leg->batch->ops[*op_index];
	if (op->state != FFS_OP_ASKED)
		return NULL; /* answered before, or named twice in this frame */
	if (entry->status == 0 ? !bytes_are_right(leg->batch, op, entry->bytes) : entry->bytes != 0)
		return NULL;
	op->state = FFS_OP_CLAIMED;
	return op;
}

/* First pass over the entries: check all of them and make pieces of the OK ones. */
static enum ffs_status claim_entries(struct ffs_leg *leg)
{
	struct ffs_scratch *scratch = leg->conn->scratch;
	uint32_t crc_offset = leg->frame.count * FFS_REPLY_ENTRY_BYTES;
	uint64_t payload = 0;
	leg->piece_count = 0;
	for (uint32_t i = 0; i < leg->frame.count; i++) {
		struct ffs_reply_entry entry;
		uint32_t op_index;
		ffs_reply_entry_unpack(&entry, scratch->body + i * FFS_REPLY_ENTRY_BYTES);
		if (claim(leg, &entry, &op_index) == NULL)
			return FFS_ERR_PROTOCOL;
		if (entry.status != 0)
			continue;
		scratch->pieces[leg->piece_count++] =
			(struct ffs_piece){.op = op_index, .bytes = entry.bytes, .crc_offset = crc_offset};
		crc_offset += leg->batch->verify ? 4 * ffs_block_count(entry.bytes) : 0;
		payload += entry.bytes;
	}
	if (crc_offset != leg->frame.body_bytes || payload != leg->frame.payload_bytes)
		return FFS_ERR_PROTOCOL;
	return FFS_OK;
}

/* Second pass, over entries that are known to be right: those without payload are final. */
static void finish_failed_entries(struct ffs_leg *leg)
{
	const struct ffs_scratch *scratch = leg->conn->scratch;
	const struct ffs_request request = leg->requests[leg->request_at];
	for (uint32_t i = 0; i < leg->frame.count; i++) {
		struct ffs_reply_entry entry;
		ffs_reply_entry_unpack(&entry, scratch->body + i * FFS_REPLY_ENTRY_BYTES);
		if (entry.status == 0)
			continue;
		struct ffs_operation *op = &leg->batch->ops[leg->order[request.first + entry.index]];
		ffs_leg_finish(leg, op, leg->request_at, entry.status);
	}
}

enum ffs_status ffs_reply_take_entries(struct ffs_leg *leg)
{
	enum ffs_status status = claim_entries(leg);
	if (status != FFS_OK)
		return status;
	finish_failed_entries(leg);
	leg->piece_at = 0;
	leg->piece_done = 0;
	leg->payload_done = 0;
	leg->receive = FFS_RECEIVE_PAYLOAD;
	if (leg->piece_count == 0) {
		leg->receive = FFS_RECEIVE_HEADER;
		leg->have = 0;
	}
	return FFS_OK;
}

void ffs_reply_finish_piece(struct ffs_leg *leg)
{
	struct ffs_operation *op = &leg->batch->ops[leg->conn->scratch->pieces[leg->piece_at].op];
	if (!op->damaged) {
		leg->batch->counts.ranges++;
		leg->batch->counts.payload_bytes += op->length;
	}
	ffs_leg_finish(leg, op, leg->request_at, op->damaged ? FFS_ERR_CHECKSUM : FFS_OK);
	leg->piece_at++;
	leg->piece_done = 0;
}
