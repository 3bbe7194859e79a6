/*
 * From the caller's array of operations to a checked batch, and from the batch back to statuses.
 *
 * Previous hop: batch_calls.c (read_batch, write_batch). Next: drive.c, which runs the batch.
 *
 * The array is copied while it is checked: other threads may write to it during the call, and what
 * was checked must be what is used. Operations of one connection are grouped by a counting sort.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "core/limits.h"
#include "core/sys.h"
#include "reader/batch.h"

/* Offsets in the arrays that ffs/_reader.pyi describes; where the two differ, the second table. */
enum {
	OP_BLOB = 0,
	OP_MEMORY_OFFSET = 8,
	OP_CHUNK = 16,
	OP_TARGET = 20,
	OP_OFFSET_OR_CHAIN = 24,
	OP_LENGTH = 28,
	WRITE_CHAIN_VERSION = 32,
};

struct op_layout {
	uint32_t leg;
	uint32_t status;
};

static const struct op_layout read_layout = {.leg = 32, .status = 34};
static const struct op_layout write_layout = {.leg = 36, .status = 38};

static const struct op_layout *layout_of(const struct ffs_batch *batch)
{
	return batch->kind == FFS_OP_READ ? &read_layout : &write_layout;
}

int ffs_batch_init(struct ffs_batch *batch, uint32_t op_count, uint32_t leg_count)
{
	size_t ops_bytes, order_bytes, total;
	size_t legs_bytes = leg_count * sizeof(struct ffs_leg);
	size_t polled_bytes = leg_count * sizeof(struct pollfd);
	if (__builtin_mul_overflow((size_t)op_count, sizeof(struct ffs_operation), &ops_bytes) ||
	    __builtin_mul_overflow((size_t)op_count, sizeof(uint32_t), &order_bytes) ||
	    __builtin_add_overflow(ops_bytes, order_bytes, &total) ||
	    __builtin_add_overflow(total, legs_bytes + polled_bytes, &total))
		return -1;
	uint8_t *memory = ffs_sys_calloc(1, total > 0 ? total : 1);
	if (memory == NULL)
		return -1;
	batch->memory = memory;
	batch->legs = (struct ffs_leg *)(void *)memory;
	batch->ops = (struct ffs_operation *)(void *)(memory + legs_bytes);
	batch->polled = (struct pollfd *)(void *)(memory + legs_bytes + ops_bytes);
	batch->op_count = op_count;
	batch->leg_count = leg_count;
	batch->order = (uint32_t *)(void *)(memory + legs_bytes + ops_bytes + polled_bytes);
	for (uint32_t i = 0; i < leg_count; i++)
		batch->legs[i] = (struct ffs_leg){.batch = batch, .order = batch->order};
	return 0;
}

void ffs_batch_fini(struct ffs_batch *batch)
{
	free(batch->memory);
	free(batch->timings);
	batch->memory = NULL;
	batch->timings = NULL;
}

static const char *check_length(const struct ffs_operation *op, uint64_t memory_offset,
                                size_t memory_bytes)
{
	uint64_t end;
	if (op->length == 0 || op->length > FFS_CHUNK_BYTES_MAX)
		return "length is not between 1 and the largest chunk";
	if (op->offset > FFS_CHUNK_BYTES_MAX - op->length)
		return "range ends past the largest chunk";
	if (__builtin_add_overflow(memory_offset, op->length, &end) || end > memory_bytes)
		return "range does not fit the buffer";
	return NULL;
}

/* Give each leg its slice of the order array, in the caller's order within a leg. */
static void group_by_leg(struct ffs_batch *batch)
{
	if (batch->leg_count == 0)
		return;
	uint32_t *order = batch->order;
	uint32_t begin = 0;
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		leg->order = order + begin;
		leg->unfinished = leg->count;
		begin += leg->count;
		leg->count = 0;
	}
	for (uint32_t i = 0; i < batch->op_count; i++) {
		struct ffs_leg *leg = &batch->legs[batch->ops[i].leg];
		if (batch->ops[i].state == FFS_OP_WAITING)
			order[leg->order - order + leg->count++] = i;
	}
}

/* Copy one operation out of the caller's array and hold it against every bound. */
static const char *take_op(struct ffs_batch *batch, struct ffs_operation *op, const uint8_t *raw,
                           uint8_t *memory, size_t memory_bytes)
{
	bool reads = batch->kind == FFS_OP_READ;
	uint64_t memory_offset = ffs_load_u64(raw + OP_MEMORY_OFFSET);
	op->blob = ffs_load_u64(raw + OP_BLOB);
	op->chunk = ffs_load_u32(raw + OP_CHUNK);
	op->target = ffs_load_u32(raw + OP_TARGET);
	op->offset = reads ? ffs_load_u32(raw + OP_OFFSET_OR_CHAIN) : 0;
	op->chain = reads ? 0 : ffs_load_u32(raw + OP_OFFSET_OR_CHAIN);
	op->chain_version = reads ? 0 : ffs_load_u32(raw + WRITE_CHAIN_VERSION);
	op->length = ffs_load_u32(raw + OP_LENGTH);
	op->leg = ffs_load_u16(raw + layout_of(batch)->leg);
	const char *fault = check_length(op, memory_offset, memory_bytes);
	if (fault != NULL)
		return fault;
	if (op->leg >= batch->leg_count)
		return "connection index is out of range";
	op->memory = memory + memory_offset;
	if (batch->lent == NULL || op->memory < batch->lent)
		batch->lent = op->memory;
	if (op->memory + op->length > batch->lent_end)
		batch->lent_end = op->memory + op->length;
	batch->legs[op->leg].count++;
	batch->legs[op->leg].bytes += op->length;
	return NULL;
}

const char *ffs_plan(struct ffs_batch *batch, const uint8_t *raw, uint8_t *memory,
                     size_t memory_bytes, uint32_t *bad)
{
	for (uint32_t i = 0; i < batch->op_count; i++, raw += FFS_OP_BYTES) {
		struct ffs_operation *op = &batch->ops[i];
		op->status = ffs_load_u16(raw + layout_of(batch)->status);
		if (op->status != FFS_STATUS_PENDING) {
			op->state = FFS_OP_FINAL;
			continue;
		}
		const char *fault = take_op(batch, op, raw, memory, memory_bytes);
		if (fault != NULL) {
			*bad = i;
			return fault;
		}
	}
	group_by_leg(batch);
	return NULL;
}

uint32_t ffs_plan_results(const struct ffs_batch *batch, uint8_t *raw)
{
	uint32_t good = 0;
	raw += layout_of(batch)->status;
	for (uint32_t i = 0; i < batch->op_count; i++, raw += FFS_OP_BYTES) {
		ffs_store_u16(raw, batch->ops[i].status);
		good += batch->ops[i].status == FFS_OK;
	}
	return good;
}
