/*
 * Opening a target: whose it is, what it holds, what is free.
 *
 * The index files are read from start to end once; everything in memory follows from them. Steps:
 *   1. Take the lock file, so that nobody else changes what is read.
 *   2. Read the superblock; refuse what is foreign, newer, damaged, or another target.
 *   3. Read every index. If the target was not closed in order, write it back and sync it (see
 *      store.h), and give the blocks of free extents back that a crash left allocated. Entries
 *      that cannot be true are made unreadable for good.
 *   4. Mark the superblock "in use", start the writer.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/sys.h"
#include "storage/disk.h"
#include "storage/residency.h"
#include "storage/store.h"
#include "storage/superblock.h"

#define SCAN_BYTES (1u << 20)
#define BEYOND UINT32_MAX /* where a damaged entry is that is not there at all */

static int sync_parent(int directory_fd)
{
	int fd = ffs_sys_openat(directory_fd, "..", O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0)
		return -errno;
	int result = ffs_sys_fsync(fd) == 0 ? 0 : -errno;
	(void)ffs_sys_close(fd);
	return result;
}

static int open_directory(struct ffs_store *store, bool create, struct ffs_store_error *error)
{
	bool made = false;
	if (create) {
		made = ffs_sys_mkdir(store->path, 0700) == 0;
		if (!made && errno != EEXIST)
			return ffs_store_system_error(error, -errno, "making", store->path);
	}
	store->directory_fd = ffs_sys_openat(AT_FDCWD, store->path, O_RDONLY | O_DIRECTORY, 0);
	if (store->directory_fd < 0)
		return ffs_store_system_error(error, -errno, "opening", store->path);
	int result = made ? sync_parent(store->directory_fd) : 0;
	if (result != 0)
		return ffs_store_system_error(error, result, "syncing the parent", store->path);
	store->lock_fd = ffs_sys_openat(store->directory_fd, "lock", O_RDWR | O_CREAT, 0600);
	if (store->lock_fd < 0)
		return ffs_store_system_error(error, -errno, "opening the lock", store->path);
	if (ffs_sys_flock(store->lock_fd, LOCK_EX | LOCK_NB) != 0)
		return ffs_store_system_error(error, -errno, "locking", store->path);
	return 0;
}

/*
 * Take a sound entry's magic away, so that it stays damaged: its files may be grown, or the other
 * entry for its chunk dropped, and nothing that was once called lost may come back from that.
 */
static void deface(struct ffs_class *class, uint8_t *bytes)
{
	memset(bytes, 0xFF, sizeof(uint32_t));
	class->dirty[FFS_FILE_INDEX] = true;
}

/* Entries that are damaged. Their places make up what this damage is known by once it is healed. */
static void count_damage(struct ffs_store *store, const struct ffs_class *class, uint32_t slot)
{
	uint8_t place[8];
	for (uint32_t i = 0; i < 4; i++) {
		place[i] = (uint8_t)(class->class_index >> 8 * i);
		place[4 + i] = (uint8_t)(slot >> 8 * i);
	}
	store->counts.damaged_entries++;
	store->damage = ffs_crc32c(store->damage, place, sizeof(place));
	if (store->damage == 0)
		store->damage = 1;
}

/* What one index entry means for the store; `slot` is in the bitmap's reach. */
static int take_entry(struct ffs_store *store, struct ffs_class *class, uint32_t slot,
                      uint8_t *bytes)
{
	struct ffs_entry entry;
	struct ffs_place place = {
		.cluster_check = store->cluster_check,
		.target_id = store->superblock.target_id,
		.class_index = class->class_index,
		.slot = slot,
	};
	enum ffs_entry_kind kind = ffs_entry_unpack(&entry, &place, bytes);
	if (kind == FFS_ENTRY_FREE)
		return 0;
	ffs_class_mark(class, slot);
	struct ffs_chunk *known = NULL;
	bool stays = slot < class->slots;
	int result = stays || kind != FFS_ENTRY_CHUNK ? 0 : -EEXIST;
	if (kind == FFS_ENTRY_CHUNK && stays)
		known = ffs_table_find(&store->table, entry.blob, entry.chunk);
	if (known != NULL)
		result = ffs_replace_resolve(store, &entry, &place, known, &stays);
	/*
	 * Two like entries for one chunk, or one whose bytes the files do not reach, never come from
	 * us: the files were tampered with. The extent is left alone for whoever looks into it.
	 */
	if (result == -EEXIST) {
		deface(class, bytes);
		kind = FFS_ENTRY_DAMAGED;
	} else if (result != 0) {
		return result;
	}
	if (kind == FFS_ENTRY_DAMAGED) {
		count_damage(store, class, slot);
		return 0;
	}
	if (!stays)
		return 0;
	if (ffs_table_insert(&store->table, &entry, class->class_index, slot, FFS_CHUNK_LIVE) == NULL)
		return -ENOMEM;
	store->counts.chunks++;
	store->counts.stored_bytes += entry.length;
	store->counts.allocated_bytes += ffs_class_bytes(class->class_index);
	return 0;
}

static int scan_piece(struct ffs_store *store, struct ffs_class *class, uint32_t first_slot,
                      uint32_t count, uint8_t *buffer)
{
	int fd = class->fds[FFS_FILE_INDEX];
	uint64_t offset = (uint64_t)first_slot * FFS_ENTRY_BYTES;
	size_t length = (size_t)count * FFS_ENTRY_BYTES;
	int result = ffs_disk_read(fd, buffer, length, offset);
	for (uint32_t i = 0; result == 0 && i < count; i++)
		result = take_entry(store, class, first_slot + i, buffer + (size_t)i * FFS_ENTRY_BYTES);
	if (result == 0 && (!store->superblock.clean || class->dirty[FFS_FILE_INDEX])) {
		result = ffs_disk_write(fd, buffer, length, offset);
		class->dirty[FFS_FILE_INDEX] = true;
	}
	return result;
}

/*
 * A class is made with an empty data file, which grows only once there is an index. Bytes without
 * one are chunks that nobody can name any more: that counts as damage, so that a replica which lost
 * its index is not taken for whole. The index is made again with the first chunk of the class.
 */
static int count_lost_index(struct ffs_store *store, const struct ffs_class *class)
{
	struct stat facts;
	int fd = ffs_class_open_to_read(class, store->directory_fd, FFS_FILE_DATA);
	if (fd < 0)
		return fd == -ENOENT ? 0 : fd;
	int result = ffs_sys_fstat(fd, &facts) == 0 ? 0 : -errno;
	(void)ffs_sys_close(fd);
	if (result == 0 && facts.st_size > 0)
		count_damage(store, class, BEYOND);
	return result;
}

/*
 * The same for an index that was cut short. The data file grows before the index does, so a crash
 * may leave it longer, but without bytes there: only what was written counts. A file system that
 * cannot tell says that all of it was.
 */
static void count_cut_index(struct ffs_store *store, const struct ffs_class *class)
{
	uint64_t reach = class->index_slots * ffs_class_stride(class, FFS_FILE_DATA);
	bool beyond = ffs_sys_lseek(class->fds[FFS_FILE_DATA], (off_t)reach, SEEK_DATA) >= 0;
	if (!beyond && errno != ENXIO)
		beyond = class->bytes[FFS_FILE_DATA] > reach;
	if (beyond)
		count_damage(store, class, BEYOND);
}

static int scan_class(struct ffs_store *store, struct ffs_class *class, uint8_t *buffer)
{
	int result = ffs_class_open(class, store->directory_fd, false);
	if (result == -ENOENT)
		return count_lost_index(store, class);
	if (result != 0)
		return result;
	count_cut_index(store, class);
	uint32_t step = SCAN_BYTES / FFS_ENTRY_BYTES;
	for (uint32_t slot = 0; result == 0 && slot < class->index_slots; slot += step) {
		uint32_t left = class->index_slots - slot;
		result = scan_piece(store, class, slot, left < step ? left : step, buffer);
	}
	if (result == 0)
		result = ffs_class_sync(class, FFS_FILE_INDEX);
	if (result == 0)
		result = ffs_limbo_adopt(store, class);
	if (result == 0 && !store->superblock.clean)
		ffs_class_punch_free(class);
	return result;
}

static int scan(struct ffs_store *store, struct ffs_store_error *error)
{
	uint8_t *buffer = ffs_sys_aligned_alloc(4096, SCAN_BYTES);
	int result = buffer == NULL ? -ENOMEM : 0;
	for (uint32_t i = 0; result == 0 && i < FFS_CLASS_COUNT; i++)
		result = scan_class(store, &store->classes[i], buffer);
	free(buffer);
	if (result == 0)
		result = ffs_replace_settle(store);
	if (result != 0)
		return ffs_store_system_error(error, result, "reading the index", store->path);
	return 0;
}

/* A directory without superblock may become a target only if it holds no chunks. */
static int make_superblock(struct ffs_store *store, struct ffs_store_error *error)
{
	for (uint32_t i = 0; i < FFS_CLASS_COUNT; i++) {
		char name[32];
		(void)snprintf(name, sizeof(name), "%u.index", ffs_class_bytes(i));
		int fd = ffs_sys_openat(store->directory_fd, name, O_RDONLY, 0);
		if (fd < 0 && errno == ENOENT)
			continue;
		if (fd < 0)
			return ffs_store_system_error(error, -errno, "looking for chunks", store->path);
		(void)ffs_sys_close(fd);
		error->fault = FFS_STORE_REFUSED;
		(void)snprintf(
			error->text, sizeof(error->text),
			"target directory %s holds %s and no superblock, expected an empty directory",
			store->path, name);
		return -EINVAL;
	}
	return 0;
}

static int check_superblock(struct ffs_store *store, bool create, struct ffs_store_error *error)
{
	struct ffs_superblock found;
	int result = ffs_superblock_read(store->directory_fd, store->path, &found, error);
	if (result == -ENOENT && create)
		return make_superblock(store, error);
	if (result == -ENOENT)
		return ffs_store_system_error(error, result, "looking for the superblock", store->path);
	if (result == 0)
		result = ffs_superblock_match(&found, &store->superblock, store->path, error);
	if (result == 0)
		store->superblock.clean = found.clean;
	return result;
}

static int open_steps(struct ffs_store *store, bool create, struct ffs_store_error *error)
{
	int result = open_directory(store, create, error);
	if (result == 0)
		result = check_superblock(store, create, error);
	if (result == 0)
		result = scan(store, error);
	if (result != 0)
		return result;
	store->superblock.clean = false;
	result = ffs_superblock_write(store->directory_fd, &store->superblock);
	if (result != 0)
		return ffs_store_system_error(error, result, "writing the superblock", store->path);
	result = ffs_writer_start(store);
	if (result != 0)
		return ffs_store_system_error(error, result, "starting the writer", store->path);
	return 0;
}

static struct ffs_store *make_store(const struct ffs_store_options *options)
{
	struct ffs_store *store = ffs_sys_aligned_alloc(64, sizeof(*store));
	if (store == NULL)
		return NULL;
	memset(store, 0, sizeof(*store));
	store->path = ffs_sys_strdup(options->path);
	if (store->path == NULL) {
		free(store);
		return NULL;
	}
	atomic_init(&store->users, 1);
	store->owner = getpid();
	store->directory_fd = -1;
	store->lock_fd = -1;
	store->superblock.format = FFS_STORE_FORMAT;
	store->superblock.target_id = options->target_id;
	memcpy(store->superblock.cluster_id, options->cluster_id, FFS_CLUSTER_ID_BYTES);
	store->cluster_check = ffs_crc32c(0, options->cluster_id, FFS_CLUSTER_ID_BYTES);
	store->drop_delay_ns = options->drop_delay_ms * UINT64_C(1000000);
	store->puts_tail = &store->puts_head;
	store->limbo_tail = &store->limbo_head;
	ffs_table_init(&store->table);
	for (uint32_t i = 0; i < FFS_CLASS_COUNT; i++) {
		ffs_class_init(&store->classes[i], i);
		store->classes[i].means = (uint8_t)ffs_residency_first_means();
	}
	pthread_condattr_t monotonic;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&store->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_mutex_init(&store->lock, NULL);
	return store;
}

struct ffs_store *ffs_store_open(const struct ffs_store_options *options,
                                 struct ffs_store_error *error)
{
	memset(error, 0, sizeof(*error));
	struct ffs_store *store = make_store(options);
	if (store == NULL) {
		(void)ffs_store_system_error(error, -ENOMEM, "opening", options->path);
		return NULL;
	}
	if (open_steps(store, options->create, error) == 0)
		return store;
	ffs_store_unref(store);
	return NULL;
}
