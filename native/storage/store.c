/*
 * The front of a target: finding ranges for readers, listing, stopping, closing. store.h tells the
 * protocol; open.c makes a store, writer.c and drop.c change it.
 *
 * Previous hop of the read path: reply.c. Next: the extent and CRC files that a found range names.
 */
#include "storage/store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/superblock.h"

bool ffs_store_listen(struct ffs_store *store, void (*on_stop)(void *, uint32_t),
                      void (*on_pinned_drop)(void *), void *context)
{
	pthread_mutex_lock(&store->lock);
	bool taken = store->on_stop != NULL && store->on_stop_context != context;
	if (!taken) {
		store->on_stop = on_stop;
		store->on_pinned_drop = on_pinned_drop;
		store->on_stop_context = context;
	}
	pthread_mutex_unlock(&store->lock);
	return !taken;
}

void ffs_store_unlisten(struct ffs_store *store, void *context)
{
	pthread_mutex_lock(&store->lock);
	if (store->on_stop_context == context)
		store->on_stop = NULL, store->on_pinned_drop = NULL;
	pthread_mutex_unlock(&store->lock);
}

void ffs_store_stop(struct ffs_store *store)
{
	if (atomic_exchange(&store->stopped, true))
		return;
	/* Called with the lock held, so that after unlisten nobody is called any more. */
	pthread_mutex_lock(&store->lock);
	if (store->on_stop != NULL)
		store->on_stop(store->on_stop_context, store->superblock.target_id);
	pthread_mutex_unlock(&store->lock);
}

uint16_t ffs_store_failed(struct ffs_store *store, int error)
{
	if (error == -ENOSPC || error == -EDQUOT || error == -EFBIG)
		return FFS_ERR_NO_SPACE;
	/* Memory and descriptors come back; the disk is not to blame. */
	if (error == -ENOMEM || error == -EMFILE || error == -ENFILE)
		return FFS_ERR_BUSY;
	ffs_store_stop(store);
	return FFS_ERR_TARGET_STOPPED;
}

void ffs_store_ref(struct ffs_store *store)
{
	atomic_fetch_add_explicit(&store->users, 1, memory_order_relaxed);
}

void ffs_store_unref(struct ffs_store *store)
{
	if (atomic_fetch_sub_explicit(&store->users, 1, memory_order_acq_rel) != 1)
		return;
	for (uint32_t i = 0; i < FFS_CLASS_COUNT; i++)
		ffs_class_fini(&store->classes[i]);
	if (store->lock_fd >= 0)
		(void)ffs_sys_close(store->lock_fd);
	if (store->directory_fd >= 0)
		(void)ffs_sys_close(store->directory_fd);
	ffs_limbo_free(store);
	ffs_table_fini(&store->table);
	pthread_mutex_destroy(&store->lock);
	pthread_cond_destroy(&store->wake);
	free(store->path);
	free(store);
}

void ffs_store_close(struct ffs_store *store)
{
	/* A forked child inherits neither the thread nor the right to touch the files. */
	if (store->owner != getpid() || atomic_exchange(&store->closed, true))
		return;
	ffs_writer_stop(store);
	if (!atomic_load(&store->stopped) && store->limbo_head == NULL) {
		store->superblock.clean = true;
		(void)ffs_superblock_write(store->directory_fd, &store->superblock);
	}
	/* Closing ours would leave the lock to a forked child that has the descriptor too. */
	(void)ffs_sys_flock(store->lock_fd, LOCK_UN);
	(void)ffs_sys_close(store->lock_fd);
	store->lock_fd = -1;
}

uint16_t ffs_store_find(struct ffs_store *store, uint64_t blob, uint32_t chunk_index,
                        uint32_t offset, uint32_t length, bool with_crcs, struct ffs_range *range)
{
	if (atomic_load_explicit(&store->stopped, memory_order_relaxed) ||
	    atomic_load_explicit(&store->closed, memory_order_relaxed))
		return FFS_ERR_TARGET_STOPPED;
	struct ffs_chunk *chunk = ffs_table_pin(&store->table, blob, chunk_index);
	if (chunk == NULL)
		return FFS_ERR_CHUNK_MISSING;
	if (offset > chunk->length || length > chunk->length - offset) {
		ffs_chunk_unpin(chunk);
		return FFS_ERR_CHUNK_LENGTH;
	}
	struct ffs_class *class = &store->classes[chunk->class_index];
	uint32_t start = offset;
	uint32_t end = offset + length;
	range->crc_blocks = 0;
	range->crc_offset = 0;
	if (with_crcs && length > 0) {
		start -= start % FFS_BLOCK_BYTES;
		uint32_t last = (end - 1) / FFS_BLOCK_BYTES + 1; /* 64 MiB at most: no overflow below */
		end = last * FFS_BLOCK_BYTES < chunk->length ? last * FFS_BLOCK_BYTES : chunk->length;
		range->crc_blocks = last - start / FFS_BLOCK_BYTES;
		range->crc_offset = chunk->slot * ffs_class_stride(class, FFS_FILE_CRC) +
		                    start / FFS_BLOCK_BYTES * sizeof(uint32_t);
	}
	range->chunk = chunk;
	range->class = class;
	range->data_fd = class->fds[FFS_FILE_DATA];
	range->crc_fd = class->fds[FFS_FILE_CRC];
	range->data_offset = chunk->slot * ffs_class_stride(class, FFS_FILE_DATA) + start;
	range->bytes = end - start;
	return FFS_OK;
}

void ffs_store_release(struct ffs_range *range)
{
	if (range->chunk != NULL)
		ffs_chunk_unpin(range->chunk);
	range->chunk = NULL;
}

/* ------------------------------------------------------------------------------------- listings */

struct blob_list {
	uint64_t *blobs;
	size_t count;
	size_t room;
	size_t limit;
	uint64_t after;
	uint64_t below; /* what is not below this cannot be among the first `limit` */
	bool no_memory;
};

static int compare_u64(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left;
	uint64_t b = *(const uint64_t *)right;
	return (a > b) - (a < b);
}

/* Sort, drop duplicates, keep the first `limit`. */
static void tidy_blobs(struct blob_list *list)
{
	size_t kept = 0;
	if (list->count > 0)
		qsort(list->blobs, list->count, sizeof(uint64_t), compare_u64);
	for (size_t i = 0; i < list->count; i++) {
		if (kept == 0 || list->blobs[kept - 1] != list->blobs[i])
			list->blobs[kept++] = list->blobs[i];
	}
	list->count = kept;
	if (kept > list->limit) {
		list->count = list->limit;
		list->below = list->blobs[list->limit - 1];
	}
}

static bool add_blob(void *context, struct ffs_chunk *chunk)
{
	struct blob_list *list = context;
	if (chunk->blob <= list->after || chunk->blob >= list->below)
		return true;
	if (list->count == list->room && list->room >= 2 * list->limit)
		tidy_blobs(list);
	if (list->count == list->room) {
		size_t room = list->room == 0 ? 64 : list->room * 2;
		uint64_t *blobs = ffs_sys_realloc(list->blobs, room * sizeof(uint64_t));
		if (blobs == NULL) {
			list->no_memory = true;
			return false;
		}
		list->blobs = blobs;
		list->room = room;
	}
	list->blobs[list->count++] = chunk->blob;
	return true;
}

ssize_t ffs_store_blobs(struct ffs_store *store, uint64_t after, size_t limit, uint64_t **blobs)
{
	struct blob_list list = {.limit = limit, .after = after, .below = UINT64_MAX};
	*blobs = NULL;
	if (limit == 0)
		return 0;
	(void)ffs_table_each(&store->table, add_blob, &list);
	if (list.no_memory) {
		free(list.blobs);
		return -ENOMEM;
	}
	tidy_blobs(&list);
	*blobs = list.blobs;
	return (ssize_t)list.count;
}

struct chunk_list {
	struct ffs_chunk_name *chunks;
	size_t count;
	size_t room;
	uint64_t blob;
	bool no_memory;
};

static int compare_chunks(const void *left, const void *right)
{
	const struct ffs_chunk_name *a = left;
	const struct ffs_chunk_name *b = right;
	return (a->chunk > b->chunk) - (a->chunk < b->chunk);
}

static bool add_chunk(void *context, struct ffs_chunk *chunk)
{
	struct chunk_list *list = context;
	if (chunk->blob != list->blob)
		return true;
	if (list->count == list->room) {
		size_t room = list->room == 0 ? 16 : list->room * 2;
		struct ffs_chunk_name *chunks =
			ffs_sys_realloc(list->chunks, room * sizeof(struct ffs_chunk_name));
		if (chunks == NULL) {
			list->no_memory = true;
			return false;
		}
		list->chunks = chunks;
		list->room = room;
	}
	list->chunks[list->count++] =
		(struct ffs_chunk_name){.chunk = chunk->chunk, .length = chunk->length};
	return true;
}

ssize_t ffs_store_chunks(struct ffs_store *store, uint64_t blob, struct ffs_chunk_name **chunks)
{
	struct chunk_list list = {.blob = blob};
	(void)ffs_table_each_near(&store->table, blob, add_chunk, &list);
	*chunks = list.chunks;
	if (list.no_memory) {
		free(list.chunks);
		*chunks = NULL;
		return -ENOMEM;
	}
	if (list.count > 0)
		qsort(list.chunks, list.count, sizeof(list.chunks[0]), compare_chunks);
	return (ssize_t)list.count;
}
