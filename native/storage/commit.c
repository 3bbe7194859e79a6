/*
 * Group commit of chunks, on the writer thread of a target: the five steps of store.h.
 *
 * A batch is what has been queued while the last one was being synced, so waiting is never added
 * and the cost of three syncs is shared by as many as there are. Batches end before a chunk that is
 * already in them: what it has to be compared with is not durable yet.
 *
 * The disk goes on while an index is synced: a batch whose bytes are on disk stays *open*, without
 * its entries, until the next one's bytes are on their way; with nothing queued it is finished at
 * once. So each batch still takes its five steps in order, and whatever else the writer does
 * (drops, a chunk that is in the open batch) comes after the open batch.
 *
 * Previous hop: writer.c. Next hops: extents, table, disk.
 * Copies: none; chunks go from where they were received to the page cache by pwritev.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "storage/disk.h"
#include "storage/store.h"

#define RUN_PUTS_MAX 32
#define WRITE_BACK_BYTES_MIN (1u << 20)

static const uint8_t zeros[FFS_BLOCK_BYTES];
_Static_assert(RUN_PUTS_MAX *FFS_ENTRY_BYTES <= sizeof(zeros), "entries are zeroed in one write");

/* Neighbouring slots of one class, written by one call. */
struct run {
	struct ffs_class *class;
	struct ffs_put **puts;
	int count;
};

void ffs_put_complete(struct ffs_put *put, uint16_t status)
{
	put->status = status;
	put->entry = NULL;
	put->replaced = NULL;
	put->done(put);
}

/* Take a slot for a chunk that is not here yet. */
static uint16_t take_slot(struct ffs_store *store, struct ffs_put *put,
                          const struct ffs_entry *entry)
{
	struct ffs_class *class = &store->classes[ffs_class_for(entry->length)];
	uint32_t slot = 0;
	int result = 0;
	if (class->fds[FFS_FILE_INDEX] < 0)
		result = ffs_class_open(class, store->directory_fd, true);
	if (result == 0)
		result = ffs_class_take(class, &slot);
	if (result != 0)
		return ffs_store_failed(store, result);
	put->entry =
		ffs_table_insert(&store->table, entry, class->class_index, slot, FFS_CHUNK_PENDING);
	if (put->entry == NULL) {
		ffs_class_give_back(class, slot);
		return FFS_ERR_BUSY;
	}
	return FFS_OK;
}

/* Add a chunk to the batch or answer it at once; false if the batch must be committed before. */
static bool admit(struct ffs_store *store, struct ffs_batch *batch, struct ffs_put *put)
{
	struct ffs_entry entry = {
		.blob = put->blob,
		.chunk = put->chunk,
		.length = put->length,
		.digest = ffs_crc32c(0, put->crcs, ffs_block_count(put->length) * sizeof(uint32_t)),
	};
	struct ffs_chunk *known = ffs_table_find(&store->table, put->blob, put->chunk);
	if (known != NULL && known->state == FFS_CHUNK_PENDING)
		return false;
	store->taken = put->next;
	if (atomic_load(&store->stopped)) {
		ffs_put_complete(put, FFS_ERR_TARGET_STOPPED);
		return true;
	}
	if (known != NULL && !put->replaces) {
		bool same = known->length == entry.length && known->digest == entry.digest;
		ffs_put_complete(put, same ? FFS_OK : FFS_ERR_CHUNK_CONFLICT);
		return true;
	}
	uint16_t status = known != NULL ? ffs_replace_prepare(store, put, known) : FFS_OK;
	if (status == FFS_OK)
		status = take_slot(store, put, &entry);
	if (status != FFS_OK) {
		free(put->replaced);
		ffs_put_complete(put, status);
		return true;
	}
	batch->puts[batch->count++] = put;
	batch->bytes += put->length;
	return true;
}

/* Take a chunk back out of the batch: its slot is free again, its blocks return to the disk. */
static void withdraw(struct ffs_store *store, struct ffs_put *put, uint16_t status)
{
	struct ffs_chunk *entry = put->entry;
	struct ffs_class *class = &store->classes[entry->class_index];
	ffs_table_remove(&store->table, entry);
	/* After a disk error nothing is known about the slot: it stays taken, and nothing is written.
	 */
	if (!atomic_load(&store->stopped)) {
		ffs_class_punch(class, entry->slot, 1);
		ffs_class_give_back(class, entry->slot);
	}
	ffs_table_release(&store->table, entry);
	free(put->replaced);
	ffs_put_complete(put, status);
}

static int compare_places(const void *left, const void *right)
{
	const struct ffs_chunk *a = (*(struct ffs_put *const *)left)->entry;
	const struct ffs_chunk *b = (*(struct ffs_put *const *)right)->entry;
	if (a->class_index != b->class_index)
		return a->class_index < b->class_index ? -1 : 1;
	return (a->slot > b->slot) - (a->slot < b->slot);
}

/* Padding of a chunk's last block; a run goes on only where nothing but that has to be padded. */
static uint32_t padding(const struct ffs_put *put)
{
	return ffs_class_bytes(put->entry->class_index) - put->length;
}

static struct run next_run(struct ffs_store *store, struct ffs_batch *batch, int first)
{
	struct ffs_put **puts = &batch->puts[first];
	int count = 1;
	while (count < RUN_PUTS_MAX && first + count < batch->count &&
	       puts[count]->entry->class_index == puts[0]->entry->class_index &&
	       puts[count]->entry->slot == puts[count - 1]->entry->slot + 1 &&
	       padding(puts[count - 1]) < FFS_BLOCK_BYTES)
		count++;
	return (struct run){
		.class = &store->classes[puts[0]->entry->class_index],
		.puts = puts,
		.count = count,
	};
}

/* Step 2: bytes and CRCs of a run, each by one call. */
static int write_bytes(struct ffs_store *store, const struct run *run)
{
	(void)store;
	struct iovec parts[2 * RUN_PUTS_MAX];
	struct ffs_class *class = run->class;
	uint32_t slot = run->puts[0]->entry->slot;
	int used = 0;
	uint64_t bytes = 0;
	for (int i = 0; i < run->count; i++) {
		struct ffs_put *put = run->puts[i];
		uint32_t pad = padding(put);
		parts[used++] = (struct iovec){(void *)(uintptr_t)put->data, put->length};
		bytes += put->length;
		if (pad > 0 && i + 1 < run->count) {
			parts[used++] = (struct iovec){(void *)(uintptr_t)zeros, pad};
			bytes += pad;
		}
	}
	uint64_t offset = slot * ffs_class_stride(class, FFS_FILE_DATA);
	class->dirty[FFS_FILE_DATA] = true;
	int result = ffs_disk_writev(class->fds[FFS_FILE_DATA], parts, used, offset);
	if (result != 0)
		return result;
	if (bytes >= WRITE_BACK_BYTES_MIN)
		ffs_disk_write_back(class->fds[FFS_FILE_DATA], offset, bytes);
	/* Within a run all but the last chunk fill their blocks, so their CRCs lie back to back. */
	for (int i = 0; i < run->count; i++) {
		const struct ffs_put *put = run->puts[i];
		parts[i] = (struct iovec){(void *)(uintptr_t)put->crcs,
		                          ffs_block_count(put->length) * sizeof(uint32_t)};
	}
	class->dirty[FFS_FILE_CRC] = true;
	return ffs_disk_writev(class->fds[FFS_FILE_CRC], parts, run->count,
	                       slot * ffs_class_stride(class, FFS_FILE_CRC));
}

/* Step 4: the entries of a run. */
static int write_entries(struct ffs_store *store, const struct run *run)
{
	uint8_t bytes[RUN_PUTS_MAX * FFS_ENTRY_BYTES];
	struct ffs_class *class = run->class;
	for (int i = 0; i < run->count; i++) {
		const struct ffs_chunk *chunk = run->puts[i]->entry;
		struct ffs_entry entry = {chunk->blob, chunk->chunk, chunk->length, chunk->digest,
		                          run->puts[i]->generation};
		struct ffs_place place = {store->cluster_check, store->superblock.target_id,
		                          class->class_index, chunk->slot};
		ffs_entry_pack(bytes + (size_t)i * FFS_ENTRY_BYTES, &entry, &place);
	}
	class->dirty[FFS_FILE_INDEX] = true;
	int fd = class->fds[FFS_FILE_INDEX];
	size_t length = (size_t)run->count * FFS_ENTRY_BYTES;
	uint64_t offset = (uint64_t)run->puts[0]->entry->slot * FFS_ENTRY_BYTES;
	int result = ffs_disk_write(fd, bytes, length, offset);
	/*
	 * File systems that never write in place can be too full even here: absent it is, then, and
	 * on disk, before the slot is punched and free again.
	 */
	if ((result == -ENOSPC || result == -EDQUOT) &&
	    (ffs_disk_write(fd, zeros, length, offset) != 0 || ffs_disk_sync(fd) != 0))
		return -EIO;
	return result;
}

/*
 * Write something for all runs; those that a full disk refuses leave the batch. False: the target
 * is stopped.
 */
static bool write_batch(struct ffs_store *store, struct ffs_batch *batch,
                        int (*write_run)(struct ffs_store *, const struct run *))
{
	int kept = 0;
	for (int first = 0; first < batch->count;) {
		struct run run = next_run(store, batch, first);
		first += run.count;
		uint16_t status = FFS_ERR_TARGET_STOPPED;
		if (!atomic_load(&store->stopped)) {
			int result = write_run(store, &run);
			status = result == 0 ? FFS_OK : ffs_store_failed(store, result);
		}
		for (int i = 0; i < run.count; i++) {
			if (status == FFS_ERR_NO_SPACE || status == FFS_ERR_BUSY)
				withdraw(store, run.puts[i], status);
			else
				batch->puts[kept++] = run.puts[i];
		}
	}
	batch->count = kept;
	return !atomic_load(&store->stopped);
}

static int sync_all(struct ffs_store *store, enum ffs_class_file file)
{
	for (uint32_t i = 0; i < FFS_CLASS_COUNT; i++) {
		int result = ffs_class_sync(&store->classes[i], file);
		if (result != 0)
			return result;
	}
	return 0;
}

bool ffs_commit_seal(struct ffs_store *store, enum ffs_class_file file)
{
	if (sync_all(store, file) == 0)
		return true;
	ffs_store_stop(store);
	return false;
}

/* Have the disk begin with checksums while it still writes bytes, so that their sync finds less to
 * do. Not worth a call for a few. */
static void write_back_crcs(struct ffs_store *store, const struct ffs_batch *batch)
{
	for (uint32_t i = 0; i < FFS_CLASS_COUNT && batch->bytes >= WRITE_BACK_BYTES_MIN; i++) {
		struct ffs_class *class = &store->classes[i];
		if (class->dirty[FFS_FILE_CRC])
			ffs_disk_write_back(class->fds[FFS_FILE_CRC], 0, 0);
	}
}

static void publish(struct ffs_store *store, struct ffs_put *put)
{
	store->counts.chunks++;
	store->counts.stored_bytes += put->length;
	store->counts.allocated_bytes += ffs_class_bytes(put->entry->class_index);
	bool done = true;
	if (put->replaced != NULL)
		done = ffs_replace_finish(store, put);
	else
		ffs_table_publish(&store->table, put->entry);
	ffs_put_complete(put, done ? FFS_OK : FFS_ERR_TARGET_STOPPED);
}

void ffs_commit_open(struct ffs_store *store)
{
	struct ffs_batch *batch = &store->batches[store->open_batch];
	bool good = batch->count > 0 && batch->sealed && write_batch(store, batch, write_entries) &&
	            ffs_commit_seal(store, FFS_FILE_INDEX);
	if (good)
		ffs_latency_add(&store->commits, ffs_monotonic_ns() - batch->since_ns,
		                (uint64_t)batch->count);
	for (int i = 0; i < batch->count; i++) {
		if (good)
			publish(store, batch->puts[i]);
		else
			withdraw(store, batch->puts[i], FFS_ERR_TARGET_STOPPED);
	}
	batch->count = 0;
}

/* Steps 2 and 3 of a batch, with those that the open one still lacks in between; then it is the
 * open one. */
static void commit(struct ffs_store *store, struct ffs_batch *batch)
{
	qsort(batch->puts, (size_t)batch->count, sizeof(batch->puts[0]), compare_places);
	bool written = write_batch(store, batch, write_bytes);
	write_back_crcs(store, batch);
	ffs_commit_open(store);
	batch->sealed =
		written && ffs_commit_seal(store, FFS_FILE_DATA) && ffs_commit_seal(store, FFS_FILE_CRC);
	store->open_batch ^= 1;
}

void ffs_commit_puts(struct ffs_store *store)
{
	while (store->taken != NULL) {
		struct ffs_batch *batch = &store->batches[store->open_batch ^ 1];
		batch->count = 0;
		batch->bytes = 0;
		batch->since_ns = store->taken->queued_ns;
		while (store->taken != NULL && batch->count < FFS_BATCH_PUTS_MAX &&
		       batch->bytes < FFS_BATCH_BYTES_MAX && admit(store, batch, store->taken)) {
		}
		if (batch->count > 0)
			commit(store, batch);
		else if (store->taken != NULL) /* it is in the open batch */
			ffs_commit_open(store);
	}
}
