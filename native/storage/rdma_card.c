/*
 * A device as one loop uses it: receives that all connections share, answers that are under way,
 * completions. See rdma.h.
 *
 * Previous hop: the device, through epoll. Next: rdma_receive.c for what has come, rdma_send.c for
 * what is out. Completions of a queue pair come in the order in which its work was posted; one of a
 * connection that has gone finds nobody.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "core/sys.h"
#include "storage/cold_range.h"
#include "storage/rdma_conn.h"

#define POLLED_MAX 32
#define RECEIVE_BIT (UINT64_C(1) << 63)
/* All receives, all answers, the fetches of one transfer for each credit, what queue pairs signal
 * to get their places back. */
#define COMPLETIONS_MAX 16384u

/* ------------------------------------------------------------------------------------ receives */

static uint8_t *receive_place(const struct ffs_rdma_card *card, uint64_t index)
{
	return card->receives.memory + index * FFS_RDMA_RECEIVE_BYTES;
}

static int post_receive(struct ffs_rdma_card *card, uint64_t index)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)receive_place(card, index),
	                       .length = FFS_RDMA_RECEIVE_BYTES,
	                       .lkey = card->receives.mr->lkey};
	struct ibv_recv_wr receive = {.wr_id = RECEIVE_BIT | index, .sg_list = &part, .num_sge = 1};
	return -ffs_post_srq_recv(card->srq, &receive);
}

static int open_receives(struct ffs_rdma_card *card)
{
	struct ibv_srq_init_attr attributes = {.attr = {.max_wr = FFS_RDMA_RECEIVES, .max_sge = 1}};
	int error =
		ffs_pinned_open(&card->receives, card->device->pd,
	                    (size_t)FFS_RDMA_RECEIVES * FFS_RDMA_RECEIVE_BYTES, IBV_ACCESS_LOCAL_WRITE);
	if (error != 0)
		return error;
	card->srq = ffs_create_srq(card->device->pd, &attributes);
	if (card->srq == NULL)
		return errno != 0 ? -errno : -EIO;
	for (uint64_t i = 0; i < FFS_RDMA_RECEIVES && error == 0; i++)
		error = post_receive(card, i);
	return error;
}

/* ------------------------------------------------------------------------------------- answers */

static int open_frames(struct ffs_rdma_card *card)
{
	card->frames = ffs_sys_calloc(FFS_RDMA_SLOTS, sizeof(*card->frames));
	if (card->frames == NULL)
		return -ENOMEM;
	int error =
		ffs_pinned_open(&card->slots, card->device->pd,
	                    (size_t)FFS_RDMA_SLOTS * FFS_RDMA_SLOT_BYTES, IBV_ACCESS_LOCAL_WRITE);
	for (uint32_t i = 0; i < FFS_RDMA_SLOTS && error == 0; i++) {
		card->frames[i].slot = card->slots.memory + (size_t)i * FFS_RDMA_SLOT_BYTES;
		ffs_rdma_frame_give_back(card, &card->frames[i]);
	}
	return error;
}

static void starve(struct ffs_rdma_conn *rdma)
{
	if (rdma->starved)
		return;
	rdma->starved = true;
	rdma->starved_next = rdma->card->starved;
	rdma->card->starved = rdma;
}

struct ffs_rdma_frame *ffs_rdma_frame_take(struct ffs_rdma_conn *rdma)
{
	struct ffs_rdma_card *card = rdma->card;
	struct ffs_rdma_frame *frame = card->spare;
	if (frame == NULL) {
		starve(rdma);
		return NULL;
	}
	card->spare = frame->next;
	frame->cold = (struct ffs_cold_use){0};
	frame->last.received_ns = 0;
	return frame;
}

void ffs_rdma_frame_give_back(struct ffs_rdma_card *card, struct ffs_rdma_frame *frame)
{
	ffs_cold_release(&frame->cold);
	frame->next = card->spare;
	card->spare = frame;
}

/* ----------------------------------------------------------------------------------- its making */

static int watch_card(struct ffs_rdma_card *card)
{
	struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = card}};
	int fd = ffs_completions_fd(&card->completions);
	return ffs_sys_epoll_ctl(card->loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

static void close_card(struct ffs_rdma_card *card)
{
	if (card->srq != NULL)
		(void)ffs_verbs()->ibv_destroy_srq(card->srq);
	ffs_completions_close(&card->completions); /* epoll forgets the descriptor with it */
	ffs_pinned_close(&card->receives);
	ffs_pinned_close(&card->slots);
	free(card->frames);
	free(card);
}

static int open_card(struct ffs_rdma_card *card)
{
	uint32_t asked = card->loop->group->rdma.sges_max, most = (uint32_t)card->device->sges_max;
	card->sges = asked > 0 && asked < most ? asked : most;
	card->sges = card->sges < FFS_RDMA_SGES_MAX ? card->sges : FFS_RDMA_SGES_MAX;
	card->credits = FFS_RDMA_RECEIVES;
	int error = ffs_rdma_find_arena(card->loop->group, card->device, &card->arena);
	if (error == 0)
		error = ffs_completions_open(&card->completions, card->device, COMPLETIONS_MAX);
	if (error == 0)
		error = open_receives(card);
	if (error == 0)
		error = open_frames(card);
	if (error == 0)
		error = watch_card(card);
	return error;
}

enum ffs_rdma_fault ffs_rdma_card_for(struct ffs_loop *loop, struct ffs_rdma_device *device,
                                      struct ffs_rdma_card **found, char *text)
{
	for (struct ffs_rdma_card *card = loop->cards; card != NULL; card = card->next) {
		*found = card;
		if (card->device == device && !card->broken)
			return FFS_RDMA_FINE;
	}
	struct ffs_rdma_card *card = ffs_sys_calloc(1, sizeof(*card));
	if (card == NULL)
		return ffs_rdma_explain(ENOMEM, sizeof(*card), text);
	card->end = FFS_END_CARD;
	card->loop = loop;
	card->device = device;
	int error = open_card(card);
	if (error != 0) {
		close_card(card);
		return ffs_rdma_explain(-error, loop->group->read_arena.size, text);
	}
	card->next = loop->cards;
	loop->cards = card;
	*found = card;
	return FFS_RDMA_FINE;
}

void ffs_rdma_loop_leave(struct ffs_loop *loop)
{
	if (loop->cm != NULL)
		ffs_rdma_cm_close(loop->cm);
	while (loop->cards != NULL) {
		struct ffs_rdma_card *card = loop->cards;
		loop->cards = card->next;
		close_card(card);
	}
}

/* --------------------------------------------------------------------------------- completions */

struct ffs_rdma_conn *ffs_rdma_find(const struct ffs_rdma_card *card, uint32_t qpn)
{
	struct ffs_rdma_conn *rdma = card->buckets[qpn % FFS_RDMA_BUCKETS];
	while (rdma != NULL && rdma->qp.qp->qp_num != qpn)
		rdma = rdma->next;
	return rdma;
}

struct ffs_rdma_conn *ffs_rdma_find_end(const struct ffs_loop *loop, const struct rdma_cm_id *end)
{
	for (const struct ffs_rdma_card *card = loop->cards; card != NULL; card = card->next)
		for (uint32_t i = 0; i < FFS_RDMA_BUCKETS; i++)
			for (struct ffs_rdma_conn *rdma = card->buckets[i]; rdma != NULL; rdma = rdma->next)
				if (rdma->end == end)
					return rdma;
	return NULL;
}

void ffs_rdma_touch(struct ffs_rdma_conn *rdma)
{
	if (rdma->touched)
		return;
	rdma->touched = true;
	rdma->touched_next = rdma->card->touched;
	rdma->card->touched = rdma;
}

void ffs_rdma_posted(struct ffs_rdma_conn *rdma, struct ffs_posted *posted)
{
	posted->next = NULL;
	*rdma->posted_tail = posted;
	rdma->posted_tail = &posted->next;
}

static struct ffs_posted *oldest(struct ffs_rdma_conn *rdma)
{
	struct ffs_posted *posted = rdma->posted;
	rdma->posted = posted->next;
	if (rdma->posted == NULL)
		rdma->posted_tail = &rdma->posted;
	return posted;
}

static void end_frame(struct ffs_conn *conn, struct ffs_rdma_frame *frame)
{
	ffs_count(&conn->loop->counts.frames, 1);
	if (frame->last.received_ns != 0)
		ffs_conn_finish_read(conn, &frame->last);
	ffs_rdma_frame_give_back(conn->rdma->card, frame);
}

/* The oldest work of the connection is done; false if what it brought breaks the protocol. */
static bool end_oldest(struct ffs_conn *conn)
{
	struct ffs_posted *posted = oldest(conn->rdma);
	switch (posted->kind) {
	case FFS_POSTED_FRAME:
		end_frame(conn, (struct ffs_rdma_frame *)posted);
		return true;
	case FFS_POSTED_PIECE:
		ffs_rdma_end_piece(conn);
		return true;
	case FFS_POSTED_FETCH:
		return ffs_rdma_end_fetch(conn, posted);
	}
	return false;
}

static void break_off(struct ffs_conn *conn)
{
	ffs_count(&conn->loop->counts.errors, 1);
	ffs_conn_close(conn);
}

static void on_sent(struct ffs_rdma_card *card, const struct ibv_wc *found)
{
	struct ffs_conn *conn = ffs_loop_find(card->loop, found->wr_id >> 1);
	if (conn == NULL) /* it has gone */
		return;
	ffs_qp_sent(&conn->rdma->qp);
	ffs_rdma_touch(conn->rdma);
	bool good = found->status == IBV_WC_SUCCESS;
	if (good && (found->wr_id & 1) != 0)
		good = end_oldest(conn);
	if (!good)
		break_off(conn);
}

static void on_received(struct ffs_rdma_card *card, const struct ibv_wc *found)
{
	uint64_t index = found->wr_id & ~RECEIVE_BIT;
	struct ffs_rdma_conn *rdma = ffs_rdma_find(card, found->qp_num);
	struct ffs_conn *conn = rdma != NULL ? rdma->conn : NULL;
	if (conn != NULL) {
		ffs_rdma_touch(rdma);
		if (found->status != IBV_WC_SUCCESS ||
		    !ffs_rdma_take_message(conn, receive_place(card, index), found->byte_len))
			break_off(conn);
	}
	/* Without it a connection could have credit that there is no receive for. */
	if (post_receive(card, index) != 0 && card->credits > 0)
		card->credits--;
}

static void serve_touched(struct ffs_rdma_card *card)
{
	while (card->starved != NULL && card->spare != NULL) {
		struct ffs_rdma_conn *rdma = card->starved;
		card->starved = rdma->starved_next;
		rdma->starved = false;
		ffs_rdma_touch(rdma);
	}
	while (card->touched != NULL) {
		struct ffs_rdma_conn *rdma = card->touched;
		struct ffs_conn *conn = rdma->conn;
		card->touched = rdma->touched_next;
		rdma->touched = false;
		ffs_conn_send(conn);
		ffs_conn_note(conn);
		ffs_conn_watch(conn);
	}
}

static void remove_broken(struct ffs_loop *loop)
{
	struct ffs_rdma_card **link = &loop->cards;
	while (*link != NULL) {
		struct ffs_rdma_card *card = *link;
		if (!card->broken) {
			link = &card->next;
			continue;
		}
		*link = card->next;
		if (loop->cm != NULL)
			ffs_rdma_cm_leave(loop->cm, card);
		close_card(card);
	}
}

void ffs_rdma_feed(struct ffs_loop *loop)
{
	if (loop->going_over > 0)
		ffs_rdma_resume(loop);
	if (loop->cm != NULL)
		ffs_rdma_cm_tend(loop->cm);
	remove_broken(loop);
	for (struct ffs_rdma_card *card = loop->cards; card != NULL; card = card->next)
		serve_touched(card);
}

/* It will tell of no completion any more: who is on it has to connect anew, by another one. */
static void give_up(struct ffs_rdma_card *card)
{
	struct ffs_loop *loop = card->loop;
	card->broken = true;
	ffs_count(&loop->counts.errors, 1);
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		struct ffs_conn *conn = loop->conns[i];
		if (conn != NULL && conn->rdma != NULL && conn->rdma->card == card)
			ffs_conn_close(conn);
	}
}

static int take_completions(struct ffs_rdma_card *card)
{
	struct ibv_wc found[POLLED_MAX];
	int count;
	do {
		count = ffs_completions_poll(&card->completions, found, POLLED_MAX);
		for (int i = 0; i < count; i++) {
			if ((found[i].wr_id & RECEIVE_BIT) != 0)
				on_received(card, &found[i]);
			else
				on_sent(card, &found[i]);
		}
	} while (count == POLLED_MAX);
	return count;
}

void ffs_rdma_serve(struct ffs_rdma_card *card)
{
	if (card->broken)
		return;
	if (ffs_completions_arm(&card->completions) != 0 || take_completions(card) < 0)
		give_up(card);
	serve_touched(card);
}

void ffs_rdma_catch_up(struct ffs_loop *loop)
{
	for (struct ffs_rdma_card *card = loop->cards; card != NULL; card = card->next)
		ffs_rdma_serve(card);
}

bool ffs_rdma_is_idle(const struct ffs_conn *conn)
{
	return conn->rdma->requests == 0 && conn->rdma->posted == NULL;
}
