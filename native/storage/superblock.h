/*
 * The file `superblock`: whose target this is, and whether it was closed in order.
 *
 * Written aside, synced, renamed over the old one, directory synced: a crash leaves the old or the
 * new one. Functions return 0 or -errno.
 */
#ifndef FFS_STORAGE_SUPERBLOCK_H
#define FFS_STORAGE_SUPERBLOCK_H

#include "storage/store.h"

int ffs_superblock_write(int directory_fd, const struct ffs_superblock *block);
/* -EINVAL with `error` refused if there is one that cannot be taken, -ENOENT if there is none. */
int ffs_superblock_read(int directory_fd, const char *path, struct ffs_superblock *block,
                        struct ffs_store_error *error);
/* Refuse (-EINVAL) a superblock that is not of this cluster and target. */
int ffs_superblock_match(const struct ffs_superblock *found, const struct ffs_superblock *expected,
                         const char *path, struct ffs_store_error *error);
/* Fill `error` for a failed call and return `result`. */
int ffs_store_system_error(struct ffs_store_error *error, int result, const char *what,
                           const char *path);

#endif
