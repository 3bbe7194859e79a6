#include "storage/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/frame.h"
#include "core/sys.h"

#define RECORD_BYTES 24u

/* One journal per process: tests run one store at a time. */
static struct {
	atomic_bool on;
	pthread_mutex_t lock;
	uint8_t *bytes;
	size_t used;
	size_t room;
	bool broken; /* memory ran out: the record has a gap and must not be believed */
} journal = {.lock = PTHREAD_MUTEX_INITIALIZER};

static uint8_t *journal_room(size_t length)
{
	if (journal.used + length > journal.room) {
		size_t room = (journal.used + length) * 2;
		uint8_t *bytes = realloc(journal.bytes, room);
		if (bytes == NULL) {
			journal.broken = true;
			return NULL;
		}
		journal.bytes = bytes;
		journal.room = room;
	}
	uint8_t *at = journal.bytes + journal.used;
	journal.used += length;
	return at;
}

static void journal_add(enum ffs_journal_kind kind, int fd, uint64_t offset, uint64_t length,
                        const struct iovec *parts, int count)
{
	if (!atomic_load_explicit(&journal.on, memory_order_relaxed))
		return;
	size_t extra = 0;
	for (int i = 0; i < count; i++)
		extra += parts[i].iov_len;
	pthread_mutex_lock(&journal.lock);
	uint8_t *at = journal.broken ? NULL : journal_room(RECORD_BYTES + extra);
	if (at != NULL) {
		memset(at, 0, RECORD_BYTES);
		at[0] = (uint8_t)kind;
		ffs_store_u32(at + 4, (uint32_t)fd);
		ffs_store_u64(at + 8, offset);
		ffs_store_u64(at + 16, length);
		at += RECORD_BYTES;
		for (int i = 0; i < count; i++) {
			memcpy(at, parts[i].iov_base, parts[i].iov_len);
			at += parts[i].iov_len;
		}
	}
	pthread_mutex_unlock(&journal.lock);
}

void ffs_journal_start(void)
{
	pthread_mutex_lock(&journal.lock);
	journal.used = 0;
	journal.broken = false;
	atomic_store(&journal.on, true);
	pthread_mutex_unlock(&journal.lock);
}

uint64_t ffs_journal_bytes(void)
{
	pthread_mutex_lock(&journal.lock);
	uint64_t used = journal.used;
	pthread_mutex_unlock(&journal.lock);
	return used;
}

uint8_t *ffs_journal_take(size_t *length)
{
	pthread_mutex_lock(&journal.lock);
	atomic_store(&journal.on, false);
	uint8_t *bytes = journal.bytes;
	*length = journal.used;
	if (journal.broken) {
		free(bytes);
		bytes = NULL;
	}
	journal.bytes = NULL;
	journal.used = 0;
	journal.room = 0;
	pthread_mutex_unlock(&journal.lock);
	return bytes;
}

int ffs_disk_open(int directory_fd, const char *name, bool create)
{
	int fd;
	do
		fd = ffs_sys_openat(directory_fd, name, O_RDWR | (create ? O_CREAT : 0), 0600);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		return -errno;
	struct iovec part = {.iov_base = (char *)(uintptr_t)name, .iov_len = strlen(name)};
	journal_add(FFS_JOURNAL_CREATE, fd, (uint64_t)directory_fd, part.iov_len, &part, 1);
	return fd;
}

int ffs_disk_rename(int directory_fd, const char *source, const char *target)
{
	if (ffs_sys_renameat(directory_fd, source, target) != 0)
		return -errno;
	struct iovec parts[2] = {
		{.iov_base = (char *)(uintptr_t)source, .iov_len = strlen(source) + 1},
		{.iov_base = (char *)(uintptr_t)target, .iov_len = strlen(target)},
	};
	journal_add(FFS_JOURNAL_RENAME, directory_fd, 0, parts[0].iov_len + parts[1].iov_len, parts, 2);
	return 0;
}

/* Note the first `length` bytes of `parts` as written. */
static void journal_write(int fd, uint64_t offset, const struct iovec *parts, int count,
                          size_t length)
{
	for (int i = 0; i < count && length > 0; i++) {
		struct iovec part = parts[i];
		if (part.iov_len > length)
			part.iov_len = length;
		journal_add(FFS_JOURNAL_WRITE, fd, offset, part.iov_len, &part, 1);
		offset += part.iov_len;
		length -= part.iov_len;
	}
}

int ffs_disk_writev(int fd, struct iovec *parts, int count, uint64_t offset)
{
	while (count > 0) {
		ssize_t written = ffs_sys_pwritev(fd, parts, count, (off_t)offset);
		if (written < 0 && errno == EINTR)
			continue;
		if (written < 0)
			return -errno;
		if (written == 0)
			return -EIO;
		journal_write(fd, offset, parts, count, (size_t)written);
		offset += (uint64_t)written;
		size_t left = (size_t)written;
		while (count > 0 && left >= parts->iov_len) {
			left -= parts->iov_len;
			parts++;
			count--;
		}
		if (count > 0) {
			parts->iov_base = (char *)parts->iov_base + left;
			parts->iov_len -= left;
		}
	}
	return 0;
}

int ffs_disk_write(int fd, const void *data, size_t length, uint64_t offset)
{
	struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
	return ffs_disk_writev(fd, &part, 1, offset);
}

int ffs_disk_grow(int fd, uint64_t old_bytes, uint64_t bytes)
{
	if (bytes <= old_bytes)
		return 0;
	int result;
	do
		result = ffs_sys_fallocate(fd, 0, (off_t)old_bytes, (off_t)(bytes - old_bytes));
	while (result != 0 && errno == EINTR);
	/* A file system that cannot reserve may still store: full disks then show up in writes. */
	if (result != 0 && (errno == EOPNOTSUPP || errno == ENOSYS))
		result = ffs_sys_ftruncate(fd, (off_t)bytes);
	if (result != 0)
		return -errno;
	journal_add(FFS_JOURNAL_GROW, fd, old_bytes, bytes - old_bytes, NULL, 0);
	return 0;
}

int ffs_disk_punch(int fd, uint64_t offset, uint64_t length)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	if (ffs_sys_fallocate(fd, mode, (off_t)offset, (off_t)length) != 0)
		return -errno;
	journal_add(FFS_JOURNAL_PUNCH, fd, offset, length, NULL, 0);
	return 0;
}

int ffs_disk_sync(int fd)
{
	if (ffs_sys_fdatasync(fd) != 0)
		return -errno;
	journal_add(FFS_JOURNAL_SYNC, fd, 0, 0, NULL, 0);
	return 0;
}

int ffs_disk_sync_directory(int fd)
{
	if (ffs_sys_fsync(fd) != 0)
		return -errno;
	journal_add(FFS_JOURNAL_SYNC, fd, 0, 0, NULL, 0);
	return 0;
}

void ffs_disk_write_back(int fd, uint64_t offset, uint64_t length)
{
	(void)ffs_sys_sync_file_range(fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE);
}

int ffs_disk_read_cached(int fd, void *target, size_t length, uint64_t offset)
{
	ssize_t got;
	do
		got = ffs_sys_pread_cached(fd, target, length, (off_t)offset);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	return (size_t)got == length ? 0 : -EAGAIN; /* the rest: not cached, or not there */
}

int ffs_disk_read(int fd, void *target, size_t length, uint64_t offset)
{
	uint8_t *at = target;
	while (length > 0) {
		ssize_t got = ffs_sys_pread(fd, at, length, (off_t)offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return -EIO;
		at += got;
		offset += (uint64_t)got;
		length -= (size_t)got;
	}
	return 0;
}
