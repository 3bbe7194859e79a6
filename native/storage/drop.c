/*
 * Dropping blobs and freeing their extents: steps in store.h.
 *
 * Between a drop and the reuse of its extents lies the limbo: readers that have a chunk pinned go
 * on, and pages that sendfile has put on a socket's queue may still leave. A punch takes pages out
 * of the file without touching them, which is why every extent is punched before it is reused.
 *
 * A client's mapping may outlive its pin: the daemon was killed, or has ended the connection. The
 * lock that the client holds on the range then keeps the extent here (extents.h), and the slots
 * that are locked when a target is opened come here as well, under the name of no blob.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/disk.h"
#include "storage/store.h"

#define ZERO_ENTRIES_MAX 64u
#define PINNED_RETRY_NS UINT64_C(100000000)

static const uint8_t zeros[ZERO_ENTRIES_MAX * FFS_ENTRY_BYTES];

struct victims {
	const struct ffs_drop *drop;
	struct ffs_limbo *limbo;
	size_t room;
	bool no_memory;
};

static bool wanted(const struct ffs_drop *drop, uint64_t blob)
{
	size_t low = 0;
	size_t high = drop->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (drop->blobs[middle] < blob)
			low = middle + 1;
		else
			high = middle;
	}
	return low < drop->count && drop->blobs[low] == blob;
}

/* Append a chunk; false without memory. `room` is the caller's, 0 at first. */
static bool add_to_limbo(struct ffs_limbo **limbo, size_t *room, struct ffs_chunk *chunk)
{
	size_t count = *limbo == NULL ? 0 : (*limbo)->count;
	if (*limbo == NULL || count == *room) {
		size_t wider = *room == 0 ? 64 : *room * 2;
		struct ffs_limbo *grown =
			ffs_sys_realloc(*limbo, sizeof(struct ffs_limbo) + wider * sizeof(struct ffs_chunk *));
		if (grown == NULL)
			return false;
		*limbo = grown;
		*room = wider;
	}
	(*limbo)->chunks[count] = chunk;
	(*limbo)->count = count + 1;
	return true;
}

static bool add_victim(void *context, struct ffs_chunk *chunk)
{
	struct victims *victims = context;
	if (!wanted(victims->drop, chunk->blob))
		return true;
	victims->no_memory = !add_to_limbo(&victims->limbo, &victims->room, chunk);
	return !victims->no_memory;
}

static int compare_places(const void *left, const void *right)
{
	const struct ffs_chunk *a = *(struct ffs_chunk *const *)left;
	const struct ffs_chunk *b = *(struct ffs_chunk *const *)right;
	if (a->class_index != b->class_index)
		return a->class_index < b->class_index ? -1 : 1;
	return (a->slot > b->slot) - (a->slot < b->slot);
}

/* Visit each shard that has one of the blobs, once. */
static void find_victims(struct ffs_store *store, struct victims *victims)
{
	bool visited[FFS_TABLE_SHARDS] = {false};
	for (size_t i = 0; i < victims->drop->count && !victims->no_memory; i++) {
		uint32_t shard = ffs_table_shard_of(victims->drop->blobs[i]);
		if (!visited[shard])
			(void)ffs_table_each_in(&store->table, shard, add_victim, victims);
		visited[shard] = true;
	}
}

/* How many chunks from `first` on lie in neighbouring slots of one class. */
static size_t run_length(struct ffs_chunk *const *chunks, size_t count, size_t run_max)
{
	size_t run = 1;
	while (run < count && run < run_max && chunks[run]->class_index == chunks[0]->class_index &&
	       chunks[run]->slot == chunks[run - 1]->slot + 1)
		run++;
	return run;
}

static int zero_entries(struct ffs_store *store, const struct ffs_limbo *limbo)
{
	int result = 0;
	for (size_t i = 0; result == 0 && i < limbo->count;) {
		struct ffs_class *class = &store->classes[limbo->chunks[i]->class_index];
		size_t run = run_length(&limbo->chunks[i], limbo->count - i, ZERO_ENTRIES_MAX);
		class->dirty[FFS_FILE_INDEX] = true;
		result = ffs_disk_write(class->fds[FFS_FILE_INDEX], zeros, run * FFS_ENTRY_BYTES,
		                        (uint64_t)limbo->chunks[i]->slot * FFS_ENTRY_BYTES);
		i += run;
	}
	for (uint32_t i = 0; result == 0 && i < FFS_CLASS_COUNT; i++)
		result = ffs_class_sync(&store->classes[i], FFS_FILE_INDEX);
	return result;
}

/* Whoever has one of them pinned for long may be made to let go (locate.c). */
static void tell_if_pinned(struct ffs_store *store, const struct ffs_limbo *limbo)
{
	bool pinned = false;
	for (size_t i = 0; i < limbo->count && !pinned; i++)
		pinned = ffs_chunk_pinned(limbo->chunks[i]);
	pthread_mutex_lock(&store->lock);
	if (pinned && store->on_pinned_drop != NULL)
		store->on_pinned_drop(store->on_stop_context);
	pthread_mutex_unlock(&store->lock);
}

static void enter(struct ffs_store *store, struct ffs_limbo *limbo, uint64_t free_at_ns)
{
	limbo->next = NULL;
	limbo->free_at_ns = free_at_ns;
	*store->limbo_tail = limbo;
	store->limbo_tail = &limbo->next;
}

bool ffs_limbo_enter(struct ffs_store *store, struct ffs_limbo *limbo, uint64_t free_at_ns)
{
	/* Whether the entries are gone from the disk is unknown after a failure: the target stops. */
	bool zeroed = !atomic_load(&store->stopped) && zero_entries(store, limbo) == 0;
	if (!zeroed)
		ffs_store_stop(store);
	enter(store, limbo, free_at_ns);
	tell_if_pinned(store, limbo);
	return zeroed;
}

struct ffs_limbo *ffs_limbo_of(struct ffs_chunk *chunk)
{
	struct ffs_limbo *limbo = ffs_sys_calloc(1, sizeof(*limbo) + sizeof(chunk));
	if (limbo != NULL) {
		limbo->chunks[0] = chunk;
		limbo->count = 1;
	}
	return limbo;
}

void ffs_drop_run(struct ffs_store *store, struct ffs_drop *drop)
{
	struct victims victims = {.drop = drop};
	find_victims(store, &victims);
	struct ffs_limbo *limbo = victims.limbo;
	if (victims.no_memory) {
		free(limbo);
		drop->status = FFS_ERR_BUSY;
		return;
	}
	if (limbo == NULL)
		return;
	qsort(limbo->chunks, limbo->count, sizeof(limbo->chunks[0]), compare_places);
	for (size_t i = 0; i < limbo->count; i++) {
		ffs_table_remove(&store->table, limbo->chunks[i]);
		store->counts.chunks--;
		store->counts.stored_bytes -= limbo->chunks[i]->length;
	}
	size_t count = limbo->count;
	if (ffs_limbo_enter(store, limbo, ffs_monotonic_ns() + store->drop_delay_ns))
		drop->dropped = count;
	else
		drop->status = FFS_ERR_TARGET_STOPPED;
}

/* Whoever had them pinned is gone; did he leave a mapping? Frees a first part of chunks of
 * neighbouring slots; returns how many there were, 0 with `*locked` set if that part is locked. */
static uint32_t free_unlocked(struct ffs_store *store, struct ffs_chunk *const *chunks,
                              uint32_t count, uint32_t *locked)
{
	struct ffs_class *class = &store->classes[chunks[0]->class_index];
	uint32_t free = ffs_class_unlocked(class, chunks[0]->slot, count, locked);
	if (free > 0)
		ffs_class_punch(class, chunks[0]->slot, free);
	for (uint32_t i = 0; i < free; i++) {
		ffs_class_give_back(class, chunks[i]->slot);
		store->counts.allocated_bytes -= ffs_class_bytes(class->class_index);
		ffs_table_release(&store->table, chunks[i]);
	}
	return free;
}

/* Free those that nobody reads any more, keep the others. */
static void reap_one(struct ffs_store *store, struct ffs_limbo *limbo)
{
	size_t kept = 0;
	for (size_t i = 0; i < limbo->count; i++) {
		struct ffs_chunk *chunk = limbo->chunks[i];
		if (ffs_chunk_pinned(chunk)) {
			limbo->chunks[i] = limbo->chunks[kept];
			limbo->chunks[kept++] = chunk;
		}
	}
	/* Locks second: a client locks while it has a pin. */
	size_t ready = limbo->count - kept;
	struct ffs_chunk **chunks = &limbo->chunks[kept];
	if (ready > 0)
		qsort(chunks, ready, sizeof(chunks[0]), compare_places);
	for (size_t i = 0; i < ready;) {
		uint32_t run = (uint32_t)run_length(&chunks[i], ready - i, UINT32_MAX), locked;
		uint32_t freed = free_unlocked(store, &chunks[i], run, &locked);
		if (freed == 0) {
			memmove(&limbo->chunks[kept], &chunks[i], locked * sizeof(chunks[0]));
			kept += locked;
		}
		i += freed > 0 ? freed : locked;
	}
	limbo->count = kept;
}

/* Take a slot whose chunk was dropped before the target was opened; 0 or -ENOMEM. */
static int adopt(struct ffs_store *store, struct ffs_class *class, uint32_t slot,
                 struct victims *victims)
{
	const struct ffs_entry nobody = {.chunk = slot};
	struct ffs_chunk *chunk =
		ffs_table_insert(&store->table, &nobody, class->class_index, slot, FFS_CHUNK_PENDING);
	if (chunk == NULL)
		return -ENOMEM;
	ffs_table_remove(&store->table, chunk);
	ffs_class_mark(class, slot);
	store->counts.allocated_bytes += ffs_class_bytes(class->class_index);
	return add_to_limbo(&victims->limbo, &victims->room, chunk) ? 0 : -ENOMEM;
}

int ffs_limbo_adopt(struct ffs_store *store, struct ffs_class *class)
{
	struct victims victims = {.limbo = NULL};
	int result = 0;
	for (uint32_t slot = 0; result == 0 && slot < class->slots;) {
		uint32_t end = slot, locked;
		while (end < class->slots && !ffs_class_taken(class, end))
			end++;
		uint32_t free = ffs_class_unlocked(class, slot, end - slot, &locked);
		for (uint32_t i = 0; result == 0 && free == 0 && i < locked; i++)
			result = adopt(store, class, slot + i, &victims);
		if (end == slot)
			slot++;
		else
			slot += free > 0 ? free : locked;
	}
	if (victims.limbo != NULL)
		enter(store, victims.limbo, 0);
	return result;
}

uint64_t ffs_limbo_reap(struct ffs_store *store, bool at_once)
{
	/* A stopped target's extents stay as they are. */
	if (store->limbo_head == NULL || atomic_load(&store->stopped))
		return UINT64_MAX;
	uint64_t now = ffs_monotonic_ns();
	uint64_t wait_ns = UINT64_MAX;
	struct ffs_limbo **link = &store->limbo_head;
	while (*link != NULL) {
		struct ffs_limbo *limbo = *link;
		if (!at_once && limbo->free_at_ns > now) {
			uint64_t left = limbo->free_at_ns - now;
			wait_ns = left < wait_ns ? left : wait_ns;
			link = &limbo->next;
			continue;
		}
		reap_one(store, limbo);
		if (limbo->count > 0) {
			wait_ns = wait_ns < PINNED_RETRY_NS ? wait_ns : PINNED_RETRY_NS;
			link = &limbo->next;
			continue;
		}
		*link = limbo->next;
		free(limbo);
	}
	store->limbo_tail = link;
	return wait_ns;
}

static void free_list(struct ffs_limbo *limbo)
{
	while (limbo != NULL) {
		struct ffs_limbo *next = limbo->next;
		free(limbo);
		limbo = next;
	}
}

void ffs_limbo_free(struct ffs_store *store)
{
	free_list(store->limbo_head);
	free_list(store->doubles);
	store->limbo_head = NULL;
	store->doubles = NULL;
}

static int compare_u64(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left;
	uint64_t b = *(const uint64_t *)right;
	return (a > b) - (a < b);
}

uint16_t ffs_store_drop(struct ffs_store *store, const uint64_t *blobs, size_t count,
                        uint64_t *dropped)
{
	*dropped = 0;
	if (count == 0)
		return atomic_load(&store->stopped) ? FFS_ERR_TARGET_STOPPED : FFS_OK;
	uint64_t *sorted = ffs_sys_calloc(count, sizeof(uint64_t));
	if (sorted == NULL)
		return FFS_ERR_BUSY;
	memcpy(sorted, blobs, count * sizeof(uint64_t));
	qsort(sorted, count, sizeof(uint64_t), compare_u64);
	struct ffs_drop drop = {.blobs = sorted, .count = count, .queued_ns = ffs_monotonic_ns()};
	pthread_cond_init(&drop.done, NULL);
	pthread_mutex_lock(&store->lock);
	if (store->closing || atomic_load(&store->stopped)) {
		drop.status = FFS_ERR_TARGET_STOPPED;
	} else {
		struct ffs_drop **link = &store->drops;
		while (*link != NULL)
			link = &(*link)->next;
		*link = &drop;
		pthread_cond_signal(&store->wake);
		while (!drop.finished)
			pthread_cond_wait(&drop.done, &store->lock);
	}
	pthread_mutex_unlock(&store->lock);
	pthread_cond_destroy(&drop.done);
	free(sorted);
	*dropped = drop.dropped;
	return drop.status;
}
