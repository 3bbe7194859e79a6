/*
 * Sending received chunks on to the next daemon of their chain, over connections that we opened.
 *
 * Previous hop: writes.c, when Python says so. Next: receive.c of the other daemon, whose answers
 * (a header each) come back here and become events.
 *
 *   add_peer -> taken by a loop -> sends writes in order, takes answers in any order -> closed:
 *                                  by close_peer, by its end, or for breaking the protocol
 *
 * A write's request id is its own id, so an answer is found without a search. A frame goes out of
 * the receive buffer and of the body as it came; only header and descriptor are new. A refusal may
 * overtake the rest of its chunk, which is sent to its end all the same, so that the stream stays
 * in step. When a peer closes, whatever was on it ends with FFS_ERR_CONNECTION_LOST: what became of
 * it over there is not known.
 *
 * A full socket parks the peer until epoll says that there is room. Nothing here knows time: how
 * long another daemon may take is Python's to decide.
 *
 * One connection carries writes of one hop, which ffs_group_forward sees to: a write that waits for
 * memory over there holds up what is behind it, and that must not be a write whose end others of
 * its own hop wait for (buffers are set apart by hop: loop.h).
 *
 * Copies: none in user space. Threads: the peer's loop, but for the functions of the group.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"

#define FRAMES_TOGETHER_MAX 16
#define PARTS_MAX (3 * FRAMES_TOGETHER_MAX) /* head, CRCs, chunk */
#define ROUND_BYTES (8u << 20)              /* sent to one peer before others have a turn */

struct ffs_peer {
	enum ffs_end end;
	int fd; /* -1: closed, freed at the end of the round */
	struct ffs_loop *loop;
	uint64_t id;
	struct ffs_mail mail;
	struct ffs_event *closed_event; /* made beforehand */
	uint8_t hop;                    /* of all its writes, once there was one */
	bool has_hop;                   /* both with the group's lock held */
	bool adopted;
	atomic_bool close_wanted;
	uint32_t interest;      /* epoll events asked for */
	struct ffs_write *head; /* oldest first: answers outstanding, being sent, to be sent */
	struct ffs_write *tail;
	struct ffs_write *unsent;                     /* the first that is not sent to its end */
	uint8_t header_bytes[FFS_FRAME_HEADER_BYTES]; /* of an answer that has not come in full */
	uint32_t header_used;
	bool due;
	struct ffs_peer *due_next;
	struct ffs_peer *dead_next;
};

/* ----------------------------------------------------------------------------- writes on a peer */

/* The peer of an id, NULL if it has gone; with the lock held. */
static struct ffs_peer *find_peer(const struct ffs_group *group, uint64_t peer_id)
{
	struct ffs_peer *peer = group->peers[ffs_slot_of(peer_id)];
	return peer != NULL && peer->id == peer_id ? peer : NULL;
}

static void append(struct ffs_peer *peer, struct ffs_write *write)
{
	write->forward.next = NULL;
	write->forward.previous = peer->tail;
	if (peer->tail == NULL)
		peer->head = write;
	else
		peer->tail->forward.next = write;
	peer->tail = write;
	if (peer->unsent == NULL)
		peer->unsent = write;
}

/* It is over; Python is told. */
static void finish(struct ffs_peer *peer, struct ffs_write *write, uint16_t status)
{
	struct ffs_write *next = write->forward.next;
	struct ffs_write *previous = write->forward.previous;
	if (previous == NULL)
		peer->head = next;
	else
		previous->forward.next = next;
	if (next == NULL)
		peer->tail = previous;
	else
		next->forward.previous = previous;
	if (peer->unsent == write)
		peer->unsent = next;
	ffs_write_forwarded(write, status);
}

static uint32_t body_bytes(const struct ffs_write *write)
{
	uint32_t crc_bytes = ffs_block_count(write->put.length) * (uint32_t)sizeof(uint32_t);
	return FFS_WRITE_DESCRIPTOR_BYTES + crc_bytes;
}

static uint64_t frame_bytes(const struct ffs_write *write)
{
	return (uint64_t)FFS_FRAME_HEADER_BYTES + body_bytes(write) + write->put.length;
}

/* The frame's head: what it came with, but for its id, hop and target. */
static void pack_head(struct ffs_write *write)
{
	const struct ffs_header *came = &write->reply->header;
	struct ffs_header header = {
		.op = FFS_OP_WRITE,
		.priority = came->priority,
		.flags = (uint8_t)(write->hop + 1),
		.count = 1,
		.request_id = write->event.write_id,
		.blob = write->put.blob,
		.trace_id = came->trace_id,
		.chain_version = came->chain_version,
		.body_bytes = body_bytes(write),
		.payload_bytes = write->put.length,
	};
	struct ffs_write_descriptor descriptor = {
		.chunk = write->put.chunk,
		.target = write->forward.target,
		.chain = write->event.chain,
		.length = write->put.length,
	};
	ffs_header_pack(write->forward.head, &header);
	ffs_write_descriptor_pack(write->forward.head + FFS_FRAME_HEADER_BYTES, &descriptor);
}

/* -------------------------------------------------------------------------------- end of a peer */

static void close_peer(struct ffs_peer *peer)
{
	struct ffs_loop *loop = peer->loop;
	struct ffs_group *group = loop->group;
	if (peer->fd < 0)
		return;
	/* As with a connection: a forked child may have the socket too. */
	(void)ffs_sys_epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, peer->fd, NULL);
	(void)ffs_sys_shutdown(peer->fd, SHUT_RDWR);
	(void)ffs_sys_close(peer->fd);
	peer->fd = -1;
	while (peer->head != NULL)
		finish(peer, peer->head, FFS_ERR_CONNECTION_LOST);
	pthread_mutex_lock(&group->lock);
	group->peers[ffs_slot_of(peer->id)] = NULL;
	pthread_mutex_unlock(&group->lock);
	struct ffs_event *event = peer->closed_event;
	event->kind = FFS_EVENT_PEER_CLOSED;
	event->connection_id = peer->id;
	event->owned = true;
	ffs_events_push(&group->events, event);
	peer->dead_next = loop->dead_peers;
	loop->dead_peers = peer;
}

/* It broke the protocol. */
static void refuse_peer(struct ffs_peer *peer)
{
	ffs_count(&peer->loop->counts.errors, 1);
	close_peer(peer);
}

void ffs_loop_bury_peers(struct ffs_loop *loop)
{
	while (loop->dead_peers != NULL) {
		struct ffs_peer *peer = loop->dead_peers;
		loop->dead_peers = peer->dead_next;
		free(peer);
	}
}

/* A peer of this loop that has to be closed; only the loop frees it, so it stays. */
static struct ffs_peer *next_to_close(struct ffs_loop *loop, bool all)
{
	struct ffs_group *group = loop->group;
	struct ffs_peer *found = NULL;
	pthread_mutex_lock(&group->lock);
	for (uint32_t i = 0; i < FFS_PEERS_MAX && found == NULL; i++) {
		struct ffs_peer *peer = group->peers[i];
		if (peer != NULL && peer->loop == loop && peer->adopted &&
		    (all || atomic_load(&peer->close_wanted)))
			found = peer;
	}
	pthread_mutex_unlock(&group->lock);
	return found;
}

void ffs_loop_close_peers(struct ffs_loop *loop, bool all)
{
	if (!atomic_exchange(&loop->closes_peers, false) && !all)
		return;
	struct ffs_peer *peer;
	while ((peer = next_to_close(loop, all)) != NULL)
		close_peer(peer);
}

/* ------------------------------------------------------------------------------------- sending */

static void watch(struct ffs_peer *peer)
{
	uint32_t events = EPOLLIN | (peer->unsent != NULL ? EPOLLOUT : 0u);
	if (peer->fd < 0 || events == peer->interest)
		return;
	struct epoll_event event = {.events = events, .data = {.ptr = peer}};
	if (ffs_sys_epoll_ctl(peer->loop->epoll_fd, EPOLL_CTL_MOD, peer->fd, &event) != 0)
		close_peer(peer);
	else
		peer->interest = events;
}

/* Add what is left of a piece of a frame that begins `skip` bytes before what is to be sent. */
static void add_part(struct iovec *parts, int *count, void *bytes, size_t length, uint64_t *skip)
{
	size_t sent = *skip < length ? (size_t)*skip : length;
	*skip -= sent;
	if (sent < length)
		parts[(*count)++] = (struct iovec){(uint8_t *)bytes + sent, length - sent};
}

/* What is to be sent next, of as many frames as go together; returns how many parts. */
static int lay_out(const struct ffs_peer *peer, struct iovec parts[PARTS_MAX], size_t *bytes)
{
	int count = 0;
	int frames = 0;
	*bytes = 0;
	for (struct ffs_write *write = peer->unsent;
	     write != NULL && frames < FRAMES_TOGETHER_MAX && *bytes < ROUND_BYTES;
	     write = write->forward.next, frames++) {
		uint64_t skip = write->forward.sent;
		*bytes += (size_t)(frame_bytes(write) - skip);
		add_part(parts, &count, write->forward.head, sizeof(write->forward.head), &skip);
		add_part(parts, &count, write->body + FFS_WRITE_DESCRIPTOR_BYTES,
		         body_bytes(write) - FFS_WRITE_DESCRIPTOR_BYTES, &skip);
		add_part(parts, &count, write->buffer.bytes, write->put.length, &skip);
	}
	return count;
}

/* Account for bytes that the socket has taken. */
static void advance(struct ffs_peer *peer, size_t sent)
{
	struct ffs_loop_counts *counts = &peer->loop->counts;
	while (sent > 0) {
		struct ffs_write *write = peer->unsent;
		uint64_t left = frame_bytes(write) - write->forward.sent;
		if (sent < left) {
			write->forward.sent += sent;
			return;
		}
		sent -= (size_t)left;
		write->forward.sent += left;
		peer->unsent = write->forward.next;
		ffs_count(&counts->forwards, 1);
		ffs_count(&counts->forward_bytes, write->put.length);
		if (write->forward.answered)
			finish(peer, write, write->forward.status);
	}
}

/* Send as far as the socket takes it; closes a broken peer. */
static void send_unsent(struct ffs_peer *peer)
{
	size_t total = 0;
	while (peer->fd >= 0 && peer->unsent != NULL && total < ROUND_BYTES) {
		struct iovec parts[PARTS_MAX];
		size_t bytes;
		int count = lay_out(peer, parts, &bytes);
		struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
		ssize_t sent = ffs_sys_sendmsg(peer->fd, &message, MSG_NOSIGNAL);
		ffs_count(&peer->loop->counts.forward_send_calls, 1);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		if (sent < 0) {
			close_peer(peer);
			return;
		}
		advance(peer, (size_t)sent);
		if ((size_t)sent < bytes)
			return;
		total += (size_t)sent;
	}
}

void ffs_peer_take(struct ffs_loop *loop, struct ffs_write *write)
{
	struct ffs_group *group = loop->group;
	pthread_mutex_lock(&group->lock);
	struct ffs_peer *peer = find_peer(group, write->forward.peer_id);
	pthread_mutex_unlock(&group->lock);
	if (peer == NULL) {
		ffs_write_forwarded(write, FFS_ERR_CONNECTION_LOST);
		return;
	}
	pack_head(write);
	append(peer, write);
	if (peer->due)
		return;
	peer->due = true;
	peer->due_next = loop->due;
	loop->due = peer;
}

void ffs_loop_send_due(struct ffs_loop *loop)
{
	while (loop->due != NULL) {
		struct ffs_peer *peer = loop->due;
		loop->due = peer->due_next;
		peer->due = false;
		if (peer->unsent != NULL && (peer->interest & EPOLLOUT) == 0) /* else it is parked */
			send_unsent(peer);
		watch(peer);
	}
}

/* ------------------------------------------------------------------------------------- answers */

/* False if it breaks the protocol. */
static bool take_answer(struct ffs_peer *peer, const uint8_t bytes[FFS_FRAME_HEADER_BYTES])
{
	struct ffs_header header;
	if (ffs_header_unpack(&header, bytes) != FFS_FRAME_GOOD ||
	    header.op != (FFS_OP_WRITE | FFS_REPLY_BIT) || header.count != 0 ||
	    header.body_bytes != 0 || header.payload_bytes != 0 || header.status == FFS_STATUS_PENDING)
		return false;
	struct ffs_write *write = ffs_write_on_peer(peer->loop->group, header.request_id, peer->id);
	if (write == NULL || write->forward.sent == 0 || write->forward.answered)
		return false;
	if (write->forward.sent == frame_bytes(write)) {
		finish(peer, write, header.status);
		return true;
	}
	if (header.status == FFS_OK) /* nobody has all of it yet */
		return false;
	write->forward.answered = true;
	write->forward.status = header.status;
	return true;
}

/* Take what has come in, whole answers and the beginning of one; closes a peer that breaks off. */
static void take_answers(struct ffs_peer *peer, const uint8_t *bytes, size_t count)
{
	while (count > 0) {
		size_t left = FFS_FRAME_HEADER_BYTES - peer->header_used;
		size_t taken = count < left ? count : left;
		memcpy(peer->header_bytes + peer->header_used, bytes, taken);
		peer->header_used += (uint32_t)taken;
		bytes += taken;
		count -= taken;
		if (peer->header_used < FFS_FRAME_HEADER_BYTES)
			return;
		peer->header_used = 0;
		if (!take_answer(peer, peer->header_bytes)) {
			refuse_peer(peer);
			return;
		}
	}
}

static void receive(struct ffs_peer *peer)
{
	struct iovec part = {peer->loop->scratch, sizeof(peer->loop->scratch)};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
	ssize_t got;
	do
		got = ffs_sys_recvmsg(peer->fd, &message, 0);
	while (got < 0 && errno == EINTR);
	if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return;
	if (got <= 0)
		close_peer(peer);
	else
		take_answers(peer, peer->loop->scratch, (size_t)got);
}

void ffs_peer_serve(struct ffs_peer *peer, uint32_t events)
{
	if (peer->fd < 0) /* closed earlier in this round */
		return;
	if (events & EPOLLIN)
		receive(peer);
	else if ((events & (EPOLLERR | EPOLLHUP)) != 0)
		close_peer(peer);
	if (events & EPOLLOUT)
		send_unsent(peer);
	watch(peer);
}

/* -------------------------------------------------------------------------- making, from outside
 */

void ffs_peer_adopt(struct ffs_peer *peer)
{
	peer->adopted = true;
	peer->interest = EPOLLIN;
	struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = peer}};
	if (atomic_load(&peer->close_wanted) ||
	    ffs_sys_epoll_ctl(peer->loop->epoll_fd, EPOLL_CTL_ADD, peer->fd, &event) != 0)
		close_peer(peer);
}

static struct ffs_peer *new_peer(int fd)
{
	struct ffs_peer *peer = ffs_sys_calloc(1, sizeof(*peer));
	if (peer == NULL)
		return NULL;
	peer->closed_event = ffs_sys_calloc(1, sizeof(*peer->closed_event));
	if (peer->closed_event == NULL) {
		free(peer);
		return NULL;
	}
	peer->end = FFS_END_PEER;
	peer->fd = fd;
	peer->mail.kind = FFS_MAIL_PEER;
	peer->mail.about.peer = peer;
	return peer;
}

/* Give the peer an id and a loop; with the lock held. */
static int place_peer(struct ffs_group *group, struct ffs_peer *peer)
{
	uint32_t slot = 0;
	if (group->closed)
		return -ESHUTDOWN;
	while (slot < FFS_PEERS_MAX && group->peers[slot] != NULL)
		slot++;
	if (slot == FFS_PEERS_MAX)
		return -EMFILE;
	peer->id = ++group->next_peer_serial << FFS_SLOT_BITS | slot;
	peer->loop = ffs_loop_of(group, peer->id);
	group->peers[slot] = peer;
	return 0;
}

struct ffs_loop *ffs_peer_expect(struct ffs_group *group, uint64_t peer_id, uint8_t hop)
{
	struct ffs_peer *peer = find_peer(group, peer_id);
	if (peer != NULL && peer->has_hop && peer->hop != hop)
		return NULL;
	if (peer != NULL) {
		peer->has_hop = true;
		peer->hop = hop;
	}
	return ffs_loop_of(group, peer_id);
}

int64_t ffs_group_add_peer(struct ffs_group *group, int fd)
{
	int result = ffs_group_tune(group, fd);
	if (result != 0)
		return result;
	struct ffs_peer *peer = new_peer(fd);
	if (peer == NULL)
		return -ENOMEM;
	pthread_mutex_lock(&group->lock);
	result = place_peer(group, peer);
	uint64_t id = peer->id;
	/* With the lock held: the group is not closed, so the loop takes it. */
	if (result == 0)
		(void)ffs_loop_post(peer->loop, &peer->mail);
	pthread_mutex_unlock(&group->lock);
	if (result == 0)
		return (int64_t)id;
	free(peer->closed_event);
	free(peer);
	return result;
}

void ffs_group_close_peer(struct ffs_group *group, uint64_t peer_id)
{
	pthread_mutex_lock(&group->lock);
	struct ffs_peer *peer = find_peer(group, peer_id);
	if (peer != NULL)
		atomic_store(&peer->close_wanted, true);
	pthread_mutex_unlock(&group->lock);
	if (peer == NULL)
		return;
	struct ffs_loop *loop = ffs_loop_of(group, peer_id);
	atomic_store(&loop->closes_peers, true);
	ffs_loop_kick(loop);
}
