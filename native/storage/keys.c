/*
 * Listing a target's chunks in the order of their names, a page at a time: for replicas that
 * compare what they have, and for scrubbing.
 *
 * The table knows no order, so each page looks at every chunk and keeps the first ones: about 10 ms
 * for a million. Pages are meant to be large. A shard is locked while it is walked, and no longer.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/frame.h"
#include "core/sys.h"
#include "storage/store.h"

void ffs_key_pack(uint8_t out[FFS_KEY_BYTES], const struct ffs_key *key)
{
	ffs_store_u64(out, key->blob);
	ffs_store_u32(out + 8, key->chunk);
	ffs_store_u32(out + 12, key->length);
	ffs_store_u32(out + 16, key->digest);
	ffs_store_u32(out + 20, 0);
}

static int compare_names(const struct ffs_key *a, const struct ffs_key *b)
{
	if (a->blob != b->blob)
		return a->blob < b->blob ? -1 : 1;
	return (a->chunk > b->chunk) - (a->chunk < b->chunk);
}

static int compare_keys(const void *left, const void *right)
{
	return compare_names(left, right);
}

static bool make_room(struct ffs_key_scan *list)
{
	if (list->count < list->room)
		return true;
	size_t room = list->room == 0 ? 256 : list->room * 2;
	struct ffs_key *keys = ffs_sys_realloc(list->keys, room * sizeof(*keys));
	if (keys == NULL)
		return false;
	list->keys = keys;
	list->room = room;
	return true;
}

static bool add_key(void *context, struct ffs_chunk *chunk)
{
	struct ffs_key_scan *list = context;
	struct ffs_key key = {chunk->blob, chunk->chunk, chunk->length, chunk->digest};
	list->visited++;
	if (compare_names(&key, &list->after) <= 0)
		return true;
	if (list->bounded && compare_names(&key, &list->last) > 0)
		return true;
	list->no_memory = !make_room(list);
	if (list->no_memory)
		return false;
	list->keys[list->count++] = key;
	return true;
}

/* Sort, and keep the first `limit`. */
static void trim(struct ffs_key_scan *list)
{
	if (list->count > 0)
		qsort(list->keys, list->count, sizeof(struct ffs_key), compare_keys);
	if (list->count >= list->limit) {
		list->count = list->limit;
		list->last = list->keys[list->limit - 1];
		list->bounded = true;
	}
}

void ffs_key_scan_begin(struct ffs_key_scan *scan, uint64_t after_blob, uint32_t after_chunk,
                        size_t limit)
{
	*scan = (struct ffs_key_scan){
		.limit = limit,
		.after = {.blob = after_blob, .chunk = after_chunk},
	};
}

int ffs_key_scan_step(struct ffs_store *store, struct ffs_key_scan *scan, size_t visits)
{
	scan->visited = 0;
	while (scan->limit > 0 && scan->shard < FFS_TABLE_SHARDS && scan->visited < visits) {
		(void)ffs_table_each_in(&store->table, scan->shard++, add_key, scan);
		if (scan->no_memory)
			return -ENOMEM;
		if (scan->count >= 2 * scan->limit)
			trim(scan);
	}
	if (scan->limit > 0 && scan->shard < FFS_TABLE_SHARDS)
		return 1;
	if (scan->limit > 0)
		trim(scan);
	return 0;
}

void ffs_key_scan_end(struct ffs_key_scan *scan)
{
	free(scan->keys);
	scan->keys = NULL;
}

ssize_t ffs_store_keys(struct ffs_store *store, uint64_t after_blob, uint32_t after_chunk,
                       size_t limit, struct ffs_key **keys)
{
	struct ffs_key_scan scan;
	*keys = NULL;
	ffs_key_scan_begin(&scan, after_blob, after_chunk, limit);
	if (ffs_key_scan_step(store, &scan, SIZE_MAX) != 0) {
		ffs_key_scan_end(&scan);
		return -ENOMEM;
	}
	*keys = scan.keys;
	return (ssize_t)scan.count;
}
