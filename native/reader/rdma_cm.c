/*
 * Connecting the queue pair by rdma_cm: where to, and the secret to come with, are had over the
 * socket; that it was done is said there, too (rdma_connect.c).
 *
 * Previous hop: rdma_connect.c. Next: rdma/cm.c. Whatever goes wrong on the way is a reason to stay
 * with TCP: the daemon has given nothing up until it has been told.
 *
 * Bounds: half of the time that is left, so that TCP has the other half.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "core/sys.h"
#include "reader/rdma_state.h"

#define WAIT_MS ((int)(FFS_RECEIVE_WAIT_NS / 1000000))

/* RoCE has its address in its GID, wherever the socket is; the others are found by the socket's. */
enum ffs_rdma_fault ffs_rdma_bind(struct ffs_rdma *rdma, int socket_fd,
                                  const struct ffs_rdma_wish *wish, char *reason)
{
	uint8_t address[16];
	enum ffs_rdma_fault fault = ffs_cm_open(&rdma->cm, reason);
	if (fault != FFS_RDMA_FINE)
		return fault;
	int error = -EAFNOSUPPORT;
	memcpy(address, rdma->path->gid.raw, sizeof(address));
	if (rdma->path->link == FFS_LINK_ROCE2 || ffs_rdma_socket_address(socket_fd, false, address))
		error = ffs_cm_bind(&rdma->cm, address, &rdma->end);
	if (error == 0)
		rdma->path = ffs_cm_path(rdma->end, wish);
	if (error == 0 && rdma->path != NULL)
		return FFS_RDMA_FINE;
	ffs_rdma_say(reason, "rdma_cm: the address of this end is of no device that may be used: %s",
	             error != 0 ? strerror(-error) : "another one has it");
	return FFS_RDMA_NO_PORT;
}

/* ------------------------------------------------------------------------------------------ dial
 */

struct dial {
	struct ffs_ask *ask;
	struct ffs_rdma *rdma;
	struct ffs_cm_offer offer;
	int64_t until_ns;
	enum ffs_status status;
};

static int left_ms(const struct dial *dial)
{
	int64_t left_ns = dial->until_ns - ffs_now_ns();
	return left_ns > 0 ? (int)(left_ns / 1000000) + 1 : 1;
}

/* The next news. FFS_CM_NONE: there were none in time, or dial->status says more. */
static enum ffs_cm_news await(struct dial *dial, struct ffs_cm_event *event)
{
	struct pollfd both[2] = {
		{.fd = dial->rdma->cm.fd, .events = POLLIN},
		{.fd = ffs_conn_fd(dial->ask->conn), .events = POLLIN | POLLRDHUP},
	};
	while (dial->status == FFS_OK && ffs_cm_next(&dial->rdma->cm, event) == FFS_CM_NONE) {
		if (ffs_now_ns() >= dial->until_ns)
			return FFS_CM_NONE;
		bool signalled = ffs_sys_poll(both, 2, WAIT_MS) < 0;
		if (signalled && errno != EINTR)
			dial->status = FFS_ERR_NATIVE;
		else if (!signalled && both[1].revents != 0) /* nothing is due but its end */
			dial->status = FFS_ERR_CONNECTION_LOST;
		else
			dial->status = ffs_ask_look_around(dial->ask, signalled);
	}
	return dial->status == FFS_OK ? event->news : FFS_CM_NONE;
}

/* What is to be done at this news: 0 or -errno. */
static int advance(const struct dial *dial, enum ffs_cm_news news)
{
	struct ffs_rdma *rdma = dial->rdma;
	switch (news) {
	case FFS_CM_AT_ADDRESS:
		return ffs_cm_find_route(rdma->end, left_ms(dial));
	case FFS_CM_ON_ROUTE:
		return ffs_cm_ask(rdma->end, &rdma->qp, dial->offer.secret);
	case FFS_CM_ANSWERED:
		return ffs_cm_finish(rdma->end, &rdma->qp);
	default:
		return 0;
	}
}

/* From news to news, until the daemon has answered, or there is no use. */
static enum ffs_rdma_fault follow(struct dial *dial, char *reason)
{
	struct ffs_cm_event event;
	enum ffs_cm_news news;
	int error = ffs_cm_dial(dial->rdma->end, dial->offer.address, dial->offer.port, left_ms(dial));
	while (error == 0 && (news = await(dial, &event)) != FFS_CM_NONE) {
		if (news == FFS_CM_OVER) {
			ffs_rdma_say(reason, "rdma_cm: %s (%d)", event.name, event.status);
			return FFS_RDMA_NOT_REACHED;
		}
		error = advance(dial, news);
		if (error == 0 && news == FFS_CM_ANSWERED)
			return FFS_RDMA_FINE;
	}
	if (error != 0)
		ffs_rdma_say(reason, "rdma_cm: no way to the daemon: %s", strerror(-error));
	else if (dial->status == FFS_OK)
		ffs_rdma_say(reason, "rdma_cm: the daemon did not answer in time");
	return FFS_RDMA_NOT_REACHED;
}

enum ffs_rdma_fault ffs_rdma_dial(struct ffs_ask *ask, struct ffs_rdma *rdma,
                                  enum ffs_status *status, char *reason)
{
	uint8_t answer[FFS_CM_OFFER_BYTES];
	struct dial dial = {.ask = ask, .rdma = rdma, .status = FFS_OK};
	enum ffs_rdma_fault fault =
		ffs_rdma_agree(ask, rdma, FFS_CONNECT_OFFER, answer, sizeof(answer), status);
	if (fault != FFS_RDMA_FINE)
		return fault;
	int64_t now_ns = ffs_now_ns();
	dial.until_ns = now_ns + (ask->deadline_ns - now_ns) / 2;
	ffs_cm_offer_unpack(&dial.offer, answer);
	fault = follow(&dial, reason);
	*status = dial.status;
	if (dial.status != FFS_OK)
		ffs_conn_revoke(ask->conn);
	return fault;
}
