#include "storage/superblock.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/sys.h"
#include "storage/disk.h"

#define SUPERBLOCK_NAME "superblock"
#define SUPERBLOCK_NEW_NAME "superblock.new"

int ffs_store_system_error(struct ffs_store_error *error, int result, const char *what,
                           const char *path)
{
	error->fault = result == -EWOULDBLOCK ? FFS_STORE_BUSY : FFS_STORE_SYSTEM;
	error->error = -result;
	(void)snprintf(error->text, sizeof(error->text), "%s of target directory %s failed: %s", what,
	               path, strerror(-result));
	return result;
}

int ffs_superblock_write(int directory_fd, const struct ffs_superblock *block)
{
	uint8_t bytes[FFS_SUPERBLOCK_BYTES];
	ffs_superblock_pack(bytes, block);
	int fd = ffs_disk_open(directory_fd, SUPERBLOCK_NEW_NAME, true);
	if (fd < 0)
		return fd;
	int result = ffs_disk_write(fd, bytes, sizeof(bytes), 0);
	/* One that a crash left could be longer; what is written must be all there is. */
	if (result == 0 && ffs_sys_ftruncate(fd, sizeof(bytes)) != 0)
		result = -errno;
	if (result == 0)
		result = ffs_disk_sync(fd);
	(void)ffs_sys_close(fd);
	if (result == 0)
		result = ffs_disk_rename(directory_fd, SUPERBLOCK_NEW_NAME, SUPERBLOCK_NAME);
	if (result == 0)
		result = ffs_disk_sync_directory(directory_fd);
	return result;
}

static void refuse(struct ffs_store_error *error, const char *path, enum ffs_superblock_fault fault,
                   uint32_t format)
{
	error->fault = FFS_STORE_REFUSED;
	switch (fault) {
	case FFS_SUPERBLOCK_SHORT:
		(void)snprintf(error->text, sizeof(error->text),
		               "superblock in %s is cut short, expected %u bytes", path,
		               FFS_SUPERBLOCK_BYTES);
		break;
	case FFS_SUPERBLOCK_FOREIGN:
		(void)snprintf(
			error->text, sizeof(error->text),
			"superblock in %s was not written by FFS, expected it to start with FFSTARGT", path);
		break;
	case FFS_SUPERBLOCK_NEWER:
		(void)snprintf(error->text, sizeof(error->text),
		               "superblock in %s has format %u, this program knows format %u", path, format,
		               FFS_STORE_FORMAT);
		break;
	default:
		(void)snprintf(error->text, sizeof(error->text),
		               "superblock in %s is damaged, its checksum does not hold", path);
		break;
	}
}

int ffs_superblock_read(int directory_fd, const char *path, struct ffs_superblock *block,
                        struct ffs_store_error *error)
{
	uint8_t bytes[FFS_SUPERBLOCK_BYTES + 1]; /* one more, to notice a longer one */
	size_t length = 0;
	int fd = ffs_sys_openat(directory_fd, SUPERBLOCK_NAME, O_RDONLY, 0);
	if (fd < 0)
		return errno == ENOENT ? -ENOENT
		                       : ffs_store_system_error(error, -errno, "opening superblock", path);
	for (;;) {
		ssize_t got = ffs_sys_pread(fd, bytes + length, sizeof(bytes) - length, (off_t)length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			int result = ffs_store_system_error(error, -errno, "reading superblock", path);
			(void)ffs_sys_close(fd);
			return result;
		}
		length += (size_t)got;
		if (got == 0 || length == sizeof(bytes))
			break;
	}
	(void)ffs_sys_close(fd);
	enum ffs_superblock_fault fault = ffs_superblock_unpack(block, bytes, length);
	if (fault == FFS_SUPERBLOCK_GOOD)
		return 0;
	refuse(error, path, fault, block->format);
	return -EINVAL;
}

static void hex(char out[2 * FFS_CLUSTER_ID_BYTES + 1], const uint8_t *id)
{
	for (size_t i = 0; i < FFS_CLUSTER_ID_BYTES; i++)
		(void)snprintf(out + 2 * i, 3, "%02x", id[i]);
}

int ffs_superblock_match(const struct ffs_superblock *found, const struct ffs_superblock *expected,
                         const char *path, struct ffs_store_error *error)
{
	char found_id[2 * FFS_CLUSTER_ID_BYTES + 1];
	char expected_id[2 * FFS_CLUSTER_ID_BYTES + 1];
	if (memcmp(found->cluster_id, expected->cluster_id, FFS_CLUSTER_ID_BYTES) != 0) {
		hex(found_id, found->cluster_id);
		hex(expected_id, expected->cluster_id);
		error->fault = FFS_STORE_REFUSED;
		(void)snprintf(error->text, sizeof(error->text),
		               "target directory %s belongs to cluster %s, expected cluster %s", path,
		               found_id, expected_id);
		return -EINVAL;
	}
	if (found->target_id != expected->target_id) {
		error->fault = FFS_STORE_REFUSED;
		(void)snprintf(error->text, sizeof(error->text),
		               "target directory %s holds target %u, expected target %u", path,
		               found->target_id, expected->target_id);
		return -EINVAL;
	}
	return 0;
}

int ffs_store_superblock(const char *path, struct ffs_superblock *block,
                         struct ffs_store_error *error)
{
	int fd = ffs_sys_openat(AT_FDCWD, path, O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0)
		return errno == ENOENT ? -ENOENT : ffs_store_system_error(error, -errno, "opening", path);
	int result = ffs_superblock_read(fd, path, block, error);
	(void)ffs_sys_close(fd);
	return result;
}
