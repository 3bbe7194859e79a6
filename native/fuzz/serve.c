/*
 * Target `serve`: a daemon's data loop, with a real store behind it, against clients that send
 * whatever they like.
 *
 * Input: flags, size of pieces, two bytes unused; then what one or two clients send. The loop's
 * thread is this one: it is started by hand, and wherever it waits and nothing is due the next
 * thing happens in the world around it. Python's part of a write is played here: persist, forward
 * to what the second client then is, another daemon, and answer. Promised: answers, and what is
 * forwarded, are whole frames whose parts agree, and when the clients are gone no buffer, pin, id
 * or connection is left.
 */
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "core/crc32c.h"
#include "fuzz/fuzz.h"
#include "storage/loop.h"

#define SCRIPT_BYTES 4u
#define CLIENTS_MAX 2
#define TARGET 3u
#define WRITE_BUFFER_BYTES                                                                         \
	(256u << 10) /* a chunk of 64 KiB fits, a lying header may ask for more */
#define ANSWER_BYTES_MAX (1u << 20)
#define PERSISTED_MAX 64u
#define LEGS_MAX 4096u

enum {
	FLAG_PERSIST = 1,
	FLAG_REFUSE = 2,      /* answer writes with an error */
	FLAG_TWO_CLIENTS = 4, /* which send their pieces in turn */
	FLAG_LAZY = 8,        /* read no answer before everything is sent */
	FLAG_VANISH = 16,     /* close instead of ending in order */
	FLAG_FORWARD = 32,    /* the second client is a daemon that writes are forwarded to */
	FLAG_TOKEN = 64,      /* the first client came by a token: it has to show GRANTs */
};

struct client {
	int fd; /* -1: closed */
	uint64_t id;
	bool ended;
	bool gone; /* the loop has said so */
	size_t answer_bytes;
	uint8_t answers[ANSWER_BYTES_MAX];
};

static const uint8_t token_id[FFS_TOKEN_ID_BYTES] = {0}; /* what ffs_fuzz_fix_frames signs for */
static struct ffs_group *group;
static struct ffs_store *store;
static void *(*loop_main)(void *);
static bool capturing;

static struct {
	uint8_t flags;
	uint8_t piece;
	const uint8_t *stream;
	size_t left;
	struct client clients[CLIENTS_MAX];
	uint32_t count;
	uint32_t turn;
	uint32_t persisting;
	uint64_t persisted[PERSISTED_MAX];
	uint32_t persisted_count;
	uint8_t legs[LEGS_MAX]; /* of each write, by its slot */
	bool finished;
} world;

int __real_epoll_wait(int fd, struct epoll_event *events, int events_max, int timeout_ms);
int __wrap_epoll_wait(int fd, struct epoll_event *events, int events_max, int timeout_ms);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument);

/* Keep the loop's thread from starting, and remember what it would have run. */
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                          void *(*start)(void *), void *argument)
{
	if (!capturing)
		return __real_pthread_create(thread, attributes, start, argument);
	loop_main = start;
	*thread = pthread_self();
	return 0;
}

/* ------------------------------------------------------------------------------ the world around
 */

static uint8_t *legs_of(uint64_t write_id)
{
	FFS_PROMISE((uint32_t)write_id < LEGS_MAX);
	return &world.legs[(uint32_t)write_id];
}

/* A chunk is here: the legs that it has. */
static uint8_t begin(const struct ffs_event *event)
{
	uint64_t id = event->write_id;
	uint8_t legs = 0;
	if ((world.flags & FLAG_FORWARD) != 0 &&
	    ffs_group_forward(group, &id, 1, world.clients[1].id, TARGET) == 0) {
		FFS_PROMISE(ffs_group_forward(group, &id, 1, world.clients[1].id, TARGET) != 0);
		legs++;
	}
	if ((world.flags & FLAG_PERSIST) != 0 && world.persisted_count < PERSISTED_MAX) {
		world.persisted[world.persisted_count++] = event->blob;
		world.persisting++;
		FFS_PROMISE(ffs_group_persist(group, &id, 1) == 0);
		legs++;
	}
	return legs;
}

static void decide(const struct ffs_event *event)
{
	uint16_t status = (world.flags & FLAG_REFUSE) != 0 ? FFS_ERR_STALE_CHAIN : FFS_OK;
	uint8_t *legs = legs_of(event->write_id);
	if (event->kind == FFS_EVENT_WRITE)
		*legs = begin(event);
	else
		(*legs)--;
	if (event->kind == FFS_EVENT_PERSISTED)
		world.persisting--;
	if (*legs > 0) { /* the other's end may have been told together with this one's */
		FFS_PROMISE(event->kind != FFS_EVENT_WRITE ||
		            ffs_group_ack(group, event->write_id, status) != 0);
		return;
	}
	FFS_PROMISE(ffs_group_ack(group, event->write_id, status) == 0);
	FFS_PROMISE(ffs_group_ack(group, event->write_id, status) != 0);
}

/* Python's part; true if there was something to do. */
static bool take_events(void)
{
	struct pollfd ready = {.fd = group->events.fd, .events = POLLIN};
	if (world.persisting > 0)
		(void)poll(&ready, 1, 10000);
	struct ffs_event *events;
	ssize_t count = ffs_group_poll(group, &events);
	FFS_PROMISE(count >= 0);
	for (ssize_t i = 0; i < count; i++) {
		enum ffs_event_kind kind = events[i].kind;
		if (kind == FFS_EVENT_WRITE || kind == FFS_EVENT_PERSISTED || kind == FFS_EVENT_FORWARDED)
			decide(&events[i]);
		for (uint32_t c = 0; c < world.count; c++) {
			bool peer = c == 1 && (world.flags & FLAG_FORWARD) != 0;
			if (kind == (peer ? FFS_EVENT_PEER_CLOSED : FFS_EVENT_CLOSED) &&
			    events[i].connection_id == world.clients[c].id)
				world.clients[c].gone = true;
		}
	}
	free(events);
	return count > 0;
}

static bool take_answers(void)
{
	bool any = false;
	for (uint32_t i = 0; i < world.count; i++) {
		struct client *client = &world.clients[i];
		size_t room = ANSWER_BYTES_MAX - client->answer_bytes;
		if (client->fd < 0)
			continue;
		ssize_t got = recv(client->fd, client->answers + client->answer_bytes, room, MSG_DONTWAIT);
		if (got > 0) {
			client->answer_bytes += (size_t)got;
			any = true;
		}
		if (client->answer_bytes == ANSWER_BYTES_MAX) { /* enough: nobody stays for all of it */
			(void)close(client->fd);
			client->fd = -1;
		}
	}
	return any;
}

static bool send_piece(void)
{
	if (world.left == 0)
		return false;
	struct client *client = &world.clients[world.turn % world.count];
	size_t piece = ffs_fuzz_piece(world.piece, world.turn++, world.left);
	ssize_t sent = -1;
	if (client->fd >= 0)
		sent = send(client->fd, world.stream, piece, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (sent < 0) /* closed by the loop, or not read from: this piece is lost */
		sent = (ssize_t)piece;
	world.stream += sent;
	world.left -= (size_t)sent;
	return true;
}

/* End each client in order, or by closing; then close what is left. */
static bool end_clients(void)
{
	bool any = false;
	for (uint32_t i = 0; i < world.count; i++) {
		struct client *client = &world.clients[i];
		if (client->fd < 0)
			continue;
		if (client->ended || (world.flags & FLAG_VANISH) != 0) {
			(void)close(client->fd);
			client->fd = -1;
		} else {
			(void)shutdown(client->fd, SHUT_WR);
			client->ended = true;
		}
		any = true;
	}
	return any;
}

/* The loop waits and nothing is due: let the next thing happen. */
static void step(void)
{
	if (take_events())
		return;
	bool lazy = (world.flags & FLAG_LAZY) != 0 && world.left > 0;
	if (!lazy && take_answers())
		return;
	if (send_piece() || end_clients())
		return;
	for (uint32_t i = 0; i < world.count; i++)
		FFS_PROMISE(world.clients[i].gone); /* the loop has noticed that they are gone */
	group->loops[0].quit = true;
	ffs_loop_kick(&group->loops[0]);
}

int __wrap_epoll_wait(int fd, struct epoll_event *events, int events_max, int timeout_ms)
{
	(void)timeout_ms;
	for (;;) {
		int count = __real_epoll_wait(fd, events, events_max, 0);
		if (count != 0)
			return count;
		step();
	}
}

/* --------------------------------------------------------------------------- what must be true */

/* A READ's answer: entries, their CRCs, their bytes, and nothing else. */
static void check_entries(const struct ffs_header *header, const uint8_t *body)
{
	uint64_t bytes = 0;
	uint64_t blocks = 0;
	FFS_PROMISE(header->count >= 1);
	for (uint32_t i = 0; i < header->count; i++) {
		struct ffs_reply_entry entry;
		ffs_reply_entry_unpack(&entry, body + i * FFS_REPLY_ENTRY_BYTES);
		FFS_PROMISE(entry.status == FFS_OK || entry.bytes == 0);
		FFS_PROMISE(entry.status != FFS_STATUS_PENDING);
		bytes += entry.bytes;
		blocks += ffs_block_count(entry.bytes);
	}
	if (header->flags & FFS_FLAG_NO_CRC)
		blocks = 0;
	FFS_PROMISE(bytes == header->payload_bytes);
	FFS_PROMISE(header->body_bytes == header->count * FFS_REPLY_ENTRY_BYTES + 4 * blocks);
}

static void check_answers(const struct client *client)
{
	size_t at = 0;
	while (client->answer_bytes - at >= FFS_FRAME_HEADER_BYTES) {
		struct ffs_header header;
		FFS_PROMISE(ffs_header_unpack(&header, client->answers + at) == FFS_FRAME_GOOD);
		FFS_PROMISE((header.op & FFS_REPLY_BIT) != 0);
		at += FFS_FRAME_HEADER_BYTES;
		size_t rest = (size_t)header.body_bytes + header.payload_bytes;
		if (rest > client->answer_bytes - at)
			return; /* cut off with the connection */
		if (header.op == (FFS_OP_READ | FFS_REPLY_BIT) && header.status == FFS_OK)
			check_entries(&header, client->answers + at);
		else if (header.op == (FFS_OP_LOCATE | FFS_REPLY_BIT))
			FFS_PROMISE(rest == header.count * FFS_LOCATION_BYTES && header.payload_bytes == 0);
		else if (header.op == (FFS_OP_LIST | FFS_REPLY_BIT))
			FFS_PROMISE(header.body_bytes == 0 && rest % FFS_KEY_BYTES == 0);
		else
			FFS_PROMISE(rest == 0);
		at += rest;
	}
}

/* What the second client has got as a daemon: chunks that are right, one hop further. */
static void check_forwarded(const struct client *client)
{
	size_t at = 0;
	while (client->answer_bytes - at >= FFS_FRAME_HEADER_BYTES) {
		struct ffs_header header;
		FFS_PROMISE(ffs_header_unpack(&header, client->answers + at) == FFS_FRAME_GOOD);
		FFS_PROMISE(header.op == FFS_OP_WRITE && header.status == 0 && header.count == 1);
		FFS_PROMISE(header.flags >= 1 && header.flags < FFS_HOPS_MAX);
		uint32_t blocks = ffs_block_count(header.payload_bytes);
		FFS_PROMISE(header.body_bytes == FFS_WRITE_DESCRIPTOR_BYTES + 4 * blocks);
		at += FFS_FRAME_HEADER_BYTES;
		if (header.body_bytes + header.payload_bytes > client->answer_bytes - at)
			return; /* cut off with the connection */
		const uint8_t *body = client->answers + at;
		struct ffs_write_descriptor descriptor;
		ffs_write_descriptor_unpack(&descriptor, body);
		FFS_PROMISE(descriptor.target == TARGET && descriptor.length == header.payload_bytes);
		FFS_PROMISE(ffs_crc32c_check(body + header.body_bytes, header.payload_bytes, header.blob,
		                             descriptor.chunk, 0,
		                             body + FFS_WRITE_DESCRIPTOR_BYTES) == blocks);
		at += header.body_bytes + header.payload_bytes;
	}
}

static void check_nothing_left(void)
{
	const struct ffs_loop *loop = &group->loops[0];
	FFS_PROMISE(group->conn_count == 0 && group->persisting == 0);
	for (uint32_t hop = 0; hop < FFS_HOPS_MAX; hop++) {
		FFS_PROMISE(ffs_buffers_used(&group->buffers[hop]) == 0);
		FFS_PROMISE(!ffs_buffers_wanted(&group->buffers[hop]));
		FFS_PROMISE(loop->waiting[hop] == NULL);
	}
	FFS_PROMISE(loop->dead == NULL && loop->mail == NULL && loop->lister.head == NULL);
	FFS_PROMISE(loop->dead_peers == NULL && loop->due == NULL && group->suspects == 0);
	FFS_PROMISE(group->granted == 0 && group->located == 0);
	for (uint32_t i = 0; i < FFS_PEERS_MAX; i++)
		FFS_PROMISE(group->peers[i] == NULL);
	for (uint32_t i = 0; i < group->write_room; i++)
		FFS_PROMISE(group->writes[i] == NULL);
}

/* -------------------------------------------------------------------------------------- a run */

static void wake(struct ffs_put *put)
{
	atomic_store((atomic_bool *)put->context, true);
}

/* A chunk of the store that clients may find. */
static void put_chunk(uint64_t blob, uint32_t chunk, uint32_t length)
{
	static uint8_t data[256 << 10];
	uint32_t crcs[sizeof(data) / FFS_BLOCK_BYTES];
	uint8_t wire[sizeof(crcs)];
	atomic_bool done = false;
	memset(data, (int)(blob + chunk), length);
	ffs_crc32c_blocks(data, length, blob, chunk, 0, crcs);
	for (uint32_t i = 0; i < ffs_block_count(length); i++)
		ffs_store_u32(wire + i * sizeof(uint32_t), crcs[i]);
	struct ffs_put put = {.blob = blob,
	                      .chunk = chunk,
	                      .length = length,
	                      .data = data,
	                      .crcs = wire,
	                      .done = wake,
	                      .context = &done};
	ffs_store_put(store, &put);
	while (!atomic_load(&done))
		(void)usleep(10);
	FFS_PROMISE(put.status == FFS_OK);
}

/* tests/fuzz/seeds.py knows these. */
static void fill_store(void)
{
	put_chunk(1, 0, 10000);
	put_chunk(1, 1, (128u << 10) + 1);
	put_chunk(2, 0, 1);
}

static void forget_persisted(void)
{
	uint64_t dropped;
	if (world.persisted_count == 0)
		return;
	FFS_PROMISE(ffs_store_drop(store, world.persisted, world.persisted_count, &dropped) == FFS_OK);
	fill_store();
}

void ffs_fuzz_fix(uint8_t *data, size_t size)
{
	if (size > SCRIPT_BYTES)
		ffs_fuzz_fix_frames(data + SCRIPT_BYTES, size - SCRIPT_BYTES);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct ffs_store_options options = {
		.path = ffs_fuzz_directory(), .target_id = TARGET, .create = true};
	struct ffs_store_error fault;
	int error = 0;
	(void)argc;
	(void)argv;
	store = ffs_store_open(&options, &fault);
	FFS_PROMISE(store != NULL);
	fill_store();
	capturing = true;
	struct ffs_group_options loop_options = {
		.loop_count = 1,
		.write_buffer_bytes = WRITE_BUFFER_BYTES,
		.read_buffer_bytes = FFS_ARENA_PIECE_BYTES_MAX,
		.congestion = "",
		.slow_read_ns = UINT64_MAX,
		.reads = FFS_READS_THREADS,
	};
	group = ffs_group_open(&loop_options, &error);
	capturing = false;
	FFS_PROMISE(group != NULL && loop_main != NULL);
	FFS_PROMISE(ffs_group_add_store(group, store) == 0);
	const struct ffs_grant_key keys[FFS_GRANT_KEYS] = {{.id = FFS_FUZZ_GRANT_KEY_ID}};
	ffs_group_set_grant_keys(group, keys);
	return 0;
}

static void connect_clients(void)
{
	for (uint32_t i = 0; i < world.count; i++) {
		struct client *client = &world.clients[i];
		int ends[2];
		FFS_PROMISE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
		bool peer = i == 1 && (world.flags & FLAG_FORWARD) != 0;
		const uint8_t *token = i == 0 && (world.flags & FLAG_TOKEN) != 0 ? token_id : NULL;
		int64_t id = peer ? ffs_group_add_peer(group, ends[1])
		                  : ffs_group_adopt(group, ends[1], true, token);
		FFS_PROMISE(id > 0);
		client->fd = ends[0];
		client->id = (uint64_t)id;
		client->ended = client->gone = false;
		client->answer_bytes = 0;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < SCRIPT_BYTES || size > FFS_FUZZ_INPUT_BYTES_MAX)
		return 0;
	world.flags = data[0];
	world.piece = data[1];
	world.stream = data + SCRIPT_BYTES;
	world.left = size - SCRIPT_BYTES;
	world.count = (world.flags & (FLAG_TWO_CLIENTS | FLAG_FORWARD)) != 0 ? 2 : 1;
	world.turn = 0;
	world.persisting = 0;
	world.persisted_count = 0;
	group->loops[0].quit = false;
	connect_clients();
	(void)loop_main(&group->loops[0]);
	while (take_events())
		;
	bool forwards = (world.flags & FLAG_FORWARD) != 0;
	for (uint32_t i = 0; i < world.count; i++) {
		if (i == 1 && forwards)
			check_forwarded(&world.clients[i]);
		else
			check_answers(&world.clients[i]);
	}
	check_nothing_left();
	forget_persisted();
	/* The next input finds ids as this one did. */
	for (uint32_t i = 0; i < group->write_room; i++)
		group->write_generations[i] = 0;
	group->write_hint = 0;
	return 0;
}
