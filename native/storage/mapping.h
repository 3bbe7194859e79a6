/*
 * Extent files mapped into memory, read-only, so that small ranges go from the page cache straight
 * to a socket.
 *
 * A file is mapped in windows at the first use of each, and a window is never moved or taken down
 * before its class is closed: an address stays good as long as the class, while the file grows, is
 * punched or even truncated. Windows reach past the end of the file on purpose: what is appended
 * shows up in them. They overlap by the largest chunk, so that no chunk lies across two.
 *
 * The bytes may only be handed to system calls (which answer EFAULT for a page that cannot be
 * read); user space that touched such a page would die of SIGBUS. The mappings are not marked
 * MADV_RANDOM: Linux then ignores that their pages are used, and evicts what is read most.
 *
 * Threads: ffs_mapping_at from any. Fork: the child inherits the windows and has no use for them.
 */
#ifndef FFS_STORAGE_MAPPING_H
#define FFS_STORAGE_MAPPING_H

#include <stdatomic.h>
#include <stdint.h>

/* Half of the address space of a process at most, in all. */
#define FFS_MAP_WINDOW_BYTES (UINT64_C(16) << 30)
#define FFS_MAP_WINDOWS_MAX 4096u

struct ffs_mapping {
	_Atomic(uint8_t *) *windows; /* FFS_MAP_WINDOWS_MAX of them; NULL: not mapped (yet) */
};

/* Without memory nothing is mapped, which is slower and still right. */
void ffs_mapping_init(struct ffs_mapping *mapping);
void ffs_mapping_fini(struct ffs_mapping *mapping);

/* Where a file's bytes from `offset` on lie, FFS_CHUNK_BYTES_MAX at least; NULL: not to be had. */
const uint8_t *ffs_mapping_at(struct ffs_mapping *mapping, int fd, uint64_t offset);

#endif
