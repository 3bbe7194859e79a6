/* A cold range, for the files that move it along: cold.c and cold_turns.c. See cold.h. */
#ifndef FFS_STORAGE_COLD_RANGE_H
#define FFS_STORAGE_COLD_RANGE_H

#include "storage/cold.h"
#include "storage/loop.h"

struct ffs_cold {
	struct ffs_cold *next;
	struct ffs_loop *loop;
	uint64_t connection_id;
	struct ffs_request *request; /* NULL once it is answered */
	struct ffs_range range;
	struct ffs_buffer buffer;
	uint8_t *crcs;
	uint32_t index; /* of its descriptor */
	uint32_t skip;  /* what is read before it, to begin with a block */
	uint32_t span;  /* that and its bytes */
	uint32_t piece_bytes;
	uint32_t asked;   /* pieces */
	uint32_t sent;    /* the piece under the output's cursor, or the last one that was */
	uint32_t reading; /* reads the kernel has */
	uint16_t status;
	enum ffs_priority priority;
	uint64_t asked_ns; /* when the first of them was */
	uint64_t disk_ns;  /* until what is sent first was there */
	bool cached;       /* the page cache has it: not to be read directly */
	bool direct;
	bool failed;
	bool sending;   /* while it is still being read */
	bool abandoned; /* to be freed when nothing is being read */
	struct ffs_read crc_read;
	struct ffs_read data_reads[2];
	uint8_t inline_crcs[FFS_COLD_CRCS_BYTES];
};

/* ------------------------------------------------------------------------------------- cold.c */

struct ffs_cold *ffs_cold_pop(struct ffs_cold_list *list);
/* How much memory it needs. */
uint32_t ffs_cold_memory(const struct ffs_cold *cold);
/* It has its memory: start to read. */
void ffs_cold_read(struct ffs_cold *cold);
/* It can be answered. */
void ffs_cold_is_ready(struct ffs_conn *conn, struct ffs_cold *cold, uint16_t status);

/* ------------------------------------------------------------------------------- cold_turns.c */

/* Queue the connection up for memory if it wants some and has no more than its share. */
void ffs_cold_take_turn(struct ffs_conn *conn);
void ffs_cold_leave_turn(struct ffs_conn *conn);

#endif
