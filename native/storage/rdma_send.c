/*
 * Answers by RDMA: which ranges are read next, and which of those that are there go together.
 *
 * Previous hop: serve.c. Next: cold.h, which reads every range into registered memory, whether the
 * page cache has it or not; then rdma_post.c, or rdma_stream.c for a range that does not fit the
 * arena as a whole. See rdma_answer.h.
 *
 * Copies: CRCs and entries into the slot.
 */
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/rdma_answer.h"
#include "storage/residency.h"

static bool fits(const struct ffs_answer *answer, const struct ffs_cold_answer *entry)
{
	uint32_t body = answer->body_bytes + FFS_REPLY_ENTRY_BYTES + entry->crc_bytes;
	if (answer->entry_count == 0)
		return true;
	return entry->request == answer->request && answer->entry_count < FFS_RDMA_ENTRIES_MAX &&
	       body <= FFS_ANSWER_BODY_BYTES && entry->first_bytes == entry->bytes &&
	       ffs_answer_has_room(answer->conn->rdma, answer->entry_count + 1,
	                           answer->payload_bytes + entry->bytes);
}

/* Take what is ready and belongs together. */
static void collect(struct ffs_answer *answer)
{
	struct ffs_cold_answer *entry = &answer->entries[0];
	while (answer->frame->cold.streamed == NULL && ffs_cold_peek(answer->conn, entry) &&
	       fits(answer, entry)) {
		answer->request = entry->request;
		answer->body_bytes += FFS_REPLY_ENTRY_BYTES + entry->crc_bytes;
		answer->payload_bytes += entry->bytes;
		ffs_cold_take(answer->conn, &answer->frame->cold);
		entry = &answer->entries[++answer->entry_count];
		if (answer->entry_count == FFS_RDMA_ENTRIES_MAX)
			return;
	}
}

/* Entries and CRCs into the slot: the first part of the body. */
static void fill_slot(struct ffs_answer *answer)
{
	uint8_t *body = ffs_answer_body(answer);
	uint8_t *crcs = body + (size_t)answer->entry_count * FFS_REPLY_ENTRY_BYTES;
	for (uint32_t i = 0; i < answer->entry_count; i++) {
		const struct ffs_cold_answer *entry = &answer->entries[i];
		ffs_answer_pack(answer, i);
		if (entry->crc_bytes > 0) /* where a range failed there is no place of them */
			memcpy(crcs, entry->crcs, entry->crc_bytes);
		crcs += entry->crc_bytes;
	}
	ffs_answer_add(answer, ffs_answer_in_slot(answer->conn, body, answer->body_bytes));
}

/* Each range to its destination; its edges are parts of the body. */
static bool post_ranges(struct ffs_answer *answer)
{
	const struct ffs_conn *conn = answer->conn;
	for (uint32_t i = 0; i < answer->entry_count; i++) {
		const struct ffs_cold_answer *entry = &answer->entries[i];
		if (entry->status != FFS_OK)
			continue;
		struct ffs_extent extent = ffs_answer_extent(answer->request, entry);
		const uint8_t *first = entry->first;
		uint32_t end = extent.head + extent.length;
		struct ibv_sge range = ffs_answer_in_arena(conn, first + extent.head, extent.length);
		if (!ffs_answer_post_range(answer, range, extent.destination))
			return false;
		ffs_answer_add(answer, ffs_answer_in_arena(conn, first, extent.head));
		ffs_answer_add(answer, ffs_answer_in_arena(conn, first + end, extent.bytes - end));
	}
	return true;
}

static void finish_answered(const struct ffs_answer *answer)
{
	for (uint32_t i = 0; i < answer->entry_count; i++)
		ffs_request_answered(answer->conn, answer->request);
}

/* An answer of what has been read. */
static enum ffs_rdma_progress answer_ready(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_answer answer;
	if (!ffs_answer_has_room(rdma, 1, FFS_COLD_WHOLE_BYTES_MAX))
		return FFS_RDMA_MUST_WAIT;
	memset(&answer, 0, offsetof(struct ffs_answer, parts));
	answer.conn = conn;
	answer.frame = ffs_rdma_frame_take(rdma);
	if (answer.frame == NULL)
		return FFS_RDMA_MUST_WAIT;
	collect(&answer);
	answer.reply = ffs_rdma_reply_of(answer.request);
	if (answer.frame->cold.streamed != NULL)
		return ffs_rdma_begin_stream(&answer) ? FFS_RDMA_WENT_ON : FFS_RDMA_BROKEN;
	ffs_answer_commit(conn, answer.frame);
	fill_slot(&answer);
	bool sent = post_ranges(&answer) && ffs_answer_post(&answer);
	finish_answered(&answer);
	return sent ? FFS_RDMA_WENT_ON : FFS_RDMA_BROKEN;
}

/* An answer that is a header alone. */
static enum ffs_rdma_progress answer_bare(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_rdma_frame *frame;
	if (!ffs_answer_has_room(rdma, 1, 0) || (frame = ffs_rdma_frame_take(rdma)) == NULL)
		return FFS_RDMA_MUST_WAIT;
	ffs_answer_commit(conn, frame);
	ffs_header_pack(frame->slot, &conn->queue_head->header);
	ffs_conn_dequeue(conn);
	rdma->requests--;
	return ffs_answer_post_header(conn, frame) ? FFS_RDMA_WENT_ON : FFS_RDMA_BROKEN;
}

static bool read_range(struct ffs_conn *conn, struct ffs_request *request, uint32_t index)
{
	struct ffs_range range;
	uint16_t status = ffs_request_find(conn->loop, request, index, &range);
	if (status != FFS_OK)
		return ffs_cold_fail(conn, request, index, status);
	bool cached = ffs_residency_of(&range, conn->loop->now_ns) == FFS_RESIDENT;
	if (ffs_cold_add(conn, request, index, &range, cached))
		return true;
	ffs_store_release(&range);
	return false;
}

/* Have the ranges of the oldest request read. */
static enum ffs_rdma_progress read_ranges(struct ffs_conn *conn)
{
	struct ffs_request *request = conn->queue_head;
	uint32_t before_this = request->answered;
	while (request->answered < request->count && !ffs_cold_full(conn)) {
		if (!read_range(conn, request, request->answered))
			return FFS_RDMA_BROKEN;
		request->answered++;
	}
	ffs_count(&conn->loop->counts.ranges, request->answered - before_this);
	bool any = request->answered > before_this;
	if (request->answered == request->count)
		ffs_conn_dequeue(conn);
	return any ? FFS_RDMA_WENT_ON : FFS_RDMA_MUST_WAIT;
}

static enum ffs_rdma_progress go_on(struct ffs_conn *conn)
{
	if (conn->rdma->streaming != NULL)
		return ffs_rdma_stream_on(conn);
	if (conn->cold.ready.head != NULL) {
		enum ffs_rdma_progress progress = answer_ready(conn);
		if (progress != FFS_RDMA_MUST_WAIT)
			return progress;
	}
	if (conn->queue_head == NULL)
		return FFS_RDMA_MUST_WAIT;
	return conn->queue_head->count == 0 ? answer_bare(conn) : read_ranges(conn);
}

void ffs_rdma_send(struct ffs_conn *conn)
{
	enum ffs_rdma_progress progress;
	do
		progress = go_on(conn);
	while (progress == FFS_RDMA_WENT_ON);
	if (progress == FFS_RDMA_BROKEN) {
		ffs_count(&conn->loop->counts.errors, 1);
		ffs_conn_close(conn);
	}
}
