#include "storage/format.h"

#include <assert.h>
#include <string.h>

#include "core/crc32c.h"
#include "core/frame.h"

#define ENTRY_MAGIC 0x45534646u /* "FFSE" as little-endian bytes */
#define SINGLE_CLASSES 8u       /* 1 .. 8 blocks, then four for each doubling */
#define CRC_OFFSET 60u          /* in superblocks and entries alike: over the bytes before it */

static const char superblock_magic[8] = {'F', 'F', 'S', 'T', 'A', 'R', 'G', 'T'};

static_assert(FFS_ENTRY_BYTES == CRC_OFFSET + sizeof(uint32_t), "the CRC ends an entry");
static_assert(512 % FFS_ENTRY_BYTES == 0, "an entry lies in one sector, which disks write whole");

void ffs_superblock_pack(uint8_t out[FFS_SUPERBLOCK_BYTES], const struct ffs_superblock *block)
{
	memset(out, 0, FFS_SUPERBLOCK_BYTES);
	memcpy(out, superblock_magic, sizeof(superblock_magic));
	ffs_store_u32(out + 8, block->format);
	ffs_store_u32(out + 12, block->target_id);
	memcpy(out + 16, block->cluster_id, FFS_CLUSTER_ID_BYTES);
	ffs_store_u32(out + 32, block->clean ? 1 : 0);
	ffs_store_u32(out + CRC_OFFSET, ffs_crc32c(0, out, CRC_OFFSET));
}

enum ffs_superblock_fault ffs_superblock_unpack(struct ffs_superblock *block, const uint8_t *in,
                                                size_t length)
{
	if (length < sizeof(superblock_magic) + sizeof(uint32_t))
		return FFS_SUPERBLOCK_SHORT;
	if (memcmp(in, superblock_magic, sizeof(superblock_magic)) != 0)
		return FFS_SUPERBLOCK_FOREIGN;
	block->format = ffs_load_u32(in + 8);
	/*
	 * The CRC is judged before the format: a flipped bit in the format field must not send an
	 * operator looking for a newer program. A real newer format keeps magic, format and CRC in
	 * place.
	 */
	if (length != FFS_SUPERBLOCK_BYTES ||
	    ffs_load_u32(in + CRC_OFFSET) != ffs_crc32c(0, in, CRC_OFFSET))
		return FFS_SUPERBLOCK_DAMAGED;
	if (block->format != FFS_STORE_FORMAT)
		return FFS_SUPERBLOCK_NEWER;
	block->target_id = ffs_load_u32(in + 12);
	memcpy(block->cluster_id, in + 16, FFS_CLUSTER_ID_BYTES);
	block->clean = ffs_load_u32(in + 32) == 1;
	return FFS_SUPERBLOCK_GOOD;
}

void ffs_entry_pack(uint8_t out[FFS_ENTRY_BYTES], const struct ffs_entry *entry,
                    const struct ffs_place *place)
{
	memset(out, 0, FFS_ENTRY_BYTES);
	ffs_store_u32(out, ENTRY_MAGIC);
	ffs_store_u32(out + 4, place->target_id);
	ffs_store_u64(out + 8, entry->blob);
	ffs_store_u32(out + 16, entry->chunk);
	ffs_store_u32(out + 20, entry->length);
	ffs_store_u32(out + 24, entry->digest);
	ffs_store_u32(out + 28, ffs_class_bytes(place->class_index));
	ffs_store_u32(out + 32, place->slot);
	ffs_store_u32(out + 36, place->cluster_check);
	ffs_store_u32(out + 40, entry->generation);
	ffs_store_u32(out + CRC_OFFSET, ffs_crc32c(0, out, CRC_OFFSET));
}

static bool all_zero(const uint8_t in[FFS_ENTRY_BYTES])
{
	uint64_t words[FFS_ENTRY_BYTES / sizeof(uint64_t)];
	uint64_t any = 0;
	memcpy(words, in, sizeof(words));
	for (size_t i = 0; i < FFS_ENTRY_BYTES / sizeof(uint64_t); i++)
		any |= words[i];
	return any == 0;
}

enum ffs_entry_kind ffs_entry_unpack(struct ffs_entry *entry, const struct ffs_place *place,
                                     const uint8_t in[FFS_ENTRY_BYTES])
{
	if (all_zero(in))
		return FFS_ENTRY_FREE;
	if (ffs_load_u32(in) != ENTRY_MAGIC ||
	    ffs_load_u32(in + CRC_OFFSET) != ffs_crc32c(0, in, CRC_OFFSET) ||
	    ffs_load_u32(in + 4) != place->target_id ||
	    ffs_load_u32(in + 28) != ffs_class_bytes(place->class_index) ||
	    ffs_load_u32(in + 32) != place->slot || ffs_load_u32(in + 36) != place->cluster_check)
		return FFS_ENTRY_DAMAGED;
	entry->blob = ffs_load_u64(in + 8);
	entry->chunk = ffs_load_u32(in + 16);
	entry->length = ffs_load_u32(in + 20);
	entry->digest = ffs_load_u32(in + 24);
	entry->generation = ffs_load_u32(in + 40);
	if (entry->length == 0 || entry->length > ffs_class_bytes(place->class_index))
		return FFS_ENTRY_DAMAGED;
	return FFS_ENTRY_CHUNK;
}

uint32_t ffs_class_bytes(uint32_t class_index)
{
	assert(class_index < FFS_CLASS_COUNT);
	if (class_index < SINGLE_CLASSES)
		return (class_index + 1) * FFS_BLOCK_BYTES;
	uint32_t doubling = (class_index - SINGLE_CLASSES) / 4;
	uint32_t step = (class_index - SINGLE_CLASSES) % 4;
	return ((SINGLE_CLASSES + 2 * (step + 1)) << doubling) * FFS_BLOCK_BYTES;
}

uint32_t ffs_class_for(uint32_t length)
{
	assert(length > 0 && length <= FFS_CHUNK_BYTES_MAX);
	uint32_t blocks = ffs_block_count(length);
	if (blocks <= SINGLE_CLASSES)
		return blocks - 1;
	uint32_t above = (blocks - 1) / (2 * SINGLE_CLASSES);
	uint32_t doubling = above == 0 ? 0 : 32 - (uint32_t)__builtin_clz(above);
	uint32_t scaled = (blocks + (1u << doubling) - 1) >> doubling; /* 9 .. 16 */
	return SINGLE_CLASSES + doubling * 4 + (scaled - SINGLE_CLASSES + 1) / 2 - 1;
}

uint32_t ffs_class_crc_bytes(uint32_t class_index)
{
	return ffs_class_bytes(class_index) / FFS_BLOCK_BYTES * (uint32_t)sizeof(uint32_t);
}
