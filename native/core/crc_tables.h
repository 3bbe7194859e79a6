/*
 * A reflected CRC of 32 bits by tables, eight bytes a step: what both polynomials use on a CPU
 * without instructions for them, and for the few bytes that those leave over.
 *
 * Threads: any; whoever comes first fills the tables, others at the same time write the same
 * values.
 */
#ifndef FFS_CORE_CRC_TABLES_H
#define FFS_CORE_CRC_TABLES_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "core/frame.h"

struct ffs_crc_tables {
	uint32_t polynomial; /* bits reversed */
	atomic_int ready;
	uint32_t rows[8][256];
};

/* The flag is set after the tables. */
static inline void ffs_crc_tables_fill(struct ffs_crc_tables *tables)
{
	uint32_t local[8][256];
	for (uint32_t byte = 0; byte < 256; byte++) {
		uint32_t crc = byte;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (tables->polynomial & (0u - (crc & 1u)));
		local[0][byte] = crc;
	}
	for (uint32_t byte = 0; byte < 256; byte++)
		for (int k = 1; k < 8; k++)
			local[k][byte] = (local[k - 1][byte] >> 8) ^ local[0][local[k - 1][byte] & 0xFF];
	for (int k = 0; k < 8; k++)
		for (int byte = 0; byte < 256; byte++)
			__atomic_store_n(&tables->rows[k][byte], local[k][byte], __ATOMIC_RELAXED);
	atomic_store_explicit(&tables->ready, 1, memory_order_release);
}

/* `crc` is the raw register: the caller complements before and after. */
static inline uint32_t ffs_crc_tables_update(struct ffs_crc_tables *tables, uint32_t crc,
                                             const uint8_t *data, size_t length)
{
	const uint32_t(*rows)[256] = (const uint32_t(*)[256])tables->rows;
	if (!atomic_load_explicit(&tables->ready, memory_order_acquire))
		ffs_crc_tables_fill(tables);
	for (; length >= 8; data += 8, length -= 8) {
		uint32_t low = ffs_load_u32(data) ^ crc;
		uint32_t high = ffs_load_u32(data + 4);
		crc = rows[7][low & 0xFF] ^ rows[6][(low >> 8) & 0xFF] ^ rows[5][(low >> 16) & 0xFF] ^
		      rows[4][low >> 24] ^ rows[3][high & 0xFF] ^ rows[2][(high >> 8) & 0xFF] ^
		      rows[1][(high >> 16) & 0xFF] ^ rows[0][high >> 24];
	}
	for (; length > 0; data++, length--)
		crc = (crc >> 8) ^ rows[0][(crc ^ *data) & 0xFF];
	return crc;
}

#endif
