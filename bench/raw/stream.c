/* The limit for large ranges: a request/reply loop over one or more connections.
 *
 * The client keeps `window` requests in flight on each connection, always: as soon as a reply has
 * landed the next request leaves. Ranges are taken in file order, wrapping, each connection from
 * another place. The server answers in order from the
 * page cache, `mode` says how: `sendfile` (no copy into the socket, cheapest in CPU), `mmap` (one
 * writev of the header and the mapped bytes), `read` (pread into a buffer, then send: what a
 * careless server would do). No checksum anywhere: this is what the network stack alone allows.
 */
#include "raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum mode { MODE_SENDFILE, MODE_MMAP, MODE_READ };

static enum mode mode_of(const struct raw_options *options)
{
	if (strcmp(options->mode, "sendfile") == 0)
		return MODE_SENDFILE;
	if (strcmp(options->mode, "mmap") == 0)
		return MODE_MMAP;
	if (strcmp(options->mode, "read") != 0)
		raw_die("mode is sendfile, mmap or read");
	return MODE_READ;
}

static void serve(int fd, const struct raw_options *options, const struct raw_file *file)
{
	enum mode mode = mode_of(options);
	uint8_t *buffer = mode == MODE_READ ? raw_memory(options->range_bytes) : NULL;
	struct raw_range range;
	while (raw_recv_or_end(fd, &range, sizeof range)) {
		if (mode == MODE_SENDFILE) {
			raw_send(fd, &range, sizeof range, MSG_MORE);
			raw_send_file(fd, file, (off_t)range.offset, range.bytes);
			continue;
		}
		const uint8_t *payload = file->map + range.offset;
		if (mode == MODE_READ) {
			if (pread(file->fd, buffer, range.bytes, (off_t)range.offset) != (ssize_t)range.bytes)
				raw_die("pread");
			payload = buffer;
		}
		struct iovec parts[2] = {{&range, sizeof range}, {(void *)(uintptr_t)payload, range.bytes}};
		raw_send_vector(fd, parts, 2);
	}
}

struct client {
	pthread_t thread;
	int fd;
	const struct raw_options *options;
	size_t ranges; /* whole ranges in the file */
	size_t first;  /* where in the file this connection begins */
	size_t places; /* for ranges in `dest`, which is this connection's alone */
	uint8_t *dest;
	uint64_t asked, landed;
	double until; /* of the current phase */
	uint64_t ranges_min;
};

static void ask(struct client *client)
{
	struct raw_range range = {
		.offset = (client->first + client->asked) % client->ranges * client->options->range_bytes,
		.bytes = (uint32_t)client->options->range_bytes,
		.tag = (uint32_t)client->asked,
	};
	raw_send(client->fd, &range, sizeof range, 0);
	client->asked++;
}

/* Receive the oldest outstanding range at its place in the destination; returns that place. */
static const uint8_t *land(struct client *client)
{
	uint8_t *place = client->dest + client->landed % client->places * client->options->range_bytes;
	struct raw_range reply;
	raw_recv(client->fd, &reply, sizeof reply);
	if (reply.tag != (uint32_t)client->landed)
		raw_die("a reply came out of order");
	raw_recv(client->fd, place, client->options->range_bytes);
	client->landed++;
	return place;
}

static void drain(struct client *client)
{
	while (client->landed < client->asked)
		land(client);
}

/* Move ranges with a full window until the phase ends, then let the window run dry. */
static void *pump(void *argument)
{
	struct client *client = argument;
	uint64_t start = client->landed;
	while (client->asked - client->landed < client->options->window)
		ask(client);
	do {
		land(client);
		ask(client);
	} while (raw_now() < client->until || client->landed - start < client->ranges_min);
	drain(client);
	return NULL;
}

/* All connections at once, the first in this thread; returns the ranges that landed. */
static uint64_t phase(struct client *clients, size_t count, double until, uint64_t ranges_min)
{
	uint64_t before = 0, after = 0;
	for (size_t i = 0; i < count; i++) {
		before += clients[i].landed;
		clients[i].until = until;
		clients[i].ranges_min = ranges_min;
		if (i && pthread_create(&clients[i].thread, NULL, pump, &clients[i]))
			raw_die("pthread_create");
	}
	pump(&clients[0]);
	for (size_t i = 1; i < count; i++)
		pthread_join(clients[i].thread, NULL);
	for (size_t i = 0; i < count; i++)
		after += clients[i].landed;
	return after - before;
}

static size_t check(struct client *client, const struct raw_file *file)
{
	size_t bytes = client->options->range_bytes, checked = 0;
	for (; checked < client->options->check && checked < client->ranges; checked++) {
		uint64_t index = (client->first + client->asked) % client->ranges;
		ask(client);
		if (memcmp(land(client), file->map + index * bytes, bytes) != 0)
			raw_die("delivered bytes differ from the file");
	}
	return checked;
}

static struct client *make_clients(const struct raw_options *options, const struct raw_file *file,
                                   const int *fds)
{
	size_t count = options->connections,
		   places = options->dest_bytes / options->range_bytes / count;
	struct client *clients = calloc(count, sizeof *clients);
	uint8_t *dest = raw_memory(options->dest_bytes);
	size_t ranges = file->bytes / options->range_bytes;
	if (!clients || !ranges)
		raw_die("the file is smaller than one range");
	for (size_t i = 0; i < count; i++)
		clients[i] = (struct client){
			.fd = fds[i],
			.options = options,
			.ranges = ranges,
			.first = ranges * i / count,
			.places = places,
			.dest = dest + i * places * options->range_bytes,
		};
	return clients;
}

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .server_cpu = -1};
	struct raw_file file;
	raw_parse(argc, argv, &options);
	raw_open(options.file, &file);
	mode_of(&options);
	size_t count = options.connections;
	int *fds = calloc(count, sizeof *fds);
	if (!fds)
		raw_die("calloc");
	pid_t server = raw_connect_all(&options, &file, serve, fds);
	struct client *clients = make_clients(&options, &file, fds);
	/* warm: windows, caches, memory */
	phase(clients, count, raw_now() + options.warm_seconds, clients[0].places);

	struct raw_meter meter;
	struct raw_result result = {0};
	raw_meter_start(&meter, server);
	result.operations = phase(clients, count, raw_now() + options.seconds, 1);
	raw_meter_stop(&meter, &result);
	result.bytes = result.operations * options.range_bytes;
	for (size_t i = 0; i < count; i++)
		result.checked += check(&clients[i], &file);
	raw_reap(&options, fds, server);
	raw_print(&result, "");
	return 0;
}
