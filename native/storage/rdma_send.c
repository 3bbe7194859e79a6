/*
 * Answers by RDMA: ranges from the arena to where the caller wants them, then what is said of them.
 *
 * Previous hop: serve.c. Next: cold.h, which reads every range into registered memory, whether the
 * page cache has it or not; then the card. An answer is a few writes and a SEND, in this order:
 *
 *   range -> its destination (each)    entries, CRCs, edges -> the client's reply room    header
 *
 * and what it takes from is kept until the SEND's completion has come. A range that does not fit
 * the arena as a whole goes piece by piece, each when the one before it is out, its answer last.
 *
 * Copies: CRCs and entries into the slot; edges too, of long ranges alone.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/cold_range.h"
#include "storage/rdma_conn.h"
#include "storage/residency.h"

/* Places of the send queue that are left to transfers: a body and a chunk for each credit. */
#define RESERVED (2 * FFS_RDMA_CREDITS)
/* Of a slot: the answer's header, its body, and the header that says that bytes are coming. */
#define PROGRESS_AT (FFS_RDMA_SLOT_BYTES - FFS_FRAME_HEADER_BYTES)
#define BODY_BYTES (PROGRESS_AT - FFS_FRAME_HEADER_BYTES)
#define PARTS_MAX (2 + 2 * FFS_RDMA_ENTRIES_MAX)

enum progress {
	WENT_ON,
	MUST_WAIT, /* for the card, or the disk */
	BROKEN,
};

/* The bytes of an entry, as the client wants them: some before its range, the range, some after. */
struct extent {
	uint32_t head;
	uint32_t length;
	uint32_t bytes;
	uint64_t destination;
};

/* The answer that is being put together. */
struct build {
	struct ffs_conn *conn;
	struct ffs_rdma_frame *frame;
	struct ffs_request *request;
	struct ffs_rdma_reply *reply;
	uint32_t entries;
	uint32_t body_bytes; /* in the slot, behind the header */
	uint32_t payload_bytes;
	uint32_t part_count; /* of what goes to the reply room */
	struct ibv_sge parts[PARTS_MAX];
	struct ffs_cold_answer answers[FFS_RDMA_ENTRIES_MAX];
};

static uint8_t *slot_body(const struct build *build)
{
	return build->frame->slot + FFS_FRAME_HEADER_BYTES;
}

static struct extent extent_of(struct ffs_request *request, const struct ffs_cold_answer *answer)
{
	const uint8_t *addresses =
		request->descriptors + (size_t)request->count * FFS_READ_DESCRIPTOR_BYTES;
	bool bare = (request->header.flags & FFS_FLAG_NO_CRC) != 0;
	struct ffs_read_descriptor wanted;
	ffs_read_descriptor_unpack(&wanted, request->descriptors +
	                                        (size_t)answer->index * FFS_READ_DESCRIPTOR_BYTES);
	return (struct extent){
		.head = bare ? 0 : ffs_head_bytes(wanted.offset),
		.length = wanted.length,
		.bytes = answer->bytes,
		.destination = ffs_load_u64(addresses + (size_t)answer->index * FFS_REMOTE_ADDRESS_BYTES),
	};
}

/* --------------------------------------------------------------------------------------- posting
 */

static bool post_write(const struct build *build, struct ibv_sge *parts, uint32_t count,
                       uint64_t address, uint32_t key)
{
	struct ibv_send_wr write = {.wr_id = ffs_rdma_work_id(build->conn, false),
	                            .sg_list = parts,
	                            .num_sge = (int)count,
	                            .opcode = IBV_WR_RDMA_WRITE,
	                            .wr.rdma = {.remote_addr = address, .rkey = key}};
	return ffs_qp_post(&build->conn->rdma->qp, &write) == 0;
}

static struct ibv_sge arena_part(const struct build *build, const uint8_t *at, uint32_t bytes)
{
	return (struct ibv_sge){.addr = (uint64_t)(uintptr_t)at,
	                        .length = bytes,
	                        .lkey = build->conn->rdma->card->arena->lkey};
}

static struct ibv_sge slot_part(const struct build *build, const uint8_t *at, uint32_t bytes)
{
	return (struct ibv_sge){.addr = (uint64_t)(uintptr_t)at,
	                        .length = bytes,
	                        .lkey = build->conn->rdma->card->slots.mr->lkey};
}

static void add_part(struct build *build, struct ibv_sge part)
{
	if (part.length > 0)
		build->parts[build->part_count++] = part;
}

/* All parts, to the reply room, in as many writes as the card's gather lists need. */
static bool post_body(struct build *build)
{
	struct ffs_rdma_reply *reply = build->reply;
	uint32_t most = build->conn->rdma->card->sges;
	uint64_t total = 0;
	for (uint32_t i = 0; i < build->part_count; i++)
		total += build->parts[i].length;
	reply->used = (reply->used + 7) & ~7u;
	if (total > reply->remote.reply_bytes || reply->used > reply->remote.reply_bytes - total)
		return false;
	for (uint32_t i = 0; i < build->part_count; i += most) {
		uint32_t count = build->part_count - i < most ? build->part_count - i : most;
		uint32_t bytes = 0;
		for (uint32_t j = 0; j < count; j++)
			bytes += build->parts[i + j].length;
		if (!post_write(build, &build->parts[i], count, reply->remote.reply_address + reply->used,
		                reply->remote.reply_key))
			return false;
		reply->used += bytes;
	}
	return true;
}

/* A header that is in a slot; whether it `ends` its answer. */
static bool send_header(struct ffs_conn *conn, const uint8_t *header, bool ends)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)header,
	                       .length = FFS_FRAME_HEADER_BYTES,
	                       .lkey = conn->rdma->card->slots.mr->lkey};
	struct ibv_send_wr send = {.wr_id = ffs_rdma_work_id(conn, ends),
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .opcode = IBV_WR_SEND,
	                           .send_flags = ends ? IBV_SEND_SIGNALED : 0};
	if (conn->rdma->qp.inline_bytes >= FFS_FRAME_HEADER_BYTES)
		send.send_flags |= IBV_SEND_INLINE;
	return ffs_qp_post(&conn->rdma->qp, &send) == 0;
}

/* The answer's own: behind it the client sees all that was written before. */
static bool post_header(struct ffs_conn *conn, struct ffs_rdma_frame *frame)
{
	return send_header(conn, frame->slot, true);
}

/* So many bytes more are about to be written. Nobody at the client sees them land: after many a
 * header goes that answers nothing, if there are receives for more than the answers, so that a slow
 * wire is not taken for a silent daemon. */
static bool post_progress(struct ffs_conn *conn, struct ffs_rdma_frame *frame,
                          struct ffs_request *request, uint32_t bytes)
{
	struct ffs_rdma_reply *reply = ffs_rdma_reply_of(request);
	bool due = reply->silent_bytes >= FFS_RDMA_PROGRESS_BYTES &&
	           reply->told < reply->remote.frames - request->count;
	reply->silent_bytes = (due ? 0 : reply->silent_bytes) + bytes;
	if (!due)
		return true;
	reply->told++;
	struct ffs_header header = ffs_request_reply(request, 0, 0, 0);
	header.flags = FFS_FLAG_UNDER_WAY;
	ffs_header_pack(frame->slot + PROGRESS_AT, &header); /* the same bytes each time */
	return send_header(conn, frame->slot + PROGRESS_AT, false);
}

/* From here on the frame is the connection's, until its header is out or the queue pair is gone:
 * before anything of it is posted. */
static void commit(struct ffs_conn *conn, struct ffs_rdma_frame *frame)
{
	frame->posted.kind = FFS_POSTED_FRAME;
	ffs_rdma_posted(conn->rdma, &frame->posted);
}

/* Entries and CRCs are in the slot, their ranges are under way: the rest of the answer. */
static bool post_answer(struct build *build)
{
	struct ffs_conn *conn = build->conn;
	struct ffs_rdma_reply *reply = build->reply;
	uint64_t now_ns = ffs_monotonic_ns();
	struct ffs_request *request = build->request;
	uint32_t crc_bytes = 0;
	uint64_t disk_ns = 0;
	for (uint32_t i = 0; i < build->entries; i++) {
		const struct ffs_cold_answer *answer = &build->answers[i];
		crc_bytes += answer->crc_bytes;
		disk_ns = answer->disk_ns > disk_ns ? answer->disk_ns : disk_ns;
	}
	request->disk_ns = disk_ns > request->disk_ns ? disk_ns : request->disk_ns;
	struct ffs_header header =
		ffs_request_reply(build->request, build->entries,
	                      build->entries * FFS_REPLY_ENTRY_BYTES + crc_bytes, build->payload_bytes);
	ffs_reply_set_times(&header, request, disk_ns, now_ns);
	ffs_header_pack(build->frame->slot, &header);
	ffs_loop_note_queued(conn->loop, build->request, build->entries, now_ns);
	build->request->bytes += build->payload_bytes;
	reply->unanswered -= build->entries;
	reply->silent_bytes = 0;
	if (reply->unanswered == 0) {
		ffs_request_note_last(&build->frame->last, build->request, now_ns);
		conn->rdma->requests--;
	}
	return post_body(build) && post_header(conn, build->frame);
}

/* ------------------------------------------------------------------------- ranges that fit whole
 */

/* Whether the card has room for an answer with so many entries of so many bytes in all. */
static bool has_room(const struct ffs_rdma_conn *rdma, uint32_t entries, uint32_t bytes)
{
	uint32_t parts = 2 + 2 * entries, most = rdma->card->sges;
	uint32_t steps = bytes / FFS_RDMA_PROGRESS_BYTES; /* each a write, and a header */
	uint32_t needed = entries + 2 * steps + (parts + most - 1) / most + 1 + RESERVED;
	return ffs_qp_room(&rdma->qp) >= needed;
}

static bool fits(const struct build *build, const struct ffs_cold_answer *answer)
{
	uint32_t body = build->body_bytes + FFS_REPLY_ENTRY_BYTES + answer->crc_bytes;
	if (build->entries == 0)
		return true;
	return answer->request == build->request && build->entries < FFS_RDMA_ENTRIES_MAX &&
	       body <= BODY_BYTES && answer->first_bytes == answer->bytes &&
	       has_room(build->conn->rdma, build->entries + 1, build->payload_bytes + answer->bytes);
}

/* Take what is ready and belongs together. */
static void collect(struct build *build)
{
	struct ffs_cold_answer *answer = &build->answers[0];
	while (build->frame->cold.streamed == NULL && ffs_cold_peek(build->conn, answer) &&
	       fits(build, answer)) {
		build->request = answer->request;
		build->body_bytes += FFS_REPLY_ENTRY_BYTES + answer->crc_bytes;
		build->payload_bytes += answer->bytes;
		ffs_cold_take(build->conn, &build->frame->cold);
		answer = &build->answers[++build->entries];
		if (build->entries == FFS_RDMA_ENTRIES_MAX)
			return;
	}
}

static void pack_entry(const struct build *build, uint32_t at)
{
	const struct ffs_cold_answer *answer = &build->answers[at];
	struct ffs_reply_entry entry = {
		.index = (uint16_t)answer->index, .status = answer->status, .bytes = answer->bytes};
	ffs_reply_entry_pack(slot_body(build) + (size_t)at * FFS_REPLY_ENTRY_BYTES, &entry);
}

static void count_answer(struct ffs_loop *loop, const struct ffs_cold_answer *answer)
{
	if (answer->status != FFS_OK) {
		ffs_count(&loop->counts.errors, 1);
		return;
	}
	ffs_loop_count_range(loop, answer->direct ? FFS_BY_DIRECT : FFS_BY_DISK, answer->bytes);
	ffs_count(&loop->counts.rdma_bytes, answer->bytes);
}

/* Entries and CRCs into the slot: the first part of the body. */
static void fill_slot(struct build *build)
{
	uint8_t *crcs = slot_body(build) + (size_t)build->entries * FFS_REPLY_ENTRY_BYTES;
	for (uint32_t i = 0; i < build->entries; i++) {
		const struct ffs_cold_answer *answer = &build->answers[i];
		pack_entry(build, i);
		memcpy(crcs, answer->crcs, answer->crc_bytes);
		crcs += answer->crc_bytes;
		count_answer(build->conn->loop, answer);
	}
	add_part(build, slot_part(build, slot_body(build), build->body_bytes));
}

/* One range, in steps. */
static bool post_range(struct build *build, struct ibv_sge range, uint64_t address)
{
	uint32_t left = range.length;
	while (left > 0) {
		range.length = left < FFS_RDMA_PROGRESS_BYTES ? left : FFS_RDMA_PROGRESS_BYTES;
		if (!post_progress(build->conn, build->frame, build->request, range.length) ||
		    !post_write(build, &range, 1, address, build->reply->remote.data_key))
			return false;
		left -= range.length;
		address += range.length;
		range.addr += range.length;
	}
	return true;
}

/* Each range to its destination; its edges are parts of the body. */
static bool post_ranges(struct build *build)
{
	for (uint32_t i = 0; i < build->entries; i++) {
		const struct ffs_cold_answer *answer = &build->answers[i];
		if (answer->status != FFS_OK)
			continue;
		struct extent extent = extent_of(build->request, answer);
		struct ibv_sge range = arena_part(build, answer->first + extent.head, extent.length);
		uint32_t end = extent.head + extent.length;
		if (!post_range(build, range, extent.destination))
			return false;
		add_part(build, arena_part(build, answer->first, extent.head));
		add_part(build, arena_part(build, answer->first + end, extent.bytes - end));
	}
	return true;
}

static void finish_answered(const struct build *build)
{
	for (uint32_t i = 0; i < build->entries; i++)
		ffs_request_answered(build->conn, build->request);
}

/* --------------------------------------------------------------------------------- long ranges */

/* What is remembered of one from piece to piece is at the slot's end. */
struct stream {
	struct ffs_request *request;
	struct ffs_cold_answer answer;
	uint32_t done;       /* bytes of the entry */
	uint32_t edge_bytes; /* in the slot, behind the entry */
};

static struct stream *stream_of(const struct ffs_rdma_frame *frame)
{
	return (struct stream *)(void *)(frame->slot + PROGRESS_AT - sizeof(struct stream));
}

static_assert(sizeof(struct stream) + FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES +
                      2 * FFS_BLOCK_BYTES <=
                  PROGRESS_AT,
              "an entry, two edges, and that");

/* Of `count` bytes that begin at byte `done` of the entry: how many lie before `end`. */
static uint32_t before(uint32_t done, uint32_t count, uint32_t end)
{
	return done >= end ? 0 : end - done < count ? end - done : count;
}

/* Send a piece, and keep what of it belongs to the edges. */
static bool post_piece(struct ffs_conn *conn, struct ffs_rdma_frame *frame, const uint8_t *bytes,
                       uint32_t count)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct stream *stream = stream_of(frame);
	struct extent extent = extent_of(stream->request, &stream->answer);
	uint8_t *edges = frame->slot + FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES;
	uint32_t head = before(stream->done, count, extent.head);
	uint32_t end = before(stream->done, count, extent.head + extent.length);
	memcpy(edges + stream->edge_bytes, bytes, head);
	memcpy(edges + stream->edge_bytes + head, bytes + end, count - end);
	stream->edge_bytes += head + (count - end);
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)(bytes + head),
	                       .length = end - head,
	                       .lkey = rdma->card->arena->lkey};
	struct ibv_send_wr write = {
		.wr_id = ffs_rdma_work_id(conn, true),
		.sg_list = &part,
		.num_sge = end > head ? 1 : 0,
		.opcode = IBV_WR_RDMA_WRITE,
		.send_flags = IBV_SEND_SIGNALED,
		.wr.rdma = {.remote_addr = extent.destination + stream->done + head - extent.head,
	                .rkey = ffs_rdma_reply_of(stream->request)->remote.data_key}};
	stream->done += count;
	rdma->piece = (struct ffs_posted){.kind = FFS_POSTED_PIECE};
	rdma->piece_posted = true;
	ffs_rdma_posted(rdma, &rdma->piece);
	return post_progress(conn, frame, stream->request, end - head) &&
	       ffs_qp_post(&rdma->qp, &write) == 0;
}

/* All pieces are out, or one could not be read: the answer. */
static bool end_stream(struct ffs_conn *conn, uint16_t status)
{
	struct ffs_rdma_frame *frame = conn->rdma->streaming;
	struct stream stream = *stream_of(frame);
	bool good = status == FFS_OK;
	stream.answer.status = status;
	if (!good)
		stream.answer.bytes = stream.answer.crc_bytes = stream.edge_bytes = 0;
	struct build *build = ffs_sys_calloc(1, sizeof(*build));
	if (build == NULL)
		return false;
	build->conn = conn;
	build->frame = frame;
	build->request = stream.request;
	build->reply = ffs_rdma_reply_of(stream.request);
	build->entries = 1;
	build->payload_bytes = stream.answer.bytes;
	build->answers[0] = stream.answer;
	pack_entry(build, 0);
	count_answer(conn->loop, &stream.answer);
	add_part(build, slot_part(build, slot_body(build), FFS_REPLY_ENTRY_BYTES));
	if (stream.answer.crc_bytes > 0) /* so many that they lie in the arena */
		add_part(build, arena_part(build, stream.answer.crcs, stream.answer.crc_bytes));
	add_part(build, slot_part(build, slot_body(build) + FFS_REPLY_ENTRY_BYTES, stream.edge_bytes));
	conn->rdma->streaming = NULL;
	commit(conn, frame);
	bool sent = post_answer(build);
	ffs_request_answered(conn, stream.request);
	free(build);
	return sent;
}

/* Go on with the long range. */
static enum progress stream_on(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct iovec next;
	if (rdma->piece_posted || !has_room(rdma, 1, FFS_COLD_WHOLE_BYTES_MAX))
		return MUST_WAIT;
	switch (ffs_cold_next_piece(conn, &rdma->streaming->cold, &next)) {
	case FFS_COLD_PIECE:
		return post_piece(conn, rdma->streaming, next.iov_base, (uint32_t)next.iov_len) ? MUST_WAIT
		                                                                                : BROKEN;
	case FFS_COLD_NO_MORE:
		return end_stream(conn, FFS_OK) ? WENT_ON : BROKEN;
	case FFS_COLD_BROKEN:
		return end_stream(conn, FFS_ERR_STORAGE_IO) ? WENT_ON : BROKEN;
	case FFS_COLD_LATER:
		break;
	}
	return MUST_WAIT;
}

void ffs_rdma_end_piece(struct ffs_conn *conn)
{
	conn->rdma->piece_posted = false;
}

void ffs_rdma_end_stream(struct ffs_conn *conn, struct ffs_rdma_conn *rdma)
{
	if (rdma->streaming == NULL)
		return;
	ffs_request_answered(conn, stream_of(rdma->streaming)->request);
	ffs_rdma_frame_give_back(rdma->card, rdma->streaming);
}

static bool begin_stream(const struct build *build)
{
	struct ffs_conn *conn = build->conn;
	const struct ffs_cold_answer *answer = &build->answers[0];
	*stream_of(build->frame) = (struct stream){.request = build->request, .answer = *answer};
	conn->rdma->streaming = build->frame;
	return post_piece(conn, build->frame, answer->first, answer->first_bytes);
}

/* --------------------------------------------------------------------------------- what is next */

/* An answer of what has been read. */
static enum progress answer_ready(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct build build;
	if (!has_room(rdma, 1, FFS_COLD_WHOLE_BYTES_MAX))
		return MUST_WAIT;
	memset(&build, 0, offsetof(struct build, parts));
	build.conn = conn;
	build.frame = ffs_rdma_frame_take(rdma);
	if (build.frame == NULL)
		return MUST_WAIT;
	collect(&build);
	build.reply = ffs_rdma_reply_of(build.request);
	if (build.frame->cold.streamed != NULL)
		return begin_stream(&build) ? WENT_ON : BROKEN;
	commit(conn, build.frame);
	fill_slot(&build);
	bool sent = post_ranges(&build) && post_answer(&build);
	finish_answered(&build);
	return sent ? WENT_ON : BROKEN;
}

/* An answer that is a header alone. */
static enum progress answer_bare(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_rdma_frame *frame;
	if (!has_room(rdma, 1, 0) || (frame = ffs_rdma_frame_take(rdma)) == NULL)
		return MUST_WAIT;
	commit(conn, frame);
	ffs_header_pack(frame->slot, &conn->queue_head->header);
	ffs_conn_dequeue(conn);
	rdma->requests--;
	return post_header(conn, frame) ? WENT_ON : BROKEN;
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
static enum progress read_ranges(struct ffs_conn *conn)
{
	struct ffs_request *request = conn->queue_head;
	uint32_t before_this = request->answered;
	while (request->answered < request->count && !ffs_cold_full(conn)) {
		if (!read_range(conn, request, request->answered))
			return BROKEN;
		request->answered++;
	}
	ffs_count(&conn->loop->counts.ranges, request->answered - before_this);
	bool any = request->answered > before_this;
	if (request->answered == request->count)
		ffs_conn_dequeue(conn);
	return any ? WENT_ON : MUST_WAIT;
}

static enum progress go_on(struct ffs_conn *conn)
{
	if (conn->rdma->streaming != NULL)
		return stream_on(conn);
	if (conn->cold.ready.head != NULL) {
		enum progress progress = answer_ready(conn);
		if (progress != MUST_WAIT)
			return progress;
	}
	if (conn->queue_head == NULL)
		return MUST_WAIT;
	return conn->queue_head->count == 0 ? answer_bare(conn) : read_ranges(conn);
}

void ffs_rdma_send(struct ffs_conn *conn)
{
	enum progress progress;
	do
		progress = go_on(conn);
	while (progress == WENT_ON);
	if (progress == BROKEN) {
		ffs_count(&conn->loop->counts.errors, 1);
		ffs_conn_close(conn);
	}
}
