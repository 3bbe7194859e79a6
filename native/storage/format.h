/*
 * What a target's files hold, byte by byte: superblock, index entries, size classes.
 *
 * A target is a directory: `superblock`, `lock`, and for each size class that is in use three files
 * named by the class in bytes, C.data, C.crc and C.index. Slot i of a class is C bytes at i * C of
 * C.data, C / 1024 bytes (a u32 for each 4 KiB block) at i * C / 1024 of C.crc, and 64 bytes at
 * i * 64 of C.index. So an entry's place says where the chunk lies, free space is whatever has no
 * entry, and no list of free extents is ever stored that could disagree.
 *
 * All numbers are little-endian. docs/chunk-store.md has the tables.
 */
#ifndef FFS_STORAGE_FORMAT_H
#define FFS_STORAGE_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/limits.h"

#define FFS_STORE_FORMAT 1u
#define FFS_CLUSTER_ID_BYTES 16u
#define FFS_SUPERBLOCK_BYTES 64u
#define FFS_ENTRY_BYTES 64u

/* 4 KiB times 1 .. 8, then four classes for each doubling, up to 64 MiB: 20 % lost at worst. */
#define FFS_CLASS_COUNT 52u

struct ffs_superblock {
	uint8_t cluster_id[FFS_CLUSTER_ID_BYTES];
	uint32_t target_id;
	uint32_t format;
	bool clean; /* closed in order: nothing has to be looked at twice when it is opened */
};

enum ffs_superblock_fault {
	FFS_SUPERBLOCK_GOOD = 0,
	FFS_SUPERBLOCK_SHORT,
	FFS_SUPERBLOCK_FOREIGN, /* not our magic */
	FFS_SUPERBLOCK_NEWER,
	FFS_SUPERBLOCK_DAMAGED, /* CRC does not hold */
};

void ffs_superblock_pack(uint8_t out[FFS_SUPERBLOCK_BYTES], const struct ffs_superblock *block);
/* `format` is filled for NEWER too, so that a message can name it. */
enum ffs_superblock_fault ffs_superblock_unpack(struct ffs_superblock *block, const uint8_t *in,
                                                size_t length);

/*
 * Which chunk a slot holds. `digest` is the CRC32C of its list of block CRCs, as stored.
 * `generation` is 0 for a chunk as it was written, and grows when the chunk is replaced: of two
 * entries that a crash left for one chunk the greater one holds.
 */
struct ffs_entry {
	uint64_t blob;
	uint32_t chunk;
	uint32_t length;
	uint32_t digest;
	uint32_t generation;
};

/* Where an entry stands; part of what its CRC covers, so that a misplaced entry is a damaged one.
 */
struct ffs_place {
	uint32_t cluster_check; /* CRC32C of the cluster id */
	uint32_t target_id;
	uint32_t class_index;
	uint32_t slot;
};

enum ffs_entry_kind {
	FFS_ENTRY_FREE,    /* all zero */
	FFS_ENTRY_CHUNK,   /* whole, and where it belongs */
	FFS_ENTRY_DAMAGED, /* anything else: its extent is left alone */
};

void ffs_entry_pack(uint8_t out[FFS_ENTRY_BYTES], const struct ffs_entry *entry,
                    const struct ffs_place *place);
enum ffs_entry_kind ffs_entry_unpack(struct ffs_entry *entry, const struct ffs_place *place,
                                     const uint8_t in[FFS_ENTRY_BYTES]);

/* Extent size of a class, ascending with the index. */
uint32_t ffs_class_bytes(uint32_t class_index);
/* The smallest class that takes `length` bytes, 1 .. FFS_CHUNK_BYTES_MAX. */
uint32_t ffs_class_for(uint32_t length);
/* Bytes of block CRCs that a slot of a class has room for. */
uint32_t ffs_class_crc_bytes(uint32_t class_index);

#endif
