/*
 * Requests that come by RDMA. See rdma.h.
 *
 * Previous hop: rdma_card.c, with a SEND. Next: rdma_fetch.c for what it had no room for, then the
 * connection's queue, or writes.c for a chunk. Everything in a message is hostile until it is
 * checked; what it says of the client's memory is the client's affair: a wrong address fails the
 * queue pair, and nobody else. What a token's holder may read and write is asked of grants.h, as on
 * TCP: of a READ when all of it is here, of a WRITE before it is fetched.
 *
 * Copies: a request's body, as on TCP.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/sys.h"
#include "storage/rdma_conn.h"

#define BODY_AT (FFS_FRAME_HEADER_BYTES + FFS_REMOTE_BYTES)
/* Of one descriptor and its address. */
#define READ_BYTES (FFS_READ_DESCRIPTOR_BYTES + FFS_REMOTE_ADDRESS_BYTES)

/* An answer may come for each descriptor: the client must be ready for as many. */
static bool makes_sense(const struct ffs_conn *conn, const struct ffs_header *header,
                        const struct ffs_remote *remote)
{
	uint32_t answers = header->op == FFS_OP_GRANT ? 1 : header->count;
	if (header->count < 1 || remote->frames < answers)
		return false;
	switch (header->op) {
	case FFS_OP_READ:
		return header->payload_bytes == 0 && header->body_bytes == header->count * READ_BYTES &&
		       (header->flags & ~FFS_FLAG_NO_CRC) == 0;
	case FFS_OP_WRITE: /* daemons forward by TCP */
		return header->count == 1 && header->payload_bytes >= 1 && header->flags == 0 &&
		       header->body_bytes == FFS_WRITE_DESCRIPTOR_BYTES +
		                                 ffs_block_count(header->payload_bytes) * sizeof(uint32_t);
	case FFS_OP_GRANT:
		return conn->grants != NULL && ffs_grant_makes_sense(header);
	default:
		return false;
	}
}

static bool unpack(const struct ffs_conn *conn, struct ffs_message *message, const uint8_t *bytes,
                   uint32_t length)
{
	if (length < BODY_AT || ffs_header_unpack(&message->header, bytes) != FFS_FRAME_GOOD ||
	    message->header.body_bytes < FFS_REMOTE_BYTES)
		return false;
	message->header.body_bytes -= FFS_REMOTE_BYTES;
	ffs_remote_unpack(&message->remote, bytes + FFS_FRAME_HEADER_BYTES);
	message->body = bytes + BODY_AT;
	message->have = length - BODY_AT;
	uint32_t room = FFS_RDMA_RECEIVE_BYTES - BODY_AT;
	uint32_t whole = message->header.body_bytes;
	return message->have == (whole < room ? whole : room) &&
	       makes_sense(conn, &message->header, &message->remote);
}

/* --------------------------------------------------------------------------------------- reads */

struct ffs_rdma_reply *ffs_rdma_reply_of(struct ffs_request *request)
{
	size_t at = offsetof(struct ffs_request, descriptors) + (size_t)request->count * READ_BYTES;
	size_t align = _Alignof(struct ffs_rdma_reply);
	return (struct ffs_rdma_reply *)(void *)((uint8_t *)request + (at + align - 1) / align * align);
}

bool ffs_rdma_take_request(struct ffs_conn *conn, struct ffs_request *request)
{
	request->received_ns = conn->loop->now_ns;
	if (request->header.op == FFS_OP_GRANT) {
		if (!ffs_grants_take(conn, request)) {
			ffs_tell_refused(conn, &request->header);
			free(request);
			return false;
		}
		ffs_request_end(request, FFS_OK); /* answered, which gives its credit back */
	} else if (conn->grants != NULL && !ffs_grants_allow_reads(conn, request)) {
		ffs_tell_refused_read(conn, request);
		ffs_request_end(request, FFS_ERR_GRANT);
	}
	ffs_conn_queue(conn, request);
	return true;
}

/* The request has room for all of the body; what is not here of it is fetched. */
static bool take_body(struct ffs_conn *conn, struct ffs_request *request,
                      const struct ffs_message *message)
{
	memcpy(request->descriptors, message->body, message->have);
	if (message->have == message->header.body_bytes)
		return ffs_rdma_take_request(conn, request);
	struct ffs_transfer *transfer = ffs_transfer_new(message);
	if (transfer == NULL) {
		free(request);
		return false;
	}
	transfer->request = request;
	return ffs_transfer_go_on(conn, transfer);
}

static bool take_read(struct ffs_conn *conn, const struct ffs_message *message)
{
	size_t room = message->header.body_bytes + sizeof(struct ffs_rdma_reply) +
	              _Alignof(struct ffs_rdma_reply);
	struct ffs_request *request = ffs_request_new(&message->header, room);
	if (request == NULL)
		return false;
	*ffs_rdma_reply_of(request) =
		(struct ffs_rdma_reply){.remote = message->remote, .unanswered = request->count};
	return take_body(conn, request, message);
}

static bool take_grant(struct ffs_conn *conn, const struct ffs_message *message)
{
	struct ffs_request *request = ffs_request_new(&message->header, message->header.body_bytes);
	return request != NULL && take_body(conn, request, message);
}

/* -------------------------------------------------------------------------------------- writes */

/* The first write that waits has its buffer, or was refused (conn->write is NULL) and answered. */
static bool begin_first(struct ffs_conn *conn)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_transfer *transfer = rdma->waiting;
	rdma->waiting = transfer->next;
	if (rdma->waiting == NULL)
		rdma->waiting_tail = &rdma->waiting;
	conn->state = FFS_RECEIVE_HEADER;
	transfer->write = conn->write;
	conn->write = NULL;
	if (transfer->write != NULL)
		return ffs_transfer_go_on(conn, transfer);
	ffs_transfer_free(transfer);
	return true;
}

/* Get buffers for the writes that wait, as far as there are some. */
static bool begin_writes(struct ffs_conn *conn)
{
	while (conn->rdma->waiting != NULL) {
		conn->header = conn->rdma->waiting->header;
		conn->write = conn->rdma->waiting->write;
		if (!ffs_conn_want_buffer(conn))
			return true;
		if (!begin_first(conn))
			return false;
	}
	return true;
}

void ffs_rdma_go_on(struct ffs_conn *conn)
{
	if (!begin_first(conn) || !begin_writes(conn))
		ffs_conn_close(conn);
	else
		ffs_conn_send(conn);
}

/* It gets no buffer, and nothing of it is fetched. */
static bool refuse_write(struct ffs_conn *conn, struct ffs_transfer *transfer, uint16_t status)
{
	ffs_write_answer(conn, transfer->write, status);
	transfer->write = NULL;
	ffs_transfer_free(transfer);
	return true;
}

static bool take_write(struct ffs_conn *conn, const struct ffs_message *message)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_transfer *transfer = ffs_transfer_new(message);
	if (transfer == NULL)
		return false;
	conn->hop = 0;
	conn->has_hop = true;
	transfer->write = ffs_write_new(conn, &message->header);
	if (transfer->write == NULL) {
		ffs_transfer_free(transfer);
		return false;
	}
	if (conn->grants != NULL && !ffs_grants_allow(conn, message->header.blob, FFS_MAY_WRITE)) {
		ffs_tell_refused(conn, &message->header);
		return refuse_write(conn, transfer, FFS_ERR_GRANT);
	}
	memcpy(transfer->write->body, message->body, message->have);
	transfer->next = NULL;
	*rdma->waiting_tail = transfer;
	rdma->waiting_tail = &transfer->next;
	return conn->write != NULL || begin_writes(conn); /* others wait already */
}

bool ffs_rdma_take_chunk(struct ffs_conn *conn, struct ffs_write *write)
{
	uint32_t bytes = write->put.length;
	if (!ffs_write_take_descriptor(write, bytes)) {
		ffs_write_free(write);
		return false;
	}
	size_t right = ffs_crc32c_check(write->buffer.bytes, bytes, write->put.blob, write->put.chunk,
	                                0, write->put.crcs);
	ffs_conn_finish_write(conn, write, right == ffs_block_count(bytes));
	return true;
}

bool ffs_rdma_take_message(struct ffs_conn *conn, const uint8_t *bytes, uint32_t length)
{
	struct ffs_message message;
	if (!unpack(conn, &message, bytes, length) || conn->rdma->requests == conn->rdma->credits)
		return false;
	conn->rdma->requests++;
	switch (message.header.op) {
	case FFS_OP_READ:
		return take_read(conn, &message);
	case FFS_OP_GRANT:
		return take_grant(conn, &message);
	default:
		return take_write(conn, &message);
	}
}
