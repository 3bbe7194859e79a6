/*
 * Answering READ: from descriptors to frames on the socket, without waiting for any peer (but for
 * the disk, where the page cache does not have the bytes: docs/decisions/0004-cold-reads.md).
 *
 * Previous hop: receive.c queues a request. Next: ffs_store_find (store.h) says where the bytes
 * lie, residency.h whether the page cache has them. Small ranges, many to a frame, then go straight
 * from a mapping, or through the send buffer if there is none; large ones go by sendfile.
 *
 * Some facts this relies on: sendfile on a non-blocking socket sends what fits and moves the
 * offset; 0 from it means that the file ended early, which a stored length rules out unless the
 * file was damaged. A frame whose header is out can only be completed or cut off with the
 * connection: the receiver must never take a guess for data.
 *
 * A mapped page that cannot be read, since its file was cut or its disk is broken, makes sendmsg
 * fail with EFAULT: the connection is closed, and the chunk is read from then on, which tells what
 * is wrong with it.
 *
 * Copies: none in user space. Bytes of a mapping are never touched here.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/disk.h"
#include "storage/loop.h"
#include "storage/residency.h"

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
	uint32_t crcs_used;    /* of the output's room for CRCs */
	uint32_t payload_used; /* of its room for payload */
	int crc_parts;         /* in the output, behind its head */
	int payload_parts;
	struct iovec payload[FFS_SMALL_FRAME_ENTRIES_MAX];
};

static void count(_Atomic uint64_t *counter, uint64_t add)
{
	uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);
	atomic_store_explicit(counter, before + add, memory_order_relaxed);
}

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

/* Add a piece to some parts, or to the last of them if it goes on there. */
static void add_part(struct iovec *parts, int *used, const void *bytes, size_t length)
{
	struct iovec *last = *used > 0 ? &parts[*used - 1] : NULL;
	if (length == 0)
		return;
	if (last != NULL && (const uint8_t *)last->iov_base + last->iov_len == bytes)
		last->iov_len += length;
	else
		parts[(*used)++] = (struct iovec){(void *)(uintptr_t)bytes, length};
}

static void add_crcs(struct frame *frame, const void *bytes, size_t length)
{
	add_part(&frame->output->parts[1], &frame->crc_parts, bytes, length);
	frame->crc_bytes += (uint32_t)length;
}

static void add_payload(struct frame *frame, const void *bytes, size_t length)
{
	add_part(frame->payload, &frame->payload_parts, bytes, length);
	frame->payload_bytes += (uint32_t)length;
}

static size_t crc_length(const struct ffs_range *range)
{
	return range->crc_blocks * sizeof(uint32_t);
}

typedef int read_function(int fd, void *target, size_t length, uint64_t offset);

static int read_crcs(struct frame *frame, const struct ffs_range *range, read_function *read)
{
	uint8_t *target = frame->output->crcs + frame->crcs_used;
	int result = crc_length(range) == 0
	                 ? 0
	                 : read(range->crc_fd, target, crc_length(range), range->crc_offset);
	if (result == 0) {
		add_crcs(frame, target, crc_length(range));
		frame->crcs_used += (uint32_t)crc_length(range);
	}
	return result;
}

/* Where the range's CRCs lie in their mapping; NULL if it is not mapped. */
static const uint8_t *mapped_crcs(const struct ffs_range *range)
{
	return ffs_mapping_at(&range->class->maps[FFS_FILE_CRC], range->crc_fd, range->crc_offset);
}

/* Send a small range from the mapping; false if there is none. The pin goes along. */
static bool add_mapped(struct frame *frame, struct ffs_range *range)
{
	struct ffs_output *output = frame->output;
	const uint8_t *crcs = mapped_crcs(range);
	const uint8_t *data =
		ffs_mapping_at(&range->class->maps[FFS_FILE_DATA], range->data_fd, range->data_offset);
	if (crcs == NULL || data == NULL)
		return false;
	add_crcs(frame, crcs, crc_length(range));
	add_payload(frame, data, range->bytes);
	output->pins[output->pin_count++] = range->chunk;
	return true;
}

static int read_small(struct frame *frame, const struct ffs_range *range, read_function *read)
{
	uint8_t *target = frame->output->payload + frame->payload_used;
	int result = read(range->data_fd, target, range->bytes, range->data_offset);
	if (result == 0)
		result = read_crcs(frame, range, read);
	if (result == 0) {
		add_payload(frame, target, range->bytes);
		frame->payload_used += range->bytes;
	}
	return result;
}

static int add_small(struct ffs_loop *loop, struct frame *frame, struct ffs_range *range,
                     enum ffs_strategy *strategy)
{
	enum ffs_residency residency = ffs_residency_of(range, loop->now_ns);
	*strategy = FFS_BY_MAPPING;
	if (residency == FFS_RESIDENT && add_mapped(frame, range))
		return 0;
	int result = -EAGAIN;
	*strategy = FFS_BY_BUFFER;
	if (residency != FFS_NOT_RESIDENT)
		result = read_small(frame, range, ffs_disk_read_cached);
	if (result != 0) {
		*strategy = result == -EOPNOTSUPP ? FFS_BY_BUFFER : FFS_BY_DISK;
		result = read_small(frame, range, ffs_disk_read);
	}
	ffs_store_release(range);
	return result;
}

/* A large range fills the frame: its bytes stay in the file until they are sent. */
static int add_large(struct ffs_loop *loop, struct frame *frame, struct ffs_range *range,
                     enum ffs_strategy *strategy)
{
	struct ffs_output *output = frame->output;
	enum ffs_residency residency = ffs_residency_of(range, loop->now_ns);
	const uint8_t *crcs = residency == FFS_RESIDENT ? mapped_crcs(range) : NULL;
	*strategy = residency == FFS_NOT_RESIDENT ? FFS_BY_DISK : FFS_BY_SENDFILE;
	int result = 0;
	if (crcs != NULL)
		add_crcs(frame, crcs, crc_length(range));
	else
		result = read_crcs(frame, range, ffs_disk_read);
	if (result != 0) {
		ffs_store_release(range);
		return result;
	}
	frame->payload_bytes = range->bytes;
	output->file = *range; /* the pin goes along */
	output->file_offset = range->data_offset;
	output->file_left = range->bytes;
	return 0;
}

/* Answer one more descriptor in this frame; false if it has to go into the next one. */
static bool add_range(struct ffs_loop *loop, struct frame *frame, uint32_t index)
{
	struct ffs_range range;
	enum ffs_strategy strategy;
	uint16_t status = find_range(loop, frame->request, index, &range);
	if (status != FFS_OK) {
		add_entry(frame, index, status, 0);
		count(&loop->counts.errors, 1);
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
	/* A disk error is an answer for this range alone. */
	int result = large ? add_large(loop, frame, &range, &strategy)
	                   : add_small(loop, frame, &range, &strategy);
	add_entry(frame, index, result == 0 ? FFS_OK : FFS_ERR_STORAGE_IO, result == 0 ? bytes : 0);
	if (result == 0) {
		count(&loop->counts.read_bytes, bytes);
		count(&loop->counts.strategy_ranges[strategy], 1);
		count(&loop->counts.strategy_bytes[strategy], bytes);
	} else {
		count(&loop->counts.errors, 1);
	}
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
	output->part = 0;
	output->part_count = 1 + frame->crc_parts + frame->payload_parts;
	memcpy(&output->parts[1 + frame->crc_parts], frame->payload,
	       (size_t)frame->payload_parts * sizeof(frame->payload[0]));
}

/* The next frame of the oldest request. */
static void build_read_frame(struct ffs_conn *conn, struct ffs_output *output)
{
	struct ffs_request *request = conn->queue_head;
	struct frame frame;
	memset(&frame, 0, offsetof(struct frame, payload));
	frame.output = output;
	frame.request = request;
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
	count(&conn->loop->counts.ranges, request->answered - before);
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
	uint32_t frames = 0;
	while (conn->queue_head != NULL && conn->queue_head->count == 0 &&
	       frames < FFS_BARE_REPLIES_MAX) {
		ffs_header_pack(output->head + frames * FFS_FRAME_HEADER_BYTES, &conn->queue_head->header);
		dequeue(conn);
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

/* Put the next frame under the cursor; false without memory. */
static bool build_next(struct ffs_conn *conn)
{
	struct ffs_output *output = take_output(conn->loop);
	if (output == NULL)
		return false;
	output->file.chunk = NULL;
	output->file_left = 0;
	output->pin_count = 0;
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

static enum send_result send_failed(struct ffs_output *output)
{
	if (errno == EFAULT) {
		for (uint32_t i = 0; i < output->pin_count; i++)
			ffs_residency_distrust(output->pins[i]);
		if (output->file.chunk != NULL)
			ffs_residency_distrust(output->file.chunk);
	}
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
			return send_failed(output);
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
			return send_failed(output);
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
