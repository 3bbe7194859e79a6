/*
 * Target `parts`: everything that is unpacked from bytes of a peer or a disk, each by itself.
 *
 * Input: a byte that chooses the part, then its bytes.
 * Promised: what unpacks is inside its bounds, and packing it again gives what unpacks to the same.
 */
#include <string.h>

#include "core/crc32c.h"
#include "core/frame.h"
#include "fuzz/fuzz.h"
#include "storage/format.h"

#define CRC_AT 60u
#define PARTS 6u

enum {
	PART_HEADER,
	PART_BODY,
	PART_SUPERBLOCK,
	PART_ENTRY,
	PART_LENGTH,
	PART_CHECKSUM,
};

static const struct ffs_place place = {.cluster_check = 7, .target_id = 3, .class_index = 9};

/* The fields of an entry that say where it belongs. */
static void fix_entry(uint8_t *bytes)
{
	struct ffs_entry any = {.blob = 1, .length = 1};
	uint8_t packed[FFS_ENTRY_BYTES];
	ffs_entry_pack(packed, &any, &place);
	memcpy(bytes, packed, 8);            /* magic, target */
	memcpy(bytes + 28, packed + 28, 12); /* class, slot, cluster */
}

void ffs_fuzz_fix(uint8_t *data, size_t size)
{
	static const char magic[8] = "FFSTARGT";
	uint8_t *bytes = data + 1;
	if (size < 1 + FFS_FRAME_HEADER_BYTES)
		return;
	switch (data[0] % PARTS) {
	case PART_HEADER:
		ffs_fuzz_fix_frames(bytes, FFS_FRAME_HEADER_BYTES);
		return;
	case PART_SUPERBLOCK:
		memcpy(bytes, magic, sizeof(magic));
		break;
	case PART_ENTRY:
		fix_entry(bytes);
		break;
	default:
		return;
	}
	ffs_store_u32(bytes + CRC_AT, ffs_crc32c(0, bytes, CRC_AT));
}

static void try_header(const uint8_t *bytes)
{
	struct ffs_header header, again;
	uint8_t packed[FFS_FRAME_HEADER_BYTES], twice[FFS_FRAME_HEADER_BYTES];
	enum ffs_frame_fault fault = ffs_header_unpack(&header, bytes);
	FFS_PROMISE(ffs_frame_fault_text(fault)[0] != '\0');
	if (fault != FFS_FRAME_GOOD)
		return;
	FFS_PROMISE(header.count <= FFS_FRAME_DESCRIPTORS_MAX);
	FFS_PROMISE(header.body_bytes <= FFS_FRAME_BODY_BYTES_MAX);
	FFS_PROMISE(header.payload_bytes <= FFS_FRAME_PAYLOAD_BYTES_MAX);
	ffs_header_pack(packed, &header);
	FFS_PROMISE(ffs_header_unpack(&again, packed) == FFS_FRAME_GOOD);
	ffs_header_pack(twice, &again);
	FFS_PROMISE(memcmp(packed, twice, sizeof(packed)) == 0);
}

static void try_body(const uint8_t *bytes)
{
	struct ffs_read_descriptor read;
	struct ffs_write_descriptor write;
	struct ffs_reply_entry entry;
	uint8_t packed[FFS_READ_DESCRIPTOR_BYTES];
	ffs_read_descriptor_unpack(&read, bytes);
	ffs_read_descriptor_pack(packed, &read);
	FFS_PROMISE(memcmp(bytes, packed, FFS_READ_DESCRIPTOR_BYTES) == 0);
	ffs_write_descriptor_unpack(&write, bytes);
	ffs_write_descriptor_pack(packed, &write);
	FFS_PROMISE(memcmp(bytes, packed, FFS_WRITE_DESCRIPTOR_BYTES) == 0);
	ffs_reply_entry_unpack(&entry, bytes);
	ffs_reply_entry_pack(packed, &entry);
	FFS_PROMISE(memcmp(bytes, packed, FFS_REPLY_ENTRY_BYTES) == 0);
	uint64_t widened = ffs_widened_bytes(read.offset, read.length);
	FFS_PROMISE(widened >= read.length && widened < (uint64_t)read.length + 2 * FFS_BLOCK_BYTES);
}

static void try_superblock(const uint8_t *bytes, size_t size)
{
	struct ffs_superblock block, again;
	uint8_t packed[FFS_SUPERBLOCK_BYTES], twice[FFS_SUPERBLOCK_BYTES];
	if (ffs_superblock_unpack(&block, bytes, size) != FFS_SUPERBLOCK_GOOD)
		return;
	ffs_superblock_pack(packed, &block);
	FFS_PROMISE(ffs_superblock_unpack(&again, packed, sizeof(packed)) == FFS_SUPERBLOCK_GOOD);
	ffs_superblock_pack(twice, &again);
	FFS_PROMISE(memcmp(packed, twice, sizeof(packed)) == 0);
}

static void try_entry(const uint8_t *bytes)
{
	struct ffs_entry entry, again;
	uint8_t packed[FFS_ENTRY_BYTES], twice[FFS_ENTRY_BYTES];
	if (ffs_entry_unpack(&entry, &place, bytes) != FFS_ENTRY_CHUNK)
		return;
	FFS_PROMISE(entry.length >= 1 && entry.length <= ffs_class_bytes(place.class_index));
	ffs_entry_pack(packed, &entry, &place);
	FFS_PROMISE(ffs_entry_unpack(&again, &place, packed) == FFS_ENTRY_CHUNK);
	ffs_entry_pack(twice, &again, &place);
	FFS_PROMISE(memcmp(packed, twice, sizeof(packed)) == 0);
}

static void try_lengths(const uint8_t *bytes)
{
	uint32_t length = ffs_load_u32(bytes) % FFS_CHUNK_BYTES_MAX + 1;
	uint32_t class_index = ffs_class_for(length);
	FFS_PROMISE(class_index < FFS_CLASS_COUNT && ffs_class_bytes(class_index) >= length);
	FFS_PROMISE(class_index == 0 || ffs_class_bytes(class_index - 1) < length);
	FFS_PROMISE(ffs_class_crc_bytes(class_index) >= ffs_block_count(length) * sizeof(uint32_t));
}

/* Every way to the same checksum: at once, in two pieces, by block, by whichever implementation. */
static void try_checksums(const uint8_t *bytes, size_t size)
{
	uint32_t crcs[FFS_FUZZ_INPUT_BYTES_MAX / FFS_BLOCK_BYTES + 1];
	uint8_t wire[sizeof(crcs)];
	size_t cut = size > 0 ? bytes[0] % size : 0;
	uint32_t whole = ffs_crc32c(0, bytes, size);
	FFS_PROMISE(ffs_crc32c(ffs_crc32c(0, bytes, cut), bytes + cut, size - cut) == whole);
	ffs_crc32c_blocks(bytes, size, 5, 6, 7, crcs);
	uint32_t blocks = ffs_block_count((uint32_t)size);
	for (uint32_t i = 0; i < blocks; i++)
		ffs_store_u32(wire + i * sizeof(uint32_t), crcs[i]);
	FFS_PROMISE(ffs_crc32c_force("software"));
	FFS_PROMISE(ffs_crc32c(0, bytes, size) == whole);
	FFS_PROMISE(ffs_crc32c_check(bytes, size, 5, 6, 7, wire) == blocks);
	FFS_PROMISE(ffs_crc32c_force("auto"));
	FFS_PROMISE(ffs_crc32c_check(bytes, size, 5, 6, 7, wire) == blocks);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t bytes[FFS_FRAME_HEADER_BYTES] = {0};
	if (size < 1 || size > FFS_FUZZ_INPUT_BYTES_MAX)
		return 0;
	size_t length = size - 1 < sizeof(bytes) ? size - 1 : sizeof(bytes);
	memcpy(bytes, data + 1, length);
	switch (data[0] % PARTS) {
	case PART_HEADER:
		try_header(bytes);
		break;
	case PART_BODY:
		try_body(bytes);
		break;
	case PART_SUPERBLOCK:
		try_superblock(bytes, length);
		break;
	case PART_ENTRY:
		try_entry(bytes);
		break;
	case PART_LENGTH:
		try_lengths(bytes);
		break;
	default:
		try_checksums(data + 1, size - 1);
	}
	return 0;
}
