/*
 * A chunk on its way in: from a connection, past Python's decision, to a store and to the next
 * daemon of its chain.
 *
 *   received --event--> Python --+--persist--> store's writer ---event--> Python --ack--> answered
 *                                +--forward--> peer (forward.c) --event-->
 *
 * Both legs may be under way at the same time. Memory and id belong to the write until it is
 * answered, which it may be when it is busy with nothing.
 *
 * Threads: the group's functions from any; the others as they say. Fork: as loop.h.
 */
#ifndef FFS_STORAGE_WRITES_H
#define FFS_STORAGE_WRITES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/frame.h"
#include "storage/buffers.h"
#include "storage/events.h"
#include "storage/store.h"

struct ffs_conn;
struct ffs_group;
struct ffs_loop;
struct ffs_peer;
struct ffs_request;

enum ffs_mail_kind {
	FFS_MAIL_ADOPT,
	FFS_MAIL_ANSWER,
	FFS_MAIL_PEER,
	FFS_MAIL_FORWARD,
	FFS_MAIL_CLOSE,
};

struct ffs_mail {
	struct ffs_mail *next;
	enum ffs_mail_kind kind;
	union {
		struct ffs_conn *conn;
		struct ffs_write *write;
		struct ffs_peer *peer;
		uint64_t connection_id;
	} about;
};

/* What a write is in the middle of, until Python has been told; with none it may be answered. */
enum ffs_write_busy {
	FFS_WRITE_ANNOUNCING = 1,
	FFS_WRITE_PERSISTING = 2,
	FFS_WRITE_FORWARDING = 4,
};

/* A write's way to the next daemon of its chain: the peer's loop's while it is forwarding. */
struct ffs_forward {
	struct ffs_event event;
	struct ffs_mail mail;
	struct ffs_write *next; /* on its peer */
	struct ffs_write *previous;
	uint64_t peer_id;
	uint64_t sent; /* bytes of its frame */
	bool answered; /* with `status`, before all of it was sent */
	uint16_t status;
	uint32_t target;
	uint8_t head[FFS_FRAME_HEADER_BYTES + FFS_WRITE_DESCRIPTOR_BYTES];
};

/* A chunk on its way from a connection to a store, and to another daemon. */
struct ffs_write {
	struct ffs_event event; /* that it is here, then that it is persisted */
	struct ffs_mail mail;
	struct ffs_put put;
	struct ffs_forward forward;
	struct ffs_buffer buffer;
	struct ffs_group *group;
	struct ffs_loop *loop;
	struct ffs_request *reply; /* made beforehand: answering never fails for want of memory */
	uint64_t connection_id;
	uint32_t target;
	uint32_t slot;  /* in the table of ids */
	uint8_t hop;    /* 0: from a client */
	uint8_t busy;   /* of enum ffs_write_busy; with the group's lock held */
	uint8_t body[]; /* descriptor and CRCs, as received */
};

/* ------------------------------------------------------------------------------------ writes.c */

struct ffs_write *ffs_write_new(struct ffs_conn *conn, const struct ffs_header *header);
/* The chunk is here and right: give it an id and tell Python; 0 or -ENOMEM. */
int ffs_write_announce(struct ffs_write *write);
/*
 * Take all events, as copies that the caller frees; from here on Python may act on their writes.
 * Returns how many, or -ENOMEM: then they are still there.
 */
ssize_t ffs_group_poll(struct ffs_group *group, struct ffs_event **copies);
/* Give the buffer back and free what is left. */
void ffs_write_free(struct ffs_write *write);
/* Queue its bare answer on its connection and free the rest. */
void ffs_write_answer(struct ffs_conn *conn, struct ffs_write *write, uint16_t status);
/* Start persisting; -ENOENT for an id that is unknown or being persisted: then nothing starts. */
int ffs_group_persist(struct ffs_group *group, const uint64_t *write_ids, size_t count);
/* Start sending to another daemon, for that target of it; the same. A peer that has gone is told as
 * each write's status. */
int ffs_group_forward(struct ffs_group *group, const uint64_t *write_ids, size_t count,
                      uint64_t peer_id, uint32_t target);
/* A write's forwarding has ended. On the peer's loop. */
void ffs_write_forwarded(struct ffs_write *write, uint16_t status);
/* The write that is being forwarded by this peer under this id; NULL if there is none. */
struct ffs_write *ffs_write_on_peer(struct ffs_group *group, uint64_t write_id, uint64_t peer_id);
/* -EBUSY while it is being persisted or forwarded, -ENOENT for an unknown id. */
int ffs_group_ack(struct ffs_group *group, uint64_t write_id, uint16_t status);

/* ----------------------------------------------------------------------------------- forward.c */

/* Take over a connected socket to another daemon; the peer's id or -errno (the caller keeps the
 * descriptor then). */
int64_t ffs_group_add_peer(struct ffs_group *group, int fd);
/* Have it closed, if it still is there. Any thread. */
void ffs_group_close_peer(struct ffs_group *group, uint64_t peer_id);
/*
 * Note that so many writes of a hop are about to go there, whose loop it returns; NULL if the peer
 * has writes of another hop. With the group's lock held.
 */
struct ffs_loop *ffs_peer_expect(struct ffs_group *group, uint64_t peer_id, uint8_t hop);
/* On its loop: begin; take a write that is to be sent; see to what epoll has told. */
void ffs_peer_adopt(struct ffs_peer *peer);
void ffs_peer_take(struct ffs_loop *loop, struct ffs_write *write);
void ffs_peer_serve(struct ffs_peer *peer, uint32_t events);
/* Send what this round's mail has brought. */
void ffs_loop_send_due(struct ffs_loop *loop);
/* Close those that were asked to be closed, or all; free the closed ones when a round is over. */
void ffs_loop_close_peers(struct ffs_loop *loop, bool all);
void ffs_loop_bury_peers(struct ffs_loop *loop);

#endif
