/*
 * An answer by RDMA while it is put together: for rdma_send.c, which decides what goes into it,
 * rdma_stream.c, which does so for long ranges, and rdma_post.c, which hands it to the card.
 *
 *   range -> its destination (each)    entries, CRCs, edges -> the client's reply room    header
 *
 * What it takes from is kept until the completion of its header has come.
 */
#ifndef FFS_STORAGE_RDMA_ANSWER_H
#define FFS_STORAGE_RDMA_ANSWER_H

#include "storage/cold_range.h"
#include "storage/rdma_conn.h"

/* Of a slot: the answer's header, its body, and the header that says that bytes are coming. */
#define FFS_ANSWER_PROGRESS_AT (FFS_RDMA_SLOT_BYTES - FFS_FRAME_HEADER_BYTES)
#define FFS_ANSWER_BODY_BYTES (FFS_ANSWER_PROGRESS_AT - FFS_FRAME_HEADER_BYTES)
#define FFS_ANSWER_PARTS_MAX (2 + 2 * FFS_RDMA_ENTRIES_MAX)

enum ffs_rdma_progress {
	FFS_RDMA_WENT_ON,
	FFS_RDMA_MUST_WAIT, /* for the card, or the disk */
	FFS_RDMA_BROKEN,
};

/* The bytes of an entry, as the client wants them: some before its range, the range, some after. */
struct ffs_extent {
	uint32_t head;
	uint32_t length;
	uint32_t bytes;
	uint64_t destination;
};

struct ffs_answer {
	struct ffs_conn *conn;
	struct ffs_rdma_frame *frame;
	struct ffs_request *request;
	struct ffs_rdma_reply *reply;
	uint32_t entry_count;
	uint32_t body_bytes; /* in the slot, behind the header */
	uint32_t payload_bytes;
	uint32_t part_count; /* of what goes to the reply room */
	struct ibv_sge parts[FFS_ANSWER_PARTS_MAX];
	struct ffs_cold_answer entries[FFS_RDMA_ENTRIES_MAX];
};

static inline uint8_t *ffs_answer_body(const struct ffs_answer *answer)
{
	return answer->frame->slot + FFS_FRAME_HEADER_BYTES;
}

/* ------------------------------------------------------------------------------- rdma_post.c */

/* Whether the card has room for an answer with so many entries of so many bytes in all. */
bool ffs_answer_has_room(const struct ffs_rdma_conn *rdma, uint32_t entries, uint32_t bytes);
/* From here on the frame is the connection's, until its header is out or the queue pair is gone:
 * before anything of it is posted. */
void ffs_answer_commit(struct ffs_conn *conn, struct ffs_rdma_frame *frame);
/* The part of the arena, or of the slot, as the card knows it. */
struct ibv_sge ffs_answer_in_arena(const struct ffs_conn *conn, const uint8_t *at, uint32_t bytes);
struct ibv_sge ffs_answer_in_slot(const struct ffs_conn *conn, const uint8_t *at, uint32_t bytes);
/* The next part of what goes to the reply room; none if it is empty. */
void ffs_answer_add(struct ffs_answer *answer, struct ibv_sge part);
/* The entry at this place into the slot, and into the counts. */
void ffs_answer_pack(const struct ffs_answer *answer, uint32_t at);
struct ffs_extent ffs_answer_extent(struct ffs_request *request,
                                    const struct ffs_cold_answer *entry);

/* All of these: false if the card refuses, or the client's room for answers is used up. */

/* So many bytes more are about to be written for a request. Nobody at the client sees them land:
 * after many a header goes that answers nothing, if there are receives for more than the answers,
 * so that a slow wire is not taken for a silent daemon. */
bool ffs_answer_post_progress(struct ffs_conn *conn, struct ffs_rdma_frame *frame,
                              struct ffs_request *request, uint32_t bytes);
/* One range, in steps. */
bool ffs_answer_post_range(const struct ffs_answer *answer, struct ibv_sge range, uint64_t address);
/* Ranges are under way, entries in the slot, parts known: the rest of the answer. */
bool ffs_answer_post(struct ffs_answer *answer);
/* The answer's own header, which is in the slot: behind it the client sees all that was written. */
bool ffs_answer_post_header(struct ffs_conn *conn, struct ffs_rdma_frame *frame);

/* ----------------------------------------------------------------------------- rdma_stream.c */

/* The only entry of the answer is too long for the arena: begin with it. */
bool ffs_rdma_begin_stream(const struct ffs_answer *answer);
/* Go on with what was begun (rdma->streaming). */
enum ffs_rdma_progress ffs_rdma_stream_on(struct ffs_conn *conn);

#endif
