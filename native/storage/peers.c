/*
 * Peers that hold what others need: who has to wait for a send buffer, and who has to go.
 *
 * Called by loop.c between rounds. Nothing here is on the path of a peer that keeps its pace: the
 * clock of a round is read once, and connections are looked through once a second.
 *
 * A frame that was begun has to come in at a minimum rate, always. Only when others wait (for
 * receive buffers, or for send buffers) is more asked of those who have them. The time in which we
 * did not read from a connection does not count against it.
 */
#include "core/sys.h"
#include "storage/loop.h"
#include "storage/rdma.h"

/* Rounds further apart than this: it was us who did not look. */
#define LOOKED_AWAY_NS (3 * FFS_TICK_MS * UINT64_C(1000000))

static bool too_slow(uint64_t bytes, uint64_t elapsed_ns, bool crowded)
{
	uint64_t grace_ms = crowded ? FFS_CROWDED_GRACE_MS : FFS_FRAME_GRACE_MS;
	uint64_t rate = crowded ? FFS_CROWDED_RATE_MIN : FFS_FRAME_RATE_MIN;
	uint64_t elapsed_ms = elapsed_ns / 1000000;
	return elapsed_ms > grace_ms && bytes * 1000 < rate * (elapsed_ms - grace_ms);
}

/* In the middle of a frame, and not because we keep it waiting. */
static bool receives(const struct ffs_conn *conn)
{
	return conn->state != FFS_RECEIVE_WAITING &&
	       (conn->state != FFS_RECEIVE_HEADER || conn->header_used > 0);
}

/*
 * A connection that was just adopted, or answered, is not idle yet: what its client sends next may
 * be on its way.
 */
static bool is_idle(const struct ffs_conn *conn)
{
	uint64_t quiet_ns = conn->loop->now_ns - conn->active_ns;
	return quiet_ns >= FFS_IDLE_MS_MIN * UINT64_C(1000000) && conn->output == NULL &&
	       conn->held == NULL && conn->queued == 0 && conn->unanswered == 0 &&
	       conn->state == FFS_RECEIVE_HEADER && conn->header_used == 0 &&
	       (conn->rdma == NULL || ffs_rdma_is_idle(conn));
}

void ffs_conn_begin(struct ffs_conn *conn)
{
	conn->begun_ns = 0;
	conn->begun_bytes = 0;
}

void ffs_conn_note(struct ffs_conn *conn)
{
	conn->active_ns = conn->loop->now_ns;
	if (conn->begun_ns == 0 && receives(conn))
		conn->begun_ns = conn->loop->now_ns;
}

/* What others wait for. */
struct wants {
	bool write_buffers[FFS_HOPS_MAX];
	bool read_buffers;
	bool outputs;
};

/* Whether a connection keeps something back that it should have sent or taken. */
static bool dawdles(const struct ffs_conn *conn, const struct wants *wants)
{
	const struct ffs_loop *loop = conn->loop;
	bool hoards = wants->outputs || (wants->read_buffers && conn->cold.held_bytes > 0);
	if (conn->output != NULL && hoards && !conn->cold.awaits &&
	    too_slow(conn->output_bytes, loop->now_ns - conn->output_ns, true))
		return true;
	bool crowded = conn->write != NULL && wants->write_buffers[conn->hop];
	return conn->begun_ns != 0 && (conn->interest & EPOLLIN) != 0 && receives(conn) &&
	       too_slow(conn->begun_bytes, loop->now_ns - conn->begun_ns, crowded);
}

/* Once a second for all loops: receive buffers of a burst that is over are let go. */
static void settle_buffers(const struct ffs_loop *loop)
{
	for (uint32_t hop = 0; loop->index == 0 && hop < FFS_HOPS_MAX; hop++)
		ffs_buffers_settle(&loop->group->buffers[hop]);
}

void ffs_loop_close_slow(struct ffs_loop *loop)
{
	uint64_t passed_ns = loop->now_ns - loop->checked_ns;
	if (passed_ns < FFS_TICK_MS * UINT64_C(1000000))
		return;
	loop->checked_ns = loop->now_ns;
	settle_buffers(loop);
	if (passed_ns > LOOKED_AWAY_NS)
		return;
	struct wants wants = {
		.read_buffers = ffs_buffers_wanted(&loop->group->read_buffers),
		.outputs = loop->hungry != NULL,
	};
	for (uint32_t hop = 0; hop < FFS_HOPS_MAX; hop++)
		wants.write_buffers[hop] = ffs_buffers_wanted(&loop->group->buffers[hop]);
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		struct ffs_conn *conn = loop->conns[i];
		if (conn == NULL || !dawdles(conn, &wants))
			continue;
		loop->counts.errors++;
		ffs_conn_close(conn);
	}
}

static struct ffs_conn *longest_idle(const struct ffs_loop *loop)
{
	struct ffs_conn *longest = NULL;
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		struct ffs_conn *conn = loop->conns[i];
		if (conn != NULL && is_idle(conn) &&
		    (longest == NULL || conn->active_ns < longest->active_ns))
			longest = conn;
	}
	return longest;
}

/* Whether something has come in that had no turn yet, in a round as long as this one. */
static bool has_input(const struct ffs_conn *conn)
{
	uint8_t byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	return ffs_sys_recvmsg(conn->fd, &message, MSG_PEEK | MSG_DONTWAIT) > 0;
}

/* Whether it is this loop that makes one of the places that are wanted. */
static bool claim_place(struct ffs_group *group)
{
	uint32_t wanted = atomic_load(&group->places_wanted);
	while (wanted > 0) {
		if (atomic_compare_exchange_weak(&group->places_wanted, &wanted, wanted - 1))
			return true;
	}
	return false;
}

void ffs_loop_close_idle(struct ffs_loop *loop)
{
	if (!atomic_exchange(&loop->looks_for_idle, false))
		return;
	ffs_rdma_catch_up(loop);
	struct ffs_conn *longest = longest_idle(loop);
	if (longest == NULL)
		return;
	if (has_input(longest))
		ffs_conn_note(longest);
	else if (claim_place(loop->group))
		ffs_conn_close(longest);
}

void ffs_group_close_idle(struct ffs_group *group, uint32_t count)
{
	atomic_store(&group->places_wanted, count);
	for (uint32_t i = 0; i < group->loop_count; i++) {
		atomic_store(&group->loops[i].looks_for_idle, true);
		ffs_loop_kick(&group->loops[i]);
	}
}

/* --------------------------------------------------------------------------------- send buffers */

bool ffs_loop_has_output(const struct ffs_loop *loop)
{
	return loop->spare_outputs != NULL ||
	       loop->output_count < FFS_SEND_BUFFERS_MAX / loop->group->loop_count;
}

void ffs_conn_hunger(struct ffs_conn *conn)
{
	if (conn->hungry)
		return;
	conn->hungry = true;
	conn->hungry_next = NULL;
	*conn->loop->hungry_tail = conn;
	conn->loop->hungry_tail = &conn->hungry_next;
}

void ffs_conn_hunger_no_more(struct ffs_conn *conn)
{
	struct ffs_loop *loop = conn->loop;
	struct ffs_conn **link = &loop->hungry;
	while (*link != conn)
		link = &(*link)->hungry_next;
	*link = conn->hungry_next;
	if (loop->hungry_tail == &conn->hungry_next)
		loop->hungry_tail = link;
	conn->hungry = false;
}

void ffs_loop_feed(struct ffs_loop *loop)
{
	while (loop->hungry != NULL && ffs_loop_has_output(loop)) {
		struct ffs_conn *conn = loop->hungry;
		ffs_conn_hunger_no_more(conn);
		ffs_conn_send(conn);
		ffs_conn_watch(conn);
	}
}
