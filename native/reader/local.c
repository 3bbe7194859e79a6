/*
 * Reading located chunks: pread in the calling thread, straight into the caller's memory (local.h).
 *
 * Previous hop: local_locate.c. Next: the page cache; blocks are checked by check.c while they are
 * in cache.
 *
 * What the page cache has is read without waiting (RWF_NOWAIT). Where it has not, the kernel is
 * told of the next operations first, so that the disk works on many while this thread waits for
 * one: docs/decisions/0007-same-host.md.
 *
 * Copies: none but the kernel's; edges of unaligned ranges go to scratch.
 * Threads: the caller's, without the interpreter's lock.
 */
#include <errno.h>

#include "core/sys.h"
#include "reader/batch.h"

#define STEP_NS INT64_C(20000000) /* between two looks at everything else */
#define STEP_BYTES (32u << 20)
#define CLOCK_BYTES (128u << 10) /* between two looks at the clock while nothing is waited for */
#define AHEAD_OPS 32u
#define AHEAD_BYTES (16u << 20)

static struct ffs_operation *op_at(const struct ffs_leg *leg, uint32_t at)
{
	return &leg->batch->ops[leg->order[at]];
}

static struct ffs_located *located_of(const struct ffs_leg *leg, const struct ffs_operation *op)
{
	return &leg->conn->local->located[op->located];
}

/* Where the range starts and ends that is read: widened to blocks where they are checked. */
static uint32_t start_of(const struct ffs_leg *leg, const struct ffs_operation *op)
{
	return op->offset - (leg->batch->verify ? ffs_head_bytes(op->offset) : 0);
}

static uint32_t bytes_of(const struct ffs_leg *leg, const struct ffs_operation *op,
                         const struct ffs_located *located)
{
	uint32_t start = start_of(leg, op);
	uint64_t bytes = ffs_op_bytes(leg->batch, op);
	return bytes < located->length - start ? (uint32_t)bytes : located->length - start;
}

/* ---------------------------------------------------------------------------------- cold ranges */

/* Tell the kernel what will be read next, up to a bound. */
static void announce(struct ffs_leg *leg)
{
	struct ffs_local *local = leg->conn->local;
	uint64_t bytes = 0;
	if (local->ahead < local->read_at)
		local->ahead = local->read_at;
	for (uint32_t at = local->read_at;
	     at < leg->next && at < local->read_at + AHEAD_OPS && bytes < AHEAD_BYTES; at++) {
		const struct ffs_operation *op = op_at(leg, at);
		const struct ffs_located *located = located_of(leg, op);
		bytes += op->length;
		if (at < local->ahead)
			continue;
		local->ahead = at + 1;
		if (located->state != FFS_LOCATED_KNOWN || op->offset >= located->length)
			continue;
		uint32_t start = start_of(leg, op), count = bytes_of(leg, op, located);
		off_t block = (off_t)(start / FFS_BLOCK_BYTES);
		if (leg->batch->verify)
			(void)ffs_sys_will_need(local->crc_fds[located->file],
			                        (off_t)located->crc_offset + block * 4,
			                        (off_t)ffs_block_count(count) * 4);
		(void)ffs_sys_will_need(local->data_fds[located->file],
		                        (off_t)(located->data_offset + start), (off_t)count);
	}
}

/* One preadv; what is not cached is announced before it is waited for. */
static ssize_t read_parts(struct ffs_leg *leg, int fd, const struct iovec *parts, int count,
                          uint64_t offset)
{
	struct ffs_local *local = leg->conn->local;
	ssize_t got = -1;
	if (!local->blocks) {
		got = ffs_sys_preadv2(fd, parts, count, (off_t)offset, RWF_NOWAIT);
		if (got > 0)
			return got;
		local->blocks = got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL);
	}
	local->waited = true;
	if (!local->blocks)
		announce(leg);
	do
		got = ffs_sys_preadv2(fd, parts, count, (off_t)offset, 0);
	while (got < 0 && (errno == EINTR || errno == EAGAIN));
	return got;
}

/* -------------------------------------------------------------------------------- one operation */

/* All CRCs of the range into scratch, where check.c looks for them. */
static bool read_crcs(struct ffs_leg *leg, const struct ffs_located *located, uint32_t start,
                      uint32_t bytes)
{
	uint32_t left = 4 * ffs_block_count(bytes);
	uint64_t offset = located->crc_offset + 4 * (start / FFS_BLOCK_BYTES);
	uint8_t *at = leg->conn->scratch->body;
	while (left > 0) {
		struct iovec part = {at, left};
		ssize_t got = read_parts(leg, leg->conn->local->crc_fds[located->file], &part, 1, offset);
		if (got <= 0)
			return false;
		at += got, offset += (uint64_t)got, left -= (uint32_t)got;
	}
	return true;
}

/* Get ready to read an operation: FFS_OK, or what becomes of it at once. */
static enum ffs_status begin_op(struct ffs_leg *leg, const struct ffs_operation *op,
                                const struct ffs_located *located)
{
	if (located->state != FFS_LOCATED_KNOWN)
		return located->status;
	if (op->offset > located->length || op->length > located->length - op->offset)
		return FFS_ERR_CHUNK_LENGTH;
	uint32_t bytes = bytes_of(leg, op, located);
	if (leg->batch->verify && !read_crcs(leg, located, start_of(leg, op), bytes))
		return FFS_ERR_STORAGE_IO;
	leg->conn->scratch->pieces[0] =
		(struct ffs_piece){.op = leg->order[leg->conn->local->read_at], .bytes = bytes};
	leg->conn->local->piece_bytes = bytes;
	leg->piece_at = leg->piece_done = 0;
	return FFS_OK;
}

/* The parts of the next read of the piece: an edge, the caller's memory, an edge. */
static int lay_out(const struct ffs_leg *leg, const struct ffs_operation *op, struct iovec *parts)
{
	uint32_t head = op->offset - start_of(leg, op), end = head + op->length;
	uint32_t limit = leg->batch->verify ? FFS_STEP_BYTES : FFS_UNCHECKED_STEP_BYTES;
	uint32_t at = leg->piece_done, stop = leg->conn->local->piece_bytes;
	uint8_t *edges = leg->conn->scratch->edges;
	int count = 0;
	stop = stop - at < limit ? stop : at + limit;
	if (at < head) {
		parts[count++] = (struct iovec){edges, head - at};
		at = head;
	}
	if (at < end && at < stop) {
		uint32_t until = end < stop ? end : stop;
		parts[count++] = (struct iovec){op->memory + (at - head), until - at};
		at = until;
	}
	if (at < stop)
		parts[count++] = (struct iovec){edges + FFS_BLOCK_BYTES, stop - at};
	return count;
}

static void land(struct ffs_leg *leg, const struct iovec *parts, int count, size_t bytes)
{
	const struct ffs_scratch *scratch = leg->conn->scratch;
	leg->batch->counts.local_bytes += bytes;
	for (int i = 0; i < count && bytes > 0; i++) {
		const uint8_t *base = parts[i].iov_base;
		uint32_t length = (uint32_t)(parts[i].iov_len < bytes ? parts[i].iov_len : bytes);
		if (leg->batch->verify)
			ffs_check_feed(leg, base, length);
		if (base >= scratch->edges && base < scratch->edges + sizeof(scratch->edges))
			leg->batch->counts.edge_bytes += length;
		leg->piece_done += length;
		bytes -= length;
	}
}

/* One read of the operation at read_at; FFS_STATUS_PENDING while there is more of it. */
static enum ffs_status read_step(struct ffs_leg *leg)
{
	struct ffs_local *local = leg->conn->local;
	const struct ffs_operation *op = op_at(leg, local->read_at);
	const struct ffs_located *located = located_of(leg, op);
	if (local->piece_bytes == 0) {
		enum ffs_status status = begin_op(leg, op, located);
		if (status != FFS_OK)
			return status;
	}
	struct iovec parts[3];
	int count = lay_out(leg, op, parts);
	uint64_t offset = located->data_offset + start_of(leg, op) + leg->piece_done;
	ssize_t got = read_parts(leg, local->data_fds[located->file], parts, count, offset);
	if (got > 0)
		land(leg, parts, count, (size_t)got);
	if (got > 0 && leg->piece_done < local->piece_bytes)
		return FFS_STATUS_PENDING;
	local->piece_bytes = 0;
	return got > 0 ? FFS_OK : FFS_ERR_STORAGE_IO;
}

static enum ffs_status read_some(struct ffs_leg *leg)
{
	if (leg->batch->timings == NULL)
		return read_step(leg);
	int64_t begun_ns = ffs_now_ns();
	uint32_t op = leg->order[leg->conn->local->read_at];
	enum ffs_status status = read_step(leg);
	ffs_check_flush(leg); /* each operation's blocks are checked in its own time */
	ffs_timing_read(leg->batch, op, begun_ns);
	return status;
}

/* ----------------------------------------------------------------------------------------- step */

enum ffs_status ffs_local_still_pinned(const struct ffs_conn *conn)
{
	uint8_t byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t got;
	do
		got = ffs_sys_recvmsg(ffs_conn_fd(conn), &message, MSG_PEEK | MSG_DONTWAIT);
	while (got < 0 && errno == EINTR);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return FFS_OK;
	return got > 0 ? FFS_ERR_PROTOCOL : FFS_ERR_CONNECTION_LOST;
}

static void finish(struct ffs_leg *leg, struct ffs_operation *op)
{
	if (op->status == FFS_OK && op->damaged)
		op->status = FFS_ERR_CHECKSUM;
	if (op->status == FFS_OK) {
		leg->batch->counts.ranges++;
		leg->batch->counts.payload_bytes += op->length;
	}
	op->state = FFS_OP_FINAL;
	leg->unfinished--;
}

static bool can_read(const struct ffs_leg *leg)
{
	return leg->request_count == 0 && leg->conn->local->read_at < leg->next;
}

static enum ffs_step read_for_a_while(struct ffs_leg *leg)
{
	struct ffs_local *local = leg->conn->local;
	struct ffs_batch *batch = leg->batch;
	uint32_t first = local->read_at;
	int64_t until_ns = batch->now_ns + STEP_NS;
	uint64_t bytes_until = batch->counts.local_bytes + STEP_BYTES, clock_at = 0;
	while (local->read_at < leg->next && batch->now_ns < until_ns &&
	       batch->counts.local_bytes < bytes_until) {
		enum ffs_status status = read_some(leg);
		if (status != FFS_STATUS_PENDING)
			op_at(leg, local->read_at++)->status = (uint16_t)status;
		if (!local->waited && batch->counts.local_bytes < clock_at)
			continue;
		local->waited = false;
		batch->now_ns = ffs_now_ns();
		clock_at = batch->counts.local_bytes + CLOCK_BYTES;
	}
	ffs_check_flush(leg);
	batch->now_ns = ffs_now_ns();
	leg->last_byte_ns = batch->now_ns;
	enum ffs_status pinned = ffs_local_still_pinned(leg->conn);
	if (pinned != FFS_OK)
		return ffs_leg_fail(leg, pinned);
	for (uint32_t at = first; at < local->read_at; at++)
		finish(leg, op_at(leg, at));
	return FFS_STEP_MORE;
}

const struct ffs_transport ffs_local_reads = {
	.send = ffs_local_send,
	.receive = ffs_local_receive,
	.ready = can_read,
	.step = read_for_a_while,
	.waits = true,
};
