/*
 * The life of a cold range, from reply.c's not finding it in memory to its frame: see cold.h.
 *
 * Previous hop: reply.c. Next: reads.h, and reply.c again. cold_turns.c has who gets memory when.
 *
 * Threads: the loop's alone. Failure: what cannot be read is an answer for that range alone.
 */
#include "storage/cold.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/cold_range.h"
#include "storage/disk.h"

#define SPARE_MAX 256u
/* A range that does not fit as a whole goes through two halves; its CRCs lie behind them. */
#define CRCS_BYTES_MAX (FFS_CHUNK_BLOCKS_MAX * (uint32_t)sizeof(uint32_t))
#define HALF_BYTES                                                                                 \
	((FFS_COLD_WHOLE_BYTES_MAX - CRCS_BYTES_MAX) / 2 / FFS_BLOCK_BYTES * FFS_BLOCK_BYTES)

/* ---------------------------------------------------------------------------- a range's own life
 */

static void push(struct ffs_cold_list *list, struct ffs_cold *cold)
{
	cold->next = NULL;
	*list->tail = cold;
	list->tail = &cold->next;
}

struct ffs_cold *ffs_cold_pop(struct ffs_cold_list *list)
{
	struct ffs_cold *cold = list->head;
	list->head = cold->next;
	if (list->head == NULL)
		list->tail = &list->head;
	return cold;
}

void ffs_cold_conn_init(struct ffs_cold_conn *cold)
{
	cold->waiting.tail = &cold->waiting.head;
	cold->ready.tail = &cold->ready.head;
}

static void give_memory_back(struct ffs_cold *cold)
{
	struct ffs_loop *loop = cold->loop;
	if (cold->buffer.bytes == NULL)
		return;
	struct ffs_conn *conn = ffs_loop_find(loop, cold->connection_id);
	if (cold->priority == FFS_BATCH)
		loop->cold.batch_bytes -= ffs_buffer_bytes(&cold->buffer);
	if (conn != NULL) {
		conn->cold.held_bytes -= ffs_buffer_bytes(&cold->buffer);
		ffs_cold_take_turn(conn);
	}
	ffs_buffers_give_back(&loop->group->read_buffers, &cold->buffer);
}

/* End it; what the kernel still writes to is freed when that is over. */
static void discard(struct ffs_cold *cold)
{
	struct ffs_cold_loop *loop = &cold->loop->cold;
	if (cold->request != NULL)
		ffs_request_answered(ffs_loop_find(cold->loop, cold->connection_id), cold->request);
	cold->request = NULL;
	cold->abandoned = true;
	if (cold->reading > 0)
		return;
	give_memory_back(cold);
	ffs_store_release(&cold->range);
	if (loop->spare_count == SPARE_MAX) {
		free(cold);
		return;
	}
	cold->next = loop->spare;
	loop->spare = cold;
	loop->spare_count++;
}

static struct ffs_cold *make(struct ffs_loop *loop)
{
	struct ffs_cold *cold = loop->cold.spare;
	if (cold == NULL)
		return ffs_sys_malloc(sizeof(*cold));
	loop->cold.spare = cold->next;
	loop->cold.spare_count--;
	return cold;
}

bool ffs_cold_full(const struct ffs_conn *conn)
{
	return conn->cold.unread >= FFS_COLD_UNREAD_MAX || conn->cold.unsent >= FFS_COLD_UNSENT_MAX;
}

/* One more descriptor of the request that waits; NULL without memory. */
static struct ffs_cold *begin(struct ffs_conn *conn, struct ffs_request *request, uint32_t index)
{
	struct ffs_cold *cold = make(conn->loop);
	if (cold == NULL)
		return NULL;
	memset(cold, 0, offsetof(struct ffs_cold, inline_crcs));
	cold->loop = conn->loop;
	cold->connection_id = conn->id;
	cold->request = request;
	cold->index = index;
	cold->priority = request->header.priority == FFS_TRAINING ? FFS_TRAINING : FFS_BATCH;
	request->pending++;
	conn->cold.unread++;
	return cold;
}

bool ffs_cold_add(struct ffs_conn *conn, struct ffs_request *request, uint32_t index,
                  const struct ffs_range *range, bool cached)
{
	struct ffs_cold *cold = begin(conn, request, index);
	if (cold == NULL)
		return false;
	cold->range = *range;
	cold->cached = cached;
	cold->skip = (uint32_t)(range->data_offset % FFS_BLOCK_BYTES);
	cold->span = cold->skip + range->bytes;
	push(&conn->cold.waiting, cold);
	ffs_cold_take_turn(conn);
	return true;
}

bool ffs_cold_fail(struct ffs_conn *conn, struct ffs_request *request, uint32_t index,
                   uint16_t status)
{
	struct ffs_cold *cold = begin(conn, request, index);
	if (cold == NULL)
		return false;
	ffs_cold_is_ready(conn, cold, status);
	return true;
}

void ffs_cold_is_ready(struct ffs_conn *conn, struct ffs_cold *cold, uint16_t status)
{
	cold->status = status;
	conn->cold.unread--;
	conn->cold.unsent++;
	push(&conn->cold.ready, cold);
	if (conn->cold.woken)
		return;
	conn->cold.woken = true;
	conn->cold.woken_next = conn->loop->cold.woken;
	conn->loop->cold.woken = conn;
}

/* --------------------------------------------------------------------------------------- reading
 */

/* Memory for the whole range, or for two halves and all CRCs. */
uint32_t ffs_cold_memory(const struct ffs_cold *cold)
{
	uint32_t crcs = cold->range.crc_blocks * (uint32_t)sizeof(uint32_t);
	uint32_t blocks = ffs_block_count(cold->span);
	if (crcs <= sizeof(cold->inline_crcs))
		crcs = 0;
	if ((uint64_t)blocks * FFS_BLOCK_BYTES + crcs > FFS_COLD_WHOLE_BYTES_MAX)
		return FFS_COLD_WHOLE_BYTES_MAX;
	return blocks * FFS_BLOCK_BYTES + crcs;
}

/*
 * The first read of a range goes directly to the disk: it costs a fraction of the processor's time
 * and drives nothing out of the page cache. What is read again soon is worth a place there.
 */
static bool wants_direct(struct ffs_cold *cold)
{
	struct ffs_group *group = cold->loop->group;
	const struct ffs_range *range = &cold->range;
	if (group->io == FFS_IO_BUFFERED || cold->cached)
		return false;
	if (group->io == FFS_IO_AUTO &&
	    ffs_reuse_note(&group->reuse, range->chunk->blob, range->chunk->chunk,
	                   (uint32_t)range->data_offset, range->bytes))
		return false;
	if (range->class->direct_fd >= 0 && !atomic_load(&range->class->direct_refused))
		return true;
	ffs_count(&cold->loop->counts.direct_refused, 1);
	return false;
}

/* What is to be sent first is here. */
static void note_disk(struct ffs_cold *cold)
{
	struct ffs_store *store = ffs_class_store(cold->range.class);
	cold->disk_ns = ffs_monotonic_ns() - cold->asked_ns;
	ffs_latency_share(&store->disk_reads, cold->disk_ns);
}

static void on_read(struct ffs_read *read)
{
	struct ffs_cold *cold = read->context;
	struct ffs_conn *conn = ffs_loop_find(cold->loop, cold->connection_id);
	cold->reading--;
	cold->loop->cold.batch_reads -= cold->priority == FFS_BATCH;
	if (!cold->sending && cold->reading == 0)
		note_disk(cold); /* also of one that nobody waits for any more: that it took so long */
	if (read->refused)
		atomic_store(&cold->range.class->direct_refused, true);
	if (conn == NULL || cold->abandoned) {
		discard(cold);
		return;
	}
	if (read->error != 0)
		cold->failed = true;
	if (cold->sending) { /* the connection's output, which may be waiting for this piece */
		if (conn->cold.awaits && !conn->cold.woken) {
			conn->cold.woken = true;
			conn->cold.woken_next = conn->loop->cold.woken;
			conn->loop->cold.woken = conn;
		}
	} else if (cold->reading == 0) {
		ffs_cold_is_ready(conn, cold, cold->failed ? FFS_ERR_STORAGE_IO : FFS_OK);
	}
}

static void ask(struct ffs_cold *cold, struct ffs_read *read)
{
	read->done = on_read;
	read->context = cold;
	cold->reading++;
	cold->loop->cold.batch_reads += cold->priority == FFS_BATCH;
	ffs_reads_add(&cold->loop->cold.reads, read);
}

static uint32_t piece_count(const struct ffs_cold *cold)
{
	return (cold->span - 1) / cold->piece_bytes + 1;
}

static uint32_t piece_length(const struct ffs_cold *cold, uint32_t piece)
{
	uint32_t start = piece * cold->piece_bytes;
	return cold->span - start < cold->piece_bytes ? cold->span - start : cold->piece_bytes;
}

static uint8_t *piece_place(const struct ffs_cold *cold, uint32_t piece)
{
	return cold->buffer.bytes + (size_t)(piece % 2) * cold->piece_bytes;
}

static void ask_piece(struct ffs_cold *cold)
{
	uint32_t piece = cold->asked++;
	uint32_t needed = piece_length(cold, piece);
	struct ffs_read *read = &cold->data_reads[piece % 2];
	*read = (struct ffs_read){
		.fd = cold->direct ? cold->range.class->direct_fd : cold->range.data_fd,
		.other_fd = cold->range.data_fd,
		.target = piece_place(cold, piece),
		.offset = cold->range.data_offset - cold->skip + (uint64_t)piece * cold->piece_bytes,
		.bytes = ffs_block_count(needed) * FFS_BLOCK_BYTES,
		.needed = needed,
	};
	ask(cold, read);
}

/* CRCs take a thousandth of the page cache that the data would: they go through it always. */
static void ask_crcs(struct ffs_cold *cold)
{
	const struct ffs_range *range = &cold->range;
	uint32_t bytes = range->crc_blocks * (uint32_t)sizeof(uint32_t);
	cold->crcs = bytes <= sizeof(cold->inline_crcs)
	                 ? cold->inline_crcs
	                 : cold->buffer.bytes + ffs_buffer_bytes(&cold->buffer) - bytes;
	if (bytes == 0 ||
	    ffs_disk_read_cached(range->crc_fd, cold->crcs, bytes, range->crc_offset) == 0)
		return;
	cold->crc_read = (struct ffs_read){
		.fd = range->crc_fd,
		.other_fd = range->crc_fd,
		.target = cold->crcs,
		.offset = range->crc_offset,
		.bytes = bytes,
		.needed = bytes,
	};
	ask(cold, &cold->crc_read);
}

void ffs_cold_read(struct ffs_cold *cold)
{
	bool whole = ffs_cold_memory(cold) < FFS_COLD_WHOLE_BYTES_MAX ||
	             cold->span <= FFS_COLD_WHOLE_BYTES_MAX - CRCS_BYTES_MAX;
	cold->piece_bytes = whole ? ffs_block_count(cold->span) * FFS_BLOCK_BYTES : HALF_BYTES;
	cold->direct = wants_direct(cold);
	cold->asked_ns = ffs_monotonic_ns();
	ask_crcs(cold);
	ask_piece(cold);
	if (piece_count(cold) > 1)
		ask_piece(cold);
}

void ffs_cold_reap(struct ffs_loop *loop)
{
	if (loop->cold.reads.added == 0)
		return;
	(void)ffs_reads_reap(&loop->cold.reads);
	(void)ffs_reads_submit(&loop->cold.reads); /* before the disk waits for what is sent */
	(void)ffs_cold_wake(loop);
}

bool ffs_cold_wake(struct ffs_loop *loop)
{
	struct ffs_conn *conn = loop->cold.woken;
	bool any = conn != NULL;
	loop->cold.woken = NULL;
	while (conn != NULL) {
		struct ffs_conn *next = conn->cold.woken_next;
		conn->cold.woken = false;
		if (conn->fd >= 0) { /* closed connections are freed when the round is over */
			ffs_conn_send(conn);
			ffs_conn_note(conn);
			ffs_conn_watch(conn);
		}
		conn = next;
	}
	return any;
}

/* --------------------------------------------------------------------------------------- sending
 */

bool ffs_cold_peek(const struct ffs_conn *conn, struct ffs_cold_answer *answer)
{
	const struct ffs_cold *cold = conn->cold.ready.head;
	if (cold == NULL)
		return false;
	*answer = (struct ffs_cold_answer){
		.request = cold->request,
		.index = cold->index,
		.status = cold->status,
		.disk_ns = cold->disk_ns,
	};
	if (cold->status != FFS_OK)
		return true;
	answer->direct = cold->direct;
	answer->bytes = cold->range.bytes;
	answer->first = piece_place(cold, 0) + cold->skip;
	answer->first_bytes = piece_length(cold, 0) - cold->skip;
	answer->crcs = cold->crcs;
	answer->crc_bytes = cold->range.crc_blocks * (uint32_t)sizeof(uint32_t);
	return true;
}

void ffs_cold_take(struct ffs_conn *conn, struct ffs_cold_use *use)
{
	struct ffs_cold *cold = ffs_cold_pop(&conn->cold.ready);
	conn->cold.unsent--;
	cold->request = NULL; /* its answer is in the frame */
	cold->next = use->colds;
	use->colds = cold;
	if (cold->status != FFS_OK || piece_count(cold) == 1)
		return;
	cold->sending = true;
	use->streamed = cold;
}

enum ffs_cold_piece ffs_cold_next_piece(struct ffs_conn *conn, const struct ffs_cold_use *use,
                                        struct iovec *next)
{
	struct ffs_cold *cold = use->streamed;
	conn->cold.awaits = false;
	if (cold == NULL)
		return FFS_COLD_NO_MORE;
	if (cold->sent + 1 == piece_count(cold))
		return FFS_COLD_NO_MORE;
	/* The half that is sent takes the piece after the next. */
	if (cold->asked == cold->sent + 2 && cold->asked < piece_count(cold))
		ask_piece(cold);
	uint32_t piece = cold->sent + 1;
	const struct ffs_read *read = &cold->data_reads[piece % 2];
	if (cold->failed)
		return FFS_COLD_BROKEN;
	if (read->got < read->needed) {
		conn->cold.awaits = true;
		return FFS_COLD_LATER;
	}
	cold->sent = piece;
	*next = (struct iovec){piece_place(cold, piece), piece_length(cold, piece)};
	return FFS_COLD_PIECE;
}

void ffs_cold_release(struct ffs_cold_use *use)
{
	use->streamed = NULL;
	while (use->colds != NULL) {
		struct ffs_cold *cold = use->colds;
		use->colds = cold->next;
		discard(cold);
	}
}

void ffs_cold_forget(struct ffs_conn *conn)
{
	ffs_cold_leave_turn(conn);
	while (conn->cold.waiting.head != NULL)
		discard(ffs_cold_pop(&conn->cold.waiting));
	while (conn->cold.ready.head != NULL)
		discard(ffs_cold_pop(&conn->cold.ready));
}
