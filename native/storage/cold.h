/*
 * Ranges that the page cache does not have: read without blocking the loop, and each answered when
 * its bytes are there, whatever was asked before or after it.
 *
 *   reply.c -> ffs_cold_add: waiting -> memory -> being read -> ready -> reply.c: sent
 *
 * A range waits until there is memory for it, which is bounded for the daemon in all (buffers.h)
 * and for one connection at half of that; connections take turns, one range each, so that a long
 * request starves nobody. Those in a hurry go before those that are not (enum ffs_priority), but
 * for one turn in FFS_BATCH_TURNS, so that nobody starves. Then its bytes and, unless the page
 * cache has those, its CRCs are read at the same time (reads.h). Small ranges of one request that
 * are ready together share a frame.
 *
 * The bytes go to the socket from where the disk has put them. A range longer than
 * FFS_COLD_WHOLE_BYTES_MAX is sent while it is read, one half of its memory after the other; only
 * there may an error come after the header is out, and closes the connection.
 *
 * Whether a read leaves its bytes in the page cache is a question of use: see wants_direct in
 * cold.c and docs/decisions/0004-cold-reads.md.
 *
 * Lifetime: a range that is being read owns its memory and its pin until the kernel is done with
 * both, even if its connection is long gone; it knows that one by id alone. Copies: none.
 */
#ifndef FFS_STORAGE_COLD_H
#define FFS_STORAGE_COLD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "core/frame.h"
#include "storage/arena.h"
#include "storage/buffers.h"
#include "storage/reads.h"
#include "storage/store.h"

/* Ranges of one connection that wait or are read (twice what the disk is given, so that some are
 * ready for it), and that wait for the socket. */
#define FFS_COLD_UNREAD_MAX 128u
#define FFS_COLD_UNSENT_MAX 64u

/* CRCs of ranges up to 1 MiB have their place in the struct, those of others behind the data. */
#define FFS_COLD_CRCS_BYTES ((size_t)1028)
#define FFS_COLD_WHOLE_BYTES_MAX FFS_ARENA_PIECE_BYTES_MAX

/* Of a loop's reads, so many may be for who is in no hurry: who is does not wait for more. */
#define FFS_BATCH_READS_MAX 32u
#define FFS_BATCH_TURNS 8u

enum ffs_io {
	FFS_IO_AUTO,     /* directly at first, through the page cache what is read again soon */
	FFS_IO_BUFFERED, /* always through the page cache */
	FFS_IO_DIRECT,   /* never */
};

struct ffs_conn;
struct ffs_loop;
struct ffs_request;
struct ffs_cold;

struct ffs_cold_list {
	struct ffs_cold *head;
	struct ffs_cold **tail;
};

/* A connection's part. */
struct ffs_cold_conn {
	struct ffs_cold_list waiting; /* for memory */
	struct ffs_cold_list ready;
	uint32_t unread;
	uint32_t unsent;
	uint64_t held_bytes; /* memory */
	bool awaits;         /* its output goes on with bytes that are still being read */
	bool in_turn;
	enum ffs_priority turn; /* in which of the two */
	struct ffs_conn *turn_next;
	bool woken;
	struct ffs_conn *woken_next;
};

/* Who waits for memory, in turn. */
struct ffs_cold_turn {
	struct ffs_conn *head;
	struct ffs_conn **tail;
};

/* A loop's part. */
struct ffs_cold_loop {
	struct ffs_reads reads;
	bool reads_made;
	struct ffs_cold_turn turns[FFS_PRIORITIES];
	uint32_t turns_taken;
	uint32_t batch_reads; /* under way */
	uint64_t batch_bytes; /* of memory */
	uint64_t ticket;      /* for memory, on behalf of who is next */
	struct ffs_conn *woken;
	struct ffs_cold *spare;
	uint32_t spare_count;
};

void ffs_cold_conn_init(struct ffs_cold_conn *cold);
/* 0 or -errno. */
int ffs_cold_loop_init(struct ffs_loop *loop, enum ffs_reads_means means);
/* In the loop's thread, at its start and at its end; the latter waits for what is being read. */
void ffs_cold_loop_enter(struct ffs_loop *loop);
void ffs_cold_loop_leave(struct ffs_loop *loop);
/* After the thread is joined. */
void ffs_cold_loop_fini(struct ffs_loop *loop);

/* Whether the connection has so much on its way that its requests should not be looked at. */
bool ffs_cold_full(const struct ffs_conn *conn);
/* Have a range read, `cached` if the page cache is known to have it; takes the pin over. False
 * without memory. */
bool ffs_cold_add(struct ffs_conn *conn, struct ffs_request *request, uint32_t index,
                  const struct ffs_range *range, bool cached);
/* Have this answer, which is no OK, take its turn among those of ranges that are read. */
bool ffs_cold_fail(struct ffs_conn *conn, struct ffs_request *request, uint32_t index,
                   uint16_t status);

/* Ranges whose answer is in a frame: their memory is in use until that is out. */
struct ffs_cold_use {
	struct ffs_cold *colds;
	struct ffs_cold *streamed; /* that one of them that is still being read */
};

/* What is ready to be sent. */
struct ffs_cold_answer {
	struct ffs_request *request;
	uint32_t index; /* of its descriptor */
	uint16_t status;
	bool direct;
	uint64_t disk_ns; /* how long the disk took */
	uint32_t bytes;   /* of the range; of them first_bytes are there, the others will follow */
	uint32_t first_bytes;
	const uint8_t *first;
	const uint8_t *crcs;
	uint32_t crc_bytes;
};
/* The range that has been ready longest, if there is one. */
bool ffs_cold_peek(const struct ffs_conn *conn, struct ffs_cold_answer *answer);
/* It goes with this frame, which keeps its memory until it is released. */
void ffs_cold_take(struct ffs_conn *conn, struct ffs_cold_use *use);

enum ffs_cold_piece {
	FFS_COLD_PIECE,   /* here it is */
	FFS_COLD_NO_MORE, /* all are sent */
	FFS_COLD_LATER,   /* it is being read */
	FFS_COLD_BROKEN,  /* it could not be read */
};
/* The pieces so far are sent: go on with the next one. */
enum ffs_cold_piece ffs_cold_next_piece(struct ffs_conn *conn, const struct ffs_cold_use *use,
                                        struct iovec *next);
/* A frame is over, sent or not. */
void ffs_cold_release(struct ffs_cold_use *use);
/* The connection closes. */
void ffs_cold_forget(struct ffs_conn *conn);

/* Take what was read, and send to whom it belongs. */
void ffs_cold_reap(struct ffs_loop *loop);
/* Give memory to those whose turn it is and start their reads. */
void ffs_cold_feed(struct ffs_loop *loop);
/* Send to those who have got an answer without a read; true if there were any. */
bool ffs_cold_wake(struct ffs_loop *loop);
/* Hand this round's reads to the kernel; returns how many ms the loop may sleep. */
int ffs_cold_submit(struct ffs_loop *loop);

#endif
