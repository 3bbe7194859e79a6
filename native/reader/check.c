/*
 * Block CRCs over bytes that have just arrived, wherever they landed.
 *
 * The payload of a piece is a run of blocks: the edge before the range and the edge after it lie in
 * scratch, the range itself in the caller's memory. A block that arrives whole and in one place
 * waits in the lanes until there are four, from one range or from several; one that is cut by an
 * edge or by the end of a receive is continued byte by byte. Nothing is moved.
 *
 * Lanes must be flushed before the memory that they point to is reused: after every receive.
 */
#include "core/mix64.h"
#include "reader/batch.h"

static void judge(struct ffs_leg *leg, uint32_t op_index, uint32_t got, uint32_t expected)
{
	struct ffs_operation *op = &leg->batch->ops[op_index];
	if (got == expected || op->damaged)
		return;
	op->damaged = true;
	leg->batch->counts.crc_failures++;
	if (op->state != FFS_OP_FINAL)
		return;
	/* Its last bytes were in before this block, which waited in the lanes, was checked. */
	op->status = FFS_ERR_CHECKSUM;
	leg->batch->counts.ranges--;
	leg->batch->counts.payload_bytes -= op->length;
}

void ffs_check_flush(struct ffs_leg *leg)
{
	struct ffs_lanes *lanes = &leg->lanes;
	uint32_t crcs[FFS_CRC_LANES];
	bool timed = leg->batch->timings != NULL && lanes->count > 0;
	int64_t begun_ns = timed ? ffs_now_ns() : 0;
	if (lanes->count == FFS_CRC_LANES)
		ffs_crc32c_lanes(lanes->data, lanes->seed, crcs);
	else
		for (uint32_t i = 0; i < lanes->count; i++)
			crcs[i] = ffs_crc32c(lanes->seed[i], lanes->data[i], FFS_BLOCK_BYTES);
	for (uint32_t i = 0; i < lanes->count; i++)
		judge(leg, lanes->op[i], crcs[i], lanes->expected[i]);
	if (timed)
		ffs_timing_checked(leg->batch, lanes->op[lanes->count - 1], begun_ns);
	lanes->count = 0;
}

static void add_lane(struct ffs_leg *leg, uint32_t op, uint32_t seed, uint32_t expected,
                     const uint8_t *data)
{
	struct ffs_lanes *lanes = &leg->lanes;
	uint32_t i = lanes->count++;
	lanes->op[i] = op;
	lanes->seed[i] = seed;
	lanes->expected[i] = expected;
	lanes->data[i] = data;
	if (lanes->count == FFS_CRC_LANES)
		ffs_check_flush(leg);
}

void ffs_check_feed(struct ffs_leg *leg, const uint8_t *data, uint32_t length)
{
	const struct ffs_scratch *scratch = leg->conn->scratch;
	const struct ffs_piece *piece = &scratch->pieces[leg->piece_at];
	const struct ffs_operation *op = &leg->batch->ops[piece->op];
	uint32_t done = leg->piece_done;
	while (length > 0) {
		uint32_t number = done / FFS_BLOCK_BYTES;
		uint32_t inside = done % FFS_BLOCK_BYTES;
		uint32_t take = FFS_BLOCK_BYTES - inside;
		take = take < length ? take : length;
		uint32_t seed = ffs_block_seed(op->blob, op->chunk, op->offset / FFS_BLOCK_BYTES + number);
		uint32_t expected = ffs_load_u32(scratch->body + piece->crc_offset + 4u * number);
		if (take == FFS_BLOCK_BYTES) {
			add_lane(leg, piece->op, seed, expected, data);
		} else {
			int64_t begun_ns = leg->batch->timings != NULL ? ffs_now_ns() : 0;
			leg->crc = ffs_crc32c(inside == 0 ? seed : leg->crc, data, take);
			if (inside + take == FFS_BLOCK_BYTES || done + take == piece->bytes)
				judge(leg, piece->op, leg->crc, expected);
			if (leg->batch->timings != NULL)
				ffs_timing_checked(leg->batch, piece->op, begun_ns);
		}
		data += take, done += take, length -= take;
	}
}
