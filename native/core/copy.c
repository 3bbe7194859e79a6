/* See copy.h. */
#include "core/copy.h"

#include <stdatomic.h>
#include <string.h>

static _Atomic uint64_t copied_bytes;

void ffs_copy(void *target, const void *source, size_t length)
{
	memcpy(target, source, length);
	atomic_fetch_add_explicit(&copied_bytes, length, memory_order_relaxed);
}

uint64_t ffs_copied_bytes(void)
{
	return atomic_load_explicit(&copied_bytes, memory_order_relaxed);
}

void ffs_copied_bytes_reset(void)
{
	atomic_store_explicit(&copied_bytes, 0, memory_order_relaxed);
}
