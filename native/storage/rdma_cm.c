/*
 * Queue pairs that come by rdma_cm: each must have been offered to be taken, to a client that has
 * proven the cluster key, over its own connection.
 *
 *   TCP: CONNECT_QP, offer   -> an offer with a secret, for a while; a port that this loop listens
 * at rdma_cm: the secret      -> the offer's queue pair; whoever comes without one is turned away
 *   TCP: CONNECT_QP, confirm -> the connection goes by it (rdma_connect.c)
 *
 * Invariants: an offer takes one queue pair, once. It is of one connection and ends with it. A
 * connection whose offer came to nothing is what it was: TCP.
 * Bounds: OFFERS_MAX offers a loop, OFFER_NS each; a listener for each address of ours.
 * Threads: the loop's alone. Fork: as the loop.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "core/sys.h"
#include "storage/rdma_conn.h"

#define OFFERS_MAX 1024u
#define OFFER_NS UINT64_C(30000000000)
#define EVENTS_MAX 16 /* of one round */

struct offer {
	struct offer *next;
	uint64_t connection_id;
	uint64_t expires_ns;
	uint8_t secret[FFS_CM_SECRET_BYTES];
	bool used;              /* somebody came with the secret: nobody else may */
	struct rdma_cm_id *end; /* NULL: none has been taken */
	struct ffs_rdma_card *card;
	struct ffs_qp qp;
};

struct listener {
	struct listener *next;
	uint8_t address[16];
	struct rdma_cm_id *end;
};

struct ffs_rdma_cm {
	enum ffs_end kind; /* FFS_END_CM: epoll tells of it */
	struct ffs_loop *loop;
	struct ffs_cm cm;
	struct listener *listeners;
	struct offer *offers;
	uint32_t offer_count;
};

/* ---------------------------------------------------------------------------------------- offers
 */

/* Unlink it; its queue pair, if it has one that nobody has confirmed, goes with it. */
static void drop_offer(struct ffs_rdma_cm *cm, struct offer *offer)
{
	struct offer **link = &cm->offers;
	while (*link != offer)
		link = &(*link)->next;
	*link = offer->next;
	cm->offer_count--;
	if (offer->end != NULL) {
		ffs_qp_close(&offer->qp);
		ffs_cm_end(offer->end);
	}
	free(offer);
}

static struct offer *offer_of(const struct ffs_rdma_cm *cm, const struct ffs_conn *conn)
{
	struct offer *offer = cm->offers;
	while (offer != NULL && offer->connection_id != conn->id)
		offer = offer->next;
	return offer;
}

void ffs_rdma_cm_tend(struct ffs_rdma_cm *cm)
{
	for (struct offer *offer = cm->offers, *next; offer != NULL; offer = next) {
		next = offer->next;
		if (cm->loop->now_ns >= offer->expires_ns ||
		    ffs_loop_find(cm->loop, offer->connection_id) == NULL)
			drop_offer(cm, offer);
	}
}

void ffs_rdma_cm_leave(struct ffs_rdma_cm *cm, const struct ffs_rdma_card *card)
{
	for (struct offer *offer = cm->offers, *next; offer != NULL; offer = next) {
		next = offer->next;
		if (offer->end != NULL && offer->card == card)
			drop_offer(cm, offer);
	}
}

static struct offer *new_offer(struct ffs_rdma_cm *cm, const struct ffs_conn *conn)
{
	struct offer *offer = offer_of(cm, conn);
	if (offer != NULL)
		drop_offer(cm, offer);
	if (cm->offer_count == OFFERS_MAX)
		return NULL;
	offer = ffs_sys_calloc(1, sizeof(*offer));
	if (offer == NULL)
		return NULL;
	if (getrandom(offer->secret, sizeof(offer->secret), 0) != sizeof(offer->secret)) {
		free(offer);
		return NULL;
	}
	offer->connection_id = conn->id;
	offer->expires_ns = cm->loop->now_ns + OFFER_NS;
	offer->next = cm->offers;
	cm->offers = offer;
	cm->offer_count++;
	return offer;
}

/* The offer that this is the secret of, if it has not been used. All are looked at, every byte:
 * how long that takes tells nothing. */
static struct offer *redeem(const struct ffs_rdma_cm *cm, const struct ffs_cm_event *event)
{
	struct offer *found = NULL;
	for (struct offer *offer = cm->offers; offer != NULL; offer = offer->next) {
		uint8_t differs = 0;
		for (uint32_t i = 0; i < FFS_CM_SECRET_BYTES; i++)
			differs |= (uint8_t)(offer->secret[i] ^ event->secret[i]);
		if (differs == 0)
			found = offer;
	}
	if (!event->has_secret || found == NULL || found->used)
		return NULL;
	found->used = true;
	return found;
}

/* -------------------------------------------------------------------------------------- listeners
 */

/* One that listens at the address, made if there is none. 0 or -errno. */
static int listen_at(struct ffs_rdma_cm *cm, const uint8_t address[16], struct listener **found)
{
	for (*found = cm->listeners; *found != NULL; *found = (*found)->next)
		if (memcmp((*found)->address, address, 16) == 0)
			return 0;
	struct listener *listener = ffs_sys_calloc(1, sizeof(*listener));
	if (listener == NULL)
		return -ENOMEM;
	memcpy(listener->address, address, 16);
	int error = ffs_cm_bind(&cm->cm, address, &listener->end);
	if (error == 0 && (error = ffs_cm_listen(listener->end)) != 0)
		ffs_cm_end(listener->end);
	if (error != 0) {
		free(listener);
		return error;
	}
	listener->next = cm->listeners;
	cm->listeners = listener;
	*found = listener;
	return 0;
}

/* False if the end is none of theirs. */
static bool drop_listener(struct ffs_rdma_cm *cm, const struct rdma_cm_id *end)
{
	struct listener **link = &cm->listeners;
	while (*link != NULL && (*link)->end != end)
		link = &(*link)->next;
	struct listener *listener = *link;
	if (listener == NULL)
		return false;
	*link = listener->next;
	ffs_cm_end(listener->end);
	free(listener);
	return true;
}

/* ----------------------------------------------------------------------------------- who comes */

static bool take(struct ffs_rdma_cm *cm, struct offer *offer, const struct ffs_cm_event *event)
{
	struct ffs_rdma_wish wish = ffs_rdma_wish_of(cm->loop->group, true);
	const struct ffs_rdma_path *path = ffs_cm_path(event->end, &wish);
	char text[FFS_RDMA_TEXT_BYTES];
	if (path == NULL ||
	    ffs_rdma_card_for(cm->loop, path->device, &offer->card, text) != FFS_RDMA_FINE ||
	    ffs_rdma_open_pair(&offer->qp, offer->card, path) != 0)
		return false;
	if (ffs_cm_accept(event->end, &offer->qp, event->reads) != 0) {
		ffs_qp_close(&offer->qp);
		return false;
	}
	offer->end = event->end;
	return true;
}

static void on_asked(struct ffs_rdma_cm *cm, const struct ffs_cm_event *event)
{
	struct offer *offer = redeem(cm, event);
	if (offer != NULL && take(cm, offer, event))
		return;
	ffs_count(&cm->loop->counts.errors, 1);
	ffs_cm_end(event->end);
}

/* The other end has left, or the device has: so has what went by it. */
static void on_over(struct ffs_rdma_cm *cm, const struct rdma_cm_id *end)
{
	struct ffs_rdma_conn *rdma = ffs_rdma_find_end(cm->loop, end);
	struct offer *offer = cm->offers;
	while (offer != NULL && offer->end != end)
		offer = offer->next;
	if (rdma != NULL)
		ffs_conn_close(rdma->conn);
	else if (offer != NULL)
		drop_offer(cm, offer);
	else
		(void)drop_listener(cm, end);
}

void ffs_rdma_cm_serve(struct ffs_rdma_cm *cm)
{
	struct ffs_cm_event event;
	for (int i = 0; i < EVENTS_MAX; i++) {
		switch (ffs_cm_next(&cm->cm, &event)) {
		case FFS_CM_ASKED:
			on_asked(cm, &event);
			break;
		case FFS_CM_OVER:
			on_over(cm, event.end);
			break;
		case FFS_CM_NONE:
			return;
		default:
			break;
		}
	}
}

/* ------------------------------------------------------------------------------ what TCP asks for
 */

static enum ffs_rdma_fault open_cm(struct ffs_loop *loop)
{
	char text[FFS_RDMA_TEXT_BYTES];
	struct ffs_rdma_cm *cm = ffs_sys_calloc(1, sizeof(*cm));
	if (cm == NULL)
		return FFS_RDMA_NO_ROOM;
	cm->kind = FFS_END_CM;
	cm->loop = loop;
	enum ffs_rdma_fault fault = ffs_cm_open(&cm->cm, text);
	struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = cm}};
	if (fault == FFS_RDMA_FINE &&
	    ffs_sys_epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, cm->cm.fd, &event) != 0) {
		ffs_cm_close(&cm->cm);
		fault = FFS_RDMA_SYSTEM;
	}
	if (fault != FFS_RDMA_FINE) {
		free(cm);
		return fault;
	}
	loop->cm = cm;
	return FFS_RDMA_FINE;
}

/* Where the client is to come: RoCE has its address in its GID, wherever the socket is. */
static enum ffs_rdma_fault choose_address(const struct ffs_conn *conn,
                                          const struct ffs_qp_end *peer, uint8_t address[16])
{
	struct ffs_rdma_wish wish = ffs_rdma_wish_of(conn->loop->group, true);
	char text[FFS_RDMA_TEXT_BYTES];
	const struct ffs_rdma_path *path;
	enum ffs_rdma_fault fault = ffs_rdma_choose(conn->fd, &wish, peer, &path, text);
	if (fault != FFS_RDMA_FINE)
		return fault;
	memcpy(address, path->gid.raw, 16);
	if (path->link == FFS_LINK_ROCE2 || ffs_rdma_socket_address(conn->fd, false, address))
		return FFS_RDMA_FINE;
	return FFS_RDMA_NO_PORT;
}

enum ffs_rdma_fault ffs_rdma_offer(struct ffs_conn *conn, const struct ffs_qp_end *peer,
                                   struct ffs_cm_offer *wire)
{
	struct ffs_loop *loop = conn->loop;
	struct listener *listener;
	enum ffs_rdma_fault fault = choose_address(conn, peer, wire->address);
	if (fault == FFS_RDMA_FINE && loop->cm == NULL)
		fault = open_cm(loop);
	if (fault != FFS_RDMA_FINE)
		return fault;
	if (listen_at(loop->cm, wire->address, &listener) != 0)
		return FFS_RDMA_NO_PORT;
	const struct offer *offer = new_offer(loop->cm, conn);
	if (offer == NULL)
		return FFS_RDMA_NO_ROOM;
	memcpy(wire->secret, offer->secret, sizeof(wire->secret));
	wire->port = ffs_cm_port(listener->end);
	return FFS_RDMA_FINE;
}

enum ffs_rdma_fault ffs_rdma_confirm(struct ffs_conn *conn)
{
	struct ffs_rdma_cm *cm = conn->loop->cm;
	struct offer *offer = cm != NULL ? offer_of(cm, conn) : NULL;
	if (offer == NULL || offer->end == NULL)
		return FFS_RDMA_NOT_REACHED;
	enum ffs_rdma_fault fault = ffs_rdma_enter(conn, offer->card, &offer->qp, offer->end);
	if (fault == FFS_RDMA_FINE)
		offer->end = NULL; /* both are the connection's now */
	drop_offer(cm, offer);
	return fault;
}

void ffs_rdma_cm_close(struct ffs_rdma_cm *cm)
{
	while (cm->offers != NULL)
		drop_offer(cm, cm->offers);
	while (cm->listeners != NULL)
		(void)drop_listener(cm, cm->listeners->end);
	ffs_cm_close(&cm->cm); /* epoll forgets the descriptor with it */
	cm->loop->cm = NULL;
	free(cm);
}
