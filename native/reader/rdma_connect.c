/*
 * Going over to RDMA: the queue pair is made, connected to the daemon's, and given its scratch.
 *
 * Previous hop: qp_calls.c. Next: rdma_cm.c, if rdma_cm is to connect it; rdma_leg.c. Everything
 * that can be missing on this side is found out before the daemon is asked, and a refusal leaves
 * the connection as it was.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "reader/rdma_state.h"

_Static_assert(FFS_RDMA_REASON_BYTES == FFS_RDMA_TEXT_BYTES, "reasons are handed on");

/* ----------------------------------------------------------------------------------------- close
 */

/* The queue pair's end comes before that of all it can reach. */
static void close_own(struct ffs_rdma *rdma)
{
	ffs_qp_stop(&rdma->qp);
	ffs_window_close(&rdma->data_window);
	ffs_window_close(&rdma->scratch_window);
	ffs_qp_close(&rdma->qp);
	ffs_rdma_free_slots(rdma);
	if (rdma->end != NULL)
		ffs_cm_end(rdma->end);
	if (rdma->cm.channel != NULL)
		ffs_cm_close(&rdma->cm);
	if (rdma->region != NULL)
		ffs_region_drop(rdma->region);
	ffs_completions_close(&rdma->completions);
	ffs_pinned_close(&rdma->scratch);
	if (rdma->pd != NULL && !rdma->windows)
		(void)ffs_verbs()->ibv_dealloc_pd(rdma->pd);
}

void ffs_rdma_close(struct ffs_rdma *rdma)
{
	if (rdma->generation == ffs_rdma_generation()) {
		close_own(rdma);
	} else {
		ffs_completions_forget(&rdma->completions);
		ffs_cm_forget(&rdma->cm);
	}
	if (rdma->epoll_fd >= 0)
		(void)ffs_sys_close(rdma->epoll_fd);
	free(rdma);
}

/* ------------------------------------------------------------------------------------------ open
 */

static int watch(const struct ffs_rdma *rdma, int fd)
{
	struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
	return ffs_sys_epoll_ctl(rdma->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0 ? -errno : 0;
}

/* Windows share the device's protection domain, since nothing in it can be reached without one;
 * without them the connection needs one of its own. */
static int open_domain(struct ffs_rdma *rdma, bool windows)
{
	rdma->windows = windows && rdma->path->device->windows;
	errno = 0;
	rdma->pd = rdma->windows ? rdma->path->device->pd : ffs_alloc_pd(rdma->path->device->context);
	if (rdma->pd == NULL)
		return errno != 0 ? -errno : -EIO;
	if (!rdma->windows)
		return 0;
	int error = ffs_window_open(&rdma->scratch_window, rdma->pd);
	return error != 0 ? error : ffs_window_open(&rdma->data_window, rdma->pd);
}

static int open_scratch(struct ffs_rdma *rdma)
{
	int remote =
		rdma->windows ? IBV_ACCESS_MW_BIND : IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
	int error = ffs_pinned_open(&rdma->scratch, rdma->pd, FFS_RDMA_SCRATCH_BYTES,
	                            IBV_ACCESS_LOCAL_WRITE | remote);
	if (error == 0 && !rdma->windows)
		rdma->scratch_key = rdma->scratch.mr->rkey;
	return error;
}

static int open_queues(struct ffs_rdma *rdma, int socket_fd)
{
	struct ffs_qp_wants wants = {.path = rdma->path,
	                             .pd = rdma->pd,
	                             .completions = &rdma->completions,
	                             .sends = FFS_RDMA_SENDS,
	                             .receives = FFS_RDMA_RECEIVES,
	                             .sges = 1,
	                             .exposes = true};
	int error = ffs_completions_open(&rdma->completions, rdma->path->device,
	                                 FFS_RDMA_SENDS + FFS_RDMA_RECEIVES);
	if (error == 0)
		error = ffs_qp_open(&rdma->qp, &wants);
	if (error == 0 && (rdma->epoll_fd = ffs_sys_epoll_create()) < 0)
		error = -errno;
	if (error == 0)
		error = watch(rdma, ffs_completions_fd(&rdma->completions));
	return error != 0 ? error : watch(rdma, socket_fd);
}

int ffs_rdma_open(struct ffs_rdma *rdma, int socket_fd, bool windows)
{
	int error = open_domain(rdma, windows);
	if (error == 0)
		error = open_scratch(rdma);
	if (error == 0)
		error = open_queues(rdma, socket_fd);
	for (uint32_t i = 0; error == 0 && i < FFS_RDMA_RECEIVES; i++)
		error = ffs_rdma_post_receive(rdma, i);
	return error;
}

/* ---------------------------------------------------------------------------------------- connect
 */

enum ffs_rdma_fault ffs_rdma_agree(struct ffs_ask *ask, const struct ffs_rdma *rdma,
                                   enum ffs_connect_step step, uint8_t *answer, uint32_t bytes,
                                   enum ffs_status *status)
{
	struct ffs_qp_end own;
	ffs_qp_describe(&rdma->qp, &own);
	ffs_qp_end_pack(ask->conn->scratch->send + FFS_ASK_BODY_AT, &own);
	ask->request = (struct ffs_header){.op = FFS_OP_CONNECT_QP,
	                                   .flags = (uint8_t)step,
	                                   .count = 1,
	                                   .body_bytes = FFS_QP_END_BYTES};
	ask->payload_bytes_max = bytes;
	*status = ffs_ask(ask);
	if (*status == FFS_ERR_UNAVAILABLE && ffs_conn_fd(ask->conn) >= 0) {
		*status = FFS_OK; /* refused, and TCP goes on */
		return ask->answer.flags != 0 ? (enum ffs_rdma_fault)ask->answer.flags : FFS_RDMA_SYSTEM;
	}
	if (*status == FFS_OK && ask->answer.payload_bytes == bytes) {
		memcpy(answer, ask->conn->scratch->body, bytes);
		return FFS_RDMA_FINE;
	}
	if (*status == FFS_OK)
		*status = FFS_ERR_PROTOCOL;
	ffs_conn_revoke(ask->conn);
	return FFS_RDMA_SYSTEM;
}

/* The daemon's end is here: connect to it, if rdma_cm has not, and open the scratch to it. */
static int go_over(struct ffs_rdma *rdma, const struct ffs_qp_end *peer)
{
	rdma->slot_count = peer->requests < FFS_RDMA_SLOTS ? peer->requests : FFS_RDMA_SLOTS;
	rdma->request_bytes = peer->request_bytes;
	int error = rdma->end == NULL ? ffs_qp_connect(&rdma->qp, peer) : 0;
	if (error != 0 || !rdma->windows)
		return error;
	error =
		ffs_window_bind(&rdma->scratch_window, &rdma->qp, rdma->scratch.mr, rdma->scratch.memory,
	                    rdma->scratch.bytes, IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE);
	rdma->scratch_key = rdma->scratch_window.key;
	return error;
}

/* The last step: the daemon tells of its end, and the connection has gone over. */
static enum ffs_rdma_fault agree_at_last(struct ffs_ask *ask, struct ffs_rdma *rdma,
                                         enum ffs_status *status, char *reason)
{
	uint8_t answer[FFS_QP_END_BYTES];
	struct ffs_qp_end peer;
	enum ffs_connect_step step = rdma->end == NULL ? FFS_CONNECT_EXCHANGE : FFS_CONNECT_CONFIRM;
	enum ffs_rdma_fault fault = ffs_rdma_agree(ask, rdma, step, answer, sizeof(answer), status);
	if (fault != FFS_RDMA_FINE)
		return fault;
	int error = 0;
	*status = FFS_ERR_PROTOCOL;
	fault = FFS_RDMA_SYSTEM;
	if (ffs_qp_end_unpack(&peer, answer) && peer.requests > 0 &&
	    peer.request_bytes >= FFS_RDMA_REQUEST_BYTES_MIN) {
		error = go_over(rdma, &peer);
		*status = error == 0 ? FFS_OK : FFS_ERR_CONNECTION_LOST;
		fault = error == 0 ? FFS_RDMA_FINE : ffs_rdma_explain(-error, 0, reason);
	}
	if (fault != FFS_RDMA_FINE) /* the daemon believes that we went over: tell it otherwise */
		ffs_conn_revoke(ask->conn);
	return fault;
}

static struct ffs_rdma *new_rdma(const struct ffs_rdma_options *options)
{
	struct ffs_rdma *rdma = ffs_sys_calloc(1, sizeof(*rdma));
	if (rdma == NULL)
		return NULL;
	rdma->epoll_fd = -1;
	rdma->cm.fd = -1;
	rdma->receives_free = FFS_RDMA_RECEIVES;
	rdma->window_bytes = options->window_bytes;
	rdma->own_domain = !options->windows;
	return rdma;
}

/* All that comes before the last step. */
static enum ffs_rdma_fault prepare(struct ffs_ask *ask, struct ffs_rdma *rdma,
                                   const struct ffs_rdma_options *options, bool by_cm,
                                   enum ffs_status *status, char *reason)
{
	struct ffs_rdma_wish wish = {.gid_index = options->gid_index, .by_cm = by_cm};
	int fd = ffs_conn_fd(ask->conn);
	strncpy(wish.device, options->device, sizeof(wish.device) - 1);
	enum ffs_rdma_fault fault = ffs_rdma_choose(fd, &wish, NULL, &rdma->path, reason);
	rdma->generation = ffs_rdma_generation();
	if (fault == FFS_RDMA_FINE && by_cm)
		fault = ffs_rdma_bind(rdma, fd, &wish, reason);
	if (fault != FFS_RDMA_FINE)
		return fault;
	int error = ffs_rdma_open(rdma, fd, options->windows);
	if (error != 0)
		return ffs_rdma_explain(-error, FFS_RDMA_SCRATCH_BYTES, reason);
	return by_cm ? ffs_rdma_dial(ask, rdma, status, reason) : FFS_RDMA_FINE;
}

static enum ffs_rdma_fault connect_by(struct ffs_ask *ask, const struct ffs_rdma_options *options,
                                      bool by_cm, enum ffs_status *status, char *reason)
{
	struct ffs_rdma *rdma = new_rdma(options);
	reason[0] = '\0';
	if (rdma == NULL)
		return FFS_RDMA_NO_ROOM;
	enum ffs_rdma_fault fault = prepare(ask, rdma, options, by_cm, status, reason);
	if (fault == FFS_RDMA_FINE)
		fault = agree_at_last(ask, rdma, status, reason);
	if (fault == FFS_RDMA_FINE)
		ask->conn->rdma = rdma;
	else
		ffs_rdma_close(rdma);
	return fault;
}

enum ffs_rdma_fault ffs_rdma_connect(struct ffs_ask *ask, const struct ffs_rdma_options *options,
                                     enum ffs_status *status, char *reason)
{
	*status = FFS_OK;
	enum ffs_rdma_fault fault =
		connect_by(ask, options, options->way == FFS_RDMA_BY_CM, status, reason);
	bool other = fault == FFS_RDMA_OTHER_SUBNET || fault == FFS_RDMA_OTHER_WAY;
	if (options->way == FFS_RDMA_AUTO && *status == FFS_OK && other)
		fault = connect_by(ask, options, true, status, reason);
	return fault;
}

int ffs_rdma_fd(const struct ffs_rdma *rdma)
{
	return rdma->epoll_fd;
}

bool ffs_rdma_own_domain(const struct ffs_rdma *rdma)
{
	return rdma->own_domain;
}

const char *ffs_rdma_device_name(const struct ffs_rdma *rdma)
{
	return rdma->path->device->name;
}

struct ffs_declared *ffs_rdma_declare(const void *memory, size_t bytes)
{
	struct ffs_declared *declared = ffs_sys_calloc(1, sizeof(*declared));
	if (declared != NULL)
		ffs_region_declare(declared, memory, bytes);
	return declared;
}

void ffs_rdma_withdraw_declared(struct ffs_declared *declared)
{
	ffs_region_withdraw(declared);
	free(declared);
}

uint32_t ffs_rdma_regions(void)
{
	return ffs_regions_count();
}
