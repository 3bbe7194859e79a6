/*
 * Requests that come by RDMA, and the bytes that are fetched for them. See rdma.h.
 *
 * Previous hop: rdma_card.c, with a SEND. Next: the connection's queue for a READ, writes.c for a
 * chunk. Everything in a message is hostile until it is checked; what it says of the client's
 * memory is the client's affair: a wrong address fails the queue pair, and nobody else.
 *
 * Copies: a request's body, as on TCP. A chunk goes from the card to its receive buffer, which is
 * registered for that time.
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

struct message {
	struct ffs_header header; /* `body_bytes` without the remote */
	struct ffs_remote remote;
	const uint8_t *body;
	uint32_t have; /* bytes of it; the rest is to be fetched */
};

/* An answer may come for each descriptor: the client must be ready for as many. */
static bool makes_sense(const struct ffs_header *header, const struct ffs_remote *remote)
{
	if (header->count < 1 || remote->frames < header->count)
		return false;
	switch (header->op) {
	case FFS_OP_READ:
		return header->payload_bytes == 0 && header->body_bytes == header->count * READ_BYTES &&
		       (header->flags & ~FFS_FLAG_NO_CRC) == 0;
	case FFS_OP_WRITE: /* daemons forward by TCP */
		return header->count == 1 && header->payload_bytes >= 1 && header->flags == 0 &&
		       header->body_bytes == FFS_WRITE_DESCRIPTOR_BYTES +
		                                 ffs_block_count(header->payload_bytes) * sizeof(uint32_t);
	default:
		return false;
	}
}

static bool unpack(struct message *message, const uint8_t *bytes, uint32_t length)
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
	       makes_sense(&message->header, &message->remote);
}

/* ---------------------------------------------------------------------------------- transfers */

void ffs_transfer_free(struct ffs_transfer *transfer)
{
	if (transfer->body_mr != NULL)
		(void)ffs_verbs()->ibv_dereg_mr(transfer->body_mr);
	if (transfer->data_mr != NULL)
		(void)ffs_verbs()->ibv_dereg_mr(transfer->data_mr);
	if (transfer->write != NULL)
		ffs_write_free(transfer->write);
	free(transfer->request);
	free(transfer);
}

static struct ffs_transfer *new_transfer(const struct message *message)
{
	struct ffs_transfer *transfer = ffs_sys_calloc(1, sizeof(*transfer));
	if (transfer == NULL)
		return NULL;
	transfer->posted.kind = FFS_POSTED_TRANSFER;
	transfer->header = message->header;
	transfer->remote = message->remote;
	transfer->have = message->have;
	return transfer;
}

/* Have the card fetch bytes of the client's memory; `ends` the transfer. */
static bool fetch(struct ffs_conn *conn, struct ibv_mr **mr, uint8_t *memory, uint32_t bytes,
                  uint64_t address, uint32_t key, bool ends)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	*mr = ffs_reg_mr(rdma->card->device->pd, memory, bytes, IBV_ACCESS_LOCAL_WRITE);
	if (*mr == NULL)
		return false;
	struct ibv_sge part = {
		.addr = (uint64_t)(uintptr_t)memory, .length = bytes, .lkey = (*mr)->lkey};
	struct ibv_send_wr read = {.wr_id = ffs_rdma_work_id(conn, ends),
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .opcode = IBV_WR_RDMA_READ,
	                           .send_flags = ends ? IBV_SEND_SIGNALED : 0,
	                           .wr.rdma = {.remote_addr = address, .rkey = key}};
	return ffs_qp_post(&rdma->qp, &read) == 0;
}

/* What the SEND had no room for; it lies behind the remote in the client's memory. */
static bool fetch_body(struct ffs_conn *conn, struct ffs_transfer *transfer, uint8_t *body,
                       bool ends)
{
	uint32_t have = transfer->have;
	return fetch(conn, &transfer->body_mr, body + have, transfer->header.body_bytes - have,
	             transfer->remote.body_address + FFS_REMOTE_BYTES + have, transfer->remote.body_key,
	             ends);
}

/* --------------------------------------------------------------------------------------- reads */

struct ffs_rdma_reply *ffs_rdma_reply_of(struct ffs_request *request)
{
	size_t at = offsetof(struct ffs_request, descriptors) + (size_t)request->count * READ_BYTES;
	size_t align = _Alignof(struct ffs_rdma_reply);
	return (struct ffs_rdma_reply *)(void *)((uint8_t *)request + (at + align - 1) / align * align);
}

static void queue(struct ffs_conn *conn, struct ffs_request *request)
{
	request->received_ns = conn->loop->now_ns;
	ffs_conn_queue(conn, request);
}

static bool take_read(struct ffs_conn *conn, const struct message *message)
{
	size_t room = message->header.body_bytes + sizeof(struct ffs_rdma_reply) +
	              _Alignof(struct ffs_rdma_reply);
	struct ffs_request *request = ffs_request_new(&message->header, room);
	if (request == NULL)
		return false;
	memcpy(request->descriptors, message->body, message->have);
	*ffs_rdma_reply_of(request) =
		(struct ffs_rdma_reply){.remote = message->remote, .unanswered = request->count};
	if (message->have == message->header.body_bytes) {
		queue(conn, request);
		return true;
	}
	struct ffs_transfer *transfer = new_transfer(message);
	if (transfer == NULL) {
		free(request);
		return false;
	}
	transfer->request = request;
	ffs_rdma_posted(conn->rdma, &transfer->posted);
	return fetch_body(conn, transfer, request->descriptors, true);
}

/* -------------------------------------------------------------------------------------- writes */

/* The write has its buffer: fetch it. */
static bool fetch_write(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	struct ffs_write *write = transfer->write;
	ffs_rdma_posted(conn->rdma, &transfer->posted);
	if (transfer->have < transfer->header.body_bytes &&
	    !fetch_body(conn, transfer, write->body, false))
		return false;
	return fetch(conn, &transfer->data_mr, write->buffer.bytes, transfer->header.payload_bytes,
	             transfer->remote.data_address, transfer->remote.data_key, true);
}

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
		return fetch_write(conn, transfer);
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

static bool take_write(struct ffs_conn *conn, const struct message *message)
{
	struct ffs_rdma_conn *rdma = conn->rdma;
	struct ffs_transfer *transfer = new_transfer(message);
	if (transfer == NULL)
		return false;
	conn->hop = 0;
	conn->has_hop = true;
	transfer->write = ffs_write_new(conn, &message->header);
	if (transfer->write == NULL) {
		ffs_transfer_free(transfer);
		return false;
	}
	memcpy(transfer->write->body, message->body, message->have);
	transfer->next = NULL;
	*rdma->waiting_tail = transfer;
	rdma->waiting_tail = &transfer->next;
	return conn->write != NULL || begin_writes(conn); /* others wait already */
}

static bool end_write(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	struct ffs_write *write = transfer->write;
	uint32_t bytes = transfer->header.payload_bytes;
	if (!ffs_write_take_descriptor(write, bytes))
		return false;
	size_t right = ffs_crc32c_check(write->buffer.bytes, bytes, write->put.blob, write->put.chunk,
	                                0, write->put.crcs);
	transfer->write = NULL;
	ffs_conn_finish_write(conn, write, right == ffs_block_count(bytes));
	return true;
}

/* ------------------------------------------------------------------------------------- both */

bool ffs_rdma_end_transfer(struct ffs_conn *conn, struct ffs_transfer *transfer)
{
	bool good = true;
	if (transfer->request != NULL) {
		queue(conn, transfer->request);
		transfer->request = NULL;
	} else {
		good = end_write(conn, transfer);
	}
	ffs_transfer_free(transfer);
	return good;
}

bool ffs_rdma_take_message(struct ffs_conn *conn, const uint8_t *bytes, uint32_t length)
{
	struct message message;
	if (!unpack(&message, bytes, length) || conn->rdma->requests == conn->rdma->credits)
		return false;
	conn->rdma->requests++;
	return message.header.op == FFS_OP_READ ? take_read(conn, &message)
	                                        : take_write(conn, &message);
}
