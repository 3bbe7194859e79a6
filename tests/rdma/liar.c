/*
 * A client that lies, to test the daemon's RDMA against: goes over to it as docs/wire.md says, sends
 * what its argument names, and prints what becomes of that.
 *
 *   liar HOST PORT LIE      "answered STATUS", "ended" (the connection), or "nothing" within 8 s
 *
 * Speaks by the product's own verbs layer and frames. Asks for blob 7, chunk 0 of target 3.
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/frame.h"
#include "rdma/queue_pair.h"

#define RECEIVES 256u
#define DESCRIPTORS 200u /* more than one SEND has room for */
#define SEND_BYTES_MAX 4096u
#define REPLY_AT (64u << 10)
#define DATA_AT (512u << 10)
#define MEMORY_BYTES (2u << 20)
#define LENGTH 8192u
#define PATIENCE_MS 8000

struct client {
	int fd;
	struct ffs_completions completions;
	struct ffs_qp qp;
	struct ffs_pinned memory; /* a request, the room for answers, destinations */
	struct ffs_pinned headers;
	struct ffs_header header;
	struct ffs_remote remote;
	uint64_t destination;
	uint32_t credits;
	const char *lie;
};

static void die(const char *what)
{
	printf("could not %s\n", what);
	exit(1);
}

static bool lies(const struct client *client, const char *what)
{
	return strcmp(client->lie, what) == 0;
}

/* ------------------------------------------------------------------------------------ going over */

static void dial(struct client *client, const char *host, const char *port)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
	client->fd = socket(AF_INET, SOCK_STREAM, 0);
	if (inet_pton(AF_INET, host, &to.sin_addr) != 1 ||
	    connect(client->fd, (struct sockaddr *)&to, sizeof(to)) != 0)
		die("connect");
}

static void ask_by_tcp(const struct client *client, const struct ffs_qp_end *end)
{
	uint8_t frame[FFS_FRAME_HEADER_BYTES + FFS_QP_END_BYTES];
	struct ffs_header header = {
		.op = FFS_OP_CONNECT_QP, .count = 1, .request_id = 1, .body_bytes = FFS_QP_END_BYTES};
	ffs_header_pack(frame, &header);
	ffs_qp_end_pack(frame + FFS_FRAME_HEADER_BYTES, end);
	if (send(client->fd, frame, sizeof(frame), MSG_NOSIGNAL) != (ssize_t)sizeof(frame))
		die("ask");
}

static void post_receive(struct client *client, uint32_t place)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)client->headers.memory +
	                               (uint64_t)place * FFS_FRAME_HEADER_BYTES,
	                       .length = FFS_FRAME_HEADER_BYTES,
	                       .lkey = client->headers.mr->lkey};
	struct ibv_recv_wr wanted = {.wr_id = place, .sg_list = &part, .num_sge = 1}, *bad;
	if (ibv_post_recv(client->qp.qp, &wanted, &bad) != 0)
		die("post a receive");
}

static void open_pair(struct client *client)
{
	static const struct ffs_rdma_wish wish = {.gid_index = -1};
	char text[FFS_RDMA_TEXT_BYTES];
	const struct ffs_rdma_path *path;
	if (ffs_rdma_choose(client->fd, &wish, NULL, &path, text) != FFS_RDMA_FINE)
		die(text);
	if (ffs_completions_open(&client->completions, path->device, 1024) != 0)
		die("open completions");
	const struct ffs_qp_wants wants = {.path = path,
	                                   .pd = path->device->pd,
	                                   .completions = &client->completions,
	                                   .sends = 512,
	                                   .receives = RECEIVES,
	                                   .sges = 1,
	                                   .exposes = true};
	const int all = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
	if (ffs_qp_open(&client->qp, &wants) != 0 ||
	    ffs_pinned_open(&client->memory, path->device->pd, MEMORY_BYTES, all) != 0 ||
	    ffs_pinned_open(&client->headers, path->device->pd, RECEIVES * FFS_FRAME_HEADER_BYTES,
	                    IBV_ACCESS_LOCAL_WRITE) != 0)
		die("open a queue pair");
	for (uint32_t i = 0; i < RECEIVES; i++)
		post_receive(client, i);
}

static void go_over(struct client *client)
{
	uint8_t answer[FFS_FRAME_HEADER_BYTES + FFS_QP_END_BYTES];
	struct ffs_header header;
	struct ffs_qp_end end;
	open_pair(client);
	ffs_qp_describe(&client->qp, &end);
	ask_by_tcp(client, &end);
	if (recv(client->fd, answer, sizeof(answer), MSG_WAITALL) != (ssize_t)sizeof(answer) ||
	    ffs_header_unpack(&header, answer) != FFS_FRAME_GOOD || header.status != 0 ||
	    !ffs_qp_end_unpack(&end, answer + FFS_FRAME_HEADER_BYTES) ||
	    ffs_qp_connect(&client->qp, &end) != 0)
		die("go over");
	client->credits = end.requests;
}

/* --------------------------------------------------------------------------------------- a request
 */

/* An honest READ of one range, or of many; what a lie changes comes after. */
static void prepare(struct client *client)
{
	uint64_t base = (uint64_t)(uintptr_t)client->memory.memory;
	bool many = lies(client, "long body") || lies(client, "body key");
	uint16_t count = many ? DESCRIPTORS : 1;
	client->destination = base + DATA_AT;
	client->header = (struct ffs_header){
		.op = FFS_OP_READ,
		.count = count,
		.request_id = 2,
		.body_bytes = FFS_REMOTE_BYTES +
	                  count * (FFS_READ_DESCRIPTOR_BYTES + FFS_REMOTE_ADDRESS_BYTES)};
	client->remote = (struct ffs_remote){.body_address = base + FFS_FRAME_HEADER_BYTES,
	                                     .reply_address = base + REPLY_AT,
	                                     .body_key = client->memory.mr->rkey,
	                                     .reply_key = client->memory.mr->rkey,
	                                     .data_key = client->memory.mr->rkey,
	                                     .reply_bytes = DATA_AT - REPLY_AT,
	                                     .frames = count};
}

static void prepare_write(struct client *client)
{
	client->header = (struct ffs_header){
		.op = FFS_OP_WRITE,
		.count = 1,
		.blob = 9,
		.request_id = 2,
		.payload_bytes = LENGTH,
		.body_bytes = FFS_REMOTE_BYTES + FFS_WRITE_DESCRIPTOR_BYTES +
	                  ffs_block_count(LENGTH) * (uint32_t)sizeof(uint32_t)};
	client->remote.data_address = client->destination;
}

static void lie(struct client *client)
{
	if (lies(client, "chunk key") || lies(client, "hop") || lies(client, "chunk address"))
		prepare_write(client);
	if (lies(client, "no receives"))
		client->remote.frames = 0;
	if (lies(client, "count"))
		client->header.count = 2;
	if (lies(client, "operation"))
		client->header.op = FFS_OP_LIST;
	if (lies(client, "little room"))
		client->remote.reply_bytes = 8;
	if (lies(client, "key") || lies(client, "chunk key"))
		client->remote.data_key ^= 0x5500;
	if (lies(client, "reply key"))
		client->remote.reply_key ^= 0x5500;
	if (lies(client, "body key"))
		client->remote.body_key ^= 0x5500;
	if (lies(client, "address"))
		client->destination += MEMORY_BYTES;
	if (lies(client, "chunk address"))
		client->remote.data_address += MEMORY_BYTES;
	if (lies(client, "hop"))
		client->header.flags = 1;
}

static uint32_t pack(const struct client *client)
{
	uint8_t *at = client->memory.memory;
	ffs_header_pack(at, &client->header);
	if (lies(client, "magic"))
		at[0] ^= 1;
	at += FFS_FRAME_HEADER_BYTES;
	ffs_remote_pack(at, &client->remote);
	at += FFS_REMOTE_BYTES;
	if (client->header.op == FFS_OP_WRITE) {
		struct ffs_write_descriptor chunk = {.target = 3, .chain = 5, .length = LENGTH};
		ffs_write_descriptor_pack(at, &chunk);
	} else {
		uint8_t *addresses = at + client->header.count * FFS_READ_DESCRIPTOR_BYTES;
		struct ffs_read_descriptor range = {.blob = 7, .target = 3, .length = LENGTH};
		for (uint32_t i = 0; i < client->header.count; i++) {
			ffs_read_descriptor_pack(at + i * FFS_READ_DESCRIPTOR_BYTES, &range);
			ffs_store_u64(addresses + i * FFS_REMOTE_ADDRESS_BYTES, client->destination);
		}
	}
	uint32_t bytes = FFS_FRAME_HEADER_BYTES + client->header.body_bytes;
	if (lies(client, "short"))
		return FFS_FRAME_HEADER_BYTES;
	return bytes < SEND_BYTES_MAX ? bytes : SEND_BYTES_MAX;
}

static void send_it(struct client *client, uint32_t bytes)
{
	struct ibv_sge part = {.addr = (uint64_t)(uintptr_t)client->memory.memory,
	                       .length = bytes,
	                       .lkey = client->memory.mr->lkey};
	struct ibv_send_wr send = {
		.wr_id = RECEIVES, .sg_list = &part, .num_sge = 1, .opcode = IBV_WR_SEND};
	if (ffs_qp_post(&client->qp, &send) != 0)
		die("send");
}

static void act(struct client *client)
{
	struct ffs_qp_end end = {.link = FFS_LINK_ROCE2, .mtu = 3};
	if (lies(client, "tcp")) {
		(void)send(client->fd, client->memory.memory, FFS_FRAME_HEADER_BYTES, MSG_NOSIGNAL);
	} else if (lies(client, "again")) {
		ask_by_tcp(client, &end);
	} else {
		uint32_t bytes = pack(client);
		uint32_t times = lies(client, "credit") ? 4 * client->credits : 1;
		for (uint32_t i = 0; i < times; i++)
			send_it(client, bytes);
	}
}

/* ---------------------------------------------------------------------------------- what becomes */

/* The first answer that comes, if one does. */
static bool answered(struct client *client)
{
	struct ibv_wc found[16];
	struct ffs_header header;
	(void)ffs_completions_arm(&client->completions);
	int count = ffs_completions_poll(&client->completions, found, 16);
	for (int i = 0; i < count; i++) {
		if (found[i].status != IBV_WC_SUCCESS || found[i].wr_id >= RECEIVES)
			continue;
		if (lies(client, "credit")) /* some are answered before the daemon has counted them */
			continue;
		const uint8_t *at = client->headers.memory + found[i].wr_id * FFS_FRAME_HEADER_BYTES;
		bool good = ffs_header_unpack(&header, at) == FFS_FRAME_GOOD;
		printf("answered %d\n", good ? header.status : -1);
		return true;
	}
	return false;
}

static void watch(struct client *client)
{
	struct pollfd both[2] = {{.fd = client->fd, .events = POLLIN},
	                         {.fd = ffs_completions_fd(&client->completions), .events = POLLIN}};
	uint8_t byte;
	while (poll(both, 2, PATIENCE_MS) > 0) {
		if (both[1].revents != 0 && answered(client))
			return;
		if (both[0].revents == 0)
			continue;
		printf(recv(client->fd, &byte, 1, 0) <= 0 ? "ended\n" : "bytes by TCP\n");
		return;
	}
	printf("nothing\n");
}

int main(int argc, char **argv)
{
	static struct client client;
	if (argc != 4)
		return 2;
	client.lie = argv[3];
	dial(&client, argv[1], argv[2]);
	go_over(&client);
	prepare(&client);
	lie(&client);
	act(&client);
	watch(&client);
	return 0;
}
