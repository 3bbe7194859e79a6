/*
 * Holding a stored chunk against its checksums: scrubbing's and repair's look at the disk.
 *
 * The page cache may have good bytes where the disk has not, so the data is read past it; CRCs and
 * index entry, of which there is little, have their pages dropped from it before they are read.
 * Where a file system has no direct reads, the data is treated alike. Pages that cannot be dropped,
 * because they are dirty or mapped, are judged as they are in memory.
 *
 * Copies: the bytes are looked at and thrown away. Threads: any; waits for the disk.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "core/mix64.h"
#include "core/sys.h"
#include "storage/disk.h"
#include "storage/store.h"

#define PIECE_BYTES (1u << 20)
#define PAGE_BYTES 4096u

struct look {
	struct ffs_store *store;
	const struct ffs_chunk *chunk;
	struct ffs_class *class;
	uint8_t *piece; /* PIECE_BYTES, aligned */
	uint8_t *crcs;
	bool direct;
};

/* Read what the disk has, as far as the page cache lets go of it. */
static int read_afresh(int fd, void *target, size_t length, uint64_t offset)
{
	uint64_t first = offset / PAGE_BYTES * PAGE_BYTES;
	uint64_t end = (offset + length + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	(void)ffs_sys_not_needed(fd, (off_t)first, (off_t)(end - first));
	return ffs_disk_read(fd, target, length, offset);
}

static uint16_t check_entry(const struct look *look)
{
	const struct ffs_chunk *chunk = look->chunk;
	uint8_t bytes[FFS_ENTRY_BYTES];
	struct ffs_entry entry;
	struct ffs_place place = {look->store->cluster_check, look->store->superblock.target_id,
	                          chunk->class_index, chunk->slot};
	if (read_afresh(look->class->fds[FFS_FILE_INDEX], bytes, sizeof(bytes),
	                (uint64_t)chunk->slot * FFS_ENTRY_BYTES) != 0)
		return FFS_ERR_STORAGE_IO;
	bool same = ffs_entry_unpack(&entry, &place, bytes) == FFS_ENTRY_CHUNK &&
	            entry.blob == chunk->blob && entry.chunk == chunk->chunk &&
	            entry.length == chunk->length && entry.digest == chunk->digest;
	return same ? FFS_OK : FFS_ERR_CHECKSUM;
}

static uint16_t check_crcs(const struct look *look)
{
	size_t length = ffs_block_count(look->chunk->length) * sizeof(uint32_t);
	uint64_t offset = look->chunk->slot * ffs_class_stride(look->class, FFS_FILE_CRC);
	if (read_afresh(look->class->fds[FFS_FILE_CRC], look->crcs, length, offset) != 0)
		return FFS_ERR_STORAGE_IO;
	return ffs_crc32c(0, look->crcs, length) == look->chunk->digest ? FFS_OK : FFS_ERR_CHECKSUM;
}

/* Whole blocks of the extent: it has room for the last one, whatever the chunk's length. */
static int read_piece(struct look *look, uint32_t done, uint32_t length)
{
	uint32_t blocks = ffs_block_count(length) * FFS_BLOCK_BYTES;
	uint64_t offset = look->chunk->slot * ffs_class_stride(look->class, FFS_FILE_DATA) + done;
	if (look->direct) {
		int result = ffs_disk_read(look->class->direct_fd, look->piece, blocks, offset);
		if (result != -EINVAL)
			return result;
		look->direct = false; /* the file system takes other steps than ours */
	}
	int fd = look->class->fds[FFS_FILE_DATA];
	int result = read_afresh(fd, look->piece, blocks, offset);
	(void)ffs_sys_not_needed(fd, (off_t)offset, (off_t)blocks);
	return result;
}

static uint16_t check_data(struct look *look)
{
	const struct ffs_chunk *chunk = look->chunk;
	for (uint32_t done = 0; done < chunk->length; done += PIECE_BYTES) {
		uint32_t left = chunk->length - done;
		uint32_t length = left < PIECE_BYTES ? left : PIECE_BYTES;
		if (read_piece(look, done, length) != 0)
			return FFS_ERR_STORAGE_IO;
		for (uint32_t at = 0; at < length; at += FFS_BLOCK_BYTES) {
			uint32_t block = (done + at) / FFS_BLOCK_BYTES;
			uint32_t size = length - at < FFS_BLOCK_BYTES ? length - at : FFS_BLOCK_BYTES;
			uint32_t seed = ffs_block_seed(chunk->blob, chunk->chunk, block);
			uint32_t expected = ffs_load_u32(look->crcs + (size_t)block * sizeof(uint32_t));
			if (ffs_crc32c(seed, look->piece + at, size) != expected)
				return FFS_ERR_CHECKSUM;
		}
	}
	return FFS_OK;
}

static uint16_t look_at(struct look *look)
{
	look->piece = ffs_sys_aligned_alloc(PAGE_BYTES, PIECE_BYTES);
	look->crcs = ffs_sys_calloc(ffs_block_count(look->chunk->length), sizeof(uint32_t));
	uint16_t status = FFS_ERR_BUSY;
	if (look->piece != NULL && look->crcs != NULL) {
		status = check_entry(look);
		if (status == FFS_OK)
			status = check_crcs(look);
		if (status == FFS_OK)
			status = check_data(look);
	}
	free(look->piece);
	free(look->crcs);
	return status;
}

uint16_t ffs_store_verify(struct ffs_store *store, uint64_t blob, uint32_t chunk_index)
{
	if (atomic_load(&store->stopped) || atomic_load(&store->closed))
		return FFS_ERR_TARGET_STOPPED;
	struct ffs_chunk *chunk = ffs_table_pin(&store->table, blob, chunk_index);
	if (chunk == NULL)
		return FFS_ERR_CHUNK_MISSING;
	struct ffs_class *class = &store->classes[chunk->class_index];
	struct look look = {.store = store,
	                    .chunk = chunk,
	                    .class = class,
	                    .direct = class->direct_fd >= 0 && !atomic_load(&class->direct_refused)};
	uint16_t status = look_at(&look);
	/* Its entry may have been zeroed meanwhile: dropped is not damaged. */
	if (status == FFS_ERR_CHECKSUM && ffs_chunk_removed(chunk))
		status = FFS_ERR_CHUNK_MISSING;
	ffs_chunk_unpin(chunk);
	return status;
}
