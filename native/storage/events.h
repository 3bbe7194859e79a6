/*
 * What the loops and writers have to tell Python: a queue and a descriptor to wait on.
 *
 * Nodes are embedded in what they are about, so that telling never fails for want of memory.
 * Threads: any number push, one drains.
 */
#ifndef FFS_STORAGE_EVENTS_H
#define FFS_STORAGE_EVENTS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum ffs_event_kind {
	FFS_EVENT_WRITE = 1,
	FFS_EVENT_PERSISTED = 2,
	FFS_EVENT_CLOSED = 3,
	FFS_EVENT_TARGET_STOPPED = 4,
	FFS_EVENT_SLOW_READ = 5,
	FFS_EVENT_FORWARDED = 6,
	FFS_EVENT_PEER_CLOSED = 7, /* its id as `connection_id` */
	FFS_EVENT_SUSPECT = 8,
	FFS_EVENT_REFUSED = 9, /* for want of a grant: the request's id as `write_id`, its operation
	                        * as `hop`, and in `length` how many before it were not told */
};

struct ffs_event {
	struct ffs_event *next;
	enum ffs_event_kind kind;
	bool owned; /* by the queue: freed after it has been told */
	uint8_t hop;
	uint16_t status;
	uint32_t chunk;
	uint32_t target;
	uint32_t chain;
	uint32_t chain_version;
	uint32_t length;
	uint64_t write_id;
	uint64_t connection_id;
	uint64_t blob;
	struct { /* of a slow read; `length` has its ranges */
		uint64_t trace_id;
		uint64_t bytes;
		uint64_t took_ms;
		uint64_t queued_ms;
	} slow;
};

struct ffs_events {
	pthread_mutex_t lock;
	struct ffs_event *head;
	struct ffs_event **tail;
	int fd;
};

/* 0 or -errno. */
int ffs_events_init(struct ffs_events *events);
void ffs_events_fini(struct ffs_events *events);
void ffs_events_push(struct ffs_events *events, struct ffs_event *event);
/* Take all as copies that the caller frees; how many, or -ENOMEM: then they are still there. */
ssize_t ffs_events_take(struct ffs_events *events, struct ffs_event **copies);
/* Throw away what nobody will ask for any more. */
void ffs_events_discard(struct ffs_events *events);

/* Make an eventfd readable, and unreadable. */
void ffs_eventfd_kick(int fd);
void ffs_eventfd_clear(int fd);

#endif
