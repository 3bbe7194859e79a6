/* Many connections, one range of range_bytes outstanding on each: a load generator for two servers.
 *
 * mode=ffs        drives a storage daemon: the caller made and authenticated the connections (fds=)
 * mode=sendfile,
 * mode=mmap       drives the plainest epoll server there is, which this program forks
 *
 * Both servers get the same requests and send the same bytes: READ frames of the data port, with
 * checksums, which nobody verifies here (the plain server sends zeros in their place). So the
 * client does the same work on both sides, and the difference is the server's: finding the chunk,
 * reading its checksums, keeping its peers' pace. Ranges are aligned, at random places of the file.
 */
#include "raw.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/frame.h"

#define REQUEST_BYTES (FFS_FRAME_HEADER_BYTES + FFS_READ_DESCRIPTOR_BYTES)
#define HEAD_BYTES_MAX (FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES + 4 * FFS_CHUNK_BLOCKS_MAX)
#define EVENTS_MAX 256

static size_t head_bytes(const struct raw_options *options)
{
	return FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES +
	       4 * (size_t)ffs_block_count((uint32_t)options->range_bytes);
}

static void set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL), one = 1;
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		raw_die("a socket's flags");
}

static void watch(int epoll, int operation, int fd, uint32_t events, void *what)
{
	struct epoll_event event = {.events = events, .data.ptr = what};
	if (epoll_ctl(epoll, operation, fd, &event))
		raw_die("epoll_ctl");
}

/* ----------------------------------------------------------------------------- the plain server */

struct peer {
	int fd;
	uint8_t request[REQUEST_BYTES];
	size_t received; /* of a request */
	size_t sent;     /* of a reply */
	bool replying, waits_for_room;
	uint64_t offset; /* of the range in the file */
	uint8_t head[FFS_FRAME_HEADER_BYTES + FFS_REPLY_ENTRY_BYTES];
};

struct plain_server {
	const struct raw_options *options;
	const struct raw_file *file;
	bool by_sendfile;
	int epoll, listener;
	size_t open;
	uint8_t crcs[4 * FFS_CHUNK_BLOCKS_MAX];
};

static void begin_reply(const struct plain_server *server, struct peer *peer)
{
	struct ffs_header asked;
	struct ffs_read_descriptor wanted;
	uint32_t bytes = (uint32_t)server->options->range_bytes;
	if (ffs_header_unpack(&asked, peer->request) != FFS_FRAME_GOOD)
		raw_die("a request is none");
	ffs_read_descriptor_unpack(&wanted, peer->request + FFS_FRAME_HEADER_BYTES);
	struct ffs_header header = {
		.op = FFS_OP_READ | FFS_REPLY_BIT,
		.count = 1,
		.request_id = asked.request_id,
		.body_bytes = FFS_REPLY_ENTRY_BYTES + 4 * ffs_block_count(bytes),
		.payload_bytes = bytes,
	};
	ffs_header_pack(peer->head, &header);
	ffs_reply_entry_pack(peer->head + FFS_FRAME_HEADER_BYTES,
	                     &(struct ffs_reply_entry){.bytes = bytes});
	peer->offset = (uint64_t)wanted.chunk * server->options->chunk_bytes + wanted.offset;
	peer->sent = 0;
	peer->replying = true;
}

/* Send what fits of header, entry, checksums and, from a mapping, payload. */
static ssize_t send_parts(const struct plain_server *server, const struct peer *peer)
{
	size_t skip = peer->sent, count = 0;
	const struct iovec all[3] = {
		{(void *)(uintptr_t)peer->head, sizeof peer->head},
		{(void *)(uintptr_t)server->crcs, head_bytes(server->options) - sizeof peer->head},
		{(void *)(uintptr_t)(server->file->map + peer->offset),
	     server->by_sendfile ? 0 : server->options->range_bytes},
	};
	struct iovec left[3];
	for (size_t i = 0; i < 3; i++) {
		size_t gone = skip < all[i].iov_len ? skip : all[i].iov_len;
		skip -= gone;
		if (all[i].iov_len > gone)
			left[count++] =
				(struct iovec){(uint8_t *)all[i].iov_base + gone, all[i].iov_len - gone};
	}
	struct msghdr message = {.msg_iov = left, .msg_iovlen = count};
	return sendmsg(peer->fd, &message, MSG_NOSIGNAL | (server->by_sendfile ? MSG_MORE : 0));
}

/* True when the whole reply is out. */
static bool go_on_replying(const struct plain_server *server, struct peer *peer)
{
	size_t head = head_bytes(server->options), total = head + server->options->range_bytes;
	while (peer->sent < total) {
		ssize_t sent;
		if (server->by_sendfile && peer->sent >= head) {
			off_t offset = (off_t)(peer->offset + peer->sent - head);
			sent = sendfile(peer->fd, server->file->fd, &offset, total - peer->sent);
		} else {
			sent = send_parts(server, peer);
		}
		if (sent < 0 && errno == EAGAIN)
			return false;
		if (sent <= 0)
			raw_die("send to a peer");
		peer->sent += (size_t)sent;
	}
	peer->replying = false;
	return true;
}

static void hang_up(struct plain_server *server, struct peer *peer)
{
	close(peer->fd);
	free(peer);
	server->open--;
}

static void wait_for_room(const struct plain_server *server, struct peer *peer, bool wait)
{
	if (peer->waits_for_room == wait)
		return;
	peer->waits_for_room = wait;
	watch(server->epoll, EPOLL_CTL_MOD, peer->fd, wait ? EPOLLOUT : EPOLLIN, peer);
}

static void serve_peer(struct plain_server *server, struct peer *peer)
{
	if (!peer->replying) {
		ssize_t got = recv(peer->fd, peer->request + peer->received,
		                   sizeof peer->request - peer->received, 0);
		if (got < 0 && errno == EAGAIN)
			return;
		if (got <= 0) {
			hang_up(server, peer);
			return;
		}
		peer->received += (size_t)got;
		if (peer->received < sizeof peer->request)
			return;
		peer->received = 0;
		begin_reply(server, peer);
	}
	wait_for_room(server, peer, !go_on_replying(server, peer));
}

static void accept_peer(struct plain_server *server)
{
	struct peer *peer = calloc(1, sizeof *peer);
	if (!peer)
		raw_die("calloc");
	peer->fd = accept(server->listener, NULL, NULL);
	if (peer->fd < 0)
		raw_die("accept");
	set_nonblocking(peer->fd);
	watch(server->epoll, EPOLL_CTL_ADD, peer->fd, EPOLLIN, peer);
	server->open++;
}

static _Noreturn void run_plain_server(struct plain_server *server)
{
	struct epoll_event events[EVENTS_MAX];
	size_t accepted = 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	raw_pin(server->options->server_cpu);
	server->epoll = epoll_create1(EPOLL_CLOEXEC);
	watch(server->epoll, EPOLL_CTL_ADD, server->listener, EPOLLIN, NULL);
	while (accepted < server->options->connections || server->open) {
		int count = epoll_wait(server->epoll, events, EVENTS_MAX, -1);
		if (count < 0)
			raw_die("epoll_wait");
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr) {
				serve_peer(server, events[i].data.ptr);
			} else {
				accept_peer(server);
				accepted++;
			}
		}
	}
	_exit(0);
}

/* ------------------------------------------------------------------------------- the many clients
 */

struct conn {
	int fd;
	uint8_t *place; /* of its range in the destination */
	uint8_t head[HEAD_BYTES_MAX];
	size_t received;
	uint64_t request_id, offset; /* of what it waits for */
};

struct crowd {
	const struct raw_options *options;
	const struct raw_file *file;
	struct conn *conns;
	int epoll;
	uint64_t seed, asked, landed, ranges;
	bool compare; /* each reply with the file */
	size_t checked;
};

static void ask(struct crowd *crowd, struct conn *conn)
{
	uint8_t frame[REQUEST_BYTES];
	const struct raw_options *options = crowd->options;
	conn->offset = raw_random(&crowd->seed) % crowd->ranges * options->range_bytes;
	conn->request_id = ++crowd->asked;
	conn->received = 0;
	struct ffs_header header = {
		.op = FFS_OP_READ,
		.count = 1,
		.request_id = conn->request_id,
		.body_bytes = FFS_READ_DESCRIPTOR_BYTES,
	};
	struct ffs_read_descriptor wanted = {
		.blob = options->blob,
		.chunk = (uint32_t)(conn->offset / options->chunk_bytes),
		.target = options->target,
		.offset = (uint32_t)(conn->offset % options->chunk_bytes),
		.length = (uint32_t)options->range_bytes,
	};
	ffs_header_pack(frame, &header);
	ffs_read_descriptor_pack(frame + FFS_FRAME_HEADER_BYTES, &wanted);
	if (send(conn->fd, frame, sizeof frame, MSG_NOSIGNAL) != sizeof frame)
		raw_die("send of a request");
}

/* True when the whole reply is here. */
static bool go_on_receiving(const struct crowd *crowd, struct conn *conn)
{
	size_t head = head_bytes(crowd->options), total = head + crowd->options->range_bytes;
	struct iovec parts[2] = {{conn->head, head}, {conn->place, crowd->options->range_bytes}};
	size_t skip = conn->received;
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	if (skip >= head) {
		parts[1] = (struct iovec){conn->place + (skip - head), total - skip};
		message = (struct msghdr){.msg_iov = parts + 1, .msg_iovlen = 1};
	} else {
		parts[0] = (struct iovec){conn->head + skip, head - skip};
	}
	ssize_t got = recvmsg(conn->fd, &message, 0);
	if (got < 0 && errno == EAGAIN)
		return false;
	if (got <= 0)
		raw_die("the server hung up");
	conn->received += (size_t)got;
	return conn->received == total;
}

static void land(struct crowd *crowd, const struct conn *conn)
{
	struct ffs_header header;
	struct ffs_reply_entry entry;
	size_t bytes = crowd->options->range_bytes;
	if (ffs_header_unpack(&header, conn->head) != FFS_FRAME_GOOD || header.status ||
	    header.request_id != conn->request_id || header.payload_bytes != bytes)
		raw_die("a reply is not what was asked for");
	ffs_reply_entry_unpack(&entry, conn->head + FFS_FRAME_HEADER_BYTES);
	if (entry.status || entry.bytes != bytes)
		raw_die("a range was refused");
	if (crowd->compare) {
		if (memcmp(conn->place, crowd->file->map + conn->offset, bytes) != 0)
			raw_die("delivered bytes differ from the file");
		crowd->checked++;
	}
	crowd->landed++;
}

/* Ask on every connection, and again whenever a reply has landed, until `until`; then wait for the
 * last ones. */
static void phase(struct crowd *crowd, double until)
{
	struct epoll_event events[EVENTS_MAX];
	for (size_t i = 0; i < crowd->options->connections; i++)
		ask(crowd, &crowd->conns[i]);
	while (crowd->landed < crowd->asked) {
		int count = epoll_wait(crowd->epoll, events, EVENTS_MAX, 10000);
		if (count <= 0)
			raw_die("no reply for ten seconds");
		bool more = raw_now() < until;
		for (int i = 0; i < count; i++) {
			struct conn *conn = events[i].data.ptr;
			if (!go_on_receiving(crowd, conn))
				continue;
			land(crowd, conn);
			if (more)
				ask(crowd, conn);
		}
	}
}

/* The descriptors that the caller made, or connections to a server of our own. */
static pid_t open_connections(const struct raw_options *options, const struct raw_file *file,
                              int *fds)
{
	if (options->fds) {
		char *next = NULL;
		const char *text = options->fds;
		for (size_t i = 0; i < options->connections; i++, text = next + 1) {
			fds[i] = (int)strtol(text, &next, 10);
			if (next == text || (*next != ',' && i + 1 < options->connections))
				raw_die("fds= has fewer descriptors than connections=");
		}
		return (pid_t)options->server_pid;
	}
	struct plain_server *server = calloc(1, sizeof *server);
	if (!server)
		raw_die("calloc");
	*server = (struct plain_server){
		.options = options,
		.file = file,
		.by_sendfile = strcmp(options->mode, "sendfile") == 0,
		.listener = raw_listen(options),
	};
	pid_t pid = fork();
	if (pid < 0)
		raw_die("fork");
	if (pid == 0)
		run_plain_server(server);
	for (size_t i = 0; i < options->connections; i++)
		fds[i] = raw_connect(options, server->listener);
	close(server->listener);
	return pid;
}

static void make_conns(struct crowd *crowd, const int *fds)
{
	const struct raw_options *options = crowd->options;
	uint8_t *dest = raw_memory(options->dest_bytes);
	crowd->conns = calloc(options->connections, sizeof *crowd->conns);
	crowd->epoll = epoll_create1(EPOLL_CLOEXEC);
	crowd->ranges = crowd->file->bytes / options->range_bytes;
	if (!crowd->conns || crowd->epoll < 0 || !crowd->ranges || !options->chunk_bytes)
		raw_die("chunk_bytes=, and a file of at least one range");
	for (size_t i = 0; i < options->connections; i++) {
		struct conn *conn = &crowd->conns[i];
		conn->fd = fds[i];
		conn->place = dest + i * options->range_bytes;
		set_nonblocking(conn->fd);
		watch(crowd->epoll, EPOLL_CTL_ADD, conn->fd, EPOLLIN, conn);
	}
}

static void allow_descriptors(size_t count)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_max < count)
		raw_die("RLIMIT_NOFILE is below the number of connections");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		raw_die("setrlimit");
}

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .server_cpu = -1, .seed = 1};
	struct raw_file file;
	raw_parse(argc, argv, &options);
	raw_open(options.file, &file);
	allow_descriptors(options.connections + 64);
	int *fds = calloc(options.connections, sizeof *fds);
	if (!fds)
		raw_die("calloc");
	pid_t server = open_connections(&options, &file, fds);
	struct crowd crowd = {.options = &options, .file = &file, .seed = options.seed | 1};
	make_conns(&crowd, fds);
	raw_pin(options.client_cpu);
	phase(&crowd, raw_now() + options.warm_seconds);

	struct raw_meter meter;
	struct raw_result result = {0};
	uint64_t before = crowd.landed;
	raw_meter_start(&meter, server);
	phase(&crowd, raw_now() + options.seconds);
	raw_meter_stop(&meter, &result);
	result.operations = crowd.landed - before;
	result.bytes = result.operations * options.range_bytes;
	crowd.compare = true;
	phase(&crowd, 0);
	result.checked = crowd.checked;
	for (size_t i = 0; i < options.connections; i++)
		close(fds[i]);
	if (!options.fds && waitpid(server, NULL, 0) != server)
		raw_die("waitpid");
	raw_print(&result, "");
	return 0;
}
