#include "storage/extents.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/disk.h"

#define GROW_SHARE 16u
#define GROW_BYTES_MIN (64u << 10)
#define GROW_BYTES_MAX (64u << 20)
#define INDEX_PAGE_SLOTS (4096u / FFS_ENTRY_BYTES)

static const char *const file_kinds[FFS_CLASS_FILES] = {"data", "crc", "index"};
static const uint8_t zeros[64 << 10];

void ffs_class_init(struct ffs_class *class, uint32_t class_index)
{
	memset(class, 0, sizeof(*class));
	class->class_index = class_index;
	for (int i = 0; i < FFS_CLASS_FILES; i++)
		class->fds[i] = -1;
	class->direct_fd = -1;
}

void ffs_class_fini(struct ffs_class *class)
{
	for (int i = 0; i < FFS_CLASS_FILES; i++) {
		if (class->fds[i] >= 0)
			(void)ffs_sys_close(class->fds[i]);
	}
	if (class->direct_fd >= 0)
		(void)ffs_sys_close(class->direct_fd);
	for (int i = 0; i < FFS_MAPPED_FILES; i++)
		ffs_mapping_fini(&class->maps[i]);
	free(class->used);
	uint8_t means = class->means;
	ffs_class_init(class, class->class_index);
	class->means = means;
}

uint64_t ffs_class_stride(const struct ffs_class *class, enum ffs_class_file file)
{
	if (file == FFS_FILE_DATA)
		return ffs_class_bytes(class->class_index);
	return file == FFS_FILE_CRC ? ffs_class_crc_bytes(class->class_index) : FFS_ENTRY_BYTES;
}

/* Make the bitmap reach `slots`. */
static int grow_bitmap(struct ffs_class *class, uint32_t slots)
{
	uint32_t words = slots / 64 + 1; /* one to spare: no sum can overflow */
	if (words <= class->used_words)
		return 0;
	uint32_t room = words + words / 2;
	uint64_t *used = ffs_sys_realloc(class->used, room * sizeof(uint64_t));
	if (used == NULL)
		return -ENOMEM;
	memset(used + class->used_words, 0, (room - class->used_words) * sizeof(uint64_t));
	class->used = used;
	class->used_words = room;
	return 0;
}

static void count_slots(struct ffs_class *class)
{
	uint64_t fewest = UINT32_MAX;
	for (int i = 0; i < FFS_CLASS_FILES; i++) {
		uint64_t slots = class->bytes[i] / ffs_class_stride(class, (enum ffs_class_file)i);
		if (slots < fewest)
			fewest = slots;
	}
	class->slots = (uint32_t)fewest;
	uint64_t in_index = class->bytes[FFS_FILE_INDEX] / FFS_ENTRY_BYTES;
	class->index_slots = in_index > UINT32_MAX ? UINT32_MAX : (uint32_t)in_index;
}

static void name_file(const struct ffs_class *class, enum ffs_class_file file, char name[32])
{
	(void)snprintf(name, 32, "%u.%s", ffs_class_bytes(class->class_index), file_kinds[file]);
}

int ffs_class_open_to_read(const struct ffs_class *class, int directory_fd,
                           enum ffs_class_file file)
{
	char name[32];
	name_file(class, file, name);
	int fd;
	do
		fd = ffs_sys_openat(directory_fd, name, O_RDONLY, 0);
	while (fd < 0 && errno == EINTR);
	return fd < 0 ? -errno : fd;
}

static int open_one(struct ffs_class *class, int directory_fd, enum ffs_class_file file,
                    bool create)
{
	char name[32];
	struct stat facts;
	name_file(class, file, name);
	int fd = ffs_disk_open(directory_fd, name, create);
	if (fd < 0)
		return fd;
	if (ffs_sys_fstat(fd, &facts) != 0) {
		int error = -errno;
		(void)ffs_sys_close(fd);
		return error;
	}
	class->fds[file] = fd;
	class->bytes[file] = (uint64_t)facts.st_size;
	return 0;
}

/* Some file systems have no direct reads; theirs go through the page cache then. */
static void open_direct(struct ffs_class *class, int directory_fd)
{
	char name[32];
	(void)snprintf(name, sizeof(name), "%u.%s", ffs_class_bytes(class->class_index),
	               file_kinds[FFS_FILE_DATA]);
	class->direct_fd = ffs_sys_openat(directory_fd, name, O_RDONLY | O_DIRECT, 0);
}

int ffs_class_open(struct ffs_class *class, int directory_fd, bool create)
{
	/* The index comes first when looking, last when making: it is what says that a class exists. */
	static const enum ffs_class_file order[2][FFS_CLASS_FILES] = {
		{FFS_FILE_INDEX, FFS_FILE_DATA, FFS_FILE_CRC},
		{FFS_FILE_DATA, FFS_FILE_CRC, FFS_FILE_INDEX},
	};
	int result = 0;
	bool made = false;
	for (int i = 0; result == 0 && i < FFS_CLASS_FILES; i++) {
		result = open_one(class, directory_fd, order[create][i], false);
		/* Lost data or CRC files are made anew, empty: the entries that need them are damaged. */
		if (result == -ENOENT && (create || i > 0)) {
			made = true;
			result = open_one(class, directory_fd, order[create][i], true);
		}
	}
	if (result == 0 && made)
		result = ffs_disk_sync_directory(directory_fd) == 0 ? 0 : -EIO;
	if (result == 0) {
		count_slots(class);
		result = grow_bitmap(class, class->index_slots);
	}
	if (result == 0)
		open_direct(class, directory_fd);
	for (int i = 0; result == 0 && i < FFS_MAPPED_FILES; i++)
		ffs_mapping_init(&class->maps[i]);
	if (result != 0)
		ffs_class_fini(class);
	return result;
}

/* Extend the index with zeros and have them on disk before an entry may be written there. */
static int grow_index(struct ffs_class *class, uint32_t slots)
{
	uint64_t target = ((uint64_t)slots + INDEX_PAGE_SLOTS - 1) / INDEX_PAGE_SLOTS *
	                  INDEX_PAGE_SLOTS * FFS_ENTRY_BYTES;
	uint64_t at = class->bytes[FFS_FILE_INDEX];
	if (at >= (uint64_t)slots * FFS_ENTRY_BYTES)
		return 0;
	while (at < target) {
		uint64_t piece = target - at < sizeof(zeros) ? target - at : sizeof(zeros);
		int result = ffs_disk_write(class->fds[FFS_FILE_INDEX], zeros, (size_t)piece, at);
		if (result != 0)
			return result;
		at += piece;
	}
	int result = ffs_disk_sync(class->fds[FFS_FILE_INDEX]);
	/* A failed sync stops the target; say so in a way that a full disk never does. */
	if (result != 0)
		return -EIO;
	class->bytes[FFS_FILE_INDEX] = target;
	return 0;
}

static int grow_to(struct ffs_class *class, uint32_t slots)
{
	int result = grow_bitmap(class, slots + INDEX_PAGE_SLOTS);
	for (int i = FFS_FILE_DATA; result == 0 && i <= FFS_FILE_CRC; i++) {
		uint64_t bytes = slots * ffs_class_stride(class, (enum ffs_class_file)i);
		result = ffs_disk_grow(class->fds[i], class->bytes[i], bytes);
		if (result == 0 && bytes > class->bytes[i])
			class->bytes[i] = bytes;
	}
	if (result == 0)
		result = grow_index(class, slots);
	if (result == 0)
		count_slots(class);
	return result;
}

static int grow(struct ffs_class *class)
{
	uint32_t bytes = ffs_class_bytes(class->class_index);
	uint32_t step = class->slots / GROW_SHARE;
	if (step > GROW_BYTES_MAX / bytes)
		step = GROW_BYTES_MAX / bytes;
	if (step < GROW_BYTES_MIN / bytes)
		step = GROW_BYTES_MIN / bytes;
	if (step == 0)
		step = 1;
	if (class->slots > UINT32_MAX - INDEX_PAGE_SLOTS - step)
		return -ENOSPC;
	uint32_t before = class->slots;
	int result = grow_to(class, before + step);
	/* A disk too full for a generous step may have room for the one slot that is needed. */
	if ((result == -ENOSPC || result == -EDQUOT) && step > 1)
		result = grow_to(class, before + 1);
	assert(result != 0 || class->slots > before);
	return result;
}

static bool find_free(struct ffs_class *class, uint32_t *slot)
{
	uint32_t words = (class->slots + 63) / 64;
	for (uint32_t word = class->hint; word < words; word++) {
		uint64_t free_bits = ~class->used[word];
		if (free_bits == 0)
			continue;
		uint32_t found = word * 64 + (uint32_t)__builtin_ctzll(free_bits);
		class->hint = word;
		if (found >= class->slots)
			return false;
		*slot = found;
		return true;
	}
	class->hint = words;
	return false;
}

int ffs_class_take(struct ffs_class *class, uint32_t *slot)
{
	while (!find_free(class, slot)) {
		uint32_t last_word = class->slots / 64;
		int result = grow(class);
		if (result != 0)
			return result;
		if (class->hint > last_word)
			class->hint = last_word;
	}
	ffs_class_mark(class, *slot);
	return 0;
}

bool ffs_class_taken(const struct ffs_class *class, uint32_t slot)
{
	assert(slot / 64 < class->used_words);
	return (class->used[slot / 64] >> (slot % 64)) & 1;
}

void ffs_class_mark(struct ffs_class *class, uint32_t slot)
{
	assert(!ffs_class_taken(class, slot));
	class->used[slot / 64] |= UINT64_C(1) << (slot % 64);
	class->used_slots++;
}

void ffs_class_give_back(struct ffs_class *class, uint32_t slot)
{
	assert(ffs_class_taken(class, slot));
	class->used[slot / 64] &= ~(UINT64_C(1) << (slot % 64));
	class->used_slots--;
	if (slot / 64 < class->hint)
		class->hint = slot / 64;
}

void ffs_class_punch(struct ffs_class *class, uint32_t first_slot, uint32_t count)
{
	uint64_t stride = ffs_class_stride(class, FFS_FILE_DATA);
	class->dirty[FFS_FILE_DATA] = true;
	(void)ffs_disk_punch(class->fds[FFS_FILE_DATA], first_slot * stride, count * stride);
}

void ffs_class_punch_free(struct ffs_class *class)
{
	uint32_t start = 0;
	for (uint32_t slot = 0; slot <= class->slots; slot++) {
		if (slot < class->slots && !ffs_class_taken(class, slot))
			continue;
		if (slot > start)
			ffs_class_punch(class, start, slot - start);
		start = slot + 1;
	}
	/* What the file was grown by before the index could follow. */
	uint64_t reached = class->slots * ffs_class_stride(class, FFS_FILE_DATA);
	if (class->bytes[FFS_FILE_DATA] > reached)
		(void)ffs_disk_punch(class->fds[FFS_FILE_DATA], reached,
		                     class->bytes[FFS_FILE_DATA] - reached);
}

/* No lock can be held where the file system has none. */
static bool knows_no_locks(int error)
{
	return error == EINVAL || error == ENOSYS || error == EOPNOTSUPP;
}

uint32_t ffs_class_unlocked(const struct ffs_class *class, uint32_t first_slot, uint32_t count,
                            uint32_t *locked)
{
	uint64_t stride = ffs_class_stride(class, FFS_FILE_DATA), start = first_slot * stride;
	*locked = count;
	while (count > 0) {
		struct flock lock = {.l_type = F_WRLCK,
		                     .l_whence = SEEK_SET,
		                     .l_start = (off_t)start,
		                     .l_len = (off_t)(count * stride)};
		if (ffs_sys_lock(class->fds[FFS_FILE_DATA], F_OFD_GETLK, &lock) != 0)
			return knows_no_locks(errno) ? count : 0; /* unknown: asked again later */
		if (lock.l_type == F_UNLCK)
			return count;
		/* Any one of the locks in the range, which may begin before it. */
		uint64_t found = (uint64_t)lock.l_start;
		if (found < start + stride) {
			uint64_t slots = (found + (uint64_t)lock.l_len - start + stride - 1) / stride;
			if (lock.l_len != 0 && slots < *locked)
				*locked = (uint32_t)slots;
			return 0;
		}
		count = (uint32_t)((found - start) / stride);
	}
	return 0;
}

int ffs_class_sync(struct ffs_class *class, enum ffs_class_file file)
{
	if (!class->dirty[file])
		return 0;
	int result = ffs_disk_sync(class->fds[file]);
	if (result == 0)
		class->dirty[file] = false;
	return result;
}
