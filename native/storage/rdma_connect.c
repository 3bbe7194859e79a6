/*
 * How a connection goes over to RDMA, and how that ends. See rdma.h.
 *
 * Previous hop: serve.c, with a CONNECT_QP. The queue pair can receive before the answer is sent,
 * so nothing that the client sends after it finds nobody.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/cold_range.h"
#include "storage/rdma_conn.h"

static struct ffs_rdma_conn **bucket_of(const struct ffs_rdma_conn *rdma)
{
	return &rdma->card->buckets[rdma->qp.qp->qp_num % FFS_RDMA_BUCKETS];
}

/* So many requests may it have unanswered: its share of the receives, 0 if none is left. */
static uint32_t grant(const struct ffs_rdma_card *card)
{
	if (card->credits < FFS_RDMA_CREDITS_MIN)
		return 0;
	uint32_t share = card->credits / 8;
	if (share < FFS_RDMA_CREDITS_MIN)
		return FFS_RDMA_CREDITS_MIN;
	return share < FFS_RDMA_CREDITS ? share : FFS_RDMA_CREDITS;
}

static int open_pair(struct ffs_rdma_conn *rdma, const struct ffs_rdma_path *path,
                     const struct ffs_qp_end *peer)
{
	const struct ffs_qp_wants wants = {
		.path = path,
		.pd = rdma->card->device->pd,
		.completions = &rdma->card->completions,
		.srq = rdma->card->srq,
		.sends = FFS_RDMA_SENDS,
		.sges = rdma->card->sges,
	};
	int error = ffs_qp_open(&rdma->qp, &wants);
	if (error != 0)
		return error;
	error = ffs_qp_connect(&rdma->qp, peer);
	if (error != 0)
		ffs_qp_close(&rdma->qp);
	return error;
}

static struct ffs_rdma_conn *new_conn(struct ffs_conn *conn, struct ffs_rdma_card *card)
{
	struct ffs_rdma_conn *rdma = ffs_sys_calloc(1, sizeof(*rdma));
	if (rdma == NULL)
		return NULL;
	rdma->conn = conn;
	rdma->card = card;
	rdma->posted_tail = &rdma->posted;
	rdma->waiting_tail = &rdma->waiting;
	rdma->credits = grant(card);
	return rdma;
}

static enum ffs_rdma_fault connect_on(struct ffs_conn *conn, struct ffs_rdma_card *card,
                                      const struct ffs_rdma_path *path,
                                      const struct ffs_qp_end *peer)
{
	char text[FFS_RDMA_TEXT_BYTES];
	struct ffs_rdma_conn *rdma = new_conn(conn, card);
	if (rdma == NULL || rdma->credits == 0) {
		free(rdma);
		return FFS_RDMA_NO_ROOM;
	}
	int error = open_pair(rdma, path, peer);
	if (error != 0) {
		free(rdma);
		return ffs_rdma_explain(-error, 0, text);
	}
	card->credits -= rdma->credits;
	rdma->next = *bucket_of(rdma);
	*bucket_of(rdma) = rdma;
	conn->rdma = rdma;
	ffs_count(&conn->loop->counts.rdma_connections, 1);
	return FFS_RDMA_FINE;
}

static enum ffs_rdma_fault go_over(struct ffs_conn *conn, const struct ffs_request *request)
{
	const struct ffs_rdma_options *options = &conn->loop->group->rdma;
	struct ffs_rdma_wish wish = {.gid_index = options->gid_index};
	char text[FFS_RDMA_TEXT_BYTES];
	const struct ffs_rdma_path *path;
	struct ffs_rdma_card *card;
	struct ffs_qp_end peer;
	_Static_assert(sizeof(wish.device) == sizeof(options->device), "one name fits the other");
	memcpy(wish.device, options->device, sizeof(wish.device));
	if (options->off)
		return FFS_RDMA_OFF;
	if (!ffs_qp_end_unpack(&peer, request->descriptors))
		return FFS_RDMA_OTHER_SUBNET;
	enum ffs_rdma_fault fault = ffs_rdma_choose(conn->fd, &wish, &peer, &path, text);
	if (fault == FFS_RDMA_FINE)
		fault = ffs_rdma_card_for(conn->loop, path->device, &card, text);
	return fault == FFS_RDMA_FINE ? connect_on(conn, card, path, &peer) : fault;
}

void ffs_rdma_answer(struct ffs_conn *conn, const struct ffs_request *request,
                     struct ffs_output *output)
{
	enum ffs_rdma_fault fault = go_over(conn, request);
	struct ffs_qp_end end;
	if (fault != FFS_RDMA_FINE) {
		ffs_rdma_refuse(request, fault, output);
		return;
	}
	ffs_qp_describe(&conn->rdma->qp, &end);
	end.requests = (uint16_t)conn->rdma->credits;
	end.request_bytes = FFS_RDMA_RECEIVE_BYTES;
	struct ffs_header header = request->header;
	header.op |= FFS_REPLY_BIT;
	header.count = 0;
	header.body_bytes = 0;
	header.payload_bytes = FFS_QP_END_BYTES;
	ffs_header_pack(output->head, &header);
	ffs_qp_end_pack(output->head + FFS_FRAME_HEADER_BYTES, &end);
	output->parts[0] =
		(struct iovec){output->head, FFS_FRAME_HEADER_BYTES + (size_t)FFS_QP_END_BYTES};
	output->part = 0;
	output->part_count = 1;
}

/* ----------------------------------------------------------------------------------- the end */

static void drop_posted(struct ffs_rdma_conn *rdma)
{
	while (rdma->posted != NULL) {
		struct ffs_posted *posted = rdma->posted;
		rdma->posted = posted->next;
		if (posted->kind == FFS_POSTED_FRAME)
			ffs_rdma_frame_give_back(rdma->card, (struct ffs_rdma_frame *)posted);
		else if (posted->kind == FFS_POSTED_TRANSFER)
			ffs_transfer_free((struct ffs_transfer *)posted);
	}
}

/* Writes that wait for buffers; if the first one does already, it is the connection's to forget. */
static void drop_waiting(struct ffs_rdma_conn *rdma)
{
	if (rdma->waiting != NULL && rdma->waiting->write == rdma->conn->write)
		rdma->waiting->write = NULL;
	while (rdma->waiting != NULL) {
		struct ffs_transfer *transfer = rdma->waiting;
		rdma->waiting = transfer->next;
		ffs_transfer_free(transfer);
	}
}

/* Nobody is to come back to it. */
static void leave_lists(struct ffs_rdma_conn *rdma)
{
	struct ffs_rdma_conn **link = &rdma->card->touched;
	while (rdma->touched && *link != rdma)
		link = &(*link)->touched_next;
	if (rdma->touched)
		*link = rdma->touched_next;
	link = &rdma->card->starved;
	while (rdma->starved && *link != rdma)
		link = &(*link)->starved_next;
	if (rdma->starved)
		*link = rdma->starved_next;
}

void ffs_rdma_close(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_rdma_conn **link = bucket_of(rdma);
	while (*link != rdma)
		link = &(*link)->next;
	*link = rdma->next;
	ffs_qp_close(&rdma->qp); /* from here on the card touches nothing of what follows */
	conn->rdma = NULL;
	drop_posted(rdma);
	drop_waiting(rdma);
	ffs_rdma_end_stream(conn, rdma);
	rdma->card->credits += rdma->credits;
	leave_lists(rdma);
	free(rdma);
}
