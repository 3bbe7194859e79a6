/*
 * CRC32C (Castagnoli), the checksum of every 4 KiB block, frame header and index entry.
 *
 * Four implementations with the same results: AVX-512 with VPCLMULQDQ and SSE4.2 (x86-64), the
 * ARMv8 CRC extension, and tables. The best one that CPU and operating system have is chosen at
 * first use; tests force another by name. Many blocks are checked four neighbours at a time: the
 * CRC instruction has a latency of three cycles and a throughput of at least one, so one stream
 * alone leaves two thirds of the unit idle. AVX-512 folds one block after the other, since that
 * keeps its multiplier busy by itself: 170 cycles a block where four streams of SSE4.2 take 260 and
 * one takes 950 (EPYC of family 26; 256-bit VPCLMULQDQ takes 350, therefore it is not here).
 *
 * Threads: all functions may run anywhere at once; forcing an implementation meanwhile is safe.
 */
#ifndef FFS_CORE_CRC32C_H
#define FFS_CORE_CRC32C_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Standard form: ffs_crc32c(0, "123456789", 9) == 0xE3069283; `init` continues an earlier result.
 */
uint32_t ffs_crc32c(uint32_t init, const void *data, size_t length);

/*
 * Compute the CRCs of the blocks of `data`, whose first byte is the first byte of block
 * `first_block` of chunk (blob, chunk); the last block may be short. Writes
 * ceil(length / FFS_BLOCK_BYTES) values in host order.
 */
void ffs_crc32c_blocks(const void *data, size_t length, uint64_t blob, uint32_t chunk,
                       uint32_t first_block, uint32_t *crcs);

/*
 * Hold the blocks of `data` (as above) against `wire_crcs`, little-endian u32 each, unaligned.
 * Returns how many blocks from the front are right: all of them if nothing is wrong.
 */
size_t ffs_crc32c_check(const void *data, size_t length, uint64_t blob, uint32_t chunk,
                        uint32_t first_block, const uint8_t *wire_crcs);

/* CRCs of four whole blocks anywhere in memory, each continued from its own `init`. */
#define FFS_CRC_LANES 4
void ffs_crc32c_lanes(const uint8_t *const data[FFS_CRC_LANES], const uint32_t init[FFS_CRC_LANES],
                      uint32_t crcs[FFS_CRC_LANES]);

/* Name of the implementation in use: "avx512", "sse42", "armv8" or "software". */
const char *ffs_crc32c_name(void);

/* Use the implementation called `name`, "auto" for the best; false if this CPU lacks it. */
bool ffs_crc32c_force(const char *name);

#endif
