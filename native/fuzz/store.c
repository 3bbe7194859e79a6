/*
 * Target `store`: opening a target directory whose files hold whatever they like.
 *
 * Input: which size class, slots of the data and CRC files, a byte unused; a superblock; the
 * class's index. Promised: it is refused with words, or opens; then every chunk that it lists lies
 * inside its files and can be read, a new chunk can be stored, and after closing and opening again
 * the same chunks and the new one are there.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "fuzz/fuzz.h"
#include "storage/disk.h"
#include "storage/store.h"

#define SCRIPT_BYTES 4u
#define INDEX_AT (SCRIPT_BYTES + FFS_SUPERBLOCK_BYTES)
#define CRC_AT 60u
#define TARGET 3u
#define NEW_BLOB UINT64_C(0xFFFFFFFFFFFFFFFE)
#define LISTED_MAX 4096u

enum {
	FLAG_REOPEN = 1,
	FLAG_PUT = 2,
};

static const uint32_t classes[] = {0, 1, 3, 8};
static const uint8_t cluster_id[FFS_CLUSTER_ID_BYTES]; /* zeros */

static uint32_t class_of(const uint8_t *data)
{
	return classes[data[0] % (sizeof(classes) / sizeof(classes[0]))];
}

/* The parts of an entry that are no secret: where it stands. */
static void fix_entry(uint8_t *bytes, uint32_t class_index, uint32_t slot)
{
	static const uint8_t zeros[FFS_ENTRY_BYTES];
	struct ffs_place place = {.cluster_check = ffs_crc32c(0, cluster_id, sizeof(cluster_id)),
	                          .target_id = TARGET,
	                          .class_index = class_index,
	                          .slot = slot};
	struct ffs_entry any = {.blob = 1, .length = 1};
	uint8_t packed[FFS_ENTRY_BYTES];
	if (memcmp(bytes, zeros, sizeof(zeros)) == 0)
		return; /* a free slot stays one */
	ffs_entry_pack(packed, &any, &place);
	memcpy(bytes, packed, 8);
	memcpy(bytes + 28, packed + 28, 12);
	ffs_store_u32(bytes + CRC_AT, ffs_crc32c(0, bytes, CRC_AT));
}

void ffs_fuzz_fix(uint8_t *data, size_t size)
{
	if (size < INDEX_AT)
		return;
	struct ffs_superblock block = {.target_id = TARGET,
	                               .format = FFS_STORE_FORMAT,
	                               .clean = (data[SCRIPT_BYTES + 32] & 1) != 0};
	ffs_superblock_pack(data + SCRIPT_BYTES, &block);
	for (size_t at = INDEX_AT, slot = 0; size - at >= FFS_ENTRY_BYTES; slot++) {
		fix_entry(data + at, class_of(data), (uint32_t)slot);
		at += FFS_ENTRY_BYTES;
	}
}

static void make_file(int directory_fd, const char *name, const uint8_t *bytes, size_t size)
{
	int fd = openat(directory_fd, name, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	FFS_PROMISE(fd >= 0);
	if (bytes != NULL)
		FFS_PROMISE(write(fd, bytes, size) == (ssize_t)size);
	else
		FFS_PROMISE(ftruncate(fd, (off_t)size) == 0);
	(void)close(fd);
}

static void make_files(const char *path, const uint8_t *data, size_t size)
{
	uint32_t class_index = class_of(data);
	uint32_t bytes = ffs_class_bytes(class_index);
	char name[32];
	ffs_fuzz_empty_directory(path);
	int directory_fd = open(path, O_RDONLY | O_DIRECTORY);
	FFS_PROMISE(directory_fd >= 0);
	size_t block = size - SCRIPT_BYTES;
	if (block > FFS_SUPERBLOCK_BYTES)
		block = FFS_SUPERBLOCK_BYTES;
	make_file(directory_fd, "superblock", data + SCRIPT_BYTES, block);
	if (size > INDEX_AT) {
		(void)snprintf(name, sizeof(name), "%u.index", bytes);
		make_file(directory_fd, name, data + INDEX_AT, size - INDEX_AT);
		(void)snprintf(name, sizeof(name), "%u.data", bytes);
		make_file(directory_fd, name, NULL, (size_t)data[1] * bytes);
		(void)snprintf(name, sizeof(name), "%u.crc", bytes);
		make_file(directory_fd, name, NULL, (size_t)data[2] * ffs_class_crc_bytes(class_index));
	}
	(void)close(directory_fd);
}

static struct ffs_store *open_store(const char *path)
{
	struct ffs_store_options options = {.path = path, .target_id = TARGET, .create = true};
	struct ffs_store_error error;
	struct ffs_store *store = ffs_store_open(&options, &error);
	FFS_PROMISE(store != NULL || error.fault == FFS_STORE_REFUSED);
	FFS_PROMISE(store != NULL || error.text[0] != '\0');
	return store;
}

static void close_store(struct ffs_store *store)
{
	ffs_store_close(store);
	ffs_store_unref(store);
}

static void read_chunk(struct ffs_store *store, uint64_t blob, const struct ffs_chunk_name *name)
{
	static uint8_t data[64 << 10];
	struct ffs_range range;
	FFS_PROMISE(name->length >= 1);
	FFS_PROMISE(ffs_store_find(store, blob, name->chunk, 0, name->length, true, &range) == FFS_OK);
	FFS_PROMISE(range.bytes == name->length);
	FFS_PROMISE(range.crc_blocks == ffs_block_count(name->length));
	FFS_PROMISE(ffs_disk_read(range.data_fd, data, range.bytes, range.data_offset) == 0);
	FFS_PROMISE(ffs_disk_read(range.crc_fd, data, range.crc_blocks * sizeof(uint32_t),
	                          range.crc_offset) == 0);
	ffs_store_release(&range);
}

/* Read everything that is listed; how many chunks that is. */
static uint64_t read_all(struct ffs_store *store)
{
	uint64_t *blobs;
	uint64_t count = 0;
	ssize_t found = ffs_store_blobs(store, 0, LISTED_MAX, &blobs);
	FFS_PROMISE(found >= 0);
	for (ssize_t i = 0; i < found; i++) {
		struct ffs_chunk_name *chunks;
		ssize_t here = ffs_store_chunks(store, blobs[i], &chunks);
		FFS_PROMISE(here >= 1);
		for (ssize_t c = 0; c < here; c++)
			read_chunk(store, blobs[i], &chunks[c]);
		count += (uint64_t)here;
		free(chunks);
	}
	free(blobs);
	return count;
}

static void wake(struct ffs_put *put)
{
	atomic_store((atomic_bool *)put->context, true);
}

static void put_one(struct ffs_store *store, uint32_t class_index)
{
	static const uint8_t data[64 << 10];
	static const uint8_t crcs[64];
	atomic_bool done = false;
	struct ffs_put put = {.blob = NEW_BLOB,
	                      .chunk = 7,
	                      .length = ffs_class_bytes(class_index) - 1,
	                      .data = data,
	                      .crcs = crcs,
	                      .done = wake,
	                      .context = &done};
	ffs_store_put(store, &put);
	while (!atomic_load(&done))
		(void)usleep(10);
	FFS_PROMISE(put.status == FFS_OK || put.status == FFS_ERR_CHUNK_CONFLICT);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *path = ffs_fuzz_directory();
	if (size < SCRIPT_BYTES || size > FFS_FUZZ_INPUT_BYTES_MAX)
		return 0;
	make_files(path, data, size);
	struct ffs_store *store = open_store(path);
	if (store == NULL)
		return 0;
	uint64_t before = read_all(store);
	uint64_t after = before;
	if ((data[3] & FLAG_PUT) != 0) {
		put_one(store, class_of(data));
		after = read_all(store);
		FFS_PROMISE(after == before || after == before + 1);
	}
	close_store(store);
	if ((data[3] & FLAG_REOPEN) == 0)
		return 0;
	store = open_store(path);
	FFS_PROMISE(store != NULL && read_all(store) == after);
	close_store(store);
	return 0;
}
