/*
 * Who gets memory for cold ranges, and the loop's part of reading them: see cold.h.
 *
 * Inside a loop connections take turns, one range each, those of each priority among themselves.
 * Who is in no hurry comes when nobody else waits, and every so often when others do; it never has
 * more than some of the disk's queue and of the memory, since who comes after has to wait for what
 * is under way. Between loops the oldest ticket comes first (buffers.h): a loop whose next
 * connection has to wait takes one.
 */
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/cold_range.h"

/* How long to sleep when the kernel could not take all reads. */
#define AGAIN_MS 1

static bool has_share(const struct ffs_conn *conn)
{
	return conn->cold.held_bytes < conn->loop->group->read_buffers.limit_bytes / 2;
}

void ffs_cold_take_turn(struct ffs_conn *conn)
{
	if (conn->cold.in_turn || conn->cold.waiting.head == NULL || !has_share(conn))
		return;
	conn->cold.turn = conn->cold.waiting.head->priority;
	struct ffs_cold_turn *turn = &conn->loop->cold.turns[conn->cold.turn];
	conn->cold.in_turn = true;
	conn->cold.turn_next = NULL;
	*turn->tail = conn;
	turn->tail = &conn->cold.turn_next;
}

void ffs_cold_leave_turn(struct ffs_conn *conn)
{
	struct ffs_cold_turn *turn = &conn->loop->cold.turns[conn->cold.turn];
	if (!conn->cold.in_turn)
		return;
	struct ffs_conn **link = &turn->head;
	while (*link != conn)
		link = &(*link)->cold.turn_next;
	*link = conn->cold.turn_next;
	if (turn->tail == &conn->cold.turn_next)
		turn->tail = link;
	conn->cold.in_turn = false;
}

/* Whether one more may be read for who is in no hurry: all loops together leave half of the memory
 * to others. */
static bool may_batch(const struct ffs_loop *loop)
{
	uint64_t share = loop->group->read_buffers.limit_bytes / 2 / loop->group->loop_count;
	return loop->cold.batch_reads < FFS_BATCH_READS_MAX && loop->cold.batch_bytes < share;
}

/* Whose turn it is; NULL: nobody's. */
static struct ffs_conn *next_turn(const struct ffs_loop *loop)
{
	const struct ffs_cold_loop *cold = &loop->cold;
	struct ffs_conn *first = cold->turns[FFS_TRAINING].head;
	struct ffs_conn *batch = cold->turns[FFS_BATCH].head;
	bool waits = first != NULL && (cold->turns_taken + 1) % FFS_BATCH_TURNS != 0;
	return batch == NULL || waits || !may_batch(loop) ? first : batch;
}

static void set_ticket(struct ffs_loop *loop, uint64_t ticket)
{
	if (loop->cold.ticket == ticket)
		return;
	loop->cold.ticket = ticket;
	ffs_buffers_set_oldest(&loop->group->read_buffers, loop->index, ticket);
}

static enum ffs_buffer_result take_memory(struct ffs_loop *loop, struct ffs_cold *cold)
{
	struct ffs_buffers *buffers = &loop->group->read_buffers;
	uint32_t bytes = ffs_cold_memory(cold);
	enum ffs_buffer_result result =
		ffs_buffers_take(buffers, bytes, loop->cold.ticket, &cold->buffer);
	if (result == FFS_BUFFER_WAIT && loop->cold.ticket == FFS_NO_TICKET) {
		set_ticket(loop, ffs_buffers_ticket(buffers));
		/* Memory that came back in between was given back to nobody. */
		result = ffs_buffers_take(buffers, bytes, loop->cold.ticket, &cold->buffer);
	}
	if (result != FFS_BUFFER_WAIT)
		set_ticket(loop, FFS_NO_TICKET);
	return result;
}

static void start(struct ffs_conn *conn, enum ffs_buffer_result result)
{
	struct ffs_cold *cold = ffs_cold_pop(&conn->cold.waiting);
	if (result == FFS_BUFFER_NEVER) {
		cold->buffer.bytes = NULL;
		ffs_cold_is_ready(conn, cold, FFS_ERR_BUSY);
		return;
	}
	conn->cold.held_bytes += ffs_buffer_bytes(&cold->buffer);
	if (cold->priority == FFS_BATCH)
		conn->loop->cold.batch_bytes += ffs_buffer_bytes(&cold->buffer);
	ffs_cold_read(cold);
}

static bool expired(const struct ffs_loop *loop, const struct ffs_cold *cold)
{
	return cold->request->expires_ns != 0 && loop->now_ns > cold->request->expires_ns;
}

void ffs_cold_feed(struct ffs_loop *loop)
{
	struct ffs_conn *conn = next_turn(loop);
	for (; conn != NULL && loop->cold.reads.added < FFS_READS_ADDED_MAX; conn = next_turn(loop)) {
		if (expired(loop, conn->cold.waiting.head)) {
			ffs_cold_is_ready(conn, ffs_cold_pop(&conn->cold.waiting), FFS_ERR_DEADLINE);
		} else {
			enum ffs_buffer_result result = take_memory(loop, conn->cold.waiting.head);
			if (result == FFS_BUFFER_WAIT)
				return;
			start(conn, result);
		}
		ffs_cold_leave_turn(conn);
		ffs_cold_take_turn(conn);
		loop->cold.turns_taken++;
		/* What the kernel does not take now it is asked to take at the end of the round. */
		if (ffs_reads_queued(&loop->cold.reads) == FFS_READS_TOGETHER_MAX)
			(void)ffs_reads_submit(&loop->cold.reads);
	}
	if (conn == NULL)
		set_ticket(loop, FFS_NO_TICKET);
}

int ffs_cold_submit(struct ffs_loop *loop)
{
	if (loop->cold.reads.added == 0 || ffs_reads_submit(&loop->cold.reads))
		return FFS_TICK_MS;
	return AGAIN_MS;
}

/* ---------------------------------------------------------------------------------- a loop's life
 */

int ffs_cold_loop_init(struct ffs_loop *loop, enum ffs_reads_means means)
{
	for (int i = 0; i < FFS_PRIORITIES; i++)
		loop->cold.turns[i].tail = &loop->cold.turns[i].head;
	loop->cold.ticket = FFS_NO_TICKET;
	int result = ffs_reads_init(&loop->cold.reads, means);
	loop->cold.reads_made = result == 0;
	return result;
}

void ffs_cold_loop_enter(struct ffs_loop *loop)
{
	ffs_reads_enable(&loop->cold.reads);
}

void ffs_cold_loop_leave(struct ffs_loop *loop)
{
	ffs_reads_drain(&loop->cold.reads);
	while (loop->cold.spare != NULL) {
		struct ffs_cold *cold = loop->cold.spare;
		loop->cold.spare = cold->next;
		free(cold);
	}
}

void ffs_cold_loop_fini(struct ffs_loop *loop)
{
	if (loop->cold.reads_made)
		ffs_reads_fini(&loop->cold.reads);
	loop->cold.reads_made = false;
}
