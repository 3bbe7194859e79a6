/*
 * What reads and writes by RDMA have in common: slots, exposure, sends, completions.
 *
 * Previous hop: rdma_read.c, rdma_write.c. Next: the card.
 *
 * Before drive.c sleeps the completion queue must be empty and armed, or a completion would be told
 * of by nobody: while it is not, the leg is "ready" and gets its turn without sleeping.
 *
 * Failure: any completion with an error, an answer that fits no request, or the socket's end fail
 * the leg, and with it the queue pair.
 */
#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "core/sys.h"
#include "reader/rdma_state.h"

#define COMPLETIONS 16 /* of one turn */
#define SENDS_SPARE 2u /* places that binding and unbinding a window need */

/* Payload asked for over all connections: incast is bounded where it would arrive. */
static _Atomic uint64_t bytes_asked;

uint64_t ffs_rdma_bytes_asked(void)
{
	return atomic_load_explicit(&bytes_asked, memory_order_relaxed);
}

void ffs_rdma_forget(void)
{
	atomic_store_explicit(&bytes_asked, 0, memory_order_relaxed);
	ffs_regions_forget();
}

/* ----------------------------------------------------------------------------------------- slots
 */

static void free_slot(struct ffs_rdma *rdma, struct ffs_rdma_slot *slot)
{
	rdma->receives_free += slot->frames;
	atomic_fetch_sub_explicit(&bytes_asked, slot->bytes, memory_order_relaxed);
	if (slot->region != NULL)
		ffs_region_drop(slot->region);
	*slot = (struct ffs_rdma_slot){0};
}

void ffs_rdma_free_slot(struct ffs_rdma *rdma, uint32_t slot)
{
	free_slot(rdma, &rdma->slots[slot]);
}

void ffs_rdma_free_slots(struct ffs_rdma *rdma)
{
	for (uint32_t i = 0; i < FFS_RDMA_SLOTS; i++)
		free_slot(rdma, &rdma->slots[i]);
}

/* Free the slot if its request is answered: the daemon has taken all of it then. */
static void settle_slot(const struct ffs_leg *leg, struct ffs_rdma_slot *slot)
{
	for (uint32_t i = 0; i < leg->request_count; i++)
		if (leg->requests[i].id == slot->request_id)
			return;
	free_slot(leg->conn->rdma, slot);
}

/* Whether so many bytes more may be asked for: always by who has asked for nothing. */
static bool is_granted(const struct ffs_leg *leg, uint64_t bytes)
{
	uint64_t asked = atomic_load_explicit(&bytes_asked, memory_order_relaxed);
	return leg->request_count == 0 || asked + bytes <= leg->conn->rdma->window_bytes;
}

/* -------------------------------------------------------------------------------------- exposure
 */

/* It is not there, may not be written to, or is of a file that the kernel wants to see written. */
bool ffs_rdma_is_unfit(int error)
{
	return error == -EFAULT || error == -EOPNOTSUPP;
}

enum ffs_step ffs_rdma_refuse(struct ffs_leg *leg, int error, size_t bytes)
{
	if (ffs_rdma_is_unfit(error))
		return ffs_leg_fail(leg, FFS_ERR_TRANSPORT);
	leg->conn->rdma_fault = (uint8_t)ffs_rdma_explain(-error, bytes, leg->conn->rdma_reason);
	return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
}

/* Memory of a device: whether a card takes it has nothing to do with the connection. */
static enum ffs_step refuse_device(struct ffs_leg *leg, int error)
{
	struct ffs_conn *conn = leg->conn;
	if (error == -ENOSYS)
		ffs_rdma_say(conn->rdma_reason,
		             "libibverbs has no ibv_reg_dmabuf_mr: it is too old (rdma-core 34 has it)");
	else
		ffs_rdma_say(conn->rdma_reason, "%s does not take dma-buf memory: %s",
		             ffs_rdma_device_name(conn->rdma), strerror(-error));
	return ffs_leg_fail(leg, FFS_ERR_TRANSPORT);
}

/* The part of the caller's memory that a call reads into. */
static struct ffs_lent lent_by(const struct ffs_batch *batch)
{
	const struct ffs_device_memory *device = batch->device;
	struct ffs_lent lent = {
		.memory = batch->lent, .bytes = (size_t)(batch->lent_end - batch->lent), .dmabuf = -1};
	if (device != NULL) {
		lent.dmabuf = device->fd;
		lent.dmabuf_at = device->offset + (uint64_t)(batch->lent - device->memory);
	}
	return lent;
}

/* Let the daemon, and nobody else, write to what is lent. Kernels refuse windows over memory of a
 * device. */
static int expose_lent(struct ffs_rdma *rdma, const struct ffs_lent *lent)
{
	int access =
		IBV_ACCESS_LOCAL_WRITE | (rdma->windows ? IBV_ACCESS_MW_BIND : IBV_ACCESS_REMOTE_WRITE);
	if (lent->dmabuf >= 0 && rdma->windows)
		return -EOPNOTSUPP;
	int error = ffs_region_hold(&rdma->region, rdma->pd, lent, access, rdma->windows);
	if (error != 0)
		return error;
	rdma->data_key = rdma->region->mr->rkey;
	if (!rdma->windows)
		return 0;
	error = ffs_window_bind(&rdma->data_window, &rdma->qp, rdma->region->mr, lent->memory,
	                        lent->bytes, IBV_ACCESS_REMOTE_WRITE);
	rdma->data_key = rdma->data_window.key;
	return error;
}

static enum ffs_step expose(struct ffs_leg *leg)
{
	struct ffs_lent lent = lent_by(leg->batch);
	int error = expose_lent(leg->conn->rdma, &lent);
	if (error != 0 && lent.dmabuf >= 0)
		return refuse_device(leg, error);
	if (error != 0)
		return ffs_rdma_refuse(leg, error, lent.bytes);
	leg->exposed = true;
	return FFS_STEP_MORE;
}

int ffs_rdma_lend(struct ffs_leg *leg, uint32_t slot, const struct ffs_operation *op)
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	if (rdma->windows) /* binding one needs memory that can be written to, and chunks may lie apart
	                    */
		return -EOPNOTSUPP;
	const struct ffs_lent lent = {.memory = op->memory, .bytes = op->length, .dmabuf = -1};
	return ffs_region_hold(&rdma->slots[slot].region, rdma->pd, &lent, IBV_ACCESS_REMOTE_READ,
	                       false);
}

static void withdrawn(struct ffs_leg *leg)
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	ffs_region_drop(rdma->region);
	rdma->region = NULL;
	rdma->withdrawing = false;
	leg->exposed = false;
}

/* Without windows there is no work request for it: the registration's end is the exposure's. */
enum ffs_step ffs_rdma_withdraw(struct ffs_leg *leg)
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	if (rdma->withdrawing)
		return FFS_STEP_DRY;
	if (!rdma->windows) {
		withdrawn(leg);
		return FFS_STEP_MORE;
	}
	if (ffs_window_end(&rdma->data_window, &rdma->qp, FFS_RDMA_ID_WITHDRAWN) != 0)
		return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	rdma->withdrawing = true;
	return FFS_STEP_DRY;
}

/* ----------------------------------------------------------------------------------------- sends
 */

enum ffs_step ffs_rdma_take_slot(struct ffs_leg *leg, uint64_t bytes, uint32_t frames,
                                 uint32_t *slot)
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	if (ffs_qp_room(&rdma->qp) <= SENDS_SPARE || rdma->receives_free < frames ||
	    !is_granted(leg, bytes))
		return FFS_STEP_DRY;
	*slot = 0;
	while (*slot < rdma->slot_count && rdma->slots[*slot].request_id != 0)
		++*slot;
	if (*slot == rdma->slot_count)
		return FFS_STEP_DRY;
	enum ffs_step step =
		leg->exposed || leg->batch->kind == FFS_OP_WRITE ? FFS_STEP_MORE : expose(leg);
	if (step != FFS_STEP_MORE)
		return step;
	rdma->slots[*slot] =
		(struct ffs_rdma_slot){.bytes = bytes, .frames = frames, .frames_due = frames};
	rdma->receives_free -= frames;
	atomic_fetch_add_explicit(&bytes_asked, bytes, memory_order_relaxed);
	return FFS_STEP_MORE;
}

void ffs_rdma_pack_remote(const struct ffs_rdma *rdma, uint32_t slot, const void *data,
                          uint8_t *out)
{
	const uint8_t *body = ffs_rdma_request_of(rdma, slot) + FFS_FRAME_HEADER_BYTES;
	const struct ffs_region *lent = rdma->slots[slot].region;
	struct ffs_remote remote = {
		.body_address = (uint64_t)(uintptr_t)body,
		.reply_address = (uint64_t)(uintptr_t)ffs_rdma_reply_of(rdma, slot),
		.data_address = (uint64_t)(uintptr_t)data,
		.body_key = rdma->scratch_key,
		.reply_key = rdma->scratch_key,
		.data_key = lent != NULL ? lent->mr->rkey : rdma->data_key,
		.reply_bytes = FFS_RDMA_REPLY_ROOM,
		.frames = rdma->slots[slot].frames,
	};
	ffs_remote_pack(out, &remote);
}

int ffs_rdma_post_request(struct ffs_rdma *rdma, uint32_t slot, uint64_t request_id,
                          uint32_t length)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)ffs_rdma_request_of(rdma, slot),
	                       .length = length < rdma->request_bytes ? length : rdma->request_bytes,
	                       .lkey = rdma->scratch.mr->lkey};
	struct ibv_send_wr send = {.wr_id = FFS_RDMA_ID_REQUEST,
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .opcode = IBV_WR_SEND,
	                           .send_flags =
	                               part.length <= rdma->qp.inline_bytes ? IBV_SEND_INLINE : 0};
	rdma->slots[slot].request_id = request_id;
	return ffs_qp_post(&rdma->qp, &send);
}

enum ffs_step ffs_rdma_send(struct ffs_leg *leg, uint32_t slot, uint64_t request_id,
                            uint32_t body_bytes)
{
	uint32_t length = FFS_FRAME_HEADER_BYTES + body_bytes;
	leg->batch->counts.wire_bytes_sent += length;
	if (ffs_rdma_post_request(leg->conn->rdma, slot, request_id, length) != 0)
		return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	return FFS_STEP_MORE;
}

/* ----------------------------------------------------------------------------------- completions
 */

int ffs_rdma_post_receive(struct ffs_rdma *rdma, uint32_t receive)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)ffs_rdma_header_of(rdma, receive),
	                       .length = FFS_FRAME_HEADER_BYTES,
	                       .lkey = rdma->scratch.mr->lkey};
	struct ibv_recv_wr wanted = {
		.wr_id = FFS_RDMA_ID_RECEIVE + receive, .sg_list = &part, .num_sge = 1};
	int error = ffs_post_recv(rdma->qp.qp, &wanted);
	return error > 0 ? -error : error;
}

/* The slot whose request the header in scratch names; FFS_RDMA_SLOTS if none does. */
static uint32_t slot_of(const struct ffs_rdma *rdma, const uint8_t *header)
{
	uint64_t id = ffs_load_u64(header + offsetof(struct ffs_wire_header, request_id));
	uint32_t slot = 0;
	while (slot < FFS_RDMA_SLOTS && (id == 0 || rdma->slots[slot].request_id != id))
		slot++;
	return slot;
}

/* Whether a header answers nothing, but says that bytes land or are fetched, which nobody here
 * sees. */
static bool is_progress(const struct ffs_leg *leg, const uint8_t *bytes)
{
	struct ffs_header header;
	return ffs_header_unpack(&header, bytes) == FFS_FRAME_GOOD &&
	       header.op == ((uint8_t)leg->batch->kind | FFS_REPLY_BIT) &&
	       header.flags == FFS_FLAG_UNDER_WAY && header.status == 0 && header.count == 0 &&
	       header.body_bytes == 0 && header.payload_bytes == 0;
}

/* A header has arrived: out of the daemon's reach with it, and its place is free again. */
static enum ffs_status take_answer(struct ffs_leg *leg, const struct ibv_wc *found,
                                   enum ffs_status (*take)(struct ffs_leg *leg, uint32_t slot))
{
	struct ffs_rdma *rdma = leg->conn->rdma;
	uint32_t receive = (uint32_t)(found->wr_id - FFS_RDMA_ID_RECEIVE);
	uint8_t *header = leg->conn->scratch->header;
	memcpy(header, ffs_rdma_header_of(rdma, receive), FFS_FRAME_HEADER_BYTES);
	if (ffs_rdma_post_receive(rdma, receive) != 0)
		return FFS_ERR_CONNECTION_LOST;
	leg->last_byte_ns = leg->batch->now_ns;
	uint32_t slot = slot_of(rdma, header);
	if (found->byte_len != FFS_FRAME_HEADER_BYTES || slot == FFS_RDMA_SLOTS ||
	    rdma->slots[slot].frames_due-- == 0)
		return FFS_ERR_PROTOCOL;
	leg->batch->counts.wire_bytes_received += FFS_FRAME_HEADER_BYTES;
	if (header[offsetof(struct ffs_wire_header, flags)] != 0 && is_progress(leg, header)) {
		leg->batch->counts.frames++;
		return FFS_OK;
	}
	enum ffs_status status = take(leg, slot);
	settle_slot(leg, &rdma->slots[slot]);
	return status;
}

static enum ffs_status take_completion(struct ffs_leg *leg, const struct ibv_wc *found,
                                       enum ffs_status (*take)(struct ffs_leg *leg, uint32_t slot))
{
	if (found->status != IBV_WC_SUCCESS)
		return FFS_ERR_CONNECTION_LOST;
	if (found->wr_id >= FFS_RDMA_ID_RECEIVE)
		return take_answer(leg, found, take);
	ffs_qp_sent(&leg->conn->rdma->qp);
	if (found->wr_id == FFS_RDMA_ID_WITHDRAWN)
		withdrawn(leg);
	return FFS_OK;
}

enum ffs_status ffs_rdma_look_at_socket(const struct ffs_conn *conn)
{
	uint8_t byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t got = ffs_sys_recvmsg(ffs_conn_fd(conn), &message, MSG_PEEK | MSG_DONTWAIT);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return FFS_OK;
	return got > 0 ? FFS_ERR_PROTOCOL : FFS_ERR_CONNECTION_LOST;
}

/* Nothing is in the queue: is the connection still there? */
static enum ffs_step look_at_socket(struct ffs_leg *leg)
{
	leg->batch->counts.syscalls_recv++;
	enum ffs_status status = ffs_rdma_look_at_socket(leg->conn);
	return status == FFS_OK ? FFS_STEP_DRY : ffs_leg_fail(leg, status);
}

int ffs_rdma_poll(struct ffs_rdma *rdma, struct ibv_wc *found, int most)
{
	int count = ffs_completions_poll(&rdma->completions, found, most);
	if (count != 0) {
		rdma->armed = false;
		return count;
	}
	int error = ffs_completions_arm(&rdma->completions);
	if (error != 0)
		return error;
	count = ffs_completions_poll(&rdma->completions, found, most);
	rdma->armed = count == 0;
	return count;
}

enum ffs_step ffs_rdma_receive(struct ffs_leg *leg,
                               enum ffs_status (*take)(struct ffs_leg *leg, uint32_t slot))
{
	struct ibv_wc found[COMPLETIONS];
	enum ffs_status status = FFS_OK;
	int count = ffs_rdma_poll(leg->conn->rdma, found, COMPLETIONS);
	if (count == 0)
		return look_at_socket(leg);
	if (count < 0)
		status = FFS_ERR_CONNECTION_LOST;
	for (int i = 0; i < count && status == FFS_OK; i++)
		status = take_completion(leg, &found[i], take);
	return status == FFS_OK ? FFS_STEP_MORE : ffs_leg_fail(leg, status);
}

bool ffs_rdma_ready(const struct ffs_leg *leg)
{
	return !leg->conn->rdma->armed;
}
