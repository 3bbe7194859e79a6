/* The limit for large ranges: a request/reply loop over one or more connections.
 *
 * The client keeps `window` requests in flight on each connection, always: as soon as a reply has
 * landed the next request leaves. Ranges are taken in file order, wrapping, each connection from
 * another place.
 *
 * With `call` ranges a call, connections take a call's ranges in turn instead, `window` in flight
 * on each, and the next call begins when all of them have landed: what waiting alone costs.
 *
 * The server answers in order from the page cache, `mode` says how: `sendfile` (no copy into the
 * socket, cheapest in CPU), `mmap` (one writev of the header and the mapped bytes), `read` (pread
 * into a buffer, then send: what a careless server would do). No checksum anywhere: this is what
 * the network stack alone allows.
 */
#include "raw.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
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

/* What the connections of a call share. */
struct calls {
	pthread_barrier_t gate; /* all begin a call, and end it, together */
	uint64_t first;         /* range of the current call */
	_Atomic uint64_t taken; /* of its ranges; may go beyond their number */
	bool over;
};

struct client {
	pthread_t thread;
	int fd;
	const struct raw_options *options;
	size_t ranges; /* whole ranges in the file */
	size_t first;  /* where in the file this connection begins */
	size_t places; /* for ranges in `dest`, which is this connection's alone */
	uint8_t *dest;
	uint64_t *indices; /* of the ranges that are in flight, a ring of `window` */
	uint64_t asked, landed;
	double until; /* of the current phase */
	uint64_t ranges_min;
	struct calls *calls;
	bool leads;
};

/* Ask for the range of this number; a file's end is followed by its beginning. */
static void ask_for(struct client *client, uint64_t index)
{
	struct raw_range range = {
		.offset = index % client->ranges * client->options->range_bytes,
		.bytes = (uint32_t)client->options->range_bytes,
		.tag = (uint32_t)client->asked,
	};
	client->indices[client->asked % client->options->window] = index;
	raw_send(client->fd, &range, sizeof range, 0);
	client->asked++;
}

static void ask(struct client *client)
{
	ask_for(client, client->first + client->asked);
}

/* Receive the oldest outstanding range at its place in the destination; returns that place. */
static const uint8_t *land(struct client *client)
{
	uint64_t index = client->indices[client->landed % client->options->window];
	uint8_t *place = client->dest + index % client->places * client->options->range_bytes;
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

/* This connection's part of one call. */
static void take_part(struct client *client)
{
	const struct raw_options *options = client->options;
	struct calls *calls = client->calls;
	for (;;) {
		while (client->asked - client->landed < options->window) {
			uint64_t next = atomic_fetch_add(&calls->taken, 1);
			if (next >= options->call)
				break;
			ask_for(client, calls->first + next);
		}
		if (client->landed == client->asked)
			return;
		land(client);
	}
}

/* Call after call until the phase ends; the first connection says when that is. */
static void *pump_calls(void *argument)
{
	struct client *client = argument;
	struct calls *calls = client->calls;
	for (uint64_t done = 0;; done += client->options->call) {
		if (client->leads) {
			calls->over = raw_now() >= client->until && done >= client->ranges_min;
			calls->first += client->options->call;
			atomic_store(&calls->taken, 0);
		}
		pthread_barrier_wait(&calls->gate);
		if (calls->over)
			return NULL;
		take_part(client);
		pthread_barrier_wait(&calls->gate);
	}
}

/* All connections at once, the first in this thread; returns the ranges that landed. */
static uint64_t phase(struct client *clients, size_t count, double until, uint64_t ranges_min)
{
	void *(*work)(void *) = clients->options->call ? pump_calls : pump;
	uint64_t before = 0, after = 0;
	for (size_t i = 0; i < count; i++) {
		before += clients[i].landed;
		clients[i].until = until;
		clients[i].ranges_min = ranges_min;
		if (i && pthread_create(&clients[i].thread, NULL, work, &clients[i]))
			raw_die("pthread_create");
	}
	work(&clients[0]);
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
	/* A call's ranges lie side by side, whoever takes them. */
	size_t count = options->connections, shares = options->call ? 1 : count,
		   places = options->dest_bytes / options->range_bytes / shares;
	struct client *clients = calloc(count, sizeof *clients);
	struct calls *calls = calloc(1, sizeof *calls);
	uint8_t *dest = raw_memory(options->dest_bytes);
	size_t ranges = file->bytes / options->range_bytes;
	if (!clients || !calls || pthread_barrier_init(&calls->gate, NULL, (unsigned)count))
		raw_die("calloc");
	if (!ranges || places < options->call)
		raw_die("the file is smaller than one range, or the destination than one call");
	for (size_t i = 0; i < count; i++) {
		clients[i] = (struct client){
			.fd = fds[i],
			.options = options,
			.ranges = ranges,
			.first = ranges * i / count,
			.places = places,
			.dest = dest + i % shares * places * options->range_bytes,
			.indices = calloc(options->window, sizeof(uint64_t)),
			.calls = calls,
			.leads = i == 0,
		};
		if (!clients[i].indices)
			raw_die("calloc");
	}
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
