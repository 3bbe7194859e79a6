/*
 * CRC-32 as zlib has it (polynomial 0xEDB88320): the checksum of a sample in FFRecord files.
 *
 * Three implementations with the same results: carry-less multiplication (x86-64), the ARMv8 CRC
 * extension, and tables. The best one of this CPU is chosen at first use; tests force another.
 *
 * Threads: all functions may run anywhere at once; forcing an implementation meanwhile is safe.
 */
#ifndef FFS_CORE_CRC32_H
#define FFS_CORE_CRC32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ffs_crc32(0, "123456789", 9) == 0xCBF43926; `init` continues an earlier result. */
uint32_t ffs_crc32(uint32_t init, const void *data, size_t length);

/* Name of the implementation in use: "pclmul", "armv8" or "software". */
const char *ffs_crc32_name(void);

/* Use the implementation called `name`, "auto" for the best; false if this CPU lacks it. */
bool ffs_crc32_force(const char *name);

#endif
