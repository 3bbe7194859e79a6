/*
 * Answers by RDMA, as the card gets them: writes of ranges and bodies, and headers. See
 * rdma_answer.h.
 *
 * Previous hop: rdma_send.c, rdma_stream.c; rdma_fetch.c for its headers. Next: the card. Nothing
 * here waits: who posts has asked for room before.
 *
 * Copies: none, but for headers that the card takes when they are posted.
 */
#include "storage/rdma_answer.h"

/* ---------------------------------------------------------------------------------------- room */

bool ffs_rdma_has_places(const struct ffs_rdma_conn *rdma, uint32_t count)
{
	return ffs_qp_room(&rdma->qp) >= count + FFS_RDMA_RESERVED;
}

bool ffs_answer_has_room(const struct ffs_rdma_conn *rdma, uint32_t entries, uint32_t bytes)
{
	uint32_t parts = 2 + 2 * entries, most = rdma->card->sges;
	uint32_t steps = bytes / FFS_RDMA_PROGRESS_BYTES; /* each a write, and a header */
	return ffs_rdma_has_places(rdma, entries + 2 * steps + (parts + most - 1) / most + 1);
}

void ffs_answer_commit(struct ffs_conn *conn, struct ffs_rdma_frame *frame)
{
	frame->posted.kind = FFS_POSTED_FRAME;
	ffs_rdma_posted(conn->rdma, &frame->posted);
}

/* --------------------------------------------------------------------------------------- parts */

struct ibv_sge ffs_answer_in_arena(const struct ffs_conn *conn, const uint8_t *at, uint32_t bytes)
{
	return (struct ibv_sge){
		.addr = (uint64_t)(uintptr_t)at, .length = bytes, .lkey = conn->rdma->card->arena->lkey};
}

struct ibv_sge ffs_answer_in_slot(const struct ffs_conn *conn, const uint8_t *at, uint32_t bytes)
{
	return (struct ibv_sge){
		.addr = (uint64_t)(uintptr_t)at, .length = bytes, .lkey = conn->rdma->card->slots.mr->lkey};
}

void ffs_answer_add(struct ffs_answer *answer, struct ibv_sge part)
{
	if (part.length > 0)
		answer->parts[answer->part_count++] = part;
}

static void count_entry(struct ffs_loop *loop, const struct ffs_cold_answer *entry)
{
	if (entry->status != FFS_OK) {
		ffs_count(&loop->counts.errors, 1);
		return;
	}
	ffs_loop_count_range(loop, entry->direct ? FFS_BY_DIRECT : FFS_BY_DISK, entry->bytes);
	ffs_count(&loop->counts.rdma_bytes, entry->bytes);
}

void ffs_answer_pack(const struct ffs_answer *answer, uint32_t at)
{
	const struct ffs_cold_answer *cold = &answer->entries[at];
	struct ffs_reply_entry entry = {
		.index = (uint16_t)cold->index, .status = cold->status, .bytes = cold->bytes};
	ffs_reply_entry_pack(ffs_answer_body(answer) + (size_t)at * FFS_REPLY_ENTRY_BYTES, &entry);
	count_entry(answer->conn->loop, cold);
}

struct ffs_extent ffs_answer_extent(struct ffs_request *request,
                                    const struct ffs_cold_answer *entry)
{
	const uint8_t *addresses =
		request->descriptors + (size_t)request->count * FFS_READ_DESCRIPTOR_BYTES;
	bool bare = (request->header.flags & FFS_FLAG_NO_CRC) != 0;
	struct ffs_read_descriptor wanted;
	ffs_read_descriptor_unpack(&wanted, request->descriptors +
	                                        (size_t)entry->index * FFS_READ_DESCRIPTOR_BYTES);
	return (struct ffs_extent){
		.head = bare ? 0 : ffs_head_bytes(wanted.offset),
		.length = wanted.length,
		.bytes = entry->bytes,
		.destination = ffs_load_u64(addresses + (size_t)entry->index * FFS_REMOTE_ADDRESS_BYTES),
	};
}

/* --------------------------------------------------------------------------------------- writes */

static bool post_write(const struct ffs_answer *answer, struct ibv_sge *parts, uint32_t count,
                       uint64_t address, uint32_t key)
{
	struct ibv_send_wr write = {.wr_id = ffs_rdma_work_id(answer->conn, false),
	                            .sg_list = parts,
	                            .num_sge = (int)count,
	                            .opcode = IBV_WR_RDMA_WRITE,
	                            .wr.rdma = {.remote_addr = address, .rkey = key}};
	return ffs_qp_post(&answer->conn->rdma->qp, &write) == 0;
}

/* All parts, to the reply room, in as many writes as the card's gather lists need. */
static bool post_body(struct ffs_answer *answer)
{
	struct ffs_rdma_reply *reply = answer->reply;
	uint32_t most = answer->conn->rdma->card->sges;
	uint64_t total = 0;
	for (uint32_t i = 0; i < answer->part_count; i++)
		total += answer->parts[i].length;
	reply->used = (reply->used + 7) & ~7u;
	if (total > reply->remote.reply_bytes || reply->used > reply->remote.reply_bytes - total)
		return false;
	for (uint32_t i = 0; i < answer->part_count; i += most) {
		uint32_t count = answer->part_count - i < most ? answer->part_count - i : most;
		uint32_t bytes = 0;
		for (uint32_t j = 0; j < count; j++)
			bytes += answer->parts[i + j].length;
		if (!post_write(answer, &answer->parts[i], count, reply->remote.reply_address + reply->used,
		                reply->remote.reply_key))
			return false;
		reply->used += bytes;
	}
	return true;
}

bool ffs_answer_post_range(const struct ffs_answer *answer, struct ibv_sge range, uint64_t address)
{
	uint32_t left = range.length;
	while (left > 0) {
		range.length = left < FFS_RDMA_PROGRESS_BYTES ? left : FFS_RDMA_PROGRESS_BYTES;
		if (!ffs_answer_post_progress(answer->conn, answer->frame, answer->request, range.length) ||
		    !post_write(answer, &range, 1, address, answer->reply->remote.data_key))
			return false;
		left -= range.length;
		address += range.length;
		range.addr += range.length;
	}
	return true;
}

/* -------------------------------------------------------------------------------------- headers */

/* A header that is in memory which the card knows by `key`; whether it `ends` its answer. */
static bool send_header(struct ffs_conn *conn, const uint8_t *header, uint32_t key, bool ends)
{
	struct ibv_sge part = {
		.addr = (uint64_t)(uintptr_t)header, .length = FFS_FRAME_HEADER_BYTES, .lkey = key};
	struct ibv_send_wr send = {.wr_id = ffs_rdma_work_id(conn, ends),
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .opcode = IBV_WR_SEND,
	                           .send_flags = ends ? IBV_SEND_SIGNALED : 0};
	if (conn->rdma->qp.inline_bytes >= FFS_FRAME_HEADER_BYTES)
		send.send_flags |= IBV_SEND_INLINE;
	return ffs_qp_post(&conn->rdma->qp, &send) == 0;
}

bool ffs_rdma_post_inline(struct ffs_conn *conn, const uint8_t header[FFS_FRAME_HEADER_BYTES])
{
	return conn->rdma->qp.inline_bytes < FFS_FRAME_HEADER_BYTES ||
	       send_header(conn, header, 0, false);
}

bool ffs_answer_post_header(struct ffs_conn *conn, struct ffs_rdma_frame *frame)
{
	return send_header(conn, frame->slot, conn->rdma->card->slots.mr->lkey, true);
}

bool ffs_answer_post_progress(struct ffs_conn *conn, struct ffs_rdma_frame *frame,
                              struct ffs_request *request, uint32_t bytes)
{
	struct ffs_rdma_reply *reply = ffs_rdma_reply_of(request);
	uint8_t *header_at = frame->slot + FFS_ANSWER_PROGRESS_AT;
	bool due = reply->silent_bytes >= FFS_RDMA_PROGRESS_BYTES &&
	           reply->told < reply->remote.frames - request->count;
	reply->silent_bytes = (due ? 0 : reply->silent_bytes) + bytes;
	if (!due)
		return true;
	reply->told++;
	struct ffs_header header = ffs_request_reply(request, 0, 0, 0);
	header.flags = FFS_FLAG_UNDER_WAY;
	ffs_header_pack(header_at, &header); /* the same bytes each time */
	return send_header(conn, header_at, conn->rdma->card->slots.mr->lkey, false);
}

bool ffs_answer_post(struct ffs_answer *answer)
{
	struct ffs_conn *conn = answer->conn;
	struct ffs_rdma_reply *reply = answer->reply;
	struct ffs_request *request = answer->request;
	uint64_t now_ns = ffs_monotonic_ns(), disk_ns = 0;
	uint32_t crc_bytes = 0;
	for (uint32_t i = 0; i < answer->entry_count; i++) {
		const struct ffs_cold_answer *entry = &answer->entries[i];
		crc_bytes += entry->crc_bytes;
		disk_ns = entry->disk_ns > disk_ns ? entry->disk_ns : disk_ns;
	}
	request->disk_ns = disk_ns > request->disk_ns ? disk_ns : request->disk_ns;
	struct ffs_header header = ffs_request_reply(
		request, answer->entry_count, answer->entry_count * FFS_REPLY_ENTRY_BYTES + crc_bytes,
		answer->payload_bytes);
	ffs_reply_set_times(&header, request, disk_ns, now_ns);
	ffs_header_pack(answer->frame->slot, &header);
	ffs_loop_note_queued(conn->loop, request, answer->entry_count, now_ns);
	request->bytes += answer->payload_bytes;
	reply->unanswered -= answer->entry_count;
	reply->silent_bytes = 0;
	if (reply->unanswered == 0) {
		ffs_request_note_last(&answer->frame->last, request, now_ns);
		conn->rdma->requests--;
	}
	return post_body(answer) && ffs_answer_post_header(conn, answer->frame);
}
