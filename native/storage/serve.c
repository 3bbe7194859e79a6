/*
 * Answering READ: from descriptors to frames on the socket, without waiting for any peer (but for
 * the disk, where the page cache does not have the bytes: docs/decisions/0004-cold-reads.md).
 *
 * Previous hop: receive.c queues a request. Next: ffs_store_find (store.h) says where the bytes
 * lie; they are read into the send buffer (small ranges, many to a frame) or go by sendfile (large
 * ones).
 *
 * Some facts this relies on: sendfile on a non-blocking socket sends what fits and moves the
 * offset; 0 from it means that the file ended early, which a stored length rules out unless the
 * file was damaged. A frame whose header is out can only be completed or cut off with the
 * connection: the receiver must never take a guess for data.
 *
 * Copies: none. A small range is read by the kernel straight into the frame's payload.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/disk.h"
#include "storage/loop.h"

#define ROUND_BYTES (8u << 20) /* sent to one connection before others have a turn */
#define SENDFILE_STEP_BYTES (2u << 20)

enum send_result {
	SEND_DONE,  /* the frame is out */
	SEND_LATER, /* the socket is full */
	SEND_BROKEN,
};

/* ----------------------------------------------------------------------------- building a frame */

/* What goes into the frame that is being built. */
struct frame {
	struct ffs_output *output;
	const struct ffs_request *request;
	uint32_t entries;
	uint32_t crc_bytes;
	uint32_t payload_bytes;
};

static void add_entry(struct frame *frame, uint32_t index, uint16_t status, uint32_t bytes)
{
	uint8_t *at =
		frame->output->head + FFS_FRAME_HEADER_BYTES + frame->entries * FFS_REPLY_ENTRY_BYTES;
	struct ffs_reply_entry entry = {
		.index = (uint16_t)index,
		.status = status,
		.bytes = bytes,
	};
	ffs_reply_entry_pack(at, &entry);
	frame->entries++;
}

/* Where a descriptor's bytes are, or why there are none. */
static uint16_t find_range(struct ffs_loop *loop, const struct ffs_request *request, uint32_t index,
                           struct ffs_range *range)
{
	struct ffs_read_descriptor wanted;
	ffs_read_descriptor_unpack(&wanted,
	                           request->descriptors + (size_t)index * FFS_READ_DESCRIPTOR_BYTES);
	struct ffs_store *store = ffs_group_store(loop->group, wanted.target);
	if (store == NULL)
		return FFS_ERR_STALE_LAYOUT;
	return ffs_store_find(store, wanted.blob, wanted.chunk, wanted.offset, wanted.length,
	                      (request->header.flags & FFS_FLAG_NO_CRC) == 0, range);
}

static int read_crcs(struct frame *frame, const struct ffs_range *range)
{
	if (range->crc_blocks == 0)
		return 0;
	return ffs_disk_read(range->crc_fd, frame->output->crcs + frame->crc_bytes,
	                     range->crc_blocks * sizeof(uint32_t), range->crc_offset);
}

/* Read a small range into the frame; a disk error is an answer for this range alone. */
static uint16_t add_small(struct frame *frame, uint32_t index, struct ffs_range *range)
{
	int result = read_crcs(frame, range);
	if (result == 0)
		result = ffs_disk_read(range->data_fd, frame->output->payload + frame->payload_bytes,
		                       range->bytes, range->data_offset);
	uint16_t status = result == 0 ? FFS_OK : FFS_ERR_STORAGE_IO;
	add_entry(frame, index, status, status == FFS_OK ? range->bytes : 0);
	if (status == FFS_OK) {
		frame->crc_bytes += range->crc_blocks * (uint32_t)sizeof(uint32_t);
		frame->payload_bytes += range->bytes;
	}
	ffs_store_release(range);
	return status;
}

/* A large range fills the frame: its bytes stay in the file until they are sent. */
static uint16_t add_large(struct frame *frame, uint32_t index, struct ffs_range *range)
{
	struct ffs_output *output = frame->output;
	if (read_crcs(frame, range) != 0) {
		ffs_store_release(range);
		add_entry(frame, index, FFS_ERR_STORAGE_IO, 0);
		return FFS_ERR_STORAGE_IO;
	}
	add_entry(frame, index, FFS_OK, range->bytes);
	frame->crc_bytes += range->crc_blocks * (uint32_t)sizeof(uint32_t);
	frame->payload_bytes += range->bytes;
	output->file = *range; /* the pin goes along */
	output->file_offset = range->data_offset;
	output->file_left = range->bytes;
	return FFS_OK;
}

/* Answer one more descriptor in this frame; false if it has to go into the next one. */
static bool add_range(struct ffs_loop *loop, struct frame *frame, uint32_t index)
{
	struct ffs_range range;
	uint16_t status = find_range(loop, frame->request, index, &range);
	if (status != FFS_OK) {
		add_entry(frame, index, status, 0);
		loop->counts.errors++;
		return true;
	}
	bool large = range.bytes >= FFS_SMALL_RANGE_BYTES_MAX;
	bool fits = large ? frame->entries == 0
	                  : frame->payload_bytes + range.bytes <= FFS_SMALL_FRAME_BYTES_MAX;
	if (!fits) {
		ffs_store_release(&range);
		return false;
	}
	uint32_t bytes = range.bytes;
	status = large ? add_large(frame, index, &range) : add_small(frame, index, &range);
	if (status == FFS_OK)
		loop->counts.read_bytes += bytes;
	else
		loop->counts.errors++;
	return true;
}

static void finish_frame(const struct frame *frame)
{
	struct ffs_output *output = frame->output;
	uint32_t entry_bytes = frame->entries * FFS_REPLY_ENTRY_BYTES;
	struct ffs_header header = {
		.op = FFS_OP_READ | FFS_REPLY_BIT,
		.flags = frame->request->header.flags,
		.priority = frame->request->header.priority,
		.count = (uint16_t)frame->entries,
		.request_id = frame->request->header.request_id,
		.blob = frame->request->header.blob,
		.trace_id = frame->request->header.trace_id,
		.body_bytes = entry_bytes + frame->crc_bytes,
		.payload_bytes = frame->payload_bytes,
	};
	ffs_header_pack(output->head, &header);
	output->parts[0] = (struct iovec){output->head, FFS_FRAME_HEADER_BYTES + entry_bytes};
	output->parts[1] = (struct iovec){output->crcs, frame->crc_bytes};
	output->parts[2] = (struct iovec){output->payload, frame->payload_bytes - output->file_left};
	output->part = 0;
	output->part_count = 3;
}

/* The next frame of the oldest request. */
static void build_read_frame(struct ffs_conn *conn, struct ffs_output *output)
{
	struct ffs_request *request = conn->queue_head;
	struct frame frame = {.output = output, .request = request};
	bool expired = request->expires_ns != 0 && ffs_monotonic_ns() > request->expires_ns;
	uint32_t before = request->answered;
	while (request->answered < request->count && frame.entries < FFS_SMALL_FRAME_ENTRIES_MAX &&
	       output->file_left == 0) {
		if (expired)
			add_entry(&frame, request->answered, FFS_ERR_DEADLINE, 0);
		else if (!add_range(conn->loop, &frame, request->answered))
			break;
		request->answered++;
	}
	assert(request->answered > before);
	conn->loop->counts.ranges += request->answered - before;
	finish_frame(&frame);
}

static void dequeue(struct ffs_conn *conn)
{
	struct ffs_request *request = conn->queue_head;
	conn->queue_head = request->next;
	if (conn->queue_head == NULL)
		conn->queue_tail = &conn->queue_head;
	conn->queued--;
	conn->queued_descriptors -= request->count;
	free(request);
}

/* Answers that are a header alone go together. */
static void build_bare_frames(struct ffs_conn *conn, struct ffs_output *output)
{
	uint32_t count = 0;
	while (conn->queue_head != NULL && conn->queue_head->count == 0 &&
	       count < FFS_BARE_REPLIES_MAX) {
		ffs_header_pack(output->head + count * FFS_FRAME_HEADER_BYTES, &conn->queue_head->header);
		dequeue(conn);
		count++;
	}
	output->parts[0] = (struct iovec){output->head, count * FFS_FRAME_HEADER_BYTES};
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

/* Put the next frame under the cursor; false without memory. */
static bool build_next(struct ffs_conn *conn)
{
	struct ffs_output *output = take_output(conn->loop);
	if (output == NULL)
		return false;
	output->file.chunk = NULL;
	output->file_left = 0;
	conn->output = output;
	conn->output_ns = conn->loop->now_ns;
	conn->output_bytes = 0;
	if (conn->queue_head->count == 0) {
		build_bare_frames(conn, output);
		return true;
	}
	build_read_frame(conn, output);
	if (conn->queue_head->answered == conn->queue_head->count)
		dequeue(conn);
	return true;
}

/* -------------------------------------------------------------------------------------- sending */

static enum send_result send_failed(void)
{
	return errno == EAGAIN || errno == EWOULDBLOCK ? SEND_LATER : SEND_BROKEN;
}

static enum send_result send_parts(struct ffs_conn *conn, struct ffs_output *output)
{
	while (output->part < output->part_count) {
		struct msghdr message = {
			.msg_iov = &output->parts[output->part],
			.msg_iovlen = (size_t)(output->part_count - output->part),
		};
		int flags = MSG_NOSIGNAL | (output->file_left > 0 ? MSG_MORE : 0);
		ssize_t sent = ffs_sys_sendmsg(conn->fd, &message, flags);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return send_failed();
		size_t left = (size_t)sent;
		conn->output_bytes += left;
		while (output->part < output->part_count && left >= output->parts[output->part].iov_len)
			left -= output->parts[output->part++].iov_len;
		if (output->part < output->part_count) {
			struct iovec *part = &output->parts[output->part];
			part->iov_base = (uint8_t *)part->iov_base + left;
			part->iov_len -= left;
		}
	}
	return SEND_DONE;
}

static enum send_result send_file(struct ffs_conn *conn, struct ffs_output *output)
{
	while (output->file_left > 0) {
		off_t offset = (off_t)output->file_offset;
		size_t step =
			output->file_left < SENDFILE_STEP_BYTES ? output->file_left : SENDFILE_STEP_BYTES;
		ssize_t sent = ffs_sys_sendfile(conn->fd, output->file.data_fd, &offset, step);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0)
			return send_failed();
		if (sent == 0)
			return SEND_BROKEN;
		output->file_offset += (uint64_t)sent;
		output->file_left -= (uint32_t)sent;
		conn->output_bytes += (uint64_t)sent;
	}
	return SEND_DONE;
}

static enum send_result send_output(struct ffs_conn *conn)
{
	struct ffs_output *output = conn->output;
	enum send_result result = send_parts(conn, output);
	if (result == SEND_DONE)
		result = send_file(conn, output);
	return result;
}

static size_t output_bytes(const struct ffs_output *output)
{
	size_t bytes = output->file_left;
	for (int i = output->part; i < output->part_count; i++)
		bytes += output->parts[i].iov_len;
	return bytes;
}

void ffs_conn_send(struct ffs_conn *conn)
{
	size_t total = 0;
	while (conn->fd >= 0 && total < ROUND_BYTES) {
		if (conn->output == NULL) {
			if (conn->queue_head == NULL)
				return;
			if (conn->hungry || !ffs_loop_has_output(conn->loop)) {
				ffs_conn_hunger(conn);
				return;
			}
			if (!build_next(conn)) {
				ffs_conn_close(conn);
				return;
			}
		}
		total += output_bytes(conn->output);
		enum send_result result = send_output(conn);
		if (result == SEND_LATER)
			return;
		if (result == SEND_BROKEN) {
			conn->loop->counts.errors++;
			ffs_conn_close(conn);
			return;
		}
		ffs_output_release(conn->loop, conn->output);
		conn->output = NULL;
	}
}
