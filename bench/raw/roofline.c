/* What one CPU of this machine can do with bytes that are in memory already.
 *
 * mode=memcpy   copy between two buffers of dest_bytes, in pieces of range_bytes
 * mode=pread    read a cached file into a buffer of dest_bytes, in pieces
 * mode=crc      the same, and the CRC32C of every 4 KiB block of each piece, as a reader must, by
 *               the fastest implementation that the project has for this CPU
 *
 * Pieces come in file order, or with seed= from random places.
 */
#include "raw.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/crc32c.h"
#include "core/limits.h"

enum mode { MODE_MEMCPY, MODE_PREAD, MODE_CRC };

static enum mode mode_of(const char *name)
{
	if (strcmp(name, "memcpy") == 0)
		return MODE_MEMCPY;
	if (strcmp(name, "pread") == 0)
		return MODE_PREAD;
	if (strcmp(name, "crc") != 0)
		raw_die("mode is memcpy, pread or crc");
	return MODE_CRC;
}

struct work {
	enum mode mode;
	size_t piece, pieces, places;
	int fd;
	uint8_t *dest;
	const uint8_t *source;
	uint32_t *crcs;
	uint64_t seed, at;
	volatile uint64_t sink; /* nothing that is computed may be optimised away */
};

static void do_piece(struct work *work)
{
	uint8_t *place = work->dest + work->at % work->places * work->piece;
	uint64_t index = work->seed ? raw_random(&work->seed) : work->at;
	size_t from = index % work->pieces * work->piece;
	if (work->mode == MODE_MEMCPY)
		memcpy(place, work->source + from, work->piece);
	else if (pread(work->fd, place, work->piece, (off_t)from) != (ssize_t)work->piece)
		raw_die("pread");
	if (work->mode == MODE_CRC) {
		ffs_crc32c_blocks(place, work->piece, 1, 1, 0, work->crcs);
		work->sink ^= work->crcs[0];
	}
	work->sink ^= place[work->piece - 1];
	work->at++;
}

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .window = 1};
	struct raw_file file = {0};
	raw_parse(argc, argv, &options);
	struct work work = {.mode = mode_of(options.mode), .piece = options.range_bytes};
	raw_pin(options.client_cpu);
	if (work.mode == MODE_MEMCPY)
		work.source = raw_memory(options.dest_bytes);
	else
		raw_open(options.file, &file);
	work.fd = file.fd;
	work.seed = options.seed;
	work.dest = raw_memory(options.dest_bytes);
	work.places = options.dest_bytes / work.piece;
	work.pieces = work.mode == MODE_MEMCPY ? work.places : file.bytes / work.piece;
	work.crcs = calloc(work.piece / FFS_BLOCK_BYTES + 1, sizeof *work.crcs);
	if (!work.pieces || !work.crcs)
		raw_die("the file is smaller than one range");
	for (size_t i = 0; i < work.places; i++) /* warm: caches, memory */
		do_piece(&work);

	struct raw_meter meter;
	struct raw_result result = {0};
	uint64_t before = work.at;
	raw_meter_start(&meter, 0);
	double until = raw_now() + options.seconds;
	do
		do_piece(&work);
	while (raw_now() < until);
	raw_meter_stop(&meter, &result);
	result.operations = work.at - before;
	result.bytes = result.operations * work.piece;
	raw_print(&result, "");
	return 0;
}
