/*
 * Memory for reads from the disk: one mapping, cut into powers of two of 4 KiB and put together
 * again (a buddy allocator).
 *
 * One mapping, so that the kernel can back it by large pages: direct reads of 1 MiB into them are
 * 1.5 times as fast, since they are pinned by the dozen. It is mapped at the first use: a daemon
 * that reads nothing cold has none of it. A forked child does not get it, so that no page is shared
 * that the disk writes into.
 *
 * What is free is kept beside the memory, not in it: pages that were never used stay untouched.
 * Threads: none of its own; buffers.c calls it with its lock held.
 */
#ifndef FFS_STORAGE_ARENA_H
#define FFS_STORAGE_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/limits.h"

#define FFS_ARENA_ORDERS 11u /* 4 KiB .. 4 MiB */
#define FFS_ARENA_PIECE_BYTES_MAX (FFS_BLOCK_BYTES << (FFS_ARENA_ORDERS - 1))
#define FFS_READ_BUFFER_BYTES_MAX (UINT64_C(1) << 34)

struct ffs_arena {
	uint8_t *bytes; /* NULL until mapped */
	size_t size;
	struct ffs_arena_block *blocks;  /* one for each 4 KiB */
	uint32_t free[FFS_ARENA_ORDERS]; /* first free piece of each order */
};

/* `size` a multiple of FFS_ARENA_PIECE_BYTES_MAX. */
void ffs_arena_init(struct ffs_arena *arena, size_t size);
void ffs_arena_fini(struct ffs_arena *arena);
/* Map it if that was not done; 0 or -errno. */
int ffs_arena_map(struct ffs_arena *arena);
/* A piece of 4 KiB << order, aligned to 4 KiB; NULL where no free piece is large enough. */
uint8_t *ffs_arena_take(struct ffs_arena *arena, uint32_t order);
void ffs_arena_give_back(struct ffs_arena *arena, uint8_t *bytes, uint32_t order);

#endif
