#include "storage/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"

#define NONE UINT32_MAX

/* A block of 4 KiB; `order` and the links are those of the free piece that begins with it. */
struct ffs_arena_block {
	uint32_t next;
	uint32_t before;
	uint8_t order;
	bool is_free;
};

void ffs_arena_init(struct ffs_arena *arena, size_t size)
{
	assert(size > 0 && size % FFS_ARENA_PIECE_BYTES_MAX == 0);
	memset(arena, 0, sizeof(*arena));
	arena->size = size;
	for (uint32_t order = 0; order < FFS_ARENA_ORDERS; order++)
		arena->free[order] = NONE;
}

void ffs_arena_fini(struct ffs_arena *arena)
{
	if (arena->bytes != NULL)
		(void)munmap(arena->bytes, arena->size);
	free(arena->blocks);
	arena->bytes = NULL;
	arena->blocks = NULL;
}

static void link_free(struct ffs_arena *arena, uint32_t at, uint32_t order)
{
	uint32_t next = arena->free[order];
	arena->blocks[at] = (struct ffs_arena_block){next, NONE, (uint8_t)order, true};
	if (next != NONE)
		arena->blocks[next].before = at;
	arena->free[order] = at;
}

static void unlink_free(struct ffs_arena *arena, uint32_t at)
{
	struct ffs_arena_block *block = &arena->blocks[at];
	if (block->before == NONE)
		arena->free[block->order] = block->next;
	else
		arena->blocks[block->before].next = block->next;
	if (block->next != NONE)
		arena->blocks[block->next].before = block->before;
	block->is_free = false;
}

int ffs_arena_map(struct ffs_arena *arena)
{
	if (arena->bytes != NULL)
		return 0;
	uint32_t count = (uint32_t)(arena->size / FFS_BLOCK_BYTES);
	arena->blocks = ffs_sys_calloc(count, sizeof(arena->blocks[0]));
	if (arena->blocks == NULL)
		return -ENOMEM;
	uint8_t *bytes = ffs_sys_map_memory(arena->size);
	if (bytes == MAP_FAILED) {
		free(arena->blocks);
		arena->blocks = NULL;
		return -ENOMEM;
	}
	arena->bytes = bytes;
	/* Large pages are pinned by the dozen; without them it works as well. */
	(void)madvise(bytes, arena->size, MADV_HUGEPAGE);
	(void)madvise(bytes, arena->size, MADV_DONTFORK);
	/* From the end, so that the lists begin at the start: what is used little stays small. */
	uint32_t step = 1u << (FFS_ARENA_ORDERS - 1);
	for (uint32_t at = count; at > 0; at -= step)
		link_free(arena, at - step, FFS_ARENA_ORDERS - 1);
	return 0;
}

uint8_t *ffs_arena_take(struct ffs_arena *arena, uint32_t order)
{
	uint32_t found = order;
	while (found < FFS_ARENA_ORDERS && arena->free[found] == NONE)
		found++;
	if (found == FFS_ARENA_ORDERS)
		return NULL;
	uint32_t at = arena->free[found];
	unlink_free(arena, at);
	while (found > order) {
		found--;
		link_free(arena, at + (1u << found), found);
	}
	return arena->bytes + (size_t)at * FFS_BLOCK_BYTES;
}

void ffs_arena_give_back(struct ffs_arena *arena, uint8_t *bytes, uint32_t order)
{
	uint32_t at = (uint32_t)((size_t)(bytes - arena->bytes) / FFS_BLOCK_BYTES);
	assert(!arena->blocks[at].is_free);
	while (order < FFS_ARENA_ORDERS - 1) {
		uint32_t buddy = at ^ (1u << order);
		if (!arena->blocks[buddy].is_free || arena->blocks[buddy].order != order)
			break;
		unlink_free(arena, buddy);
		at &= ~(1u << order);
		order++;
	}
	link_free(arena, at, order);
}
