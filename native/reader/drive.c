/*
 * The loop that a call runs, in each of its threads over its share of the legs: send what fits the
 * window, wait, receive, and look at the clock, at signals and at wishes to close, until every
 * operation is final. It waits in poll, or, where one connection alone is open, in the receive, for
 * at most FFS_RECEIVE_WAIT_NS.
 *
 * Failure: whatever goes wrong on a leg closes that leg's connection first, so that no byte can
 * arrive any more, and only then gives its operations a status.
 *
 * Threads: runs without the interpreter's lock. Fork: connections of another generation never get
 * here.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <time.h>

#include "core/sys.h"
#include "reader/batch.h"

#define STEPS_PER_TURN 16 /* of one leg, before the others and the clock get their turn */

int64_t ffs_now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* ---------------------------------------------------------------------------------------- legs */

static bool leg_is_idle(const struct ffs_leg *leg)
{
	return leg->request_count == 0 && !ffs_leg_sending(leg) && leg->have == 0 && !leg->exposed;
}

static void publish(const struct ffs_leg *leg)
{
	atomic_store_explicit(&leg->conn->bytes_in_flight, leg->outstanding_bytes,
	                      memory_order_relaxed);
}

static void leg_close(struct ffs_leg *leg)
{
	if (!leg->open)
		return;
	leg->open = leg->exposed = false;
	leg->batch->legs_open--;
	if (leg->conn != NULL)
		leg->conn->served_ns = leg->batch->now_ns - leg->batch->start_ns;
}

static void leg_revoke(struct ffs_leg *leg)
{
	if (leg->conn == NULL || ffs_conn_fd(leg->conn) < 0)
		return;
	ffs_conn_revoke(leg->conn);
	leg->batch->counts.connections_closed++;
}

/* Operations order[first .. end) that are not final get `status`. */
static void give_up(const struct ffs_leg *leg, uint32_t first, uint32_t end, enum ffs_status status)
{
	for (uint32_t i = first; i < end; i++) {
		struct ffs_operation *op = &leg->batch->ops[leg->order[i]];
		if (op->state == FFS_OP_FINAL)
			continue;
		op->state = FFS_OP_FINAL;
		op->status = (uint16_t)status;
	}
}

/* What the leg has taken of its queue; and the rest of that, if nobody else is left. */
static void give_up_taken(struct ffs_leg *leg, enum ffs_status status)
{
	for (uint32_t i = 0; i < leg->request_count; i++) {
		const struct ffs_request *request = &leg->requests[i];
		give_up(leg, request->first, request->first + request->count, status);
	}
	give_up(leg, leg->next, leg->count, status);
	give_up(leg, ffs_queue_abandon(leg), leg->queue->end, status);
}

enum ffs_step ffs_leg_fail(struct ffs_leg *leg, enum ffs_status status)
{
	/* Time, signals and the caller's memory are no fault of a connection on which nothing is
	 * outstanding. */
	bool innocent =
		status == FFS_ERR_DEADLINE || status == FFS_ERR_CANCELLED || status == FFS_ERR_TRANSPORT;
	if (!innocent || !leg_is_idle(leg))
		leg_revoke(leg);
	if (leg->queue != NULL)
		give_up_taken(leg, status);
	else
		give_up(leg, 0, leg->count, status);
	leg->unfinished = 0;
	leg_close(leg);
	return FFS_STEP_DEAD;
}

void ffs_leg_finish(struct ffs_leg *leg, struct ffs_operation *op, uint32_t request_at,
                    uint16_t status)
{
	struct ffs_request *request = &leg->requests[request_at];
	op->state = FFS_OP_FINAL;
	op->status = status;
	if (leg->batch->timings != NULL)
		ffs_timing_ended(leg, op);
	leg->unfinished--;
	leg->outstanding_bytes -= ffs_op_bytes(leg->batch, op);
	if (--request->unanswered == 0)
		*request = leg->requests[--leg->request_count];
}

uint64_t ffs_op_bytes(const struct ffs_batch *batch, const struct ffs_operation *op)
{
	return batch->verify ? ffs_widened_bytes(op->offset, op->length) : op->length;
}

uint32_t ffs_leg_deadline_ms(const struct ffs_leg *leg)
{
	int64_t left_ms = (leg->batch->deadline_ns - leg->batch->now_ns) / 1000000;
	return left_ms < 1 ? 1 : left_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)left_ms;
}

uint64_t ffs_leg_ask(struct ffs_leg *leg, uint32_t first, uint32_t count, uint64_t bytes)
{
	if (leg->request_count == 0)
		leg->last_byte_ns = leg->batch->now_ns;
	uint64_t id = leg->conn->next_request_id++;
	leg->requests[leg->request_count++] =
		(struct ffs_request){.id = id, .first = first, .count = count, .unanswered = count};
	leg->outstanding_bytes += bytes;
	publish(leg);
	for (uint32_t i = first; i < first + count; i++)
		leg->batch->ops[leg->order[i]].state = FFS_OP_ASKED;
	if (leg->batch->timings != NULL)
		ffs_timing_asked(leg, first, count);
	return id;
}

/* ------------------------------------------------------------------------------------- sockets */

/* An interrupted or dry socket is polled again; anything else has lost the connection. */
static enum ffs_step after_error(struct ffs_leg *leg)
{
	if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
		return FFS_STEP_DRY;
	return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
}

static void sent(struct ffs_leg *leg, size_t bytes)
{
	size_t pending = leg->send_end - leg->send_at;
	size_t head = bytes < pending ? bytes : pending;
	leg->batch->counts.wire_bytes_sent += bytes;
	if (leg->batch->kind == FFS_OP_WRITE && bytes > 0) /* a peer that takes bytes is not stalled */
		leg->last_byte_ns = leg->batch->now_ns;
	leg->send_at += head;
	if (bytes == head) /* and there may be no payload at all */
		return;
	leg->send_payload += bytes - head;
	leg->send_payload_bytes -= bytes - head;
}

enum ffs_step ffs_leg_flush(struct ffs_leg *leg)
{
	size_t head = leg->send_end - leg->send_at;
	size_t total = head + leg->send_payload_bytes;
	struct iovec parts[2] = {
		{.iov_base = leg->conn->scratch->send + leg->send_at, .iov_len = head},
		{.iov_base = (void *)(uintptr_t)leg->send_payload, .iov_len = leg->send_payload_bytes},
	};
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = leg->send_payload_bytes > 0 ? 2 : 1};
	leg->batch->counts.syscalls_send++;
	ssize_t bytes = ffs_sys_sendmsg(ffs_conn_fd(leg->conn), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (bytes < 0)
		return after_error(leg);
	sent(leg, (size_t)bytes);
	return (size_t)bytes == total ? FFS_STEP_MORE : FFS_STEP_DRY;
}

enum ffs_step ffs_leg_receive(struct ffs_leg *leg, struct iovec *parts, size_t count, size_t bytes,
                              size_t *received)
{
	struct ffs_batch *batch = leg->batch;
	struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
	*received = 0;
	batch->counts.syscalls_recv++;
	ssize_t got =
		ffs_sys_recvmsg(ffs_conn_fd(leg->conn), &message, batch->waits ? 0 : MSG_DONTWAIT);
	if (batch->waits) {
		batch->signalled = got < 0 && errno == EINTR;
		batch->now_ns = ffs_now_ns();
	}
	if (got < 0)
		return after_error(leg);
	if (got == 0)
		return ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	*received = (size_t)got;
	batch->counts.wire_bytes_received += (uint64_t)got;
	leg->last_byte_ns = batch->now_ns;
	return (size_t)got == bytes ? FFS_STEP_MORE : FFS_STEP_DRY;
}

/* --------------------------------------------------------------------------------- frame header */

static bool find_request(struct ffs_leg *leg, uint64_t id)
{
	for (uint32_t i = 0; i < leg->request_count; i++) {
		if (leg->requests[i].id != id)
			continue;
		leg->request_at = i;
		return true;
	}
	return false;
}

enum ffs_status ffs_leg_take_header(struct ffs_leg *leg)
{
	if (ffs_header_unpack(&leg->frame, leg->conn->scratch->header) != FFS_FRAME_GOOD)
		return FFS_ERR_PROTOCOL;
	leg->have = 0;
	leg->batch->counts.frames++;
	if (leg->frame.op != ((uint8_t)leg->batch->kind | FFS_REPLY_BIT) ||
	    leg->frame.status == FFS_STATUS_PENDING || !find_request(leg, leg->frame.request_id))
		return FFS_ERR_PROTOCOL;
	return FFS_OK;
}

/* ---------------------------------------------------------------------------------------- loop */

static const struct ffs_transport *transport_of(const struct ffs_leg *leg)
{
	if (leg->batch->kind != FFS_OP_READ)
		return leg->conn->rdma != NULL ? &ffs_rdma_writes : &ffs_tcp_writes;
	if (leg->conn->rdma != NULL)
		return &ffs_rdma_reads;
	return leg->conn->local != NULL ? &ffs_local_reads : &ffs_tcp_reads;
}

/* Whether anything is still to come. */
static bool leg_awaits(const struct ffs_leg *leg)
{
	return leg->unfinished > 0 || leg->exposed;
}

/* A leg is done when nothing is owed in either direction, and the caller's memory is the caller's
 * again. Bytes beyond that were not asked for. */
static void leg_settle(struct ffs_leg *leg)
{
	publish(leg);
	if (leg->unfinished > 0 || ffs_leg_sending(leg))
		return;
	if (leg->exposed && (leg->transport->withdraw(leg) == FFS_STEP_DEAD || leg->exposed))
		return;
	if (!leg_is_idle(leg))
		leg_revoke(leg);
	leg_close(leg);
}

/* Up to `steps` receives, after each of which the next request goes out as soon as the window has
 * room, so that the server does not wait for one. */
static void leg_advance(struct ffs_leg *leg, int steps)
{
	enum ffs_step step = FFS_STEP_MORE;
	do {
		if (steps > 0 && leg_awaits(leg))
			step = leg->transport->receive(leg);
		if (step == FFS_STEP_DEAD || leg->transport->send(leg) == FFS_STEP_DEAD)
			return;
	} while (--steps > 0 && step == FFS_STEP_MORE && leg->unfinished > 0);
	leg_settle(leg);
}

void ffs_drive_start(struct ffs_batch *batch)
{
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		leg->open = leg->unfinished > 0 || ffs_queue_take(leg);
		batch->legs_open += leg->open;
	}
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		if (!leg->open)
			continue;
		if (leg->conn == NULL) {
			ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
			continue;
		}
		if (leg->batch->device != NULL && leg->conn->rdma == NULL) {
			ffs_leg_fail(leg, FFS_ERR_TRANSPORT); /* only a card can write there */
			continue;
		}
		leg->transport = transport_of(leg);
		leg->transport->send(leg);
	}
}

static void fail_all(struct ffs_batch *batch, enum ffs_status status)
{
	for (uint32_t i = 0; i < batch->leg_count; i++)
		if (batch->legs[i].open)
			ffs_leg_fail(&batch->legs[i], status);
}

/* A leg's last operations may be taken from it: somebody else could do them, and the budget has
 * room for all of them. */
static bool may_hedge(const struct ffs_leg *leg)
{
	return leg->stall_ns > 0 && leg->batch->hedge_ns > 0 && leg->unfinished > 0 &&
	       ffs_queue_is_empty(leg) &&
	       leg->unfinished <=
	           atomic_load_explicit(&leg->batch->shared->hedge_budget, memory_order_relaxed);
}

/* The connection is closed: two replies must never race for one destination. Another thread may
 * have had the budget meanwhile. */
static void hedge(struct ffs_leg *leg)
{
	_Atomic uint32_t *budget = &leg->batch->shared->hedge_budget;
	uint32_t left = atomic_load_explicit(budget, memory_order_relaxed);
	do {
		if (left < leg->unfinished)
			return;
	} while (!atomic_compare_exchange_weak_explicit(budget, &left, left - leg->unfinished,
	                                                memory_order_relaxed, memory_order_relaxed));
	ffs_leg_fail(leg, FFS_ERR_CANCELLED);
}

/* What time has to say, as of `before`: the clock before the last poll. A leg whose bytes came
 * while this thread was not running is thus never called stalled. */
static void judge_time(struct ffs_batch *batch, int64_t before)
{
	if (before >= batch->deadline_ns) {
		fail_all(batch, FFS_ERR_DEADLINE);
		return;
	}
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		if (!leg->open || leg->stall_ns == 0)
			continue;
		if (before - leg->last_byte_ns >= leg->stall_ns)
			ffs_leg_fail(leg, FFS_ERR_STALLED);
		else if (may_hedge(leg) && before >= batch->hedge_ns)
			hedge(leg);
	}
}

/* Signals and wishes to close. Returns non-zero if the call must end. */
static int tick(struct ffs_batch *batch, bool at_once)
{
	if (!at_once && batch->now_ns < batch->tick_ns)
		return 0;
	batch->tick_ns = batch->now_ns + FFS_TICK_NS;
	/* A handler may fork: the child finds its parent's connections dead before it receives. */
	int stop = batch->interrupted(batch->context);
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		if (leg->open && !ffs_conn_alive(leg->conn))
			ffs_leg_fail(leg, FFS_ERR_CONNECTION_LOST);
	}
	return stop;
}

/* When judge_time will have something to say. */
static int64_t due_ns(const struct ffs_batch *batch)
{
	int64_t until = batch->deadline_ns;
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		const struct ffs_leg *leg = &batch->legs[i];
		if (!leg->open || leg->stall_ns == 0)
			continue;
		if (leg->last_byte_ns + leg->stall_ns < until)
			until = leg->last_byte_ns + leg->stall_ns;
		if (may_hedge(leg) && batch->hedge_ns < until)
			until = batch->hedge_ns;
	}
	return until;
}

/* Milliseconds until something must be looked at, rounded up so that it is then due. */
static int poll_timeout_ms(const struct ffs_batch *batch)
{
	int64_t due = due_ns(batch), until = due < batch->tick_ns ? due : batch->tick_ns;
	int64_t left = until - batch->now_ns;
	return left <= 0 ? 0 : (int)((left + 999999) / 1000000);
}

/* One step of each leg that reads files; whether any could go on at once. */
static bool read_files(struct ffs_batch *batch)
{
	bool more = false;
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		struct ffs_leg *leg = &batch->legs[i];
		const struct ffs_transport *transport = leg->transport;
		if (!leg->open || transport->ready == NULL || !transport->ready(leg))
			continue;
		enum ffs_step step = transport->step(leg);
		if (step != FFS_STEP_DEAD)
			step = transport->send(leg);
		if (step != FFS_STEP_DEAD)
			leg_settle(leg);
		more = more || (leg->open && transport->ready(leg));
	}
	return more;
}

/* The leg that alone can become ready, by bytes that arrive; NULL if polling must find out. */
static struct ffs_leg *awaited(const struct ffs_batch *batch)
{
	struct ffs_leg *leg = batch->legs;
	if (batch->legs_open != 1)
		return NULL;
	while (!leg->open)
		leg++;
	bool soon = due_ns(batch) - batch->now_ns < FFS_RECEIVE_WAIT_NS;
	return soon || ffs_leg_sending(leg) || !leg->transport->waits ? NULL : leg;
}

static int wait_ready(struct ffs_batch *batch, bool busy)
{
	for (uint32_t i = 0; i < batch->leg_count; i++) {
		const struct ffs_leg *leg = &batch->legs[i];
		batch->polled[i] = (struct pollfd){
			.fd = leg->open ? ffs_conn_wait_fd(leg->conn) : -1,
			.events =
				(short)((leg_awaits(leg) ? POLLIN : 0) | (ffs_leg_sending(leg) ? POLLOUT : 0)),
		};
	}
	int timeout_ms = busy ? 0 : poll_timeout_ms(batch);
	int ready = ffs_sys_poll(batch->polled, batch->leg_count, timeout_ms);
	return ready < 0 ? -errno : ready;
}

/* Poll, then advance what is ready. Returns 0 or an errno. */
static int turn_polled(struct ffs_batch *batch, bool busy)
{
	int ready = wait_ready(batch, busy);
	batch->now_ns = ffs_now_ns();
	for (uint32_t i = 0; ready > 0 && i < batch->leg_count; i++) {
		short events = batch->polled[i].revents;
		bool readable = (events & (POLLIN | POLLHUP | POLLERR | POLLNVAL)) != 0;
		if (batch->legs[i].open && events != 0)
			leg_advance(&batch->legs[i], readable ? STEPS_PER_TURN : 0);
	}
	batch->signalled = ready == -EINTR;
	return ready < 0 && ready != -EINTR && ready != -EAGAIN ? -ready : 0;
}

/* The receive itself waits: one system call instead of two or three. */
static void turn_awaited(struct ffs_batch *batch, struct ffs_leg *leg)
{
	batch->signalled = false;
	batch->waits = true;
	leg_advance(leg, 1);
	batch->waits = false;
}

int ffs_drive(struct ffs_batch *batch)
{
	int stop = 0;
	while (batch->legs_open > 0) {
		bool busy = read_files(batch);
		if (batch->legs_open == 0)
			break;
		int64_t before = batch->now_ns;
		struct ffs_leg *leg = busy ? NULL : awaited(batch);
		if (leg != NULL) {
			turn_awaited(batch, leg);
		} else if (busy && batch->legs_open == 1) {
			batch->signalled = false; /* its own steps see to its connection */
			batch->now_ns = ffs_now_ns();
		} else if (turn_polled(batch, busy) != 0) {
			fail_all(batch, FFS_ERR_NATIVE);
			break;
		}
		judge_time(batch, before);
		bool told = atomic_load_explicit(&batch->shared->stop, memory_order_relaxed);
		stop = tick(batch, batch->signalled || told);
		if (stop != 0)
			fail_all(batch, FFS_ERR_CANCELLED);
	}
	return stop != 0 ? -1 : 0;
}

void ffs_batch_start_clock(struct ffs_batch *batch, int64_t deadline_ms, int64_t hedge_ms)
{
	batch->start_ns = batch->now_ns = ffs_now_ns();
	batch->tick_ns = batch->now_ns + FFS_TICK_NS;
	batch->deadline_ns = batch->now_ns + deadline_ms * 1000000;
	batch->hedge_ns = hedge_ms > 0 ? batch->now_ns + hedge_ms * 1000000 : 0;
}
