/* See queue_pair.h. */
#include "rdma/queue_pair.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include "core/sys.h"

#define TIMEOUT 14 /* 67 ms until a packet without answer is sent again */
#define RETRIES 7
#define RNR_RETRIES 3 /* there is a receive for everything that may be sent */
#define RNR_TIMER 12  /* 0.64 ms */
#define HOPS 64
#define PSN_MASK 0xffffffu
#define HUGE_BYTES (2u << 20)

/* The verbs' ways of telling errors: an errno, or -1 and errno. */
static int failed(int result)
{
	int error = result > 0 ? result : errno;
	return -(error > 0 ? error : EIO);
}

/* -------------------------------------------------------------------------------- completions */

int ffs_completions_open(struct ffs_completions *completions, const struct ffs_rdma_device *device,
                         uint32_t depth)
{
	*completions = (struct ffs_completions){0};
	completions->channel = ffs_create_channel(device->context);
	if (completions->channel == NULL)
		return failed(0);
	completions->cq = ffs_create_cq(device->context, (int)depth, completions->channel);
	int error = failed(0);
	if (completions->cq != NULL && ffs_sys_set_blocking(completions->channel->fd, false) == 0)
		error = ffs_completions_arm(completions);
	if (error != 0)
		ffs_completions_close(completions);
	return error;
}

void ffs_completions_close(struct ffs_completions *completions)
{
	if (completions->cq != NULL)
		(void)ffs_verbs()->ibv_destroy_cq(completions->cq);
	if (completions->channel != NULL)
		(void)ffs_verbs()->ibv_destroy_comp_channel(completions->channel);
	*completions = (struct ffs_completions){0};
}

void ffs_completions_forget(struct ffs_completions *completions)
{
	if (completions->channel != NULL)
		(void)ffs_sys_close(completions->channel->fd);
	*completions = (struct ffs_completions){0};
}

int ffs_completions_arm(struct ffs_completions *completions)
{
	struct ibv_cq *cq;
	void *context;
	unsigned int events = 0;
	while (ffs_verbs()->ibv_get_cq_event(completions->channel, &cq, &context) == 0)
		events++;
	int ended_with = errno; /* another one: the device has been taken out */
	if (events > 0)
		ffs_verbs()->ibv_ack_cq_events(completions->cq, events);
	if (ended_with != EAGAIN && ended_with != EWOULDBLOCK && ended_with != EINTR)
		return -(ended_with > 0 ? ended_with : EIO);
	int error = ffs_req_notify_cq(completions->cq);
	return error != 0 ? failed(error) : 0;
}

/* --------------------------------------------------------------------------------- queue pair */

static int create(struct ffs_qp *qp, const struct ffs_qp_wants *wants)
{
	struct ibv_qp_init_attr attributes = {
		.send_cq = wants->completions->cq,
		.recv_cq = wants->completions->cq,
		.srq = wants->srq,
		.cap = {.max_send_wr = qp->depth,
	            .max_recv_wr = wants->srq == NULL ? wants->receives : 0,
	            .max_send_sge = wants->sges,
	            .max_recv_sge = wants->srq == NULL ? 1 : 0,
	            .max_inline_data = FFS_QP_INLINE_BYTES},
		.qp_type = IBV_QPT_RC,
	};
	qp->qp = ffs_create_qp(wants->pd, &attributes);
	if (qp->qp == NULL) { /* a device may have less room for inline data, or none */
		attributes.cap.max_inline_data = 0;
		qp->qp = ffs_create_qp(wants->pd, &attributes);
	}
	if (qp->qp == NULL)
		return failed(0);
	qp->inline_bytes = attributes.cap.max_inline_data;
	return 0;
}

int ffs_qp_move(struct ffs_qp *qp, struct ibv_qp_attr *attributes, int mask)
{
	attributes->qp_access_flags =
		qp->exposes ? IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE : 0;
	attributes->min_rnr_timer = RNR_TIMER;
	attributes->timeout = TIMEOUT;
	attributes->retry_cnt = RETRIES;
	attributes->rnr_retry = RNR_RETRIES;
	int error = ffs_modify_qp(qp->qp, attributes, mask);
	return error != 0 ? failed(error) : 0;
}

static int to_init(struct ffs_qp *qp)
{
	struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_INIT, .port_num = qp->path->port};
	return ffs_qp_move(qp, &attributes,
	                   IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int ffs_qp_open(struct ffs_qp *qp, const struct ffs_qp_wants *wants)
{
	uint32_t most = (uint32_t)wants->path->device->wrs_max;
	*qp = (struct ffs_qp){.path = wants->path, .exposes = wants->exposes};
	qp->depth = wants->sends < most ? wants->sends : most;
	qp->covers = ffs_sys_calloc(qp->depth, sizeof(*qp->covers));
	if (qp->covers == NULL)
		return -ENOMEM;
	int error = getrandom(&qp->psn, sizeof(qp->psn), 0) == sizeof(qp->psn) ? 0 : failed(0);
	qp->psn &= PSN_MASK;
	if (error == 0)
		error = create(qp, wants);
	if (error == 0)
		error = to_init(qp);
	if (error != 0)
		ffs_qp_close(qp);
	return error;
}

void ffs_qp_describe(const struct ffs_qp *qp, struct ffs_qp_end *end)
{
	*end = (struct ffs_qp_end){.gid_first = ffs_load_u64(qp->path->gid.raw),
	                           .gid_last = ffs_load_u64(qp->path->gid.raw + 8),
	                           .qpn = qp->qp->qp_num,
	                           .psn = qp->psn,
	                           .lid = qp->path->lid,
	                           .link = qp->path->link,
	                           .mtu = qp->path->mtu,
	                           .reads = qp->path->device->reads};
}

static int to_receive(struct ffs_qp *qp, const struct ffs_qp_end *peer)
{
	struct ibv_qp_attr attributes = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = (enum ibv_mtu)(peer->mtu < qp->path->mtu ? peer->mtu : qp->path->mtu),
		.dest_qp_num = peer->qpn,
		.rq_psn = peer->psn & PSN_MASK,
		.max_dest_rd_atomic = qp->path->device->reads,
		.ah_attr = {.dlid = peer->lid,
	                .port_num = qp->path->port,
	                .is_global = qp->path->link != FFS_LINK_INFINIBAND,
	                .grh = {.sgid_index = (uint8_t)qp->path->gid_index, .hop_limit = HOPS}},
	};
	ffs_store_u64(attributes.ah_attr.grh.dgid.raw, peer->gid_first);
	ffs_store_u64(attributes.ah_attr.grh.dgid.raw + 8, peer->gid_last);
	return ffs_qp_move(qp, &attributes,
	                   IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
	                       IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

static int to_send(struct ffs_qp *qp, const struct ffs_qp_end *peer)
{
	uint8_t most = qp->path->device->reads;
	struct ibv_qp_attr attributes = {
		.qp_state = IBV_QPS_RTS,
		.sq_psn = qp->psn,
		.max_rd_atomic = peer->reads < most ? peer->reads : most,
	};
	return ffs_qp_move(qp, &attributes,
	                   IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
	                       IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

int ffs_qp_connect(struct ffs_qp *qp, const struct ffs_qp_end *peer)
{
	int error = to_receive(qp, peer);
	return error != 0 ? error : to_send(qp, peer);
}

void ffs_qp_stop(struct ffs_qp *qp)
{
	struct ibv_qp_attr attributes = {.qp_state = IBV_QPS_ERR};
	if (qp->qp != NULL)
		(void)ffs_verbs()->ibv_modify_qp(qp->qp, &attributes, IBV_QP_STATE);
}

void ffs_qp_close(struct ffs_qp *qp)
{
	ffs_qp_stop(qp);
	if (qp->qp != NULL)
		(void)ffs_verbs()->ibv_destroy_qp(qp->qp);
	free(qp->covers);
	*qp = (struct ffs_qp){0};
}

/* -------------------------------------------------------------------------------------- sends */

int ffs_qp_post(struct ffs_qp *qp, struct ibv_send_wr *send)
{
	if (qp->used == qp->depth)
		return -EAGAIN;
	bool due = qp->silent + 1 >= qp->depth / 4 || qp->used + 1 == qp->depth;
	if (due)
		send->send_flags |= IBV_SEND_SIGNALED;
	int error = ffs_post_send(qp->qp, send);
	if (error != 0)
		return failed(error);
	qp->used++;
	qp->silent++;
	if ((send->send_flags & IBV_SEND_SIGNALED) != 0) {
		qp->covers[qp->head] = (uint16_t)qp->silent;
		qp->head = (qp->head + 1) % qp->depth;
		qp->silent = 0;
	}
	return 0;
}

void ffs_qp_sent(struct ffs_qp *qp)
{
	qp->used -= qp->covers[qp->tail];
	qp->tail = (qp->tail + 1) % qp->depth;
}

/* ------------------------------------------------------------------------------------- memory */

int ffs_pinned_open(struct ffs_pinned *pinned, struct ibv_pd *pd, size_t bytes, int access)
{
	*pinned = (struct ffs_pinned){.bytes = bytes};
	void *memory = ffs_sys_map_memory(bytes);
	if (memory == MAP_FAILED)
		return -errno;
	pinned->memory = memory;
	int error = ffs_sys_madvise(memory, bytes, MADV_DONTFORK) != 0 ? -errno : 0;
	if (bytes >= HUGE_BYTES)
		(void)ffs_sys_madvise(memory, bytes, MADV_HUGEPAGE); /* fewer entries for the card */
	if (error == 0) {
		errno = 0;
		pinned->mr = ffs_reg_mr(pd, memory, bytes, access);
		error = pinned->mr == NULL ? failed(0) : 0;
	}
	if (error != 0)
		ffs_pinned_close(pinned);
	return error;
}

void ffs_pinned_close(struct ffs_pinned *pinned)
{
	if (pinned->mr != NULL)
		(void)ffs_verbs()->ibv_dereg_mr(pinned->mr);
	if (pinned->memory != NULL)
		(void)munmap(pinned->memory, pinned->bytes);
	*pinned = (struct ffs_pinned){0};
}

/* ------------------------------------------------------------------------------------ windows */

int ffs_window_open(struct ffs_window *window, struct ibv_pd *pd)
{
	errno = 0;
	*window = (struct ffs_window){.mw = ffs_alloc_mw(pd)};
	if (window->mw == NULL)
		return failed(0);
	window->key = window->mw->rkey;
	return 0;
}

int ffs_window_bind(struct ffs_window *window, struct ffs_qp *qp, struct ibv_mr *mr,
                    const void *memory, size_t bytes, unsigned int access)
{
	uint32_t key = ibv_inc_rkey(window->key);
	struct ibv_send_wr bind = {
		.opcode = IBV_WR_BIND_MW,
		.bind_mw = {.mw = window->mw,
	                .rkey = key,
	                .bind_info = {.mr = mr,
	                              .addr = (uint64_t)(uintptr_t)memory,
	                              .length = bytes,
	                              .mw_access_flags = access}},
	};
	int error = ffs_qp_post(qp, &bind);
	if (error != 0)
		return error;
	window->key = key;
	window->mw->rkey = key; /* drivers name the window by its last key, and leave that to us */
	window->bound = true;
	return 0;
}

int ffs_window_end(struct ffs_window *window, struct ffs_qp *qp, uint64_t id)
{
	struct ibv_send_wr end = {.wr_id = id,
	                          .opcode = IBV_WR_LOCAL_INV,
	                          .send_flags = IBV_SEND_SIGNALED | IBV_SEND_FENCE,
	                          .invalidate_rkey = window->key};
	int error = ffs_qp_post(qp, &end);
	if (error == 0)
		window->bound = false;
	return error;
}

void ffs_window_close(struct ffs_window *window)
{
	if (window->mw != NULL)
		(void)ibv_dealloc_mw(window->mw);
	*window = (struct ffs_window){0};
}
