/*
 * Writing to a target's files: whole writes, syncs, and a record of both for the power-cut tests.
 *
 * Functions return 0 or -errno. Interrupted and short writes are carried on; a write that makes no
 * progress is -EIO. A failed sync is reported and never tried again: the kernel marks the pages
 * clean after the failure, so a second sync would say "done" about data that is not there.
 *
 * The journal, off outside tests, notes every change in the order in which the kernel took it.
 * tests/sim/store_model.py rebuilds from it what a disk may hold after a power cut at any point.
 * A record is u8 kind, 3 bytes zero, u32 fd, u64 offset, u64 length, then for WRITE the bytes, and
 * for CREATE and RENAME `length` bytes of names ("new", and "old\0new").
 *
 * Threads: any; a file's writes come from one thread in our use.
 */
#ifndef FFS_STORAGE_DISK_H
#define FFS_STORAGE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum ffs_journal_kind {
	FFS_JOURNAL_CREATE = 1, /* fd has been opened by name; `offset` is the directory's fd */
	FFS_JOURNAL_WRITE = 2,
	FFS_JOURNAL_GROW = 3, /* zeros up to offset + length where the file was shorter */
	FFS_JOURNAL_PUNCH = 4,
	FFS_JOURNAL_SYNC = 5, /* of a file, or of a directory: of the names in it */
	FFS_JOURNAL_RENAME = 6,
};

/* Open `name` in a directory for reading and writing; returns the descriptor or -errno. */
int ffs_disk_open(int directory_fd, const char *name, bool create);
int ffs_disk_rename(int directory_fd, const char *source, const char *target);
/* Write all parts, one after the other; `parts` is used up. */
int ffs_disk_writev(int fd, struct iovec *parts, int count, uint64_t offset);
int ffs_disk_write(int fd, const void *data, size_t length, uint64_t offset);
/* Make the file at least `bytes` long, with the blocks behind it reserved. */
int ffs_disk_grow(int fd, uint64_t old_bytes, uint64_t bytes);
/* Give the blocks of a part of the file back. */
int ffs_disk_punch(int fd, uint64_t offset, uint64_t length);
int ffs_disk_sync(int fd);
int ffs_disk_sync_directory(int fd);
/* Ask the kernel to start writing back; failure shows up in the sync. */
void ffs_disk_write_back(int fd, uint64_t offset, uint64_t length);
/* Read exactly `length` bytes; -EIO where the file ends before. */
int ffs_disk_read(int fd, void *target, size_t length, uint64_t offset);
/* The same without waiting for the disk: -EAGAIN if it would have to be waited for. */
int ffs_disk_read_cached(int fd, void *target, size_t length, uint64_t offset);

void ffs_journal_start(void);
uint64_t ffs_journal_bytes(void);
/* Stop and hand over the record; the caller frees it. NULL if it is empty or memory ran out. */
uint8_t *ffs_journal_take(size_t *length);

#endif
