/* See ask.h. */
#include "reader/ask.h"

#include <errno.h>
#include <poll.h>

#include "core/sys.h"
#include "reader/batch.h"

#define WAIT_MS ((int)(FFS_RECEIVE_WAIT_NS / 1000000))

enum ffs_status ffs_ask_look_around(struct ffs_ask *ask, bool signalled)
{
	int64_t now_ns = ffs_now_ns();
	if (now_ns >= ask->deadline_ns)
		return FFS_ERR_DEADLINE;
	if (!ffs_conn_alive(ask->conn))
		return FFS_ERR_CONNECTION_LOST;
	if (!signalled && now_ns < ask->tick_ns)
		return FFS_OK;
	ask->tick_ns = now_ns + FFS_ASK_TICK_NS;
	return ask->interrupted(ask->context) != 0 ? FFS_ERR_CANCELLED : FFS_OK;
}

static enum ffs_status after_error(struct ffs_ask *ask)
{
	if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
		return FFS_ERR_CONNECTION_LOST;
	return ffs_ask_look_around(ask, errno == EINTR);
}

static enum ffs_status wait_for_room(struct ffs_ask *ask)
{
	struct pollfd polled = {.fd = ffs_conn_fd(ask->conn), .events = POLLOUT};
	if (ffs_sys_poll(&polled, 1, WAIT_MS) < 0 && errno != EINTR)
		return FFS_ERR_NATIVE;
	return ffs_ask_look_around(ask, false);
}

static enum ffs_status send_all(struct ffs_ask *ask, uint8_t *bytes, size_t count)
{
	enum ffs_status status = FFS_OK;
	while (count > 0 && status == FFS_OK) {
		struct iovec part = {bytes, count};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		ask->counts.syscalls_send++;
		ssize_t sent =
			ffs_sys_sendmsg(ffs_conn_fd(ask->conn), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0) {
			bool full = errno == EAGAIN || errno == EWOULDBLOCK;
			status = full ? wait_for_room(ask) : after_error(ask);
			continue;
		}
		ask->counts.wire_bytes_sent += (uint64_t)sent;
		bytes += sent;
		count -= (size_t)sent;
	}
	return status;
}

/* The receive itself waits, for FFS_RECEIVE_WAIT_NS at most. */
static enum ffs_status receive_all(struct ffs_ask *ask, uint8_t *bytes, size_t count)
{
	enum ffs_status status = FFS_OK;
	while (count > 0 && status == FFS_OK) {
		struct iovec part = {bytes, count};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		ask->counts.syscalls_recv++;
		ssize_t got = ffs_sys_recvmsg(ffs_conn_fd(ask->conn), &message, 0);
		if (got < 0) {
			status = after_error(ask);
			continue;
		}
		if (got == 0)
			return FFS_ERR_CONNECTION_LOST;
		ask->counts.wire_bytes_received += (uint64_t)got;
		bytes += got;
		count -= (size_t)got;
	}
	return status;
}

static bool answers(const struct ffs_ask *ask)
{
	const struct ffs_header *answer = &ask->answer;
	return answer->op == (ask->request.op | FFS_REPLY_BIT) &&
	       answer->request_id == ask->request.request_id && answer->count == 0 &&
	       answer->body_bytes == 0 && answer->status != FFS_STATUS_PENDING &&
	       answer->payload_bytes <= ask->payload_bytes_max &&
	       (answer->status == FFS_OK || answer->payload_bytes == 0);
}

/* Until the answer's header is in scratch. */
static enum ffs_status ask_by_socket(struct ffs_ask *ask)
{
	struct ffs_scratch *scratch = ask->conn->scratch;
	ffs_header_pack(scratch->send, &ask->request);
	enum ffs_status status =
		send_all(ask, scratch->send, FFS_ASK_BODY_AT + (size_t)ask->request.body_bytes);
	if (status != FFS_OK || ask->unanswered)
		return status;
	return receive_all(ask, scratch->header, FFS_FRAME_HEADER_BYTES);
}

static enum ffs_status exchange(struct ffs_ask *ask)
{
	struct ffs_scratch *scratch = ask->conn->scratch;
	bool by_rdma = ask->conn->rdma != NULL;
	enum ffs_status status = by_rdma ? ffs_rdma_ask(ask) : ask_by_socket(ask);
	if (status != FFS_OK || (ask->unanswered && !by_rdma))
		return status;
	if (ffs_header_unpack(&ask->answer, scratch->header) != FFS_FRAME_GOOD || !answers(ask))
		return FFS_ERR_PROTOCOL;
	ask->counts.frames++;
	return receive_all(ask, scratch->body, ask->answer.payload_bytes);
}

enum ffs_status ffs_ask(struct ffs_ask *ask)
{
	int64_t now_ns = ffs_now_ns();
	int64_t left_ms = (ask->deadline_ns - now_ns) / 1000000;
	ask->tick_ns = now_ns + FFS_ASK_TICK_NS;
	ask->request.deadline_ms = left_ms < 1 ? 1 : (uint32_t)left_ms;
	ask->request.request_id = ask->conn->next_request_id++;
	enum ffs_status status = exchange(ask);
	if (status == FFS_OK)
		return (enum ffs_status)ask->answer.status;
	ffs_conn_revoke(ask->conn);
	ask->counts.connections_closed++;
	return status;
}

bool ffs_ask_page_is_right(const uint8_t *page, uint32_t bytes, uint64_t blob, uint32_t chunk)
{
	if (bytes % FFS_ASK_KEY_BYTES != 0)
		return false;
	for (uint32_t at = 0; at < bytes; at += FFS_ASK_KEY_BYTES) {
		uint64_t next_blob = ffs_load_u64(page + at);
		uint32_t next_chunk = ffs_load_u32(page + at + 8);
		uint32_t length = ffs_load_u32(page + at + 12);
		bool behind = next_blob > blob || (next_blob == blob && next_chunk > chunk);
		if (!behind || length == 0 || length > FFS_CHUNK_BYTES_MAX)
			return false;
		blob = next_blob;
		chunk = next_chunk;
	}
	return true;
}
