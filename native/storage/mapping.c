#include "storage/mapping.h"

#include <stdlib.h>

#include "core/limits.h"
#include "core/sys.h"

#define MAPPED_BYTES ((size_t)FFS_MAP_WINDOW_BYTES + FFS_CHUNK_BYTES_MAX)

static atomic_uint window_count; /* of all files of this process */

void ffs_mapping_init(struct ffs_mapping *mapping)
{
	mapping->windows = ffs_sys_calloc(FFS_MAP_WINDOWS_MAX, sizeof(mapping->windows[0]));
}

void ffs_mapping_fini(struct ffs_mapping *mapping)
{
	for (uint32_t i = 0; mapping->windows != NULL && i < FFS_MAP_WINDOWS_MAX; i++) {
		uint8_t *window = atomic_load_explicit(&mapping->windows[i], memory_order_relaxed);
		if (window == NULL || window == MAP_FAILED)
			continue;
		(void)munmap(window, MAPPED_BYTES);
		atomic_fetch_sub(&window_count, 1);
	}
	free((void *)mapping->windows);
	mapping->windows = NULL;
}

/* Map a window; MAP_FAILED if that cannot be, and will not be tried again. */
static uint8_t *map_window(_Atomic(uint8_t *) *slot, int fd, uint64_t offset)
{
	uint8_t *window = MAP_FAILED;
	if (atomic_fetch_add(&window_count, 1) < FFS_MAP_WINDOWS_MAX)
		window = ffs_sys_map_file(fd, MAPPED_BYTES, offset);
	uint8_t *found = NULL;
	bool first = atomic_compare_exchange_strong(slot, &found, window);
	if (first && window != MAP_FAILED)
		return window;
	atomic_fetch_sub(&window_count, 1);
	if (first)
		return window;
	if (window != MAP_FAILED) /* another thread was faster */
		(void)munmap(window, MAPPED_BYTES);
	return found;
}

const uint8_t *ffs_mapping_at(struct ffs_mapping *mapping, int fd, uint64_t offset)
{
	uint64_t index = offset / FFS_MAP_WINDOW_BYTES;
	if (mapping->windows == NULL || index >= FFS_MAP_WINDOWS_MAX)
		return NULL;
	_Atomic(uint8_t *) *slot = &mapping->windows[index];
	uint8_t *window = atomic_load_explicit(slot, memory_order_acquire);
	if (window == NULL)
		window = map_window(slot, fd, index * FFS_MAP_WINDOW_BYTES);
	return window == MAP_FAILED ? NULL : window + offset % FFS_MAP_WINDOW_BYTES;
}
