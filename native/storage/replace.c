/*
 * Replacing a chunk whose bytes have gone bad by the same chunk from another replica: store.h tells
 * the steps. This file knows which of two entries for one chunk holds.
 *
 * Previous hop: the writer thread (writer.c) or a target that is being opened (open.c). Next:
 * drop.c, which lets go of the other one.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/sys.h"
#include "storage/disk.h"
#include "storage/store.h"

/* The generation that the disk has for a chunk; -ENODATA if its entry is not what it should be. */
static int load_generation(struct ffs_store *store, const struct ffs_chunk *chunk,
                           uint32_t *generation)
{
	uint8_t bytes[FFS_ENTRY_BYTES];
	struct ffs_entry entry;
	struct ffs_place place = {store->cluster_check, store->superblock.target_id, chunk->class_index,
	                          chunk->slot};
	int result = ffs_disk_read(store->classes[chunk->class_index].fds[FFS_FILE_INDEX], bytes,
	                           sizeof(bytes), (uint64_t)chunk->slot * FFS_ENTRY_BYTES);
	if (result != 0)
		return result;
	if (ffs_entry_unpack(&entry, &place, bytes) != FFS_ENTRY_CHUNK)
		return -ENODATA;
	*generation = entry.generation;
	return 0;
}

uint16_t ffs_replace_prepare(struct ffs_store *store, struct ffs_put *put, struct ffs_chunk *known)
{
	uint32_t generation = 0;
	int result = load_generation(store, known, &generation);
	/* A damaged entry cannot be taken for a chunk when the target is opened: any other holds. */
	if (result != 0 && result != -ENODATA)
		return FFS_ERR_STORAGE_IO;
	if (generation == UINT32_MAX)
		return FFS_ERR_INVALID;
	put->generation = generation + 1;
	put->replaced = ffs_limbo_of(known);
	return put->replaced != NULL ? FFS_OK : FFS_ERR_BUSY;
}

static void uncount(struct ffs_store *store, const struct ffs_chunk *chunk)
{
	store->counts.chunks--;
	store->counts.stored_bytes -= chunk->length;
}

bool ffs_replace_finish(struct ffs_store *store, struct ffs_put *put)
{
	struct ffs_chunk *old = put->replaced->chunks[0];
	ffs_table_swap(&store->table, old, put->entry);
	uncount(store, old);
	return ffs_limbo_enter(store, put->replaced, ffs_monotonic_ns() + store->drop_delay_ns);
}

/* The slot of an entry that does not hold, as if its chunk had been dropped. */
static struct ffs_chunk *take_loser(struct ffs_store *store, const struct ffs_entry *entry,
                                    const struct ffs_place *place)
{
	struct ffs_chunk *chunk =
		ffs_table_insert(&store->table, entry, place->class_index, place->slot, FFS_CHUNK_PENDING);
	if (chunk == NULL)
		return NULL;
	ffs_table_remove(&store->table, chunk);
	store->counts.allocated_bytes += ffs_class_bytes(place->class_index);
	return chunk;
}

int ffs_replace_resolve(struct ffs_store *store, const struct ffs_entry *entry,
                        const struct ffs_place *place, struct ffs_chunk *known, bool *stays)
{
	uint32_t generation;
	int result = load_generation(store, known, &generation);
	if (result != 0)
		return result == -ENODATA ? -EIO : result; /* it was there a moment ago */
	if (generation == entry->generation)
		return -EEXIST;
	*stays = entry->generation > generation;
	struct ffs_chunk *loser = known;
	if (*stays) {
		ffs_table_remove(&store->table, known);
		uncount(store, known);
	} else {
		loser = take_loser(store, entry, place);
	}
	struct ffs_limbo *limbo = loser == NULL ? NULL : ffs_limbo_of(loser);
	if (limbo == NULL)
		return -ENOMEM;
	limbo->next = store->doubles;
	store->doubles = limbo;
	return 0;
}

int ffs_replace_settle(struct ffs_store *store)
{
	bool good = true;
	while (good && store->doubles != NULL) {
		struct ffs_limbo *limbo = store->doubles;
		store->doubles = limbo->next;
		good = ffs_limbo_enter(store, limbo, 0);
	}
	if (good)
		(void)ffs_limbo_reap(store, false);
	return good ? 0 : -EIO;
}
