/*
 * The writer thread of a target: group commit of chunks (steps in store.h), drops, freeing.
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
 * Copies: none; chunks go from where they were received to the page cache by pwritev.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "core/sys.h"
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

uint64_t ffs_monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static void complete(struct ffs_put *put, uint16_t status)
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
		complete(put, FFS_ERR_TARGET_STOPPED);
		return true;
	}
	if (known != NULL && !put->replaces) {
		bool same = known->length == entry.length && known->digest == entry.digest;
		complete(put, same ? FFS_OK : FFS_ERR_CHUNK_CONFLICT);
		return true;
	}
	uint16_t status = known != NULL ? ffs_replace_prepare(store, put, known) : FFS_OK;
	if (status == FFS_OK)
		status = take_slot(store, put, &entry);
	if (status != FFS_OK) {
		free(put->replaced);
		complete(put, status);
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
	complete(put, status);
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

/* Sync one kind of file; what is on disk is unknown after a failure: the target stops. */
static bool seal(struct ffs_store *store, enum ffs_class_file file)
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
	complete(put, done ? FFS_OK : FFS_ERR_TARGET_STOPPED);
}

/* Steps 4 and 5 of the open batch, if there is one. */
static void finish_open(struct ffs_store *store)
{
	struct ffs_batch *batch = &store->batches[store->open_batch];
	bool good = batch->count > 0 && batch->sealed && write_batch(store, batch, write_entries) &&
	            seal(store, FFS_FILE_INDEX);
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
	finish_open(store);
	batch->sealed = written && seal(store, FFS_FILE_DATA) && seal(store, FFS_FILE_CRC);
	store->open_batch ^= 1;
}

/* Work off what the writer has taken from the queue. */
static void run_puts(struct ffs_store *store)
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
			finish_open(store);
	}
}

static void finish_drop(struct ffs_store *store, struct ffs_drop *drop)
{
	if (atomic_load(&store->stopped))
		drop->status = FFS_ERR_TARGET_STOPPED;
	else
		ffs_drop_run(store, drop);
	pthread_mutex_lock(&store->lock);
	drop->finished = true;
	pthread_cond_signal(&drop->done);
	pthread_mutex_unlock(&store->lock);
}

/* Wait, with the lock held, until there is something to do or `wait_ns` are over. */
static void wait_for_work(struct ffs_store *store, uint64_t wait_ns)
{
	if (wait_ns == UINT64_MAX) {
		pthread_cond_wait(&store->wake, &store->lock);
		return;
	}
	uint64_t until = ffs_monotonic_ns() + wait_ns;
	struct timespec time = {
		.tv_sec = (time_t)(until / UINT64_C(1000000000)),
		.tv_nsec = (long)(until % UINT64_C(1000000000)),
	};
	pthread_cond_timedwait(&store->wake, &store->lock, &time);
}

/*
 * Take as many puts as a batch has room for, with the lock held: what is still queued can be
 * answered although the disk hangs.
 */
static void take_puts(struct ffs_store *store)
{
	struct ffs_put **end = &store->puts_head;
	uint64_t bytes = 0;
	for (int count = 0; *end != NULL && count < FFS_BATCH_PUTS_MAX && bytes < FFS_BATCH_BYTES_MAX;
	     count++) {
		bytes += (*end)->length;
		end = &(*end)->next;
	}
	store->taken = store->puts_head;
	store->puts_head = *end;
	*end = NULL;
	if (store->puts_head == NULL)
		store->puts_tail = &store->puts_head;
}

/* Take the first drop unless a put is older; with the lock held, after `take_puts`. */
static struct ffs_drop *take_drop(struct ffs_store *store)
{
	struct ffs_drop *drop = store->drops;
	if (drop == NULL ||
	    (store->puts_head != NULL && store->puts_head->queued_ns <= drop->queued_ns))
		return NULL;
	store->drops = drop->next;
	return drop;
}

/* When the oldest of what the writer has was queued. */
static uint64_t queued_first(const struct ffs_store *store, const struct ffs_drop *drop)
{
	const struct ffs_batch *open = &store->batches[store->open_batch];
	if (open->count > 0)
		return open->since_ns;
	if (store->taken != NULL)
		return store->taken->queued_ns;
	return drop != NULL ? drop->queued_ns : ffs_monotonic_ns();
}

static void *writer_main(void *argument)
{
	struct ffs_store *store = argument;
	uint64_t wait_ns = UINT64_MAX;
	pthread_mutex_lock(&store->lock);
	for (;;) {
		bool open = store->batches[store->open_batch].count > 0;
		if (store->puts_head == NULL && store->drops == NULL && !open) {
			if (store->closing)
				break;
			wait_for_work(store, wait_ns);
		}
		take_puts(store);
		struct ffs_drop *drop = take_drop(store);
		store->working_since_ns = queued_first(store, drop);
		bool last = store->taken == NULL || drop != NULL;
		pthread_mutex_unlock(&store->lock);
		run_puts(store);
		if (last)
			finish_open(store);
		if (drop != NULL)
			finish_drop(store, drop);
		wait_ns = ffs_limbo_reap(store, false);
		pthread_mutex_lock(&store->lock);
		store->working_since_ns = 0;
	}
	pthread_mutex_unlock(&store->lock);
	(void)ffs_limbo_reap(store, true);
	/* A target marked clean is not searched for lost space again: the punches must be on disk. */
	if (!atomic_load(&store->stopped))
		(void)seal(store, FFS_FILE_DATA);
	return NULL;
}

int ffs_writer_start(struct ffs_store *store)
{
	/* Signals are for the interpreter's main thread. */
	sigset_t all;
	sigset_t before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int result = ffs_sys_thread(&store->writer, writer_main, store);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	store->writer_running = result == 0;
	return -result;
}

void ffs_writer_stop(struct ffs_store *store)
{
	if (!store->writer_running)
		return;
	pthread_mutex_lock(&store->lock);
	store->closing = true;
	pthread_cond_signal(&store->wake);
	pthread_mutex_unlock(&store->lock);
	pthread_join(store->writer, NULL);
	store->writer_running = false;
}

static void enqueue(struct ffs_store *store, struct ffs_put *puts, size_t count, bool replaces)
{
	uint64_t now = ffs_monotonic_ns();
	pthread_mutex_lock(&store->lock);
	/* Its writer may never come to it, and would refuse it. */
	bool refused = store->closing || atomic_load(&store->stopped);
	for (size_t i = 0; i < count; i++) {
		struct ffs_put *put = &puts[i];
		put->next = NULL;
		put->queued_ns = now;
		put->entry = NULL;
		put->replaced = NULL;
		put->generation = 0;
		put->replaces = replaces;
		if (!refused) {
			*store->puts_tail = put;
			store->puts_tail = &put->next;
		}
	}
	if (!refused)
		pthread_cond_signal(&store->wake);
	pthread_mutex_unlock(&store->lock);
	for (size_t i = 0; refused && i < count; i++)
		complete(&puts[i], FFS_ERR_TARGET_STOPPED);
}

void ffs_store_put(struct ffs_store *store, struct ffs_put *put)
{
	enqueue(store, put, 1, false);
}

void ffs_store_put_all(struct ffs_store *store, struct ffs_put *puts, size_t count)
{
	enqueue(store, puts, count, false);
}

void ffs_store_replace(struct ffs_store *store, struct ffs_put *put)
{
	enqueue(store, put, 1, true);
}

uint64_t ffs_store_waiting_ns(struct ffs_store *store)
{
	uint64_t now = ffs_monotonic_ns();
	pthread_mutex_lock(&store->lock);
	uint64_t since = store->working_since_ns;
	pthread_mutex_unlock(&store->lock);
	return since == 0 || since > now ? 0 : now - since;
}

void ffs_store_give_up(struct ffs_store *store)
{
	ffs_store_stop(store);
	pthread_mutex_lock(&store->lock);
	struct ffs_put *puts = store->puts_head;
	store->puts_head = NULL;
	store->puts_tail = &store->puts_head;
	while (store->drops != NULL) {
		struct ffs_drop *drop = store->drops;
		store->drops = drop->next; /* before its owner may be gone */
		drop->status = FFS_ERR_TARGET_STOPPED;
		drop->finished = true;
		pthread_cond_signal(&drop->done);
	}
	pthread_mutex_unlock(&store->lock);
	while (puts != NULL) {
		struct ffs_put *next = puts->next;
		complete(puts, FFS_ERR_TARGET_STOPPED);
		puts = next;
	}
}
