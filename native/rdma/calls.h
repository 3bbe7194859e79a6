/*
 * The verbs that make something, post or poll, each with the switch of core/sys.h before it: tests
 * make the Nth one fail. Those that take things down have none: they fail only for who has leaked.
 *
 *   region, queue_pair, the sides' rdma_*.c -> THIS -> verbs.h
 *
 * Semantics are those of the verbs: NULL and errno, or an errno. A poll that is to be short says of
 * the first completion that it finds that its work has failed, as a broken queue pair would.
 */
#ifndef FFS_RDMA_CALLS_H
#define FFS_RDMA_CALLS_H

#include <errno.h>

#include "core/sys.h"
#include "rdma/verbs.h"

static inline struct ibv_pd *ffs_alloc_pd(struct ibv_context *context)
{
	return ffs_sys_fails(FFS_SYS_IBV_ALLOC_PD) ? NULL : ffs_verbs()->ibv_alloc_pd(context);
}

static inline struct ibv_mr *ffs_reg_mr(struct ibv_pd *pd, const void *memory, size_t bytes,
                                        int access)
{
	if (ffs_sys_fails(FFS_SYS_IBV_REG_MR))
		return NULL;
	return ffs_verbs()->ibv_reg_mr(pd, (void *)(uintptr_t)memory, bytes, access);
}

/* NULL and ENOSYS: this libibverbs cannot. */
static inline struct ibv_mr *ffs_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t bytes,
                                               uint64_t address, int fd, int access)
{
	ffs_reg_dmabuf_mr_function *function = ffs_verbs_reg_dmabuf_mr();
	if (ffs_sys_fails(FFS_SYS_IBV_REG_MR))
		return NULL;
	errno = ENOSYS;
	return function != NULL ? function(pd, offset, bytes, address, fd, access) : NULL;
}

static inline struct ibv_comp_channel *ffs_create_channel(struct ibv_context *context)
{
	return ffs_sys_fails(FFS_SYS_IBV_CREATE_CHANNEL)
	           ? NULL
	           : ffs_verbs()->ibv_create_comp_channel(context);
}

static inline struct ibv_cq *ffs_create_cq(struct ibv_context *context, int depth,
                                           struct ibv_comp_channel *channel)
{
	return ffs_sys_fails(FFS_SYS_IBV_CREATE_CQ)
	           ? NULL
	           : ffs_verbs()->ibv_create_cq(context, depth, NULL, channel, 0);
}

static inline struct ibv_srq *ffs_create_srq(struct ibv_pd *pd,
                                             struct ibv_srq_init_attr *attributes)
{
	return ffs_sys_fails(FFS_SYS_IBV_CREATE_SRQ) ? NULL
	                                             : ffs_verbs()->ibv_create_srq(pd, attributes);
}

static inline struct ibv_qp *ffs_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attributes)
{
	return ffs_sys_fails(FFS_SYS_IBV_CREATE_QP) ? NULL : ffs_verbs()->ibv_create_qp(pd, attributes);
}

static inline int ffs_modify_qp(struct ibv_qp *qp, struct ibv_qp_attr *attributes, int mask)
{
	return ffs_sys_fails(FFS_SYS_IBV_MODIFY_QP) ? errno
	                                            : ffs_verbs()->ibv_modify_qp(qp, attributes, mask);
}

static inline struct ibv_mw *ffs_alloc_mw(struct ibv_pd *pd)
{
	return ffs_sys_fails(FFS_SYS_IBV_ALLOC_MW) ? NULL : ibv_alloc_mw(pd, IBV_MW_TYPE_2);
}

static inline int ffs_post_send(struct ibv_qp *qp, struct ibv_send_wr *send)
{
	struct ibv_send_wr *bad;
	return ffs_sys_fails(FFS_SYS_IBV_POST_SEND) ? errno : ibv_post_send(qp, send, &bad);
}

static inline int ffs_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *receive)
{
	struct ibv_recv_wr *bad;
	return ffs_sys_fails(FFS_SYS_IBV_POST_RECV) ? errno : ibv_post_recv(qp, receive, &bad);
}

static inline int ffs_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *receive)
{
	struct ibv_recv_wr *bad;
	return ffs_sys_fails(FFS_SYS_IBV_POST_RECV) ? errno : ibv_post_srq_recv(srq, receive, &bad);
}

static inline int ffs_req_notify_cq(struct ibv_cq *cq)
{
	return ffs_sys_fails(FFS_SYS_IBV_NOTIFY) ? errno : ibv_req_notify_cq(cq, 0);
}

static inline int ffs_poll_cq(struct ibv_cq *cq, int most, struct ibv_wc *found)
{
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_IBV_POLL);
	if (fault == FFS_SYS_FAILS)
		return -1;
	int count = ibv_poll_cq(cq, most, found);
	if (fault == FFS_SYS_SHORT && count > 0)
		found[0].status = IBV_WC_GENERAL_ERR;
	return count;
}

#endif
