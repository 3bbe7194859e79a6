/*
 * One size class of a target: its three files and which of its slots are taken.
 *
 * Files are made at the first use of the class and grown by a sixteenth of what they hold, so that
 * a small target stays small. A slot may be handed out once all three files reach it; the index is
 * extended with zeros that are on disk before, so that an entry never appears by accident.
 *
 * Functions return 0 or -errno. Threads: only the thread that changes the store, or the one that
 * opens it; readers use the descriptors, which do not change once a chunk of the class is LIVE.
 */
#ifndef FFS_STORAGE_EXTENTS_H
#define FFS_STORAGE_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

#include "storage/format.h"
#include "storage/mapping.h"

enum ffs_class_file {
	FFS_FILE_DATA,
	FFS_FILE_CRC,
	FFS_FILE_INDEX,
	FFS_CLASS_FILES,
};
#define FFS_MAPPED_FILES 2 /* data and CRC */

struct ffs_class {
	int fds[FFS_CLASS_FILES];        /* -1 until first use */
	uint64_t bytes[FFS_CLASS_FILES]; /* lengths of the files */
	bool dirty[FFS_CLASS_FILES];     /* written since the last sync */
	struct ffs_mapping maps[FFS_MAPPED_FILES];
	_Atomic uint8_t means;      /* enum ffs_residency_means: what works here */
	int direct_fd;              /* the data once more, past the page cache; -1: not to be had */
	atomic_bool direct_refused; /* such reads have failed */
	uint32_t class_index;
	uint32_t slots;       /* slots that all three files reach */
	uint32_t index_slots; /* slots that the index reaches */
	uint32_t used_slots;
	uint32_t hint;  /* no word of the bitmap before this one has a free slot */
	uint64_t *used; /* a bit for each slot of the index: chunk, limbo, or damaged */
	uint32_t used_words;
};

void ffs_class_init(struct ffs_class *class, uint32_t class_index);
void ffs_class_fini(struct ffs_class *class);

/* Open the files if they are there (or make them); -ENOENT if they are not and `create` is off. */
int ffs_class_open(struct ffs_class *class, int directory_fd, bool create);

/* Find a free slot, growing the files if need be. `slot` is taken from here on. */
int ffs_class_take(struct ffs_class *class, uint32_t *slot);
void ffs_class_mark(struct ffs_class *class, uint32_t slot);
void ffs_class_give_back(struct ffs_class *class, uint32_t slot);
bool ffs_class_taken(const struct ffs_class *class, uint32_t slot);

/* Give the disk blocks of neighbouring slots back; what fails only stays allocated. */
void ffs_class_punch(struct ffs_class *class, uint32_t first_slot, uint32_t count);
/* The same for every free slot: what a crash may have left. */
void ffs_class_punch_free(struct ffs_class *class);

/*
 * How many slots from `first_slot` on, `count` at most, nobody has mapped; if that is none,
 * `*locked` of them have to wait.
 *
 * A client that maps an extent holds a read lock on the range, of its own open file: the kernel
 * keeps that as long as the mapping's owner has the file open, whatever becomes of connections and
 * daemons. A slot is free only after this was asked.
 */
uint32_t ffs_class_unlocked(const struct ffs_class *class, uint32_t first_slot, uint32_t count,
                            uint32_t *locked);

/* Sync the files that were written since last time. */
int ffs_class_sync(struct ffs_class *class, enum ffs_class_file file);

/* Another descriptor of a file of an open class, for reading alone; -errno if there is none. */
int ffs_class_open_to_read(const struct ffs_class *class, int directory_fd,
                           enum ffs_class_file file);

/* Bytes that one slot has in a file. */
uint64_t ffs_class_stride(const struct ffs_class *class, enum ffs_class_file file);

#endif
