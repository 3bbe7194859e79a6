/*
 * Building the next frame of the answer to a READ: which of its ranges, and how their bytes are
 * sent.
 *
 * Previous hop: serve.c, when a connection can be sent to. Next: ffs_store_find (store.h) says
 * where the bytes lie, residency.h whether the page cache has them. Small ranges, many to a frame,
 * then go straight from a mapping, or through the send buffer if there is none; large ones, many to
 * a frame as well, and those that were asked for alone, go by sendfile. What is not in the page
 * cache is handed to cold.h, and comes back to a frame of its own when it was read. serve.c sends
 * the frame.
 *
 * A disk that fails is an answer for one range. The bytes of a mapping are never touched here.
 *
 * Copies: none in user space.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "storage/disk.h"
#include "storage/loop.h"
#include "storage/residency.h"

#define COLD_SHARED_BYTES_MAX (128u << 10) /* in one frame, and of one range in such a frame */

/* What goes into the frame that is being built. */
struct frame {
	struct ffs_output *output;
	struct ffs_request *request;
	uint32_t entries;
	uint32_t crc_bytes;
	uint32_t payload_bytes;
	uint64_t disk_ns;      /* the longest wait of its ranges for a disk */
	uint32_t crcs_used;    /* of the output's room for CRCs */
	uint32_t payload_used; /* of its room for payload */
	int crc_parts;         /* in the output, behind its head */
	int payload_parts;
	struct iovec payload[FFS_SHARED_FRAME_ENTRIES_MAX];
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

uint16_t ffs_request_find(struct ffs_loop *loop, const struct ffs_request *request, uint32_t index,
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

/* False if the page cache does not have them. */
static bool read_crcs(struct frame *frame, const struct ffs_range *range)
{
	uint8_t *target = frame->output->crcs + frame->crcs_used;
	size_t length = crc_length(range);
	if (length > 0 && ffs_disk_read_cached(range->crc_fd, target, length, range->crc_offset) != 0)
		return false;
	add_crcs(frame, target, length);
	frame->crcs_used += (uint32_t)length;
	return true;
}

/* A range that has been found, and how it is to be sent. */
struct found {
	struct ffs_range range;
	enum ffs_strategy strategy;
	const uint8_t *crcs; /* in their mapping; NULL: to be read */
	const uint8_t *data; /* in its mapping, for FFS_BY_MAPPING */
};

static const uint8_t *map(const struct ffs_range *range, enum ffs_class_file file, uint64_t offset)
{
	struct ffs_class *class = range->class;
	return ffs_mapping_at(&class->maps[file], class->fds[file], offset);
}

/* Where nobody tells, a few bytes of a range speak for all; not for one that failed once. */
static bool seems_resident(const struct ffs_range *range)
{
	uint32_t places[3] = {0, range->bytes / 2, range->bytes - 1};
	uint8_t byte;
	if (ffs_residency_distrusted(range->chunk))
		return false;
	for (int i = 0; i < 3; i++)
		if (ffs_disk_read_cached(range->data_fd, &byte, 1, range->data_offset + places[i]) != 0)
			return false;
	return true;
}

/* `lone`: it is all that its request asks for. */
static void choose_strategy(struct ffs_loop *loop, struct found *found, bool lone)
{
	const struct ffs_range *range = &found->range;
	enum ffs_residency residency = ffs_residency_of(range, loop->now_ns);
	bool resident = residency == FFS_RESIDENT;
	bool by_file = resident && lone && range->bytes >= FFS_LONE_SENDFILE_BYTES_MIN;
	found->crcs = resident ? map(range, FFS_FILE_CRC, range->crc_offset) : NULL;
	found->data = resident ? map(range, FFS_FILE_DATA, range->data_offset) : NULL;
	if (residency == FFS_NOT_RESIDENT)
		found->strategy = FFS_BY_DISK;
	else if (by_file)
		found->strategy = FFS_BY_SENDFILE;
	else if (range->bytes < FFS_MAPPED_RANGE_BYTES_MAX && found->crcs != NULL &&
	         found->data != NULL)
		found->strategy = FFS_BY_MAPPING;
	else if (range->bytes < FFS_BUFFERED_RANGE_BYTES_MAX)
		found->strategy = FFS_BY_BUFFER;
	else
		found->strategy = resident || seems_resident(range) ? FFS_BY_SENDFILE : FFS_BY_DISK;
}

static bool fits(const struct frame *frame, const struct found *found)
{
	const struct ffs_output *output = frame->output;
	uint32_t bytes = found->range.bytes;
	bool by_file = found->strategy == FFS_BY_SENDFILE;
	if (found->strategy == FFS_BY_DISK || frame->payload_bytes == 0)
		return true;
	/* What comes from files goes behind all that comes from memory, whatever the entries' order. */
	if (by_file != (output->file_count > 0) ||
	    frame->payload_bytes + bytes > FFS_SHARED_FRAME_BYTES_MAX)
		return false;
	if (by_file)
		return frame->crcs_used + crc_length(&found->range) <= sizeof(output->crcs);
	return found->strategy == FFS_BY_MAPPING ||
	       frame->payload_used + bytes <= FFS_SEND_BUFFER_BYTES;
}

/* Send a range straight from the page cache. The pin goes along. */
static bool add_mapped(struct frame *frame, struct found *found)
{
	struct ffs_output *output = frame->output;
	add_crcs(frame, found->crcs, crc_length(&found->range));
	add_payload(frame, found->data, found->range.bytes);
	output->pins[output->pin_count++] = found->range.chunk;
	return true;
}

/* Read a small range into the send buffer, if the page cache has it. */
static bool add_read(struct frame *frame, struct found *found)
{
	struct ffs_range *range = &found->range;
	uint8_t *target = frame->output->payload + frame->payload_used;
	if (ffs_disk_read_cached(range->data_fd, target, range->bytes, range->data_offset) != 0 ||
	    !read_crcs(frame, range))
		return false;
	add_payload(frame, target, range->bytes);
	frame->payload_used += range->bytes;
	ffs_store_release(range);
	return true;
}

/* Send a range from its file, in one piece with the range before it if it goes on there. */
static bool add_file(struct frame *frame, struct found *found)
{
	struct ffs_output *output = frame->output;
	struct ffs_range *range = &found->range;
	struct ffs_file_piece *last =
		output->file_count > 0 ? &output->files[output->file_count - 1] : NULL;
	if (found->crcs != NULL)
		add_crcs(frame, found->crcs, crc_length(range));
	else if (!read_crcs(frame, range))
		return false;
	frame->payload_bytes += range->bytes;
	output->pins[output->pin_count++] = range->chunk;
	if (last != NULL && last->fd == range->data_fd &&
	    last->offset + last->left == range->data_offset)
		last->left += range->bytes;
	else
		output->files[output->file_count++] = (struct ffs_file_piece){
			.fd = range->data_fd, .left = range->bytes, .offset = range->data_offset};
	return true;
}

/* Add a range that is in memory; false if it is not, after all. */
static bool add_bytes(struct frame *frame, struct found *found)
{
	switch (found->strategy) {
	case FFS_BY_MAPPING:
		return add_mapped(frame, found);
	case FFS_BY_SENDFILE:
		return add_file(frame, found);
	case FFS_BY_BUFFER:
		return add_read(frame, found);
	default:
		return false;
	}
}

static void add_failure(struct ffs_loop *loop, struct frame *frame, uint32_t index, uint16_t status)
{
	add_entry(frame, index, status, 0);
	ffs_count(&loop->counts.errors, 1);
}

void ffs_loop_count_range(struct ffs_loop *loop, enum ffs_strategy strategy, uint32_t bytes)
{
	ffs_count(&loop->counts.read_bytes, bytes);
	ffs_count(&loop->counts.strategy_ranges[strategy], 1);
	ffs_count(&loop->counts.strategy_bytes[strategy], bytes);
}

/* Answer one more descriptor in this frame, or have it read; false if the next frame has to. */
static bool add_range(struct ffs_conn *conn, struct frame *frame, uint32_t index)
{
	struct ffs_loop *loop = conn->loop;
	struct found found;
	uint16_t status = ffs_request_find(loop, frame->request, index, &found.range);
	if (status != FFS_OK) {
		add_failure(loop, frame, index, status);
		return true;
	}
	choose_strategy(loop, &found, frame->request->count == 1);
	if (!fits(frame, &found)) {
		ffs_store_release(&found.range);
		return false;
	}
	uint32_t bytes = found.range.bytes;
	if (add_bytes(frame, &found)) {
		add_entry(frame, index, FFS_OK, bytes);
		ffs_loop_count_range(loop, found.strategy, bytes);
	} else if (!ffs_cold_add(conn, frame->request, index, &found.range, false)) {
		ffs_store_release(&found.range);
		add_failure(loop, frame, index, FFS_ERR_BUSY);
	}
	return true;
}

struct ffs_header ffs_request_reply(const struct ffs_request *request, uint32_t entries,
                                    uint32_t body_bytes, uint32_t payload_bytes)
{
	return (struct ffs_header){
		.op = FFS_OP_READ | FFS_REPLY_BIT,
		.flags = request->header.flags,
		.priority = request->header.priority,
		.count = (uint16_t)entries,
		.request_id = request->header.request_id,
		.blob = request->header.blob,
		.trace_id = request->header.trace_id,
		.body_bytes = body_bytes,
		.payload_bytes = payload_bytes,
	};
}

static uint32_t clipped(uint64_t ns)
{
	return ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

void ffs_reply_set_times(struct ffs_header *header, const struct ffs_request *request,
                         uint64_t disk_ns, uint64_t now_ns)
{
	header->queued_ns = clipped(now_ns - request->received_ns);
	header->disk_ns = clipped(disk_ns);
}

static void finish_frame(const struct frame *frame, uint64_t now_ns)
{
	struct ffs_output *output = frame->output;
	uint32_t entry_bytes = frame->entries * FFS_REPLY_ENTRY_BYTES;
	struct ffs_header header = ffs_request_reply(
		frame->request, frame->entries, entry_bytes + frame->crc_bytes, frame->payload_bytes);
	ffs_reply_set_times(&header, frame->request, frame->disk_ns, now_ns);
	ffs_header_pack(output->head, &header);
	output->parts[0] = (struct iovec){output->head, FFS_FRAME_HEADER_BYTES + entry_bytes};
	output->part = 0;
	output->part_count = 1 + frame->crc_parts + frame->payload_parts;
	memcpy(&output->parts[1 + frame->crc_parts], frame->payload,
	       (size_t)frame->payload_parts * sizeof(frame->payload[0]));
}

void ffs_request_note_last(struct ffs_last_frame *last, const struct ffs_request *request,
                           uint64_t now_ns)
{
	struct ffs_read_descriptor first;
	ffs_read_descriptor_unpack(&first, request->descriptors);
	*last = (struct ffs_last_frame){
		.received_ns = request->received_ns,
		.built_ns = now_ns,
		.disk_ns = request->disk_ns,
		.bytes = request->bytes,
		.trace_id = request->header.trace_id,
		.blob = first.blob,
		.ranges = request->count,
	};
}

static void begin_frame(struct frame *frame, struct ffs_output *output, struct ffs_request *request)
{
	memset(frame, 0, offsetof(struct frame, payload));
	frame->output = output;
	frame->request = request;
}

/* `answered` of the request's ranges were waiting for the disk until now. */
static void end_frame(struct ffs_conn *conn, struct frame *frame, uint32_t answered,
                      uint64_t now_ns)
{
	struct ffs_request *request = frame->request;
	ffs_loop_note_queued(conn->loop, request, frame->entries, now_ns);
	request->bytes += frame->payload_bytes;
	request->disk_ns = frame->disk_ns > request->disk_ns ? frame->disk_ns : request->disk_ns;
	if (request->answered == request->count && request->pending == answered)
		ffs_request_note_last(&frame->output->last, request, now_ns);
	finish_frame(frame, now_ns);
}

bool ffs_reply_build(struct ffs_conn *conn, struct ffs_output *output)
{
	struct ffs_request *request = conn->queue_head;
	uint64_t now_ns = ffs_monotonic_ns();
	struct frame frame;
	begin_frame(&frame, output, request);
	bool expired = request->expires_ns != 0 && now_ns > request->expires_ns;
	uint32_t before = request->answered;
	while (request->answered < request->count && frame.entries < FFS_SHARED_FRAME_ENTRIES_MAX &&
	       !ffs_cold_full(conn)) {
		if (expired)
			add_entry(&frame, request->answered, FFS_ERR_DEADLINE, 0);
		else if (!add_range(conn, &frame, request->answered))
			break;
		request->answered++;
	}
	assert(request->answered > before);
	ffs_count(&conn->loop->counts.ranges, request->answered - before);
	if (frame.entries == 0)
		return false;
	end_frame(conn, &frame, 0, now_ns);
	return true;
}

/* Whether what was read may go into this frame: small ranges of one request share. */
static bool shares(const struct frame *frame, const struct ffs_cold_answer *answer)
{
	if (frame->entries == 0)
		return true;
	if (answer->request != frame->request || frame->entries == FFS_SHARED_FRAME_ENTRIES_MAX)
		return false;
	return answer->status != FFS_OK ||
	       (answer->bytes < COLD_SHARED_BYTES_MAX && frame->payload_bytes < COLD_SHARED_BYTES_MAX);
}

static void add_answer(struct ffs_conn *conn, struct frame *frame,
                       const struct ffs_cold_answer *answer)
{
	frame->disk_ns = answer->disk_ns > frame->disk_ns ? answer->disk_ns : frame->disk_ns;
	if (answer->status != FFS_OK) {
		add_failure(conn->loop, frame, answer->index, answer->status);
		return;
	}
	add_entry(frame, answer->index, FFS_OK, answer->bytes);
	add_crcs(frame, answer->crcs, answer->crc_bytes);
	add_payload(frame, answer->first, answer->first_bytes);
	frame->payload_bytes += answer->bytes - answer->first_bytes; /* to follow */
	ffs_loop_count_range(conn->loop, answer->direct ? FFS_BY_DIRECT : FFS_BY_DISK, answer->bytes);
}

void ffs_reply_build_cold(struct ffs_conn *conn, struct ffs_output *output)
{
	struct ffs_cold_answer answer;
	struct frame frame;
	bool more = ffs_cold_peek(conn, &answer);
	uint32_t answered = 0;
	assert(more);
	begin_frame(&frame, output, answer.request);
	while (more && output->cold.streamed == NULL && shares(&frame, &answer)) {
		add_answer(conn, &frame, &answer);
		ffs_cold_take(conn, &output->cold);
		answered++;
		more = ffs_cold_peek(conn, &answer);
	}
	end_frame(conn, &frame, answered, ffs_monotonic_ns());
	while (answered-- > 0)
		ffs_request_answered(conn, frame.request);
}
