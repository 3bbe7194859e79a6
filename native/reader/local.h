/*
 * Reading a daemon's extent files on the same host: what one local connection knows.
 *
 * Read path: drive.c -> THIS -> pread -> the caller's memory, blocks checked by check.c. The daemon
 * (native/storage/locate.c) says once where a chunk lies and sends the descriptors of its files;
 * from then on no byte of it goes through a socket.
 *
 *   order[]:  read already | to be read, located | not looked at yet
 *                       read_at              leg->next
 *
 * A call goes through its operations in waves. A wave begins by looking up every chunk; those that
 * are unknown are asked for in one LOCATE, and as many that were not used for long are given back
 * where the table is full. Then the wave is read in steps, between which the loop of drive.c looks
 * at other connections, the clock and signals.
 *
 * Why no byte of a reused extent is ever returned: what is in the table is pinned in the daemon for
 * as long as the connection lives. Each step ends by asking the kernel whether it still does, after
 * the bytes were read and before any operation is final; if not, the operations fail.
 *
 * Bounds: FFS_LOCATED_PER_CONNECTION_MAX chunks, FFS_LOCATE_FILES_MAX pairs of files.
 * Threads: the connection's owner. Fork: the child closes its copies of the descriptors, and the
 * parent's pins stay.
 */
#ifndef FFS_READER_LOCAL_H
#define FFS_READER_LOCAL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/frame.h"
#include "core/limits.h"
#include "core/status.h"

enum ffs_located_state {
	FFS_LOCATED_SPARE = 0,
	FFS_LOCATED_ASKED,  /* in a LOCATE that is under way */
	FFS_LOCATED_KNOWN,  /* pinned */
	FFS_LOCATED_FAILED, /* `status` says why; asked for again by the next wave */
};

/* A chunk, and where it lies. */
struct ffs_located {
	uint64_t blob;
	uint32_t chunk;
	uint32_t target;
	uint64_t data_offset;
	uint64_t crc_offset;
	uint32_t length;
	uint32_t pin;
	uint32_t next; /* in its bucket or in the list of spares */
	uint32_t wave; /* that used it last */
	uint16_t file;
	uint16_t status;
	uint8_t state;
	bool recent; /* used again since the hand of the clock came by */
};

struct ffs_local {
	struct ffs_located *located;
	uint32_t *buckets; /* `room` of them */
	uint32_t room;     /* a power of two, or 0 */
	uint32_t spare;
	uint32_t hand; /* of the clock that finds what to give back */
	uint32_t wave;

	uint32_t file_count;
	int data_fds[FFS_LOCATE_FILES_MAX];
	int crc_fds[FFS_LOCATE_FILES_MAX];
	uint32_t arrived_count; /* descriptors that came with the answer under way */
	int arrived[2 * FFS_LOCATE_FILES_MAX];
	bool mapped; /* what is located here is to be mapped: mapped.c */
	bool blocks; /* the files cannot be read without waiting: no use to try */
	bool waited; /* something was not in the page cache since the clock was read */

	uint32_t asked_count;
	uint32_t asked[FFS_LOCATE_CHUNKS_MAX];
	uint32_t release_count;
	uint32_t release[FFS_LOCATE_CHUNKS_MAX]; /* pins */

	uint32_t read_at;
	uint32_t ahead;       /* operations before this one were announced to the kernel */
	uint32_t piece_bytes; /* of the operation that is being read, edges included; 0: none */
};

/* NULL without memory. */
struct ffs_local *ffs_local_new(void);
/* Close the descriptors and forget every chunk: the connection has ended. */
void ffs_local_forget(struct ffs_local *local);
void ffs_local_free(struct ffs_local *local);

struct ffs_conn;
/* Whether the connection, and with it every pin, was there until now; any state but FFS_OK is why
 * not. */
enum ffs_status ffs_local_still_pinned(const struct ffs_conn *conn);

/* The index of a chunk, UINT32_MAX if the table does not have it. */
uint32_t ffs_local_find(const struct ffs_local *local, uint64_t blob, uint32_t chunk,
                        uint32_t target);
/* Add a chunk as ASKED, giving another one back if there is no room otherwise; UINT32_MAX if none
 * can be given back now, or without memory. */
uint32_t ffs_local_add(struct ffs_local *local, uint64_t blob, uint32_t chunk, uint32_t target);

#endif
