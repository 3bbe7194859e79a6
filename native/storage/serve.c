/*
 * Answering READ: from queued requests to frames on the socket, waiting for no peer and no disk.
 *
 * Previous hop: receive.c queues a request; reply.c makes a frame of some of its ranges, those in
 * memory first, those from the disk (cold.h) as they come. Next: the socket.
 *
 * Some facts this relies on: sendfile on a non-blocking socket sends what fits and moves the
 * offset; 0 from it means that the file ended early, which a stored length rules out unless the
 * file was damaged. A page that cannot be read, since its file was cut or its disk is broken,
 * makes sendmsg from a mapping fail with EFAULT and sendfile with EIO, and may stay in the page
 * cache: the chunk is read from then on, which tells what is wrong with it. A frame whose header is
 * out can only be completed or cut off with the connection: the receiver must never take a guess
 * for data.
 *
 * Copies: none in user space.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"
#include "storage/rdma.h"
#include "storage/residency.h"

#define ROUND_BYTES (8u << 20) /* sent to one connection before others have a turn */
#define SENDFILE_STEP_BYTES (2u << 20)

enum send_result {
	SEND_DONE,  /* the frame is out */
	SEND_LATER, /* the socket is full */
	SEND_BROKEN,
};

/* --------------------------------------------------------------------------- the next frame */

static void end_request(struct ffs_conn *conn, struct ffs_request *request)
{
	conn->queued--;
	conn->queued_descriptors -= request->count;
	free(request);
}

void ffs_request_answered(struct ffs_conn *conn, struct ffs_request *request)
{
	assert(request->pending > 0);
	request->pending--;
	if (request->pending > 0 || request->answered < request->count)
		return;
	if (conn != NULL)
		end_request(conn, request);
	else
		free(request);
}

void ffs_conn_dequeue(struct ffs_conn *conn)
{
	struct ffs_request *request = conn->queue_head;
	conn->queue_head = request->next;
	if (conn->queue_head == NULL)
		conn->queue_tail = &conn->queue_head;
	if (request->pending == 0)
		end_request(conn, request);
}

/* Answers that are a header alone go together. */
static void build_bare_frames(struct ffs_conn *conn, struct ffs_output *output)
{
	uint32_t frames = 0;
	while (conn->queue_head != NULL && conn->queue_head->count == 0 &&
	       frames < FFS_BARE_REPLIES_MAX) {
		ffs_header_pack(output->head + frames * FFS_FRAME_HEADER_BYTES, &conn->queue_head->header);
		ffs_conn_dequeue(conn);
		frames++;
	}
	output->parts[0] = (struct iovec){output->head, frames * FFS_FRAME_HEADER_BYTES};
	output->part = 0;
	output->part_count = 1;
}

static struct ffs_output *take_output(struct ffs_loop *loop)
{
	struct ffs_output *output = loop->spare_outputs;
	if (output == NULL) {
		output = ffs_sys_aligned_alloc(64, sizeof(*output));
		loop->output_count += output != NULL;
		return output;
	}
	loop->spare_outputs = output->next;
	loop->spare_output_count--;
	return output;
}

/* Whether its oldest request may be gone on with. */
static bool may_go_on(const struct ffs_conn *conn)
{
	const struct ffs_request *head = conn->queue_head;
	if (head != NULL && head->header.op == FFS_OP_LIST)
		return ffs_list_ready(conn);
	return head != NULL && (head->count == 0 || !ffs_cold_full(conn));
}

bool ffs_conn_has_work(const struct ffs_conn *conn)
{
	return conn->cold.ready.head != NULL || may_go_on(conn);
}

/* Fill an output; false if there is nothing to be sent yet. */
static bool build(struct ffs_conn *conn, struct ffs_output *output)
{
	/* In turn: the one gives memory back, the other keeps the disk busy. */
	bool from_disk = conn->cold.ready.head != NULL && !(conn->disk_last && may_go_on(conn));
	conn->disk_last = from_disk;
	if (from_disk) {
		ffs_reply_build_cold(conn, output);
		return true;
	}
	if (conn->queue_head->count == 0) {
		build_bare_frames(conn, output);
		return true;
	}
	if (conn->queue_head->header.op == FFS_OP_LOCATE) {
		ffs_locate(conn, conn->queue_head, output);
		ffs_conn_dequeue(conn);
		return true;
	}
	if (conn->queue_head->header.op == FFS_OP_LIST) {
		ffs_list_build(conn, output);
		ffs_conn_dequeue(conn);
		return true;
	}
	if (conn->queue_head->header.op == FFS_OP_CONNECT_QP) {
		ffs_rdma_answer(conn, conn->queue_head, output);
		ffs_conn_dequeue(conn);
		return true;
	}
	bool built = ffs_reply_build(conn, output);
	if (conn->queue_head->answered == conn->queue_head->count)
		ffs_conn_dequeue(conn);
	return built;
}

/* Put the next frame, if there is one, under the cursor; false without memory. */
static bool build_next(struct ffs_conn *conn)
{
	struct ffs_output *output = take_output(conn->loop);
	if (output == NULL)
		return false;
	output->rights = NULL;
	output->file = output->file_count = 0;
	output->pin_count = 0;
	output->last.received_ns = 0;
	output->cold = (struct ffs_cold_use){0};
	if (!build(conn, output)) {
		ffs_output_release(conn->loop, output);
		return true;
	}
	conn->output = output;
	conn->output_ns = conn->loop->now_ns;
	conn->output_bytes = 0;
	return true;
}

/* -------------------------------------------------------------------------------------- sending */

/* The socket took a part, or nothing: epoll says when there is room again. */
static enum send_result send_later(struct ffs_conn *conn)
{
	ffs_count(&conn->loop->counts.short_sends, 1);
	return SEND_LATER;
}

/* One of these chunks cannot be sent from: reading each tells which. */
static enum send_result distrust(struct ffs_output *output)
{
	for (uint32_t i = 0; i < output->pin_count; i++)
		ffs_residency_distrust(output->pins[i]);
	return SEND_BROKEN;
}

static enum send_result send_failed(struct ffs_conn *conn)
{
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return send_later(conn);
	return errno == EFAULT || errno == EIO ? distrust(conn->output) : SEND_BROKEN;
}

static enum send_result send_parts(struct ffs_conn *conn, struct ffs_output *output)
{
	while (output->part < output->part_count) {
		struct msghdr message = {
			.msg_iov = &output->parts[output->part],
			.msg_iovlen = (size_t)(output->part_count - output->part),
		};
		int flags = MSG_NOSIGNAL | (output->file_count > 0 ? MSG_MORE : 0);
		ssize_t sent = output->rights != NULL ? ffs_rights_send(conn->fd, &message, output)
		                                      : ffs_sys_sendmsg(conn->fd, &message, flags);
		ffs_count(&conn->loop->counts.send_calls, 1);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return send_failed(conn);
		size_t left = (size_t)sent;
		conn->output_bytes += left;
		while (output->part < output->part_count && left >= output->parts[output->part].iov_len)
			left -= output->parts[output->part++].iov_len;
		if (output->part < output->part_count) {
			struct iovec *part = &output->parts[output->part];
			part->iov_base = (uint8_t *)part->iov_base + left;
			part->iov_len -= left;
			return send_later(conn);
		}
	}
	return SEND_DONE;
}

static enum send_result send_files(struct ffs_conn *conn, struct ffs_output *output)
{
	while (output->file < output->file_count) {
		struct ffs_file_piece *piece = &output->files[output->file];
		off_t offset = (off_t)piece->offset;
		size_t step = piece->left < SENDFILE_STEP_BYTES ? piece->left : SENDFILE_STEP_BYTES;
		ssize_t sent = ffs_sys_sendfile(conn->fd, piece->fd, &offset, step);
		ffs_count(&conn->loop->counts.send_calls, 1);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return send_failed(conn);
		if (sent == 0) /* the file is cut */
			return distrust(output);
		piece->offset += (uint64_t)sent;
		piece->left -= (uint32_t)sent;
		output->file += piece->left == 0;
		conn->output_bytes += (uint64_t)sent;
		if ((size_t)sent < step)
			return send_later(conn);
	}
	return SEND_DONE;
}

/* The next piece of a range that is sent while it is read. */
static enum send_result next_piece(struct ffs_conn *conn, bool *more)
{
	struct ffs_output *output = conn->output;
	enum ffs_cold_piece piece = ffs_cold_next_piece(conn, &output->cold, &output->parts[0]);
	*more = piece == FFS_COLD_PIECE;
	if (*more) {
		output->part = 0;
		output->part_count = 1;
	}
	if (piece == FFS_COLD_LATER)
		return SEND_LATER;
	return piece == FFS_COLD_BROKEN ? SEND_BROKEN : SEND_DONE;
}

static enum send_result send_output(struct ffs_conn *conn)
{
	struct ffs_output *output = conn->output;
	enum send_result result;
	bool more = true;
	do {
		result = send_parts(conn, output);
		if (result == SEND_DONE)
			result = send_files(conn, output);
		if (result == SEND_DONE)
			result = next_piece(conn, &more);
	} while (result == SEND_DONE && more);
	return result;
}

static size_t output_bytes(const struct ffs_output *output)
{
	size_t bytes = 0;
	for (uint32_t i = output->file; i < output->file_count; i++)
		bytes += output->files[i].left;
	for (int i = output->part; i < output->part_count; i++)
		bytes += output->parts[i].iov_len;
	return bytes;
}

void ffs_conn_send(struct ffs_conn *conn)
{
	size_t total = 0;
	while (conn->fd >= 0 && total < ROUND_BYTES) {
		if (conn->output == NULL && conn->rdma != NULL) {
			ffs_rdma_send(conn);
			return;
		}
		if (conn->output == NULL) {
			ffs_list_want(conn);
			if (!ffs_conn_has_work(conn))
				return;
			if (conn->hungry || !ffs_loop_has_output(conn->loop)) {
				ffs_conn_hunger(conn);
				return;
			}
			if (!build_next(conn)) {
				ffs_conn_close(conn);
				return;
			}
			if (conn->output == NULL)
				continue;
		}
		total += output_bytes(conn->output);
		enum send_result result = send_output(conn);
		if (result == SEND_LATER)
			return;
		if (result == SEND_BROKEN) {
			ffs_count(&conn->loop->counts.errors, 1);
			ffs_conn_close(conn);
			return;
		}
		ffs_count(&conn->loop->counts.frames, 1);
		if (conn->output->last.received_ns != 0)
			ffs_conn_finish_read(conn, &conn->output->last);
		ffs_output_release(conn->loop, conn->output);
		conn->output = NULL;
	}
}
