/* One loop thread: mail, epoll, the life of its connections. */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"
#include "storage/rdma.h"

#define EVENTS_MAX 64
#define SPARE_OUTPUTS_MAX 8u

struct ffs_conn *ffs_loop_find(struct ffs_loop *loop, uint64_t connection_id)
{
	struct ffs_conn *conn = loop->conns[ffs_slot_of(connection_id)];
	return conn != NULL && conn->id == connection_id ? conn : NULL;
}

void ffs_loop_kick(struct ffs_loop *loop)
{
	ffs_eventfd_kick(loop->mail_fd);
}

bool ffs_loop_post(struct ffs_loop *loop, struct ffs_mail *mail)
{
	pthread_mutex_lock(&loop->lock);
	bool open = !loop->quit;
	bool first = loop->mail == NULL;
	if (open) {
		mail->next = loop->mail;
		loop->mail = mail;
	}
	pthread_mutex_unlock(&loop->lock);
	if (open && first)
		ffs_loop_kick(loop);
	return open;
}

/* What epoll should report: input unless too much is queued, room in the socket if output waits. */
static uint32_t wanted_events(const struct ffs_conn *conn)
{
	uint32_t events = 0;
	if (conn->rdma != NULL) /* its end, and the answer that told of it */
		return EPOLLIN | (conn->output != NULL ? (uint32_t)EPOLLOUT : 0);
	if (conn->state != FFS_RECEIVE_WAITING && conn->queued < FFS_PENDING_REQUESTS_MAX &&
	    conn->queued_descriptors < FFS_PENDING_DESCRIPTORS_MAX)
		events |= EPOLLIN;
	if (conn->output != NULL ? !conn->cold.awaits : ffs_conn_has_work(conn) && !conn->hungry)
		events |= EPOLLOUT;
	return events;
}

void ffs_conn_watch(struct ffs_conn *conn)
{
	uint32_t events = wanted_events(conn);
	if (conn->fd < 0 || events == conn->interest)
		return;
	if ((events & ~conn->interest & EPOLLIN) != 0)
		ffs_conn_begin(conn); /* the time in which we did not read does not count */
	struct epoll_event event = {.events = events, .data = {.ptr = conn}};
	if (ffs_sys_epoll_ctl(conn->loop->epoll_fd, EPOLL_CTL_MOD, conn->fd, &event) != 0)
		ffs_conn_close(conn);
	else
		conn->interest = events;
	ffs_conn_note(conn);
}

void ffs_conn_queue(struct ffs_conn *conn, struct ffs_request *request)
{
	request->next = NULL;
	*conn->queue_tail = request;
	conn->queue_tail = &request->next;
	conn->queued++;
	conn->queued_descriptors += request->count;
}

static void stop_waiting(struct ffs_conn *conn)
{
	struct ffs_loop *loop = conn->loop;
	struct ffs_conn **link = &loop->waiting[conn->hop];
	while (*link != NULL && *link != conn)
		link = &(*link)->waiting_next;
	if (*link == NULL)
		return;
	*link = conn->waiting_next;
	ffs_loop_queue_changed(loop, conn->hop);
}

void ffs_conn_close(struct ffs_conn *conn)
{
	struct ffs_loop *loop = conn->loop;
	struct ffs_group *group = loop->group;
	if (conn->fd < 0)
		return;
	/*
	 * A forked child may have the socket too. Closing ours would then neither tell the peer nor
	 * make epoll forget a connection that is about to be freed.
	 */
	(void)ffs_sys_epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
	(void)ffs_sys_shutdown(conn->fd, SHUT_RDWR);
	(void)ffs_sys_close(conn->fd);
	conn->fd = -1;
	if (conn->rdma != NULL)
		ffs_rdma_close(conn);
	if (conn->state == FFS_RECEIVE_WAITING)
		stop_waiting(conn);
	if (conn->hungry)
		ffs_conn_hunger_no_more(conn);
	ffs_conn_forget(conn);
	if (conn->output != NULL)
		ffs_output_release(loop, conn->output);
	conn->output = NULL;
	while (conn->queue_head != NULL) {
		struct ffs_request *request = conn->queue_head;
		conn->queue_head = request->next;
		request->answered = request->count; /* whoever still waits for the disk frees it */
		if (request->pending == 0)
			free(request);
	}
	ffs_cold_forget(conn);
	ffs_list_forget(conn);
	if (conn->held != NULL)
		ffs_release_all(conn); /* after the shutdown: whoever still reads is told first */
	loop->conns[ffs_slot_of(conn->id)] = NULL;
	pthread_mutex_lock(&group->lock);
	group->free_conn_slots[--group->conn_count] = (uint16_t)ffs_slot_of(conn->id);
	pthread_mutex_unlock(&group->lock);
	struct ffs_event *event = conn->closed_event;
	event->kind = FFS_EVENT_CLOSED;
	event->connection_id = conn->id;
	event->owned = true;
	ffs_events_push(&group->events, event);
	conn->dead_next = loop->dead;
	loop->dead = conn;
}

static void bury(struct ffs_loop *loop)
{
	while (loop->dead != NULL) {
		struct ffs_conn *conn = loop->dead;
		loop->dead = conn->dead_next;
		ffs_grants_free(loop->group, conn->grants);
		free(conn);
	}
	ffs_loop_bury_peers(loop);
}

static void adopt(struct ffs_loop *loop, struct ffs_conn *conn)
{
	assert(loop->conns[ffs_slot_of(conn->id)] == NULL);
	loop->conns[ffs_slot_of(conn->id)] = conn;
	conn->interest = EPOLLIN;
	conn->active_ns = loop->now_ns;
	struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = conn}};
	if (ffs_sys_epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, conn->fd, &event) != 0)
		ffs_conn_close(conn);
}

static void answer(struct ffs_loop *loop, struct ffs_write *write)
{
	struct ffs_conn *conn = ffs_loop_find(loop, write->connection_id);
	if (conn == NULL) {
		ffs_write_free(write);
		return;
	}
	conn->unanswered--;
	ffs_write_answer(conn, write, write->put.status);
	if (conn->answered)
		return;
	conn->answered = true;
	conn->answered_next = loop->answered;
	loop->answered = conn;
}

/* The answers to writes that were made durable together go together. */
static void send_answers(struct ffs_loop *loop)
{
	while (loop->answered != NULL) {
		struct ffs_conn *conn = loop->answered;
		loop->answered = conn->answered_next;
		conn->answered = false;
		if (conn->fd < 0) /* closed by mail that came later */
			continue;
		ffs_conn_send(conn);
		ffs_conn_note(conn);
		ffs_conn_watch(conn);
	}
}

/* The mail is ours alone: nobody else knows of it. */
static void close_one(struct ffs_loop *loop, struct ffs_mail *mail)
{
	struct ffs_conn *conn = ffs_loop_find(loop, mail->about.connection_id);
	if (conn != NULL)
		ffs_conn_close(conn);
	free(mail);
}

static void open_mail(struct ffs_loop *loop, struct ffs_mail *mail)
{
	switch (mail->kind) {
	case FFS_MAIL_ADOPT:
		adopt(loop, mail->about.conn);
		break;
	case FFS_MAIL_ANSWER:
		answer(loop, mail->about.write);
		break;
	case FFS_MAIL_PEER:
		ffs_peer_adopt(mail->about.peer);
		break;
	case FFS_MAIL_FORWARD:
		ffs_peer_take(loop, mail->about.write);
		break;
	case FFS_MAIL_CLOSE:
		close_one(loop, mail);
		break;
	}
}

/* Work through the mail in the order in which it was posted; true if it says to quit. */
static bool read_mail(struct ffs_loop *loop)
{
	ffs_eventfd_clear(loop->mail_fd);
	pthread_mutex_lock(&loop->lock);
	struct ffs_mail *stack = loop->mail;
	bool quit = loop->quit;
	loop->mail = NULL;
	pthread_mutex_unlock(&loop->lock);
	struct ffs_mail *list = NULL;
	while (stack != NULL) {
		struct ffs_mail *mail = stack;
		stack = mail->next;
		mail->next = list;
		list = mail;
	}
	while (list != NULL) {
		struct ffs_mail *mail = list;
		list = mail->next; /* before the mail's owner may be freed */
		open_mail(loop, mail);
	}
	send_answers(loop);
	ffs_loop_send_due(loop);
	return quit;
}

static void serve_conn(struct ffs_conn *conn, uint32_t events)
{
	if (conn->fd < 0) /* closed earlier in this round */
		return;
	if (events & EPOLLIN)
		ffs_conn_receive(conn);
	/* Gone for both directions, or broken, with nothing to read that would say so. */
	if (conn->fd >= 0 && (events & (EPOLLERR | EPOLLHUP)) != 0 && (events & EPOLLIN) == 0)
		ffs_conn_close(conn);
	if (conn->fd < 0)
		return;
	ffs_conn_send(conn);
	ffs_conn_note(conn);
	ffs_conn_watch(conn);
}

static void serve_event(void *about, uint32_t events)
{
	switch (*(enum ffs_end *)about) {
	case FFS_END_PEER:
		ffs_peer_serve(about, events);
		break;
	case FFS_END_CARD:
		ffs_rdma_serve(about);
		break;
	case FFS_END_CM:
		ffs_rdma_cm_serve(about);
		break;
	case FFS_END_CONN:
		serve_conn(about, events);
		break;
	}
}

/* Give out what has come free, until nobody is left who could do anything with it. */
static void feed(struct ffs_loop *loop)
{
	ffs_loop_serve_waiting(loop);
	ffs_rdma_feed(loop);
	do {
		ffs_loop_feed(loop);
		ffs_cold_feed(loop);
	} while (ffs_cold_wake(loop));
}

static void *loop_main(void *argument)
{
	struct ffs_loop *loop = argument;
	struct epoll_event events[EVENTS_MAX];
	int timeout_ms = FFS_TICK_MS;
	ffs_cold_loop_enter(loop);
	for (;;) {
		int count = ffs_sys_epoll_wait(loop->epoll_fd, events, EVENTS_MAX, timeout_ms);
		loop->now_ns = ffs_monotonic_ns();
		bool quit = false;
		/* Mail first: what it adopts or answers is older than what this round has seen. */
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr == NULL)
				quit = read_mail(loop);
		}
		if (quit)
			break;
		ffs_cold_reap(loop);
		for (int i = 0; i < count; i++) {
			if (events[i].data.ptr != NULL && events[i].data.ptr != &loop->cold)
				serve_event(events[i].data.ptr, events[i].events);
		}
		ffs_loop_close_slow(loop);
		ffs_loop_revoke(loop);
		ffs_loop_close_idle(loop);
		ffs_loop_close_peers(loop, false);
		feed(loop);
		bool lists = ffs_loop_list(loop);
		timeout_ms = ffs_cold_submit(loop);
		if (lists)
			timeout_ms = 0;
		bury(loop);
	}
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		if (loop->conns[i] != NULL)
			ffs_conn_close(loop->conns[i]);
	}
	ffs_loop_close_peers(loop, true);
	ffs_cold_loop_leave(loop);
	ffs_rdma_loop_leave(loop);
	bury(loop);
	return NULL;
}

static int start_thread(struct ffs_loop *loop)
{
	/* Signals are for the interpreter's main thread. */
	sigset_t all;
	sigset_t before;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int result = ffs_sys_thread(&loop->thread, loop_main, loop);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	loop->running = result == 0;
	return -result;
}

void ffs_loop_fini(struct ffs_loop *loop)
{
	if (loop->epoll_fd >= 0)
		(void)ffs_sys_close(loop->epoll_fd);
	if (loop->mail_fd >= 0)
		(void)ffs_sys_close(loop->mail_fd);
	loop->epoll_fd = -1;
	loop->mail_fd = -1;
	ffs_cold_loop_fini(loop);
}

/* Have epoll tell when the descriptor can be read; `about` is what it tells then. */
static int watch(const struct ffs_loop *loop, int fd, uint32_t how, void *about)
{
	struct epoll_event event = {.events = EPOLLIN | how, .data = {.ptr = about}};
	return ffs_sys_epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

int ffs_loop_start(struct ffs_loop *loop, struct ffs_group *group, uint32_t index,
                   enum ffs_reads_means reads)
{
	loop->group = group;
	loop->index = index;
	loop->hungry_tail = &loop->hungry;
	loop->epoll_fd = ffs_sys_epoll_create();
	loop->mail_fd = loop->epoll_fd < 0 ? -1 : ffs_sys_eventfd(0);
	int result = loop->mail_fd < 0 ? -errno : 0;
	if (result == 0)
		result = ffs_cold_loop_init(loop, reads);
	if (result == 0)
		result = watch(loop, loop->mail_fd, 0, NULL);
	if (result == 0)
		result = watch(loop, loop->cold.reads.fd, EPOLLET, &loop->cold);
	if (result == 0) {
		pthread_mutex_init(&loop->lock, NULL);
		result = start_thread(loop);
		if (result != 0)
			pthread_mutex_destroy(&loop->lock);
	}
	if (result != 0)
		ffs_loop_fini(loop);
	return result;
}

void ffs_loop_stop(struct ffs_loop *loop)
{
	if (!loop->running)
		return;
	pthread_mutex_lock(&loop->lock);
	loop->quit = true;
	pthread_mutex_unlock(&loop->lock);
	ffs_loop_kick(loop);
	pthread_join(loop->thread, NULL);
	loop->running = false;
	while (loop->spare_outputs != NULL) {
		struct ffs_output *output = loop->spare_outputs;
		loop->spare_outputs = output->next;
		free(output);
	}
}

void ffs_output_release(struct ffs_loop *loop, struct ffs_output *output)
{
	ffs_cold_release(&output->cold);
	for (uint32_t i = 0; i < output->pin_count; i++)
		ffs_chunk_unpin(output->pins[i]);
	output->pin_count = 0;
	ffs_rights_drop(output);
	if (loop->spare_output_count == SPARE_OUTPUTS_MAX) {
		loop->output_count--;
		free(output);
		return;
	}
	output->next = loop->spare_outputs;
	loop->spare_outputs = output;
	loop->spare_output_count++;
}
