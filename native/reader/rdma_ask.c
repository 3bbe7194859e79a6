/*
 * One request by RDMA beside the batches: a GRANT, which what is read and written next needs.
 *
 * Previous hop: ask.c. Next: the card, the daemon's storage/rdma_receive.c. By TCP nothing answers
 * a GRANT; here a header does, since a request takes a credit, which comes back with its answer.
 *
 * No call uses the connection, so every slot is free: the first one is taken. Failure: as ask.c,
 * which closes the connection. Copies: the request's body into its slot.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "core/sys.h"
#include "reader/rdma_state.h"

#define SLOT 0u
#define WAIT_MS ((int)(FFS_RECEIVE_WAIT_NS / 1000000))

static enum ffs_status send_request(struct ffs_ask *ask)
{
	struct ffs_rdma *rdma = ask->conn->rdma;
	uint8_t *frame = ffs_rdma_request_of(rdma, SLOT);
	uint8_t *remote = frame + FFS_FRAME_HEADER_BYTES;
	struct ffs_header header = ask->request;
	uint32_t length = FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES + header.body_bytes;
	header.body_bytes += FFS_REMOTE_BYTES;
	rdma->slots[SLOT] = (struct ffs_rdma_slot){.frames = 1, .frames_due = 1};
	rdma->receives_free--;
	ffs_header_pack(frame, &header);
	ffs_rdma_pack_remote(rdma, SLOT, NULL, remote);
	memcpy(remote + FFS_REMOTE_BYTES, ask->conn->scratch->send + FFS_ASK_BODY_AT,
	       ask->request.body_bytes);
	ask->counts.wire_bytes_sent += length;
	int error = ffs_rdma_post_request(rdma, SLOT, header.request_id, length);
	return error == 0 ? FFS_OK : FFS_ERR_CONNECTION_LOST;
}

/* One completion; *done with the answer's header. */
static enum ffs_status take(struct ffs_ask *ask, const struct ibv_wc *found, bool *done)
{
	struct ffs_rdma *rdma = ask->conn->rdma;
	if (found->status != IBV_WC_SUCCESS)
		return FFS_ERR_CONNECTION_LOST;
	if (found->wr_id < FFS_RDMA_ID_RECEIVE) {
		ffs_qp_sent(&rdma->qp);
		return FFS_OK;
	}
	uint32_t receive = (uint32_t)(found->wr_id - FFS_RDMA_ID_RECEIVE);
	if (found->byte_len != FFS_FRAME_HEADER_BYTES || *done)
		return FFS_ERR_PROTOCOL;
	memcpy(ask->conn->scratch->header, ffs_rdma_header_of(rdma, receive), FFS_FRAME_HEADER_BYTES);
	ask->counts.wire_bytes_received += FFS_FRAME_HEADER_BYTES;
	*done = true;
	return ffs_rdma_post_receive(rdma, receive) == 0 ? FFS_OK : FFS_ERR_CONNECTION_LOST;
}

/* The queue is empty and armed. */
static enum ffs_status wait_for_more(struct ffs_ask *ask)
{
	struct pollfd polled = {.fd = ffs_rdma_fd(ask->conn->rdma), .events = POLLIN};
	int ready = ffs_sys_poll(&polled, 1, WAIT_MS);
	bool signalled = ready < 0 && errno == EINTR;
	if (ready < 0 && !signalled)
		return FFS_ERR_NATIVE;
	enum ffs_status status = ffs_rdma_look_at_socket(ask->conn);
	return status == FFS_OK ? ffs_ask_look_around(ask, signalled) : status;
}

enum ffs_status ffs_rdma_ask(struct ffs_ask *ask)
{
	struct ffs_rdma *rdma = ask->conn->rdma;
	bool done = false;
	enum ffs_status status = send_request(ask);
	while (status == FFS_OK && !done) {
		struct ibv_wc found;
		int count = ffs_rdma_poll(rdma, &found, 1);
		if (count < 0)
			status = FFS_ERR_CONNECTION_LOST;
		else
			status = count > 0 ? take(ask, &found, &done) : wait_for_more(ask);
	}
	if (status == FFS_OK) /* else it goes with the connection */
		ffs_rdma_free_slot(rdma, SLOT);
	return status;
}
