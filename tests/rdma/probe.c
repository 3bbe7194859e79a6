/* What this kernel's verbs really do, asked of the devices named in argv: one line "fact value" each.
 *
 * test_verbs.py runs it in the guest and compares what the transport relies on. Two queue pairs per
 * question, both in this process: `near` starts operations, `far` owns the memory they aim at. A
 * question that breaks a queue pair gets a new pair.
 */
#include <errno.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SIZE = 1 << 16, GID_INDEX = 1, DEPTH = 64 };

struct side {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	char *memory;
};

static struct ibv_context *contexts[2];

static _Noreturn void die(const char *what)
{
	fprintf(stderr, "probe: %s: %s\n", what, strerror(errno));
	exit(1);
}

static struct ibv_context *open_device(const char *name)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	for (int i = 0; list != NULL && list[i] != NULL; i++) {
		if (strcmp(ibv_get_device_name(list[i]), name) == 0) {
			struct ibv_context *context = ibv_open_device(list[i]);
			ibv_free_device_list(list);
			return context;
		}
	}
	errno = ENODEV;
	return NULL;
}

static void to_init(struct ibv_qp *qp)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_INIT,
	    .port_num = 1,
	    .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};
	if (ibv_modify_qp(qp, &attr,
	                  IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) != 0)
		die("INIT");
}

static void to_rts(struct ibv_qp *qp, const struct ibv_qp *peer, uint8_t rnr_retry)
{
	struct ibv_qp_attr attr = {
	    .qp_state = IBV_QPS_RTR,
	    .path_mtu = IBV_MTU_1024,
	    .dest_qp_num = peer->qp_num,
	    .max_dest_rd_atomic = 4,
	    .min_rnr_timer = 12,
	    .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = GID_INDEX, .hop_limit = 2}},
	};
	if (ibv_query_gid(peer->context, 1, GID_INDEX, &attr.ah_attr.grh.dgid) != 0)
		die("gid");
	if (ibv_modify_qp(qp, &attr,
	                  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
	                      IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) != 0)
		die("RTR");
	attr.qp_state = IBV_QPS_RTS;
	/* Waiting for a receive needs patience under emulation; learning of a death should be quick. */
	attr.timeout = rnr_retry == 7 ? 14 : 10;
	attr.retry_cnt = rnr_retry == 7 ? 7 : 3;
	attr.rnr_retry = rnr_retry;
	attr.max_rd_atomic = 4;
	if (ibv_modify_qp(qp, &attr,
	                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
	                      IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC) != 0)
		die("RTS");
}

static struct ibv_qp *new_qp(struct side *side, struct ibv_srq *srq)
{
	struct ibv_qp_init_attr attr = {
	    .send_cq = side->cq,
	    .recv_cq = side->cq,
	    .srq = srq,
	    .cap = {.max_send_wr = DEPTH, .max_recv_wr = DEPTH, .max_send_sge = 4, .max_recv_sge = 1},
	    .qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = ibv_create_qp(side->pd, &attr);
	if (qp == NULL)
		die("create_qp");
	to_init(qp);
	return qp;
}

static struct side new_side(struct ibv_context *context, int access)
{
	struct side side = {.context = context};
	side.pd = ibv_alloc_pd(context);
	side.cq = ibv_create_cq(context, DEPTH * 4, NULL, NULL, 0);
	side.memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	side.mr = ibv_reg_mr(side.pd, side.memory, SIZE, access);
	if (side.mr == NULL)
		die("reg_mr");
	side.qp = new_qp(&side, NULL);
	return side;
}

static void connect_sides(struct side *near, struct side *far, uint8_t rnr_retry)
{
	to_rts(near->qp, far->qp, rnr_retry);
	to_rts(far->qp, near->qp, rnr_retry);
}

/* Wait for one completion; return its status, or -1 after two seconds without. */
static int completion(struct side *side)
{
	struct timespec start, now;
	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		struct ibv_wc wc;
		int n = ibv_poll_cq(side->cq, 1, &wc);
		if (n < 0)
			die("poll_cq");
		if (n == 1)
			return wc.status;
		poll(NULL, 0, 1);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - start.tv_sec < 2);
	return -1;
}

static const char *word(int status)
{
	return status == -1 ? "nothing" : ibv_wc_status_str((enum ibv_wc_status)status);
}

static int start(struct side *near, enum ibv_wr_opcode opcode, uint64_t address, uint32_t rkey,
                 uint32_t length)
{
	struct ibv_sge sge = {(uintptr_t)near->memory, length, near->mr->lkey};
	struct ibv_send_wr wr = {
	    .opcode = opcode,
	    .sg_list = &sge,
	    .num_sge = 1,
	    .send_flags = IBV_SEND_SIGNALED,
	    .wr.rdma = {address, rkey},
	}, *bad;
	if (opcode == IBV_WR_SEND_WITH_INV)
		wr.invalidate_rkey = rkey;
	if (ibv_post_send(near->qp, &wr, &bad) != 0)
		die("post_send");
	return completion(near);
}

static int write_to(struct side *near, char *address, uint32_t rkey, uint32_t length)
{
	return start(near, IBV_WR_RDMA_WRITE, (uintptr_t)address, rkey, length);
}

/* Bind a window of `length` bytes at the start of the far side's memory; return its key. */
static uint32_t bind_window(struct side *far, struct ibv_mw *mw, uint32_t length)
{
	struct ibv_send_wr wr = {
	    .opcode = IBV_WR_BIND_MW,
	    .send_flags = IBV_SEND_SIGNALED,
	    .bind_mw = {mw,
	                ibv_inc_rkey(mw->rkey),
	                {far->mr, (uintptr_t)far->memory, length, IBV_ACCESS_REMOTE_WRITE}},
	}, *bad;
	if (ibv_post_send(far->qp, &wr, &bad) != 0)
		die("bind");
	int status = completion(far);
	if (status != IBV_WC_SUCCESS) {
		printf("bind_failed %s\n", word(status));
		exit(1);
	}
	return mw->rkey = wr.bind_mw.rkey;
}

static int invalidate(struct side *far, uint32_t rkey)
{
	struct ibv_send_wr wr = {
	    .opcode = IBV_WR_LOCAL_INV, .send_flags = IBV_SEND_SIGNALED, .invalidate_rkey = rkey}, *bad;
	return ibv_post_send(far->qp, &wr, &bad) != 0 ? -1 : completion(far);
}

static void receive(struct side *side)
{
	struct ibv_sge sge = {(uintptr_t)side->memory + SIZE / 2, 64, side->mr->lkey};
	struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
	if (ibv_post_recv(side->qp, &wr, &bad) != 0)
		die("post_recv");
}

static void pair(struct side *near, struct side *far, int far_access)
{
	*near = new_side(contexts[0], IBV_ACCESS_LOCAL_WRITE);
	*far = new_side(contexts[1], far_access);
	connect_sides(near, far, 0);
}

static void ask_about_regions(void)
{
	struct side near, far;
	int all = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
	pair(&near, &far, all);
	memset(near.memory, 'w', SIZE);
	printf("write %s\n", word(write_to(&near, far.memory, far.mr->rkey, SIZE)));
	printf("write_arrived %d\n", far.memory[SIZE - 1] == 'w');
	far.memory[0] = 'r';
	int status = start(&near, IBV_WR_RDMA_READ, (uintptr_t)far.memory, far.mr->rkey, 1);
	printf("read %s %d\n", word(status), near.memory[0] == 'r');
	struct side other = new_side(contexts[1], all); /* a protection domain of its own */
	printf("write_other_domain %s\n", word(write_to(&near, other.memory, other.mr->rkey, 64)));
	pair(&near, &far, all);
	uint32_t rkey = far.mr->rkey;
	ibv_dereg_mr(far.mr);
	printf("write_deregistered %s\n", word(write_to(&near, far.memory, rkey, 64)));
	pair(&near, &far, all);
	ibv_destroy_qp(far.qp);
	printf("write_destroyed_pair %s\n", word(write_to(&near, far.memory, far.mr->rkey, 64)));
	pair(&near, &far, all);
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
	ibv_modify_qp(far.qp, &attr, IBV_QP_STATE);
	printf("write_pair_in_error %s\n", word(write_to(&near, far.memory, far.mr->rkey, 64)));
	printf("write_pair_in_error_arrived %d\n", far.memory[0] != 0);
}

static void ask_about_windows(void)
{
	struct side near, far;
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND;
	pair(&near, &far, access);
	printf("write_region_without_remote %s\n",
	       word(write_to(&near, far.memory, far.mr->rkey, 64)));
	pair(&near, &far, access);
	struct ibv_mw *mw = ibv_alloc_mw(far.pd, IBV_MW_TYPE_2);
	printf("window_allocated %d\n", mw != NULL);
	if (mw == NULL)
		return;
	uint32_t rkey = bind_window(&far, mw, 100);
	printf("window_write %s\n", word(write_to(&near, far.memory, rkey, 100)));
	printf("window_invalidate %s\n", word(invalidate(&far, rkey)));
	uint32_t again = bind_window(&far, mw, 100);
	printf("window_rebound_key_differs %d\n", rkey != again);
	printf("window_write_again %s\n", word(write_to(&near, far.memory, again, 100)));
	pair(&near, &far, access);
	mw = ibv_alloc_mw(far.pd, IBV_MW_TYPE_2);
	rkey = bind_window(&far, mw, 100);
	invalidate(&far, rkey);
	printf("window_write_invalidated %s\n", word(write_to(&near, far.memory, rkey, 64)));
	printf("window_write_invalidated_arrived %d\n", far.memory[0] != 0);
}

static void ask_about_other_pairs_and_remote_invalidation(void)
{
	struct side near, far;
	int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_MW_BIND;
	pair(&near, &far, access);
	struct ibv_mw *mw = ibv_alloc_mw(far.pd, IBV_MW_TYPE_2);
	uint32_t rkey = bind_window(&far, mw, 100);
	struct side near2 = new_side(contexts[0], IBV_ACCESS_LOCAL_WRITE);
	struct side far2 = far;
	far2.qp = new_qp(&far, NULL);
	connect_sides(&near2, &far2, 0);
	printf("window_write_other_pair %s\n", word(write_to(&near2, far.memory, rkey, 64)));
	receive(&far);
	memset(near.memory, 's', 64);
	printf("send_with_invalidate %s\n", word(start(&near, IBV_WR_SEND_WITH_INV, 0, rkey, 64)));
	printf("send_with_invalidate_received %s\n", word(completion(&far)));
	printf("window_write_remotely_invalidated %s\n",
	       word(write_to(&near, far.memory, rkey, 64)));
	pair(&near, &far, access);
	mw = ibv_alloc_mw(far.pd, IBV_MW_TYPE_2);
	rkey = bind_window(&far, mw, 100);
	struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
	ibv_modify_qp(far.qp, &attr, IBV_QP_STATE);
	printf("window_freed_in_error %d\n", ibv_dealloc_mw(mw));
	printf("region_freed_after_window %d\n", ibv_dereg_mr(far.mr));
}

static void ask_about_receives(void)
{
	struct side near, far;
	pair(&near, &far, IBV_ACCESS_LOCAL_WRITE);
	printf("send_no_receive_retry_0 %s\n", word(start(&near, IBV_WR_SEND, 0, 0, 64)));
	near = new_side(contexts[0], IBV_ACCESS_LOCAL_WRITE);
	far = new_side(contexts[1], IBV_ACCESS_LOCAL_WRITE);
	connect_sides(&near, &far, 7);
	printf("send_no_receive_retry_7 %s\n", word(start(&near, IBV_WR_SEND, 0, 0, 64)));
	receive(&far);
	printf("send_received_late %s %s\n", word(completion(&near)), word(completion(&far)));
	pair(&near, &far, IBV_ACCESS_LOCAL_WRITE);
	receive(&far);
	printf("send_too_long %s", word(start(&near, IBV_WR_SEND, 0, 0, 65)));
	printf(" %s\n", word(completion(&far)));
	struct ibv_srq_init_attr attr = {.attr = {.max_wr = DEPTH, .max_sge = 1}};
	near = new_side(contexts[0], IBV_ACCESS_LOCAL_WRITE);
	far = new_side(contexts[1], IBV_ACCESS_LOCAL_WRITE);
	struct ibv_srq *srq = ibv_create_srq(far.pd, &attr);
	far.qp = new_qp(&far, srq);
	connect_sides(&near, &far, 0);
	struct ibv_sge sge = {(uintptr_t)far.memory, 64, far.mr->lkey};
	struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
	int posted = ibv_post_srq_recv(srq, &wr, &bad);
	printf("shared_receive %d %s", posted, word(start(&near, IBV_WR_SEND, 0, 0, 64)));
	printf(" %s\n", word(completion(&far)));
}

static void ask_about_limits(void)
{
	struct side side = new_side(contexts[0], IBV_ACCESS_LOCAL_WRITE);
	for (uint32_t inline_bytes = 1024; inline_bytes > 0; inline_bytes /= 2) {
		struct ibv_qp_init_attr attr = {
		    .send_cq = side.cq,
		    .recv_cq = side.cq,
		    .cap = {DEPTH, DEPTH, 16, 1, inline_bytes},
		    .qp_type = IBV_QPT_RC,
		};
		if (ibv_create_qp(side.pd, &attr) == NULL)
			continue;
		printf("inline_bytes_with_16_sge %u\n", attr.cap.max_inline_data);
		break;
	}
	int relaxed = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_RELAXED_ORDERING;
	printf("relaxed_ordering %d\n", ibv_reg_mr(side.pd, side.memory, SIZE, relaxed) != NULL);
	const char *const fork_words[] = {"disabled", "enabled", "unneeded"};
	printf("fork_support %s\n", fork_words[ibv_is_fork_initialized()]);
	struct ibv_gid_entry entry;
	if (ibv_query_gid_ex(contexts[0], 1, GID_INDEX, &entry, 0) == 0)
		printf("gid_type %s\n", entry.gid_type == IBV_GID_TYPE_ROCE_V2 ? "roce2" : "other");
	void *locked = mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("register_read_only_page %d\n", ibv_reg_mr(side.pd, locked, 4096, 0) != NULL);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < 2; i++) {
		contexts[i] = open_device(argv[1 + i]);
		if (contexts[i] == NULL)
			die(argv[1 + i]);
	}
	ask_about_regions();
	ask_about_windows();
	ask_about_other_pairs_and_remote_invalidation();
	ask_about_receives();
	ask_about_limits();
	return 0;
}
