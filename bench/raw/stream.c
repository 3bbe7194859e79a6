/* The limit for large ranges: a request/reply loop over one loopback connection.
 *
 * The client keeps `window` requests in flight, always: as soon as a reply has landed the next
 * request leaves. Ranges are taken in file order, wrapping. The server answers in order from the
 * page cache, `mode` says how: `sendfile` (no copy into the socket, cheapest in CPU), `mmap` (the
 * kernel copies from the mapped file), `read` (pread into a buffer, then send: what a careless
 * server would do). No checksum anywhere: this is what the network stack alone allows.
 */
#include "raw.h"

#include <errno.h>
#include <string.h>
#include <sys/sendfile.h>
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

static void send_file(int fd, const struct raw_file *file, off_t offset, size_t bytes)
{
	while (bytes) {
		ssize_t sent = sendfile(fd, file->fd, &offset, bytes);
		if (sent <= 0)
			raw_die("sendfile");
		bytes -= (size_t)sent;
	}
}

static void serve(int fd, const struct raw_options *options, const struct raw_file *file)
{
	enum mode mode = mode_of(options);
	uint8_t *buffer = mode == MODE_READ ? raw_memory(options->range_bytes) : NULL;
	struct raw_range range;
	while (raw_recv_or_end(fd, &range, sizeof range)) {
		raw_send(fd, &range, sizeof range, MSG_MORE);
		if (mode == MODE_SENDFILE) {
			send_file(fd, file, (off_t)range.offset, range.bytes);
		} else if (mode == MODE_MMAP) {
			raw_send(fd, file->map + range.offset, range.bytes, 0);
		} else {
			if (pread(file->fd, buffer, range.bytes, (off_t)range.offset) != (ssize_t)range.bytes)
				raw_die("pread");
			raw_send(fd, buffer, range.bytes, 0);
		}
	}
}

struct client {
	int fd;
	const struct raw_options *options;
	size_t ranges; /* whole ranges in the file */
	uint8_t *dest;
	uint64_t asked, landed;
};

static void ask(struct client *client)
{
	struct raw_range range = {
		.offset = client->asked % client->ranges * client->options->range_bytes,
		.bytes = (uint32_t)client->options->range_bytes,
		.tag = (uint32_t)client->asked,
	};
	raw_send(client->fd, &range, sizeof range, 0);
	client->asked++;
}

/* Receive the oldest outstanding range at its place in the destination; returns that place. */
static const uint8_t *land(struct client *client)
{
	size_t places = client->options->dest_bytes / client->options->range_bytes;
	uint8_t *place = client->dest + client->landed % places * client->options->range_bytes;
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

/* Move ranges with a full window until `until`, then let the window run dry. */
static void pump(struct client *client, double until, uint64_t ranges_min)
{
	uint64_t start = client->landed;
	while (client->asked - client->landed < client->options->window)
		ask(client);
	do {
		land(client);
		ask(client);
	} while (raw_now() < until || client->landed - start < ranges_min);
	drain(client);
}

static size_t check(struct client *client, const struct raw_file *file)
{
	size_t bytes = client->options->range_bytes, checked = 0;
	for (; checked < client->options->check && checked < client->ranges; checked++) {
		uint64_t index = client->asked % client->ranges;
		ask(client);
		if (memcmp(land(client), file->map + index * bytes, bytes) != 0)
			raw_die("delivered bytes differ from the file");
	}
	return checked;
}

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .server_cpu = -1};
	struct raw_file file;
	pid_t server;
	raw_parse(argc, argv, &options);
	raw_open(options.file, &file);
	mode_of(&options);
	struct client client = {.options = &options, .ranges = file.bytes / options.range_bytes};
	if (!client.ranges)
		raw_die("the file is smaller than one range");
	client.fd = raw_pair(&options, &file, serve, &server);
	client.dest = raw_memory(options.dest_bytes);
	pump(&client, 0, options.dest_bytes / options.range_bytes); /* warm: windows, caches, memory */

	clockid_t server_clock = raw_process_clock(server);
	struct raw_result result = {.operations = client.landed};
	double server_cpu = raw_cpu_seconds(server_clock);
	double client_cpu = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID), start = raw_now();
	pump(&client, start + options.seconds, 1);
	result.seconds = raw_now() - start;
	result.client_cpu_s = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - client_cpu;
	result.server_cpu_s = raw_cpu_seconds(server_clock) - server_cpu;
	result.operations = client.landed - result.operations;
	result.bytes = result.operations * options.range_bytes;
	result.checked = check(&client, &file);
	raw_reap(client.fd, server);
	raw_print(&result, "");
	return 0;
}
