#include "storage/table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/mix64.h"
#include "core/sys.h"

#define SLAB_CHUNKS 64
#define BUCKETS_MIN 16u

struct ffs_slab {
	struct ffs_slab *next;
	struct ffs_chunk chunks[SLAB_CHUNKS];
};

static_assert(sizeof(struct ffs_chunk) == 40, "memory per chunk is a promise");

void ffs_table_init(struct ffs_table *table)
{
	memset(table, 0, sizeof(*table));
	for (uint32_t i = 0; i < FFS_TABLE_SHARDS; i++)
		pthread_mutex_init(&table->shards[i].lock, NULL);
}

void ffs_table_fini(struct ffs_table *table)
{
	for (uint32_t i = 0; i < FFS_TABLE_SHARDS; i++) {
		struct ffs_shard *shard = &table->shards[i];
		while (shard->slabs != NULL) {
			struct ffs_slab *slab = shard->slabs;
			shard->slabs = slab->next;
			free(slab);
		}
		free(shard->buckets);
		pthread_mutex_destroy(&shard->lock);
	}
}

uint32_t ffs_table_shard_of(uint64_t blob)
{
	return (uint32_t)(ffs_mix64(blob) >> 56);
}

static struct ffs_shard *shard_of(struct ffs_table *table, uint64_t blob)
{
	return &table->shards[ffs_table_shard_of(blob)];
}

static uint32_t bucket_of(const struct ffs_shard *shard, uint64_t blob, uint32_t chunk)
{
	uint64_t hash = ffs_mix64(blob + ffs_mix64(chunk + FFS_GOLDEN64));
	return (uint32_t)hash & (shard->bucket_count - 1);
}

/* The newest chunk of this name, or the newest LIVE one: while a chunk is replaced there are two.
 */
static struct ffs_chunk *find_locked(const struct ffs_shard *shard, uint64_t blob, uint32_t chunk,
                                     bool live)
{
	if (shard->bucket_count == 0)
		return NULL;
	struct ffs_chunk *at = shard->buckets[bucket_of(shard, blob, chunk)];
	while (at != NULL &&
	       (at->blob != blob || at->chunk != chunk || (live && at->state != FFS_CHUNK_LIVE)))
		at = at->next;
	return at;
}

struct ffs_chunk *ffs_table_pin(struct ffs_table *table, uint64_t blob, uint32_t chunk)
{
	struct ffs_shard *shard = shard_of(table, blob);
	pthread_mutex_lock(&shard->lock);
	struct ffs_chunk *found = find_locked(shard, blob, chunk, true);
	if (found != NULL)
		atomic_fetch_add_explicit(&found->pins, 1, memory_order_relaxed);
	pthread_mutex_unlock(&shard->lock);
	return found;
}

void ffs_chunk_unpin(struct ffs_chunk *chunk)
{
	uint32_t before = atomic_fetch_sub_explicit(&chunk->pins, 1, memory_order_release);
	assert(before > 0);
	(void)before;
}

bool ffs_chunk_pinned(const struct ffs_chunk *chunk)
{
	/* Pairs with the release in unpin: the last reader is done with the extent. */
	return atomic_load_explicit(&chunk->pins, memory_order_acquire) != 0;
}

bool ffs_chunk_removed(const struct ffs_chunk *chunk)
{
	return atomic_load_explicit(&chunk->state, memory_order_relaxed) == FFS_CHUNK_REMOVED;
}

struct ffs_chunk *ffs_table_find(struct ffs_table *table, uint64_t blob, uint32_t chunk)
{
	struct ffs_shard *shard = shard_of(table, blob);
	pthread_mutex_lock(&shard->lock);
	struct ffs_chunk *found = find_locked(shard, blob, chunk, false);
	pthread_mutex_unlock(&shard->lock);
	return found;
}

/*
 * Double the buckets. Without memory the chains get longer, which is slower and still right. Their
 * order stays: of two chunks of one name the newer one is found first.
 */
static void grow_buckets(struct ffs_shard *shard)
{
	uint32_t count = shard->bucket_count == 0 ? BUCKETS_MIN : shard->bucket_count * 2;
	struct ffs_chunk **old = shard->buckets;
	uint32_t old_count = shard->bucket_count;
	struct ffs_chunk **buckets = ffs_sys_calloc(count, sizeof(struct ffs_chunk *));
	if (buckets == NULL)
		return;
	shard->buckets = buckets;
	shard->bucket_count = count;
	for (uint32_t i = 0; i < old_count; i++) {
		struct ffs_chunk **ends[2] = {&buckets[i], &buckets[i + old_count]};
		for (struct ffs_chunk *chunk = old[i]; chunk != NULL; chunk = chunk->next) {
			uint32_t half = bucket_of(shard, chunk->blob, chunk->chunk) / old_count;
			*ends[half] = chunk;
			ends[half] = &chunk->next;
		}
		*ends[0] = NULL;
		*ends[1] = NULL;
	}
	free(old);
}

static struct ffs_chunk *take_spare(struct ffs_shard *shard)
{
	if (shard->spare == NULL) {
		struct ffs_slab *slab = ffs_sys_calloc(1, sizeof(*slab));
		if (slab == NULL)
			return NULL;
		slab->next = shard->slabs;
		shard->slabs = slab;
		for (int i = 0; i < SLAB_CHUNKS; i++) {
			slab->chunks[i].next = shard->spare;
			shard->spare = &slab->chunks[i];
		}
	}
	struct ffs_chunk *chunk = shard->spare;
	shard->spare = chunk->next;
	return chunk;
}

struct ffs_chunk *ffs_table_insert(struct ffs_table *table, const struct ffs_entry *entry,
                                   uint32_t class_index, uint32_t slot, enum ffs_chunk_state state)
{
	struct ffs_shard *shard = shard_of(table, entry->blob);
	struct ffs_chunk *added = NULL;
	pthread_mutex_lock(&shard->lock);
	if (shard->chunk_count >= shard->bucket_count)
		grow_buckets(shard);
	if (shard->bucket_count != 0)
		added = take_spare(shard);
	if (added != NULL) {
		struct ffs_chunk **head = &shard->buckets[bucket_of(shard, entry->blob, entry->chunk)];
		added->next = *head;
		added->blob = entry->blob;
		added->chunk = entry->chunk;
		added->length = entry->length;
		added->digest = entry->digest;
		added->slot = slot;
		added->class_index = (uint8_t)class_index;
		added->state = (uint8_t)state;
		atomic_store_explicit(&added->seen, 0, memory_order_relaxed);
		atomic_store_explicit(&added->pins, 0, memory_order_relaxed);
		*head = added;
		shard->chunk_count++;
	}
	pthread_mutex_unlock(&shard->lock);
	return added;
}

void ffs_table_publish(struct ffs_table *table, struct ffs_chunk *chunk)
{
	struct ffs_shard *shard = shard_of(table, chunk->blob);
	pthread_mutex_lock(&shard->lock);
	chunk->state = FFS_CHUNK_LIVE;
	pthread_mutex_unlock(&shard->lock);
}

static void unlink_locked(struct ffs_shard *shard, struct ffs_chunk *chunk)
{
	struct ffs_chunk **link = &shard->buckets[bucket_of(shard, chunk->blob, chunk->chunk)];
	while (*link != chunk) {
		assert(*link != NULL);
		link = &(*link)->next;
	}
	*link = chunk->next;
	chunk->next = NULL;
	chunk->state = FFS_CHUNK_REMOVED;
	shard->chunk_count--;
}

void ffs_table_remove(struct ffs_table *table, struct ffs_chunk *chunk)
{
	struct ffs_shard *shard = shard_of(table, chunk->blob);
	pthread_mutex_lock(&shard->lock);
	unlink_locked(shard, chunk);
	pthread_mutex_unlock(&shard->lock);
}

void ffs_table_swap(struct ffs_table *table, struct ffs_chunk *old, struct ffs_chunk *chunk)
{
	struct ffs_shard *shard = shard_of(table, chunk->blob);
	assert(old->blob == chunk->blob && old->chunk == chunk->chunk);
	pthread_mutex_lock(&shard->lock);
	unlink_locked(shard, old);
	chunk->state = FFS_CHUNK_LIVE;
	pthread_mutex_unlock(&shard->lock);
}

void ffs_table_release(struct ffs_table *table, struct ffs_chunk *chunk)
{
	struct ffs_shard *shard = shard_of(table, chunk->blob);
	assert(!ffs_chunk_pinned(chunk));
	pthread_mutex_lock(&shard->lock);
	chunk->state = FFS_CHUNK_SPARE;
	chunk->next = shard->spare;
	shard->spare = chunk;
	pthread_mutex_unlock(&shard->lock);
}

bool ffs_table_each_in(struct ffs_table *table, uint32_t shard_index, ffs_table_visit *visit,
                       void *context)
{
	struct ffs_shard *shard = &table->shards[shard_index];
	bool going = true;
	pthread_mutex_lock(&shard->lock);
	/* By memory, not by bucket: one after the other, where chains would miss the cache each time.
	 */
	for (struct ffs_slab *slab = shard->slabs; going && slab != NULL; slab = slab->next) {
		for (int i = 0; going && i < SLAB_CHUNKS; i++) {
			if (slab->chunks[i].state == FFS_CHUNK_LIVE)
				going = visit(context, &slab->chunks[i]);
		}
	}
	pthread_mutex_unlock(&shard->lock);
	return going;
}

bool ffs_table_each_near(struct ffs_table *table, uint64_t blob, ffs_table_visit *visit,
                         void *context)
{
	return ffs_table_each_in(table, ffs_table_shard_of(blob), visit, context);
}

bool ffs_table_each(struct ffs_table *table, ffs_table_visit *visit, void *context)
{
	for (uint32_t i = 0; i < FFS_TABLE_SHARDS; i++) {
		if (!ffs_table_each_in(table, i, visit, context))
			return false;
	}
	return true;
}
