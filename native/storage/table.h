/*
 * The chunks of a target in memory: (blob, chunk) -> where it lies, with a count of its readers.
 *
 *   insert -> PENDING --publish--> LIVE --remove--> (unlinked, maybe still pinned) --release-->
 *   gone
 *
 * A chunk's memory does not move or go while it is pinned, so a reader takes the lock of one shard
 * for a few loads, and none while it reads the disk. 40 bytes and a bucket of 8 for each chunk.
 *
 * Shards are chosen by blob alone, so that everything about one blob is found in one shard.
 *
 * Threads: pin and unpin from anywhere; insert, publish, remove, release from the one thread that
 * changes the store; each from anywhere.
 */
#ifndef FFS_STORAGE_TABLE_H
#define FFS_STORAGE_TABLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "storage/format.h"

#define FFS_TABLE_SHARDS 256u

enum ffs_chunk_state {
	FFS_CHUNK_SPARE,   /* memory for the next insert; zero, as fresh memory is */
	FFS_CHUNK_PENDING, /* being written: nobody may read it */
	FFS_CHUNK_LIVE,
	FFS_CHUNK_REMOVED, /* nobody finds it; some may still read it */
};

struct ffs_chunk {
	struct ffs_chunk *next; /* in its bucket, then in the list of its remover */
	uint64_t blob;
	uint32_t chunk;
	uint32_t length;
	uint32_t digest;
	uint32_t slot;
	uint8_t class_index;
	_Atomic uint8_t state; /* written with the shard locked */
	_Atomic uint16_t seen; /* in the page cache: residency.c */
	_Atomic uint32_t pins;
};

struct ffs_slab;

struct ffs_shard {
	pthread_mutex_t lock;
	struct ffs_chunk **buckets;
	uint32_t bucket_count; /* a power of two, or 0 */
	uint32_t chunk_count;
	struct ffs_chunk *spare;
	struct ffs_slab *slabs;
} __attribute__((aligned(64)));

struct ffs_table {
	struct ffs_shard shards[FFS_TABLE_SHARDS];
};

void ffs_table_init(struct ffs_table *table);
/* No chunk may be pinned any more. */
void ffs_table_fini(struct ffs_table *table);

/* A LIVE chunk, pinned; NULL if it is not here. */
struct ffs_chunk *ffs_table_pin(struct ffs_table *table, uint64_t blob, uint32_t chunk);
void ffs_chunk_unpin(struct ffs_chunk *chunk);
bool ffs_chunk_pinned(const struct ffs_chunk *chunk);
/* Whether a chunk that the caller has pinned has left the table meanwhile. */
bool ffs_chunk_removed(const struct ffs_chunk *chunk);

/* A chunk in any state, not pinned: only for the thread that changes the store. The PENDING one if
 * there are two. */
struct ffs_chunk *ffs_table_find(struct ffs_table *table, uint64_t blob, uint32_t chunk);

/* Add a chunk that is not there yet; NULL without memory. */
struct ffs_chunk *ffs_table_insert(struct ffs_table *table, const struct ffs_entry *entry,
                                   uint32_t class_index, uint32_t slot, enum ffs_chunk_state state);
void ffs_table_publish(struct ffs_table *table, struct ffs_chunk *chunk);
/* Publish `chunk` in place of `old`, which has the same name: readers find the one or the other. */
void ffs_table_swap(struct ffs_table *table, struct ffs_chunk *old, struct ffs_chunk *chunk);
/* Nobody finds it from here on; those who have it pinned keep it. */
void ffs_table_remove(struct ffs_table *table, struct ffs_chunk *chunk);
/* Give back the memory of a removed chunk that nobody has pinned. */
void ffs_table_release(struct ffs_table *table, struct ffs_chunk *chunk);

/* Call `visit` for every LIVE chunk, one shard locked at a time; false from it ends the walk. */
typedef bool ffs_table_visit(void *context, struct ffs_chunk *chunk);
bool ffs_table_each(struct ffs_table *table, ffs_table_visit *visit, void *context);
/* The same for the one shard that has all chunks of `blob`, and those of other blobs. */
bool ffs_table_each_near(struct ffs_table *table, uint64_t blob, ffs_table_visit *visit,
                         void *context);
/* Which shard holds a blob: for callers that walk shards for many blobs. */
uint32_t ffs_table_shard_of(uint64_t blob);
bool ffs_table_each_in(struct ffs_table *table, uint32_t shard, ffs_table_visit *visit,
                       void *context);

#endif
