/*
 * Ranges by RDMA that do not fit the arena as a whole: piece by piece, each when the one before it
 * is out, the answer last. See rdma_answer.h.
 *
 * Previous hop: rdma_send.c. Next: cold.h for the next piece, rdma_post.c for the answer. What is
 * remembered from piece to piece is at the end of the answer's slot, behind the edges: those of
 * such a range are copied there, since their pieces leave the arena before the answer goes.
 *
 * Failure: a piece that cannot be read is the range's status; one that the card refuses ends the
 * connection. Copies: edges and entries into the slot.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/rdma_answer.h"

struct stream {
	struct ffs_request *request;
	struct ffs_cold_answer entry;
	uint32_t done;       /* bytes of the entry */
	uint32_t edge_bytes; /* in the slot, behind the entry */
};

static struct stream *stream_of(const struct ffs_rdma_frame *frame)
{
	return (struct stream *)(void *)(frame->slot + FFS_ANSWER_PROGRESS_AT - sizeof(struct stream));
}

static_assert(sizeof(struct stream) + FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES +
                      2 * FFS_BLOCK_BYTES <=
                  FFS_ANSWER_PROGRESS_AT,
              "an entry, two edges, and that");

/* Of `count` bytes that begin at byte `done` of the entry: how many lie before `end`. */
static uint32_t before(uint32_t done, uint32_t count, uint32_t end)
{
	return done >= end ? 0 : end - done < count ? end - done : count;
}

/* Write what of a piece belongs to the range; signalled, since its memory is wanted again. */
static bool post_part(struct ffs_conn *conn, struct ibv_sge part, uint64_t address, uint32_t key)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ibv_send_wr write = {.wr_id = ffs_rdma_work_id(conn, true),
	                            .sg_list = &part,
	                            .num_sge = part.length > 0 ? 1 : 0,
	                            .opcode = IBV_WR_RDMA_WRITE,
	                            .send_flags = IBV_SEND_SIGNALED,
	                            .wr.rdma = {.remote_addr = address, .rkey = key}};
	rdma->piece = (struct ffs_posted){.kind = FFS_POSTED_PIECE};
	rdma->piece_posted = true;
	ffs_rdma_posted(rdma, &rdma->piece);
	return ffs_qp_post(&rdma->qp, &write) == 0;
}

/* Send a piece, and keep what of it belongs to the edges. */
static bool post_piece(struct ffs_conn *conn, struct ffs_rdma_frame *frame, const uint8_t *bytes,
                       uint32_t count)
{
	struct stream *stream = stream_of(frame);
	struct ffs_extent extent = ffs_answer_extent(stream->request, &stream->entry);
	uint8_t *edges = frame->slot + FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES;
	uint32_t head = before(stream->done, count, extent.head);
	uint32_t end = before(stream->done, count, extent.head + extent.length);
	uint64_t address = extent.destination + stream->done + head - extent.head;
	memcpy(edges + stream->edge_bytes, bytes, head);
	memcpy(edges + stream->edge_bytes + head, bytes + end, count - end);
	stream->edge_bytes += head + (count - end);
	stream->done += count;
	return ffs_answer_post_progress(conn, frame, stream->request, end - head) &&
	       post_part(conn, ffs_answer_in_arena(conn, bytes + head, end - head), address,
	                 ffs_rdma_reply_of(stream->request)->remote.data_key);
}

/* All that the answer consists of, but for its header. */
static void fill(struct ffs_answer *answer, const struct stream *stream)
{
	const struct ffs_conn *conn = answer->conn;
	const struct ffs_cold_answer *entry = &answer->entries[0];
	const uint8_t *body = ffs_answer_body(answer);
	ffs_answer_pack(answer, 0);
	ffs_answer_add(answer, ffs_answer_in_slot(conn, body, FFS_REPLY_ENTRY_BYTES));
	if (entry->crc_bytes > 0) /* so many that they lie in the arena */
		ffs_answer_add(answer, ffs_answer_in_arena(conn, entry->crcs, entry->crc_bytes));
	ffs_answer_add(answer,
	               ffs_answer_in_slot(conn, body + FFS_REPLY_ENTRY_BYTES, stream->edge_bytes));
}

/* All pieces are out, or one could not be read: the answer. */
static bool end_stream(struct ffs_conn *conn, uint16_t status)
{
	struct ffs_rdma_frame *frame = conn->rdma->streaming;
	struct stream stream = *stream_of(frame);
	struct ffs_answer *answer = ffs_sys_calloc(1, sizeof(*answer));
	if (answer == NULL)
		return false;
	stream.entry.status = status;
	if (status != FFS_OK)
		stream.entry.bytes = stream.entry.crc_bytes = stream.edge_bytes = 0;
	answer->conn = conn;
	answer->frame = frame;
	answer->request = stream.request;
	answer->reply = ffs_rdma_reply_of(stream.request);
	answer->entry_count = 1;
	answer->payload_bytes = stream.entry.bytes;
	answer->entries[0] = stream.entry;
	fill(answer, &stream);
	conn->rdma->streaming = NULL;
	ffs_answer_commit(conn, frame);
	bool sent = ffs_answer_post(answer);
	ffs_request_answered(conn, stream.request);
	free(answer);
	return sent;
}

enum ffs_rdma_progress ffs_rdma_stream_on(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct iovec next;
	if (rdma->piece_posted || !ffs_answer_has_room(rdma, 1, FFS_COLD_WHOLE_BYTES_MAX))
		return FFS_RDMA_MUST_WAIT;
	bool good = true;
	switch (ffs_cold_next_piece(conn, &rdma->streaming->cold, &next)) {
	case FFS_COLD_PIECE:
		good = post_piece(conn, rdma->streaming, next.iov_base, (uint32_t)next.iov_len);
		return good ? FFS_RDMA_MUST_WAIT : FFS_RDMA_BROKEN;
	case FFS_COLD_NO_MORE:
		good = end_stream(conn, FFS_OK);
		return good ? FFS_RDMA_WENT_ON : FFS_RDMA_BROKEN;
	case FFS_COLD_BROKEN:
		good = end_stream(conn, FFS_ERR_STORAGE_IO);
		return good ? FFS_RDMA_WENT_ON : FFS_RDMA_BROKEN;
	case FFS_COLD_LATER:
		break;
	}
	return FFS_RDMA_MUST_WAIT;
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

bool ffs_rdma_begin_stream(const struct ffs_answer *answer)
{
	struct ffs_conn *conn = answer->conn;
	const struct ffs_cold_answer *entry = &answer->entries[0];
	*stream_of(answer->frame) = (struct stream){.request = answer->request, .entry = *entry};
	conn->rdma->streaming = answer->frame;
	return post_piece(conn, answer->frame, entry->first, entry->first_bytes);
}
