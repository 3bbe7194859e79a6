/* The limit for small ranges: calls of `window` random ranges each, one call at a time.
 *
 * A call is one request (header, then one descriptor a range); its ranges come back in groups of up
 * to 64, each group behind one header, back to back into the destination. `mode` says how the
 * server gathers a group: `mmap` (one writev straight from the mapped file), `pread` (one pread a
 * range into the send buffer) or `sendfile` (one a range, for larger ones). With window=1 this is
 * the round trip of a single read, and its latency is what counts. No checksum anywhere.
 */
#include "raw.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define GROUP_RANGES 64
#define LATENCIES_MAX (1u << 22)

/* In front of the descriptors of a call, and in front of each group of a reply. */
struct group {
	uint32_t count;
	uint32_t first;
	uint64_t tag;
};

enum mode { MODE_MMAP, MODE_PREAD, MODE_SENDFILE };

static enum mode mode_of(const struct raw_options *options)
{
	if (strcmp(options->mode, "mmap") == 0)
		return MODE_MMAP;
	if (strcmp(options->mode, "sendfile") == 0)
		return MODE_SENDFILE;
	if (strcmp(options->mode, "pread") != 0)
		raw_die("mode is mmap, pread or sendfile");
	return MODE_PREAD;
}

static void answer_mapped(int fd, const struct raw_file *file, struct group *group,
                          const struct raw_range *ranges)
{
	struct iovec parts[GROUP_RANGES + 1] = {{group, sizeof *group}};
	for (size_t i = 0; i < group->count; i++)
		parts[i + 1] =
			(struct iovec){(void *)(uintptr_t)(file->map + ranges[i].offset), ranges[i].bytes};
	raw_send_vector(fd, parts, group->count + 1);
}

static void answer_read(int fd, const struct raw_file *file, const struct group *group,
                        const struct raw_range *ranges, uint8_t *buffer)
{
	uint8_t *next = buffer;
	memcpy(next, group, sizeof *group);
	next += sizeof *group;
	for (size_t i = 0; i < group->count; i++) {
		if (pread(file->fd, next, ranges[i].bytes, (off_t)ranges[i].offset) !=
		    (ssize_t)ranges[i].bytes)
			raw_die("pread");
		next += ranges[i].bytes;
	}
	raw_send(fd, buffer, (size_t)(next - buffer), 0);
}

static void answer_by_sendfile(int fd, const struct raw_file *file, const struct group *group,
                               const struct raw_range *ranges)
{
	raw_send(fd, group, sizeof *group, MSG_MORE);
	for (size_t i = 0; i < group->count; i++)
		raw_send_file(fd, file, (off_t)ranges[i].offset, ranges[i].bytes);
}

static void serve(int fd, const struct raw_options *options, const struct raw_file *file)
{
	enum mode mode = mode_of(options);
	struct raw_range *ranges = calloc(options->window, sizeof *ranges);
	uint8_t *buffer = raw_memory(sizeof(struct group) + GROUP_RANGES * options->range_bytes);
	struct group call;
	if (!ranges)
		raw_die("calloc");
	while (raw_recv_or_end(fd, &call, sizeof call)) {
		raw_recv(fd, ranges, call.count * sizeof *ranges);
		for (uint32_t first = 0; first < call.count; first += GROUP_RANGES) {
			uint32_t left = call.count - first;
			struct group group = {left < GROUP_RANGES ? left : GROUP_RANGES, first, call.tag};
			if (mode == MODE_MMAP)
				answer_mapped(fd, file, &group, ranges + first);
			else if (mode == MODE_SENDFILE)
				answer_by_sendfile(fd, file, &group, ranges + first);
			else
				answer_read(fd, file, &group, ranges + first, buffer);
		}
	}
	free(ranges);
}

struct client {
	int fd;
	const struct raw_options *options;
	size_t ranges; /* whole ranges in the file */
	uint8_t *dest;
	struct group *request; /* with room for the descriptors behind it */
	uint64_t calls, seed;
};

static void receive_group(struct client *client, uint8_t *place, uint32_t first, size_t count)
{
	struct group group;
	struct iovec parts[2] = {{&group, sizeof group}, {place, count * client->options->range_bytes}};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
	size_t wanted = sizeof group + parts[1].iov_len;
	ssize_t received = recvmsg(client->fd, &message, MSG_WAITALL);
	if (received < (ssize_t)sizeof group || group.count != count || group.first != first)
		raw_die("a reply is not what was asked for");
	if ((size_t)received < wanted) /* a signal may end MSG_WAITALL early */
		raw_recv(client->fd, place + (size_t)received - sizeof group, wanted - (size_t)received);
}

/* One call: ask for `window` random ranges, wait for all; returns where they landed. */
static const uint8_t *call(struct client *client)
{
	const struct raw_options *options = client->options;
	size_t call_bytes = options->window * options->range_bytes;
	uint8_t *dest = client->dest + client->calls % (options->dest_bytes / call_bytes) * call_bytes;
	struct raw_range *ranges = (struct raw_range *)(client->request + 1);
	*client->request = (struct group){(uint32_t)options->window, 0, client->calls};
	for (size_t i = 0; i < options->window; i++)
		ranges[i] =
			(struct raw_range){raw_random(&client->seed) % client->ranges * options->range_bytes,
		                       (uint32_t)options->range_bytes, (uint32_t)i};
	raw_send(client->fd, client->request,
	         sizeof *client->request + options->window * sizeof *ranges, 0);
	for (size_t first = 0; first < options->window; first += GROUP_RANGES) {
		size_t left = options->window - first;
		receive_group(client, dest + first * options->range_bytes, (uint32_t)first,
		              left < GROUP_RANGES ? left : GROUP_RANGES);
	}
	client->calls++;
	return dest;
}

static size_t check(struct client *client, const struct raw_file *file)
{
	const struct raw_range *ranges = (const struct raw_range *)(client->request + 1);
	size_t bytes = client->options->range_bytes, checked = 0;
	while (checked < client->options->check) {
		const uint8_t *dest = call(client);
		for (size_t i = 0; i < client->options->window; i++, checked++)
			if (memcmp(dest + i * bytes, file->map + ranges[i].offset, bytes) != 0)
				raw_die("delivered bytes differ from the file");
	}
	return checked;
}

static int by_value(const void *left, const void *right)
{
	float a = *(const float *)left, b = *(const float *)right;
	return (a > b) - (a < b);
}

static uint64_t timed(struct client *client, double until, float *latencies_us)
{
	uint64_t count = 0;
	for (double before = raw_now(); before < until;) {
		call(client);
		double after = raw_now();
		latencies_us[count++ % LATENCIES_MAX] = (float)((after - before) * 1e6);
		before = after;
	}
	return count;
}

static void print(const struct raw_result *result, const struct raw_options *options,
                  float *latencies_us, size_t kept)
{
	char more[128];
	FILE *file = options->latencies ? fopen(options->latencies, "we") : NULL;
	if (options->latencies &&
	    (!file || fwrite(latencies_us, sizeof *latencies_us, kept, file) != kept || fclose(file)))
		raw_die(options->latencies);
	qsort(latencies_us, kept, sizeof *latencies_us, by_value);
	snprintf(more, sizeof more, ", \"p50_us\": %.3f, \"p99_us\": %.3f, \"p99_9_us\": %.3f",
	         (double)latencies_us[kept / 2], (double)latencies_us[kept * 99 / 100],
	         (double)latencies_us[kept * 999 / 1000]);
	raw_print(result, more);
}

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .server_cpu = -1, .seed = 1};
	struct raw_file file;
	raw_parse(argc, argv, &options);
	raw_open(options.file, &file);
	mode_of(&options);
	struct client client = {.options = &options, .seed = options.seed | 1};
	client.ranges = file.bytes / options.range_bytes;
	client.request = calloc(1, sizeof(struct group) + options.window * sizeof(struct raw_range));
	if (!client.ranges || !client.request || options.connections != 1)
		raw_die("one connection, and a file of at least one range");
	pid_t server = raw_connect_all(&options, &file, serve, &client.fd);
	client.dest = raw_memory(options.dest_bytes);
	float *latencies_us = (float *)(void *)raw_memory(LATENCIES_MAX * sizeof(float));
	timed(&client, raw_now() + options.warm_seconds, latencies_us);
	for (int i = 0; i < 100; i++) /* warm: windows, caches, memory */
		call(&client);

	struct raw_meter meter;
	struct raw_result result = {0};
	raw_meter_start(&meter, server);
	uint64_t count = timed(&client, raw_now() + options.seconds, latencies_us);
	raw_meter_stop(&meter, &result);
	result.operations = count * options.window;
	result.bytes = result.operations * options.range_bytes;
	result.checked = check(&client, &file);
	raw_reap(&options, &client.fd, server);
	print(&result, &options, latencies_us, count < LATENCIES_MAX ? count : LATENCIES_MAX);
	return 0;
}
