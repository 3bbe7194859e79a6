/*
 * The one way payload bytes are copied in user space, so that "copied bytes per byte read" is a
 * count and not a claim. Headers, entries and CRCs are not payload and use memcpy.
 */
#ifndef FFS_CORE_COPY_H
#define FFS_CORE_COPY_H

#include <stddef.h>
#include <stdint.h>

/* memcpy that counts. */
void ffs_copy(void *target, const void *source, size_t length);

/* Payload bytes that ffs_copy has moved in this process since start or the last reset (fork). */
uint64_t ffs_copied_bytes(void);
void ffs_copied_bytes_reset(void);

#endif
