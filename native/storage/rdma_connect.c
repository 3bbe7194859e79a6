/*
 * How a connection goes over to RDMA, and how that ends. See rdma.h.
 *
 * Previous hop: serve.c, with a CONNECT_QP. Next: rdma_cm.c where it is to take that way. The queue
 * pair can receive before the answer is sent, so nothing that the client sends after it finds
 * nobody.
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

int ffs_rdma_open_pair(struct ffs_qp *qp, const struct ffs_rdma_card *card,
                       const struct ffs_rdma_path *path)
{
	const struct ffs_qp_wants wants = {
		.path = path,
		.pd = card->device->pd,
		.completions = &card->completions,
		.srq = card->srq,
		.sends = FFS_RDMA_SENDS,
		.sges = card->sges,
	};
	return ffs_qp_open(qp, &wants);
}

/* With a share of the card's credits in mind, which it does not have yet. */
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

enum ffs_rdma_fault ffs_rdma_enter(struct ffs_conn *conn, struct ffs_rdma_card *card,
                                   const struct ffs_qp *qp, struct rdma_cm_id *end)
{
	struct ffs_rdma_conn *rdma = new_conn(conn, card);
	if (rdma == NULL || rdma->credits == 0) {
		free(rdma);
		return FFS_RDMA_NO_ROOM;
	}
	rdma->qp = *qp;
	rdma->end = end;
	card->credits -= rdma->credits;
	rdma->next = *bucket_of(rdma);
	*bucket_of(rdma) = rdma;
	conn->rdma = rdma;
	ffs_count(&conn->loop->counts.rdma_connections, 1);
	return FFS_RDMA_FINE;
}

struct ffs_rdma_wish ffs_rdma_wish_of(const struct ffs_group *group, bool by_cm)
{
	struct ffs_rdma_wish wish = {.gid_index = group->rdma.gid_index, .by_cm = by_cm};
	_Static_assert(sizeof(wish.device) == sizeof(group->rdma.device), "one name fits the other");
	memcpy(wish.device, group->rdma.device, sizeof(wish.device));
	return wish;
}

/* Both ends are told of each other. */
static enum ffs_rdma_fault exchange(struct ffs_conn *conn, const struct ffs_qp_end *peer)
{
	struct ffs_rdma_wish wish = ffs_rdma_wish_of(conn->loop->group, false);
	char text[FFS_RDMA_TEXT_BYTES];
	const struct ffs_rdma_path *path;
	struct ffs_rdma_card *card;
	struct ffs_qp qp;
	enum ffs_rdma_fault fault = ffs_rdma_choose(conn->fd, &wish, peer, &path, text);
	if (fault == FFS_RDMA_FINE)
		fault = ffs_rdma_card_for(conn->loop, path->device, &card, text);
	if (fault != FFS_RDMA_FINE)
		return fault;
	int error = ffs_rdma_open_pair(&qp, card, path);
	if (error != 0)
		return ffs_rdma_explain(-error, 0, text);
	/* An address that leads nowhere shows here; rdma_cm may find a way. */
	fault = ffs_qp_connect(&qp, peer) == 0 ? ffs_rdma_enter(conn, card, &qp, NULL)
	                                       : FFS_RDMA_OTHER_SUBNET;
	if (fault != FFS_RDMA_FINE)
		ffs_qp_close(&qp);
	return fault;
}

/* The answer's payload is what the step gives, if it is fine. */
static enum ffs_rdma_fault take_step(struct ffs_conn *conn, const struct ffs_request *request,
                                     uint8_t payload[FFS_QP_END_BYTES])
{
	const struct ffs_rdma_options *options = &conn->loop->group->rdma;
	enum ffs_connect_step step = (enum ffs_connect_step)request->header.flags;
	struct ffs_cm_offer offer;
	struct ffs_qp_end peer, end;
	if (options->off)
		return FFS_RDMA_OFF;
	if (step == FFS_CONNECT_EXCHANGE ? options->no_exchange : options->no_cm)
		return FFS_RDMA_OTHER_WAY;
	if (!ffs_qp_end_unpack(&peer, request->descriptors))
		return FFS_RDMA_OTHER_SUBNET;
	enum ffs_rdma_fault fault = step == FFS_CONNECT_EXCHANGE ? exchange(conn, &peer)
	                            : step == FFS_CONNECT_OFFER  ? ffs_rdma_offer(conn, &peer, &offer)
	                                                         : ffs_rdma_confirm(conn);
	if (fault != FFS_RDMA_FINE)
		return fault;
	if (step == FFS_CONNECT_OFFER) {
		ffs_cm_offer_pack(payload, &offer);
		return fault;
	}
	ffs_qp_describe(&conn->rdma->qp, &end);
	end.requests = (uint16_t)conn->rdma->credits;
	end.request_bytes = FFS_RDMA_RECEIVE_BYTES;
	ffs_qp_end_pack(payload, &end);
	return fault;
}

_Static_assert(FFS_CM_OFFER_BYTES == FFS_QP_END_BYTES, "the answer to every step is as long");

void ffs_rdma_answer(struct ffs_conn *conn, const struct ffs_request *request,
                     struct ffs_output *output)
{
	uint8_t *payload = output->head + FFS_FRAME_HEADER_BYTES;
	enum ffs_rdma_fault fault = take_step(conn, request, payload);
	if (fault != FFS_RDMA_FINE) {
		ffs_rdma_refuse(request, fault, output);
		return;
	}
	struct ffs_header header = request->header;
	header.op |= FFS_REPLY_BIT;
	header.flags = 0;
	header.count = 0;
	header.body_bytes = 0;
	header.payload_bytes = FFS_QP_END_BYTES;
	ffs_header_pack(output->head, &header);
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
		else if (posted->kind == FFS_POSTED_FETCH)
			ffs_rdma_drop_fetch(posted);
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
	if (rdma->end != NULL)
		ffs_cm_end(rdma->end);
	conn->rdma = NULL;
	drop_posted(rdma);
	drop_waiting(rdma);
	ffs_rdma_end_stream(conn, rdma);
	rdma->card->credits += rdma->credits;
	leave_lists(rdma);
	free(rdma);
}
