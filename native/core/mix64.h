/*
 * The splitmix64 finaliser, as ffs/layout.py: the hash behind layouts and block CRC start values.
 */
#ifndef FFS_CORE_MIX64_H
#define FFS_CORE_MIX64_H

#include <stdint.h>

#define FFS_GOLDEN64 UINT64_C(0x9E3779B97F4A7C15)

static inline uint64_t ffs_mix64(uint64_t value)
{
	value = (value ^ (value >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
	value = (value ^ (value >> 27)) * UINT64_C(0x94D049BB133111EB);
	return value ^ (value >> 31);
}

/* Start value of one block's CRC, so that a misplaced or swapped block never verifies. */
static inline uint32_t ffs_block_seed(uint64_t blob, uint32_t chunk, uint32_t block)
{
	uint64_t inner = ffs_mix64(blob + FFS_GOLDEN64);
	return (uint32_t)ffs_mix64(inner + (((uint64_t)chunk << 32) | block));
}

#endif
