/* What one CPU of this machine can do with bytes that are in memory already.
 *
 * mode=memcpy   copy between two buffers of dest_bytes, in pieces of range_bytes
 * mode=pread    read a cached file into a buffer of dest_bytes, in pieces
 * mode=crc      the same, and the CRC32C of every 4 KiB block of each piece, as a reader must
 */
#include "raw.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#endif

#define BLOCK_BYTES 4096
#define LANES 4 /* blocks at a time: hides the CRC instruction's latency of three cycles */

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static inline uint64_t crc_word(uint64_t crc, uint64_t word)
{
	return _mm_crc32_u64(crc, word);
}
#define CRC_TARGET __attribute__((target("sse4.2")))
#elif defined(__ARM_FEATURE_CRC32)
static inline uint64_t crc_word(uint64_t crc, uint64_t word)
{
	return __crc32cd((uint32_t)crc, word);
}
#define CRC_TARGET
#else
static inline uint64_t crc_word(uint64_t crc, uint64_t word)
{
	for (int i = 0; i < 64; i++, word >>= 1)
		crc = (crc >> 1) ^ (0x82F63B78u & (0u - ((crc ^ word) & 1)));
	return crc;
}
#define CRC_TARGET
#endif

/* CRCs of LANES neighbouring blocks, folded into one value that nothing can optimise away. */
CRC_TARGET static uint64_t crc_blocks(const uint8_t *data)
{
	uint64_t crc[LANES], word;
	for (int lane = 0; lane < LANES; lane++)
		crc[lane] = 0xFFFFFFFFu;
	for (size_t i = 0; i < BLOCK_BYTES; i += sizeof word)
		for (size_t lane = 0; lane < LANES; lane++) {
			memcpy(&word, data + lane * BLOCK_BYTES + i, sizeof word);
			crc[lane] = crc_word(crc[lane], word);
		}
	return crc[0] ^ crc[1] ^ crc[2] ^ crc[3];
}

static uint64_t crc_piece(const uint8_t *data, size_t bytes)
{
	uint64_t all = 0;
	for (size_t i = 0; i + LANES * BLOCK_BYTES <= bytes; i += LANES * BLOCK_BYTES)
		all ^= crc_blocks(data + i);
	return all;
}

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

int main(int argc, char **argv)
{
	struct raw_options options = {.client_cpu = -1, .window = 1};
	struct raw_file file = {0};
	raw_parse(argc, argv, &options);
	enum mode mode = mode_of(options.mode);
	raw_pin(options.client_cpu);
	if (mode != MODE_MEMCPY)
		raw_open(options.file, &file);
	uint8_t *dest = raw_memory(options.dest_bytes);
	uint8_t *source = mode == MODE_MEMCPY ? raw_memory(options.dest_bytes) : NULL;
	size_t piece = options.range_bytes, places = options.dest_bytes / piece;
	size_t pieces = mode == MODE_MEMCPY ? places : file.bytes / piece;
	if (!pieces)
		raw_die("the file is smaller than one range");

	struct raw_result result = {0};
	volatile uint64_t sink = 0;
	double cpu = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID), start = raw_now();
	do {
		uint8_t *place = dest + result.operations % places * piece;
		size_t from = result.operations % pieces * piece;
		if (mode == MODE_MEMCPY)
			memcpy(place, source + from, piece);
		else if (pread(file.fd, place, piece, (off_t)from) != (ssize_t)piece)
			raw_die("pread");
		if (mode == MODE_CRC)
			sink ^= crc_piece(place, piece);
		sink ^= place[piece - 1];
		result.operations++;
	} while (raw_now() < start + options.seconds);
	result.seconds = raw_now() - start;
	result.client_cpu_s = raw_cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
	result.bytes = result.operations * piece;
	raw_print(&result, "");
	return 0;
}
