/*
 * A storage daemon of few words, to test the client's RDMA against: it serves bytes that follow
 * from (blob, chunk, offset) alone, and misbehaves as the upper half of a blob's number says.
 *
 *   peer PORT      prints "ready", then serves each connection in a process, without handshake
 *
 * Speaks docs/wire.md by the product's own verbs layer and frames. One request at a time.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "core/mix64.h"
#include "rdma/queue_pair.h"

enum mode {
	GOOD = 0,
	DAMAGED = 1,      /* a byte of the payload is another one */
	ONE_BY_ONE = 2,   /* each range in an answer of its own */
	SILENT = 3,       /* no answer at all */
	LATE = 4,         /* the answer comes after so many ms as the chunk says */
	WRONG_KEY = 5,    /* writes under a key that nobody gave it */
	BROKEN = 6,       /* its queue pair fails */
	GONE = 7,         /* its socket ends */
	TWICE = 8,        /* answers a request, and then once more */
	MISSING = 9,      /* every second range is not there */
	OUTSIDE = 10,     /* writes behind the last byte that it may write */
	STILL_WRITES = 11, /* answers first, and writes once more 50 ms later */
	SLOW = 12,         /* says that bytes are coming, as often as it may, after so many ms as the chunk says */
	KILLED = 13,       /* it is killed between payload and answer */
};

#define RECEIVES 16u
#define RECEIVE_BYTES 4096u
#define ARENA_BYTES (9u << 20)
#define BODY_AT (4u << 20)
#define REPLY_AT (5u << 20)
#define CHUNK_BYTES (64u << 20)

struct peer {
	int fd;
	struct ibv_pd *pd;
	struct ffs_completions completions;
	struct ffs_qp qp;
	struct ffs_pinned arena;    /* payload, a body, a reply, a header */
	struct ffs_pinned received; /* RECEIVES of RECEIVE_BYTES */
	uint32_t queue[RECEIVES], queue_bytes[RECEIVES], queued;
	uint32_t sent, completed; /* signalled sends */
	bool failed;
	struct ffs_header header;
	struct ffs_remote remote;
	uint8_t *body; /* behind the remote */
};

static uint8_t byte_at(uint64_t blob, uint32_t chunk, uint32_t offset)
{
	return (uint8_t)(ffs_mix64(blob * 1000003 + chunk) + offset * 7 + (offset >> 12) * 13);
}

static void post_receive(struct peer *peer, uint32_t place)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)peer->received.memory + place * RECEIVE_BYTES,
	                       .length = RECEIVE_BYTES,
	                       .lkey = peer->received.mr->lkey};
	struct ibv_recv_wr wanted = {.wr_id = place, .sg_list = &part, .num_sge = 1}, *bad;
	if (ibv_post_recv(peer->qp.qp, &wanted, &bad) != 0)
		peer->failed = true;
}

/* Take what has completed; false once the queue pair or the socket has ended. */
static bool take_completions(struct peer *peer)
{
	struct ibv_wc found[8];
	int count = ffs_completions_poll(&peer->completions, found, 8);
	for (int i = 0; i < count; i++) {
		if (found[i].status != IBV_WC_SUCCESS) {
			peer->failed = true;
		} else if ((found[i].opcode & IBV_WC_RECV) != 0) {
			peer->queue_bytes[peer->queued] = found[i].byte_len;
			peer->queue[peer->queued++] = (uint32_t)found[i].wr_id;
		} else {
			ffs_qp_sent(&peer->qp);
			peer->completed++;
		}
	}
	if (count == 0 && ffs_completions_arm(&peer->completions) == 0 &&
	    (count = ffs_completions_poll(&peer->completions, found, 0)) == 0) {
		struct pollfd polled[2] = {{.fd = peer->fd, .events = POLLIN},
		                           {.fd = ffs_completions_fd(&peer->completions), .events = POLLIN}};
		(void)poll(polled, 2, 1);
		peer->failed = peer->failed || polled[0].revents != 0;
	}
	return !peer->failed;
}

static void post(struct peer *peer, struct ibv_send_wr *send)
{
	send->send_flags |= IBV_SEND_SIGNALED;
	int error;
	while ((error = ffs_qp_post(&peer->qp, send)) == -EAGAIN && take_completions(peer))
		;
	peer->failed = peer->failed || error != 0;
	peer->sent++;
}

static void flush(struct peer *peer)
{
	while (peer->completed < peer->sent && take_completions(peer))
		;
}

/* One RDMA WRITE or READ between the arena and the client. */
static void move(struct peer *peer, enum ibv_wr_opcode opcode, uint8_t *here, uint32_t bytes,
                 uint64_t there, uint32_t key)
{
	struct ibv_sge part = {
		.addr = (uint64_t)(uintptr_t)here, .length = bytes, .lkey = peer->arena.mr->lkey};
	struct ibv_send_wr send = {.opcode = opcode,
	                           .sg_list = &part,
	                           .num_sge = 1,
	                           .wr.rdma = {.remote_addr = there, .rkey = key}};
	if (bytes > 0)
		post(peer, &send);
}

static void send_header(struct peer *peer, const struct ffs_header *header)
{
	uint8_t *at = peer->arena.memory + ARENA_BYTES - FFS_FRAME_HEADER_BYTES;
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)at,
	                       .length = FFS_FRAME_HEADER_BYTES,
	                       .lkey = peer->arena.mr->lkey};
	struct ibv_send_wr send = {.opcode = IBV_WR_SEND, .sg_list = &part, .num_sge = 1};
	ffs_header_pack(at, header);
	post(peer, &send);
	flush(peer);
}

static void sleep_ms(uint32_t ms)
{
	struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L};
	nanosleep(&pause, NULL);
}

/* ---------------------------------------------------------------------------------------- answers */

/* An answer under way: what is in the reply's memory, and how much payload it speaks of. */
struct answer {
	uint32_t count, entries_max;
	uint8_t *entries, *crcs, *edges;
	uint32_t crc_bytes, edge_bytes, payload;
};

static void answer_range(struct peer *peer, struct answer *answer, uint32_t index)
{
	struct ffs_read_descriptor wanted;
	ffs_read_descriptor_unpack(&wanted, peer->body + index * FFS_READ_DESCRIPTOR_BYTES);
	uint64_t address = ffs_load_u64(peer->body + peer->header.count * FFS_READ_DESCRIPTOR_BYTES +
	                                index * FFS_REMOTE_ADDRESS_BYTES);
	enum mode mode = (enum mode)(wanted.blob >> 32);
	bool bare = (peer->header.flags & FFS_FLAG_NO_CRC) != 0;
	uint32_t head = bare ? 0 : ffs_head_bytes(wanted.offset), start = wanted.offset - head;
	uint64_t widened = bare ? wanted.length : ffs_widened_bytes(wanted.offset, wanted.length);
	uint32_t bytes = (uint32_t)(widened < CHUNK_BYTES - start ? widened : CHUNK_BYTES - start);
	uint32_t blocks = ffs_block_count(bytes), crcs[64];
	uint8_t *data = peer->arena.memory;
	struct ffs_reply_entry entry = {.index = (uint16_t)index, .bytes = bytes};
	if (mode == MISSING && index % 2 == 1)
		entry = (struct ffs_reply_entry){.index = (uint16_t)index, .status = 202};
	ffs_reply_entry_pack(answer->entries + answer->count++ * FFS_REPLY_ENTRY_BYTES, &entry);
	if (entry.status != 0)
		return;
	for (uint32_t i = 0; i < bytes; i++)
		data[i] = byte_at(wanted.blob, wanted.chunk, start + i);
	for (uint32_t block = 0; !bare && block < blocks; block += 64) {
		uint32_t left = bytes - block * FFS_BLOCK_BYTES;
		uint32_t part = left < 64 * FFS_BLOCK_BYTES ? left : 64 * FFS_BLOCK_BYTES;
		ffs_crc32c_blocks(data + block * FFS_BLOCK_BYTES, part, wanted.blob, wanted.chunk,
		                  start / FFS_BLOCK_BYTES + block, crcs);
		for (uint32_t i = 0; i < ffs_block_count(part); i++, answer->crc_bytes += 4)
			ffs_store_u32(answer->crcs + answer->crc_bytes, crcs[i]);
	}
	if (mode == DAMAGED)
		data[head + wanted.length / 2] ^= 1;
	uint32_t key = peer->remote.data_key + (mode == WRONG_KEY ? 0x100 : 0);
	move(peer, IBV_WR_RDMA_WRITE, data + head, wanted.length,
	     mode == OUTSIDE ? address + (UINT64_C(1) << 30) : address, key);
	flush(peer); /* the payload's place is used again */
	if (mode == KILLED)
		raise(SIGKILL);
	uint32_t tail = bytes - head - wanted.length;
	memcpy(answer->edges + answer->edge_bytes, data, head);
	memcpy(answer->edges + answer->edge_bytes + head, data + head + wanted.length, tail);
	answer->edge_bytes += head + tail;
	answer->payload += bytes;
}

/* Write body and edges to the client, one behind the other, and say so. Returns the room taken. */
static uint32_t finish(struct peer *peer, struct answer *answer, uint32_t reply_at)
{
	uint32_t entries = answer->count * FFS_REPLY_ENTRY_BYTES;
	uint32_t body = entries + answer->crc_bytes;
	uint64_t there = peer->remote.reply_address + reply_at;
	move(peer, IBV_WR_RDMA_WRITE, answer->entries, entries, there, peer->remote.reply_key);
	move(peer, IBV_WR_RDMA_WRITE, answer->crcs, answer->crc_bytes, there + entries,
	     peer->remote.reply_key);
	move(peer, IBV_WR_RDMA_WRITE, answer->edges, answer->edge_bytes, there + body,
	     peer->remote.reply_key);
	struct ffs_header header = {.op = FFS_OP_READ | FFS_REPLY_BIT,
	                            .request_id = peer->header.request_id,
	                            .count = (uint16_t)answer->count,
	                            .body_bytes = body,
	                            .payload_bytes = answer->payload};
	send_header(peer, &header);
	return (body + answer->edge_bytes + 7) & ~7u;
}

static struct answer begin(const struct peer *peer)
{
	uint8_t *reply = peer->arena.memory + REPLY_AT;
	return (struct answer){.entries = reply, .crcs = reply + (1u << 20), .edges = reply + (2u << 20)};
}

static void say_that_bytes_come(struct peer *peer, uint32_t ms)
{
	struct ffs_header header = {.op = FFS_OP_READ | FFS_REPLY_BIT,
	                            .request_id = peer->header.request_id,
	                            .flags = FFS_FLAG_UNDER_WAY};
	for (uint32_t i = peer->header.count; i < peer->remote.frames; i++) {
		sleep_ms(ms);
		send_header(peer, &header);
	}
	sleep_ms(ms);
}

static void misbehave_first(struct peer *peer, enum mode mode, uint32_t chunk)
{
	if (mode == SLOW)
		say_that_bytes_come(peer, chunk);
	if (mode == LATE)
		sleep_ms(chunk);
	if (mode == BROKEN)
		ffs_qp_stop(&peer->qp);
	if (mode == GONE || mode == BROKEN)
		peer->failed = true;
}

static void serve_read(struct peer *peer)
{
	struct ffs_read_descriptor first;
	ffs_read_descriptor_unpack(&first, peer->body);
	enum mode mode = (enum mode)(first.blob >> 32);
	struct answer answer = begin(peer);
	uint32_t reply_at = 0, frames = 1;
	misbehave_first(peer, mode, first.chunk);
	if (mode == SILENT || peer->failed)
		return;
	for (uint32_t i = 0; i < peer->header.count; i++) {
		answer_range(peer, &answer, i);
		if (mode != ONE_BY_ONE || frames >= peer->remote.frames || i + 1 == peer->header.count)
			continue;
		reply_at += finish(peer, &answer, reply_at);
		answer = begin(peer);
		frames++;
	}
	(void)finish(peer, &answer, reply_at);
	if (mode == TWICE)
		(void)finish(peer, &answer, reply_at);
	if (mode != STILL_WRITES)
		return;
	uint64_t address =
		ffs_load_u64(peer->body + peer->header.count * FFS_READ_DESCRIPTOR_BYTES);
	sleep_ms(50);
	memset(peer->arena.memory, 0xEE, first.length);
	move(peer, IBV_WR_RDMA_WRITE, peer->arena.memory, first.length, address, peer->remote.data_key);
	flush(peer);
}

/* Fetch the chunk, check it, and answer; 201 if a block does not match. */
static void serve_write(struct peer *peer)
{
	struct ffs_write_descriptor wanted;
	struct ffs_header header = {.op = FFS_OP_WRITE | FFS_REPLY_BIT,
	                            .request_id = peer->header.request_id};
	ffs_write_descriptor_unpack(&wanted, peer->body);
	misbehave_first(peer, (enum mode)(peer->header.blob >> 32), wanted.chunk);
	move(peer, IBV_WR_RDMA_READ, peer->arena.memory, wanted.length, peer->remote.data_address,
	     peer->remote.data_key);
	flush(peer);
	if (peer->failed)
		return;
	uint32_t good = ffs_crc32c_check(peer->arena.memory, wanted.length, peer->header.blob,
	                                 wanted.chunk, 0, peer->body + FFS_WRITE_DESCRIPTOR_BYTES);
	for (uint32_t i = 0; i < wanted.length; i++)
		if (peer->arena.memory[i] != byte_at(peer->header.blob, wanted.chunk, i))
			header.status = 207;
	if (good != ffs_block_count(wanted.length))
		header.status = 201;
	send_header(peer, &header);
}

/* The oldest request: its front is here, what did not fit is fetched. */
static void serve(struct peer *peer)
{
	uint8_t *front = peer->received.memory + peer->queue[0] * RECEIVE_BYTES;
	uint8_t *body = peer->arena.memory + BODY_AT;
	uint32_t here = peer->queue_bytes[0] - FFS_FRAME_HEADER_BYTES, place = peer->queue[0];
	if (ffs_header_unpack(&peer->header, front) != FFS_FRAME_GOOD) {
		peer->failed = true;
		return;
	}
	memcpy(body, front + FFS_FRAME_HEADER_BYTES, here);
	ffs_remote_unpack(&peer->remote, body);
	peer->queued--;
	memmove(peer->queue, peer->queue + 1, peer->queued * sizeof(*peer->queue));
	memmove(peer->queue_bytes, peer->queue_bytes + 1, peer->queued * sizeof(*peer->queue_bytes));
	post_receive(peer, place);
	move(peer, IBV_WR_RDMA_READ, body + here, peer->header.body_bytes - here,
	     peer->remote.body_address + here, peer->remote.body_key);
	flush(peer);
	peer->body = body + FFS_REMOTE_BYTES;
	if (peer->header.op == FFS_OP_READ)
		serve_read(peer);
	else
		serve_write(peer);
}

/* ------------------------------------------------------------------------------------- connections */

static void take_bytes(int fd, uint8_t *bytes, size_t count)
{
	while (count > 0) {
		ssize_t got = recv(fd, bytes, count, 0);
		if (got <= 0)
			return;
		bytes += got, count -= (size_t)got;
	}
}

static bool open_peer(struct peer *peer, const struct ffs_rdma_path *path)
{
	struct ffs_qp_wants wants = {.path = path,
	                             .completions = &peer->completions,
	                             .sends = 64,
	                             .receives = RECEIVES,
	                             .sges = 1};
	wants.pd = peer->pd = ffs_verbs()->ibv_alloc_pd(path->device->context);
	return peer->pd != NULL &&
	       ffs_pinned_open(&peer->arena, peer->pd, ARENA_BYTES, IBV_ACCESS_LOCAL_WRITE) == 0 &&
	       ffs_pinned_open(&peer->received, peer->pd, RECEIVES * RECEIVE_BYTES,
	                       IBV_ACCESS_LOCAL_WRITE) == 0 &&
	       ffs_completions_open(&peer->completions, path->device, 128) == 0 &&
	       ffs_qp_open(&peer->qp, &wants) == 0;
}

/* The first frame of a connection: CONNECT_QP, answered. */
static bool greet(struct peer *peer)
{
	uint8_t request[FFS_FRAME_HEADER_BYTES + FFS_QP_END_BYTES] = {0}, answer[sizeof(request)];
	struct ffs_rdma_wish wish = {.gid_index = -1};
	const struct ffs_rdma_path *path = NULL;
	struct ffs_qp_end theirs, ours;
	char text[FFS_RDMA_TEXT_BYTES] = "";
	take_bytes(peer->fd, request, sizeof(request));
	struct ffs_header header;
	if (ffs_header_unpack(&header, request) != FFS_FRAME_GOOD || header.op != FFS_OP_CONNECT_QP ||
	    !ffs_qp_end_unpack(&theirs, request + FFS_FRAME_HEADER_BYTES))
		return false;
	enum ffs_rdma_fault fault = ffs_rdma_choose(peer->fd, &wish, &theirs, &path, text);
	header = (struct ffs_header){.op = FFS_OP_CONNECT_QP | FFS_REPLY_BIT,
	                             .request_id = header.request_id,
	                             .status = fault != FFS_RDMA_FINE ? 4 : 0,
	                             .flags = (uint8_t)fault,
	                             .payload_bytes = fault != FFS_RDMA_FINE ? 0 : FFS_QP_END_BYTES};
	size_t bytes = FFS_FRAME_HEADER_BYTES + header.payload_bytes;
	if (fault == FFS_RDMA_FINE) {
		if (!open_peer(peer, path))
			return false;
		for (uint32_t i = 0; i < RECEIVES; i++)
			post_receive(peer, i);
		ffs_qp_describe(&peer->qp, &ours);
		ours.requests = RECEIVES;
		ours.request_bytes = RECEIVE_BYTES;
		ffs_qp_end_pack(answer + FFS_FRAME_HEADER_BYTES, &ours);
		peer->failed = ffs_qp_connect(&peer->qp, &theirs) != 0;
	}
	ffs_header_pack(answer, &header);
	return send(peer->fd, answer, bytes, MSG_NOSIGNAL) == (ssize_t)bytes && !peer->failed &&
	       fault == FFS_RDMA_FINE;
}

static void serve_connection(int fd)
{
	struct peer peer = {.fd = fd};
	if (greet(&peer))
		while (take_completions(&peer))
			while (peer.queued > 0 && !peer.failed)
				serve(&peer);
	if (peer.pd != NULL) {
		ffs_qp_close(&peer.qp);
		ffs_completions_close(&peer.completions);
		ffs_pinned_close(&peer.arena);
		ffs_pinned_close(&peer.received);
		(void)ffs_verbs()->ibv_dealloc_pd(peer.pd);
	}
	close(fd);
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
	                              .sin_port = htons((uint16_t)atoi(argc > 1 ? argv[1] : "0"))};
	signal(SIGCHLD, SIG_IGN);
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 || listen(listener, 16) != 0) {
		perror("peer");
		return 1;
	}
	printf("ready\n");
	fflush(stdout);
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		if (fd >= 0 && fork() == 0) {
			close(listener);
			serve_connection(fd);
			return 0;
		}
		close(fd);
	}
}
