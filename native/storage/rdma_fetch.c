/*
 * Bytes that are fetched from clients: bodies that a SEND had no room for, chunks. See rdma.h.
 *
 * Previous hop: rdma_receive.c, with a message; rdma_card.c, with each completion. Next: the card;
 * when all of a transfer is here, rdma_receive.c again. A chunk is fetched in steps, of which two
 * are under way, so that the wire is kept busy. After each a header goes that answers nothing:
 * nobody at the client sees its bytes leave, and a slow wire must not be taken for a silent daemon.
 *
 * Ownership: a transfer that has begun belongs to its fetches, which are in the connection's list
 * of what is posted; the last of them to end, or to be dropped, frees it. Copies: none. A chunk
 * goes from the card to its receive buffer, which is registered for that time.
 */
#include <stdlib.h>

#include "core/sys.h"
#include "storage/rdma_conn.h"

struct ffs_transfer *ffs_transfer_new(const struct ffs_message *message)
{
	struct ffs_transfer *transfer = ffs_sys_calloc(1, sizeof(*transfer));
	if (transfer == NULL)
		return NULL;
	transfer->header = message->header;
	transfer->remote = message->remote;
	transfer->body_bytes = message->have;
	return transfer;
}

static void end_registrations(struct ffs_transfer *transfer)
{
	if (transfer->body_mr != NULL)
		(void)ffs_verbs()->ibv_dereg_mr(transfer->body_mr);
	if (transfer->data_mr != NULL)
		(void)ffs_verbs()->ibv_dereg_mr(transfer->data_mr);
	transfer->body_mr = transfer->data_mr = NULL;
}

void ffs_transfer_free(struct ffs_transfer *transfer)
{
	end_registrations(transfer);
	if (transfer->write != NULL)
		ffs_write_free(transfer->write);
	free(transfer->request);
	free(transfer);
}

/* --------------------------------------------------------------------------------------- steps */

/* What is to be fetched at once. */
struct step {
	struct ibv_mr **mr; /* made for `whole` bytes of `memory` if there is none yet */
	uint8_t *memory;
	size_t whole;
	uint32_t from;
	uint32_t bytes;
	uint64_t address; /* of `from` in the client's memory */
	uint32_t key;
};

/* What the SEND had no room for: it lies behind the remote in the client's memory. */
static struct step body_step(struct ffs_transfer *transfer)
{
	uint32_t have = transfer->body_bytes;
	uint8_t *body =
		transfer->request != NULL ? transfer->request->descriptors : transfer->write->body;
	transfer->body_bytes = transfer->header.body_bytes;
	return (struct step){
		.mr = &transfer->body_mr,
		.memory = body,
		.whole = transfer->header.body_bytes,
		.from = have,
		.bytes = transfer->header.body_bytes - have,
		.address = transfer->remote.body_address + FFS_REMOTE_BYTES + have,
		.key = transfer->remote.body_key,
	};
}

static struct step chunk_step(struct ffs_transfer *transfer)
{
	uint32_t from = transfer->data_bytes;
	uint32_t left = transfer->header.payload_bytes - from;
	uint32_t bytes = left < FFS_RDMA_PROGRESS_BYTES ? left : FFS_RDMA_PROGRESS_BYTES;
	transfer->data_bytes += bytes;
	return (struct step){
		.mr = &transfer->data_mr,
		.memory = transfer->write->buffer.bytes,
		.whole = transfer->header.payload_bytes,
		.from = from,
		.bytes = bytes,
		.address = transfer->remote.data_address + from,
		.key = transfer->remote.data_key,
	};
}

static bool post(struct ffs_conn *conn, const struct step *step)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	if (*step->mr == NULL)
		*step->mr =
			ffs_reg_mr(rdma->card->device->pd, step->memory, step->whole, IBV_ACCESS_LOCAL_WRITE);
	if (*step->mr == NULL)
		return false;
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)(step->memory + step->from),
	                       .length = step->bytes,
	                       .lkey = (*step->mr)->lkey};
	struct ibv_send_wr read = {.wr_id = ffs_rdma_work_id(conn, true),
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .opcode = IBV_WR_RDMA_READ,
	                           .send_flags = IBV_SEND_SIGNALED,
	                           .wr.rdma = {.remote_addr = step->address, .rkey = step->key}};
	return ffs_qp_post(&rdma->qp, &read) == 0;
}

static bool is_body_left(const struct ffs_transfer *transfer)
{
	return transfer->body_bytes < transfer->header.body_bytes;
}

static bool is_more_left(const struct ffs_transfer *transfer)
{
	return is_body_left(transfer) ||
	       (transfer->write != NULL && transfer->data_bytes < transfer->header.payload_bytes);
}

bool ffs_transfer_go_on(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	while (transfer->begun - transfer->ended < FFS_FETCHES && is_more_left(transfer)) {
		struct ffs_fetch *fetch = &transfer->fetches[transfer->begun++ % FFS_FETCHES];
		*fetch = (struct ffs_fetch){.posted.kind = FFS_POSTED_FETCH, .transfer = transfer};
		ffs_rdma_posted(conn->rdma, &fetch->posted); /* if it fails, the connection frees it */
		struct step step = is_body_left(transfer) ? body_step(transfer) : chunk_step(transfer);
		if (!post(conn, &step))
			return false;
	}
	return true;
}

/* ----------------------------------------------------------------------------------- their ends */

/* More is coming: say so, if the client has a receive for that. */
static bool tell(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	uint8_t header_at[FFS_FRAME_HEADER_BYTES];
	struct ffs_header header = {
		.op = (uint8_t)(transfer->header.op | FFS_REPLY_BIT),
		.flags = FFS_FLAG_UNDER_WAY,
		.request_id = transfer->header.request_id,
		.trace_id = transfer->header.trace_id,
	};
	if (transfer->told + transfer->header.count >= transfer->remote.frames ||
	    !ffs_rdma_has_places(conn->rdma, 1))
		return true;
	transfer->told++;
	ffs_header_pack(header_at, &header);
	return ffs_rdma_post_inline(conn, header_at);
}

/* All of it is here. */
static bool finish(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	struct ffs_request *request = transfer->request;
	struct ffs_write *write = transfer->write;
	transfer->request = NULL;
	transfer->write = NULL;
	ffs_transfer_free(transfer); /* the card forgets the memory before anybody else has it */
	return request != NULL ? ffs_rdma_take_request(conn, request)
	                       : ffs_rdma_take_chunk(conn, write);
}

static struct ffs_transfer *end(struct ffs_posted *posted)
{
	struct ffs_transfer *transfer = ((struct ffs_fetch *)posted)->transfer;
	transfer->ended++;
	return transfer;
}

bool ffs_rdma_end_fetch(struct ffs_conn *conn, struct ffs_posted *posted)
{
	struct ffs_transfer *transfer = end(posted);
	if (!ffs_transfer_go_on(conn, transfer))
		return false;
	return transfer->ended < transfer->begun ? tell(conn, transfer) : finish(conn, transfer);
}

void ffs_rdma_drop_fetch(struct ffs_posted *posted)
{
	struct ffs_transfer *transfer = end(posted);
	if (transfer->ended == transfer->begun)
		ffs_transfer_free(transfer);
}
