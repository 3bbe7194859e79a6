/*
 * The chunk store: one target, a directory of extents that are each written exactly once.
 *
 * How a chunk gets in (commit.c), and why a crash at any instruction leaves it whole or absent:
 *   1. A free slot of its class is taken in memory. On disk its index entry is zero: absent.
 *   2. Bytes and block CRCs are written to the slot. Still absent.
 *   3. The data and the CRC file are synced. Still absent; everything a reader needs is on disk.
 *   4. The index entry is written. It lies in one sector and carries a CRC: after a crash it is
 *      zero (absent) or whole (and what it names is on disk since step 3).
 *   5. The index file is synced. Only now is the chunk found by readers and acknowledged.
 * How it gets out (drop.c):
 *   1. It leaves the table: no new reader finds it; those who have it pinned go on.
 *   2. Its entry is zeroed and the index synced; only now is the drop acknowledged.
 *   3. When no reader has it pinned or mapped and a grace time is over, the extent is punched and
 *      free again. The slot is not reused before step 2 is on disk, so no old entry can name new
 *      bytes.
 *
 * How a chunk is replaced by the same one from another replica (replace.c): it is written to
 * another slot by the five steps above, with an entry of a higher generation, while readers go on
 * with the old one. Then they are switched over, and the old one goes as if it were dropped. A
 * crash between the two leaves both entries: the higher generation holds, the other is dropped when
 * the target is opened.
 *
 * A failed write or sync stops the target for good: what is on disk is no longer known. One whose
 * disk does not answer at all is given up by its owner (ffs_store_give_up). The index
 * of a target that was not closed in order is written and synced again when it is opened, since a
 * failed sync may have left pages that look clean in memory and are not what the disk holds.
 *
 * Last hop of the read path: ffs._reader -> (wire) -> reply.c -> ffs_store_find -> extents
 *
 * Threads: every function from any thread, except open and the last unref. One writer thread makes
 * all changes, so that none needs a lock while it does I/O. Fork: the child may not use a store.
 */
#ifndef FFS_STORAGE_STORE_H
#define FFS_STORAGE_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "core/latency.h"
#include "core/status.h"
#include "storage/extents.h"
#include "storage/table.h"

#define FFS_BATCH_PUTS_MAX 1000
#define FFS_BATCH_BYTES_MAX (64u << 20)

enum ffs_store_fault {
	FFS_STORE_OK = 0,
	FFS_STORE_REFUSED, /* foreign, newer or damaged: `text` says what was found and expected */
	FFS_STORE_BUSY,    /* another process (or store object) has it open */
	FFS_STORE_SYSTEM,  /* `error` is an errno */
};

struct ffs_store_error {
	enum ffs_store_fault fault;
	int error;
	char text[512];
};

struct ffs_store_options {
	const char *path;
	uint8_t cluster_id[FFS_CLUSTER_ID_BYTES];
	uint32_t target_id;
	bool create;
	uint32_t drop_delay_ms; /* how long a dropped extent stays untouched */
};

/* One chunk on its way in. The caller keeps it and the memory it points to until `done`. */
struct ffs_put {
	struct ffs_put *next;
	uint64_t blob;
	uint32_t chunk;
	uint32_t length;
	const uint8_t *data;
	const uint8_t *crcs; /* little-endian u32 for each block, as they are stored and sent */
	void (*done)(struct ffs_put *put); /* on the writer thread, or the caller's if refused */
	void *context;
	uint16_t status;
	uint64_t queued_ns;
	/* The writer's own. */
	struct ffs_chunk *entry;
	struct ffs_limbo *replaced; /* what is here under this name, if it is to be replaced */
	uint32_t generation;
	bool replaces;
};

struct ffs_drop;
struct ffs_limbo;

/* Chunks that share their syncs. The writer's own. */
struct ffs_batch {
	int count;
	bool sealed; /* step 3 is done */
	uint64_t bytes;
	uint64_t since_ns; /* when the first was queued */
	struct ffs_put *puts[FFS_BATCH_PUTS_MAX];
};

struct ffs_store_counts {
	_Atomic uint64_t chunks;
	_Atomic uint64_t stored_bytes;
	_Atomic uint64_t allocated_bytes;
	_Atomic uint64_t damaged_entries;
};

struct ffs_store {
	atomic_uint users;
	pid_t owner;
	char *path;
	int directory_fd;
	int lock_fd;
	struct ffs_superblock superblock;
	uint32_t cluster_check;
	uint64_t drop_delay_ns;
	atomic_bool stopped; /* met a disk error; set by the writer, read by everyone */
	atomic_bool closed;
	uint32_t damage; /* CRC32C over where damaged entries are; 0: there are none */
	struct ffs_table table;
	struct ffs_class classes[FFS_CLASS_COUNT];
	struct ffs_store_counts counts;
	struct ffs_latency disk_reads; /* of ranges that the page cache did not have */
	struct ffs_latency commits;    /* of changes, from when they were queued; the writer adds */

	pthread_t writer;
	bool writer_running;
	pthread_mutex_t lock; /* for the fields below */
	pthread_cond_t wake;
	struct ffs_put *puts_head;
	struct ffs_put **puts_tail;
	struct ffs_drop *drops;
	bool closing;
	uint64_t working_since_ns; /* when the oldest of what the writer has was queued; 0: it waits */
	void (*on_stop)(void *context, uint32_t target_id);
	void (*on_pinned_drop)(void *context);
	void *on_stop_context;

	/* The writer's own. */
	struct ffs_put *taken;
	struct ffs_limbo *limbo_head;
	struct ffs_limbo **limbo_tail;
	struct ffs_batch batches[2];
	uint32_t open_batch; /* the one after step 3, if it has chunks; the other is being filled */
	struct ffs_limbo *doubles; /* while it is opened: what was replaced before a crash */
};

/* Whose class it is. */
static inline struct ffs_store *ffs_class_store(struct ffs_class *class)
{
	uint8_t *classes = (uint8_t *)(class - class->class_index);
	return (struct ffs_store *)(void *)(classes - offsetof(struct ffs_store, classes));
}

/* Open or make a target; NULL with `error` filled if that fails. */
struct ffs_store *ffs_store_open(const struct ffs_store_options *options,
                                 struct ffs_store_error *error);
/* Finish what is queued, mark the target clean, release its lock. Idempotent; not concurrently. */
void ffs_store_close(struct ffs_store *store);
/* Descriptors and memory live as long as somebody uses them. */
void ffs_store_ref(struct ffs_store *store);
void ffs_store_unref(struct ffs_store *store);

/* Read the superblock of a directory; -ENOENT if it has none. */
int ffs_store_superblock(const char *path, struct ffs_superblock *block,
                         struct ffs_store_error *error);

/* Queue a chunk; `done` follows in any case. */
void ffs_store_put(struct ffs_store *store, struct ffs_put *put);
/* Several at once: they share a commit as far as one has room. */
void ffs_store_put_all(struct ffs_store *store, struct ffs_put *puts, size_t count);
/* As ffs_store_put, but what is here under this name makes way, whatever it is. */
void ffs_store_replace(struct ffs_store *store, struct ffs_put *put);
/*
 * Read a chunk from the disk, past the page cache as far as that goes, and hold all of it against
 * its checksums and its index entry: FFS_ERR_CHECKSUM if anything differs.
 */
uint16_t ffs_store_verify(struct ffs_store *store, uint64_t blob, uint32_t chunk);
/* Forget all chunks of these blobs, durably; waits. Returns a status. */
uint16_t ffs_store_drop(struct ffs_store *store, const uint64_t *blobs, size_t count,
                        uint64_t *dropped);

/* Where a range's bytes and CRCs lie. `chunk` is pinned until ffs_store_release. */
struct ffs_range {
	struct ffs_chunk *chunk;
	struct ffs_class *class;
	int data_fd;
	int crc_fd;
	uint64_t data_offset;
	uint64_t crc_offset;
	uint32_t bytes;      /* widened to blocks, unless without CRCs */
	uint32_t crc_blocks; /* 0 without CRCs */
};

/* Find a range; on a status other than FFS_OK nothing is pinned. No I/O. */
uint16_t ffs_store_find(struct ffs_store *store, uint64_t blob, uint32_t chunk, uint32_t offset,
                        uint32_t length, bool with_crcs, struct ffs_range *range);
void ffs_store_release(struct ffs_range *range);

/* Distinct blobs > after, ascending, at most `limit`; -ENOMEM or how many. Caller frees `*blobs`.
 */
ssize_t ffs_store_blobs(struct ffs_store *store, uint64_t after, size_t limit, uint64_t **blobs);

struct ffs_chunk_name {
	uint32_t chunk;
	uint32_t length;
};
/* All chunks of a blob, ascending. */
ssize_t ffs_store_chunks(struct ffs_store *store, uint64_t blob, struct ffs_chunk_name **chunks);

#define FFS_KEY_BYTES 24u
/* A chunk as a listing names it. */
struct ffs_key {
	uint64_t blob;
	uint32_t chunk;
	uint32_t length;
	uint32_t digest;
};
/* As a listing holds it: the fields in this order, little-endian, then four bytes of zero. */
void ffs_key_pack(uint8_t out[FFS_KEY_BYTES], const struct ffs_key *key);
/* The first `limit` chunks after (blob, chunk), ascending; -ENOMEM or how many. Caller frees. */
ssize_t ffs_store_keys(struct ffs_store *store, uint64_t after_blob, uint32_t after_chunk,
                       size_t limit, struct ffs_key **keys);

/* The same in steps, for who has other things to do meanwhile. */
struct ffs_key_scan {
	struct ffs_key *keys; /* when it is over: the page */
	size_t count;
	size_t room;
	size_t limit;
	struct ffs_key after;
	struct ffs_key last; /* what is beyond this cannot be among the first `limit` */
	bool bounded;
	bool no_memory;
	uint32_t shard; /* the next one to be walked */
	size_t visited; /* in this step */
};
void ffs_key_scan_begin(struct ffs_key_scan *scan, uint64_t after_blob, uint32_t after_chunk,
                        size_t limit);
/* Look at `visits` chunks or some more: 1 if there are others, 0 if it is over, -ENOMEM. */
int ffs_key_scan_step(struct ffs_store *store, struct ffs_key_scan *scan, size_t visits);
/* Give the page back. */
void ffs_key_scan_end(struct ffs_key_scan *scan);

/* Call `on_stop` once when the target meets a disk error, and `on_pinned_drop` after each drop of a
 * chunk that somebody has pinned; false if somebody else listens. */
bool ffs_store_listen(struct ffs_store *store, void (*on_stop)(void *, uint32_t),
                      void (*on_pinned_drop)(void *), void *context);
void ffs_store_unlisten(struct ffs_store *store, void *context);

/* How long the oldest of all changes under way has been waiting for the disk; never waits itself.
 */
uint64_t ffs_store_waiting_ns(struct ffs_store *store);
/*
 * Stop a target whose disk does not answer. What the writer is in the middle of stays with it, and
 * ends when the disk answers; the rest is answered now. Closing waits for that.
 */
void ffs_store_give_up(struct ffs_store *store);

/* --------------------------------------------- between store.c, writer.c, commit.c and drop.c */

int ffs_writer_start(struct ffs_store *store);
/* Queue empty, limbo emptied as far as nobody reads, thread joined. */
void ffs_writer_stop(struct ffs_store *store);

/* Work off what the writer has taken from the queue; the last batch is left open. */
void ffs_commit_puts(struct ffs_store *store);
/* Steps 4 and 5 of the open batch, if there is one. */
void ffs_commit_open(struct ffs_store *store);
/* Sync one kind of file; what is on disk is unknown after a failure: the target stops. */
bool ffs_commit_seal(struct ffs_store *store, enum ffs_class_file file);
/* Answer a put. */
void ffs_put_complete(struct ffs_put *put, uint16_t status);

/* The target met a disk error: no more reads, no more writes. */
void ffs_store_stop(struct ffs_store *store);
/* FFS_ERR_NO_SPACE, FFS_ERR_BUSY (memory), or the target is stopped: FFS_ERR_TARGET_STOPPED. */
uint16_t ffs_store_failed(struct ffs_store *store, int error);

struct ffs_drop {
	struct ffs_drop *next;
	const uint64_t *blobs; /* ascending */
	size_t count;
	uint64_t dropped;
	uint64_t queued_ns;
	uint16_t status;
	bool finished;
	pthread_cond_t done;
};
void ffs_drop_run(struct ffs_store *store, struct ffs_drop *drop);
/* Free what is due; returns the ns until something else is, UINT64_MAX if nothing waits. */
uint64_t ffs_limbo_reap(struct ffs_store *store, bool at_once);
/* At open: free slots of a class that a client has mapped wait until it has not; 0 or -ENOMEM. */
int ffs_limbo_adopt(struct ffs_store *store, struct ffs_class *class);
/* Chunks that have left the table, or are about to, and are not free yet. */
struct ffs_limbo {
	struct ffs_limbo *next;
	uint64_t free_at_ns;
	size_t count;
	struct ffs_chunk *chunks[]; /* by place, ascending */
};
/* One chunk alone; NULL without memory. */
struct ffs_limbo *ffs_limbo_of(struct ffs_chunk *chunk);
/*
 * Zero the entries of chunks that have left the table, durably, and free them once nobody reads
 * them. False: the target is stopped.
 */
bool ffs_limbo_enter(struct ffs_store *store, struct ffs_limbo *limbo, uint64_t free_at_ns);
/* Forget what is still pinned: the last user of a closed store is gone. */
void ffs_limbo_free(struct ffs_store *store);
uint64_t ffs_monotonic_ns(void);

/* Get ready to replace `known`: a status. */
uint16_t ffs_replace_prepare(struct ffs_store *store, struct ffs_put *put, struct ffs_chunk *known);
/* The new chunk is durable: switch readers over, let the old one go. False: the target is stopped.
 */
bool ffs_replace_finish(struct ffs_store *store, struct ffs_put *put);
/*
 * At open: `entry` at `place` and `known` name the same chunk. The lower generation is set aside in
 * `store->doubles`; `*stays` says whether `entry` is the one that holds. -EEXIST: they are alike.
 */
int ffs_replace_resolve(struct ffs_store *store, const struct ffs_entry *entry,
                        const struct ffs_place *place, struct ffs_chunk *known, bool *stays);
/* And once every index is on disk: drop what was set aside; 0 or -errno. */
int ffs_replace_settle(struct ffs_store *store);

#endif
