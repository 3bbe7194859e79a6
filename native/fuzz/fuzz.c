#include "fuzz/fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/blake2b.h"
#include "core/crc32c.h"
#include "core/frame.h"

#define OP_AT 5u
#define CRC_AT 60u
#define BODY_BYTES_AT 48u
#define PAYLOAD_BYTES_AT 52u
#define GRANT_HEAD_BYTES 32u

/* See grants.h. */
static void sign_grant(uint8_t *body, uint32_t bytes)
{
	static const uint8_t key[FFS_MAC_KEY_BYTES];
	if (bytes < GRANT_HEAD_BYTES + FFS_MAC_BYTES)
		return;
	body[0] = 1;
	ffs_store_u32(body + 4, FFS_FUZZ_GRANT_KEY_ID);
	ffs_store_u64(body + 8, UINT64_MAX);
	for (uint32_t i = 16; i < GRANT_HEAD_BYTES; i++)
		body[i] = 0;
	ffs_mac(body + bytes - FFS_MAC_BYTES, key, body, bytes - FFS_MAC_BYTES);
}

void ffs_fuzz_fix_frames(uint8_t *stream, size_t size)
{
	size_t at = 0;
	while (size - at >= FFS_FRAME_HEADER_BYTES) {
		uint8_t *header = stream + at;
		ffs_store_u32(header, FFS_MAGIC);
		header[4] = FFS_VERSION;
		ffs_store_u32(header + CRC_AT, ffs_crc32c(0, header, CRC_AT));
		uint64_t rest = (uint64_t)ffs_load_u32(header + BODY_BYTES_AT) +
		                ffs_load_u32(header + PAYLOAD_BYTES_AT);
		at += FFS_FRAME_HEADER_BYTES;
		if (rest > size - at)
			return;
		if (header[OP_AT] == FFS_OP_GRANT)
			sign_grant(stream + at, ffs_load_u32(header + BODY_BYTES_AT));
		at += rest;
	}
}

size_t ffs_fuzz_piece(uint8_t how, uint32_t number, size_t left)
{
	size_t piece = how < 128 ? how : (size_t)(how - 127) * 64;
	if (how == 0 || number >= FFS_FUZZ_PIECES_MAX)
		piece = left;
	return piece < left ? piece : left;
}

static char directory[256];

static void remove_directory(void)
{
	ffs_fuzz_empty_directory(directory);
	(void)rmdir(directory);
}

const char *ffs_fuzz_directory(void)
{
	if (directory[0] == '\0') {
		const char *base = getenv("TMPDIR");
		(void)snprintf(directory, sizeof(directory), "%s/ffs-fuzz-XXXXXX",
		               base != NULL ? base : "/tmp");
		FFS_PROMISE(mkdtemp(directory) != NULL);
		FFS_PROMISE(atexit(remove_directory) == 0);
	}
	return directory;
}

void ffs_fuzz_empty_directory(const char *path)
{
	DIR *list = opendir(path);
	if (list == NULL)
		return;
	for (const struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
		if (entry->d_name[0] != '.')
			(void)unlinkat(dirfd(list), entry->d_name, 0);
	}
	(void)closedir(list);
}
