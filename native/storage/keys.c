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

struct key_list {
	struct ffs_key *keys;
	size_t count;
	size_t room;
	struct ffs_key after;
	struct ffs_key last; /* what is beyond this cannot be among the first `limit` */
	bool bounded;
	bool no_memory;
};

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

static bool make_room(struct key_list *list)
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
	struct key_list *list = context;
	struct ffs_key key = {chunk->blob, chunk->chunk, chunk->length, chunk->digest};
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
static void trim(struct key_list *list, size_t limit)
{
	if (list->count > 0)
		qsort(list->keys, list->count, sizeof(struct ffs_key), compare_keys);
	if (list->count >= limit) {
		list->count = limit;
		list->last = list->keys[limit - 1];
		list->bounded = true;
	}
}

ssize_t ffs_store_keys(struct ffs_store *store, uint64_t after_blob, uint32_t after_chunk,
                       size_t limit, struct ffs_key **keys)
{
	struct key_list list = {.after = {.blob = after_blob, .chunk = after_chunk}};
	*keys = NULL;
	for (uint32_t i = 0; limit > 0 && i < FFS_TABLE_SHARDS; i++) {
		(void)ffs_table_each_in(&store->table, i, add_key, &list);
		if (list.no_memory) {
			free(list.keys);
			return -ENOMEM;
		}
		if (list.count >= 2 * limit)
			trim(&list, limit);
	}
	if (limit > 0)
		trim(&list, limit);
	*keys = list.keys;
	return (ssize_t)list.count;
}
