#include "storage/events.h"

#include <errno.h>
#include <stdlib.h>

#include "core/sys.h"

int ffs_events_init(struct ffs_events *events)
{
	events->fd = ffs_sys_eventfd(0);
	if (events->fd < 0)
		return -errno;
	events->head = NULL;
	events->tail = &events->head;
	pthread_mutex_init(&events->lock, NULL);
	return 0;
}

void ffs_events_discard(struct ffs_events *events)
{
	struct ffs_event *event = ffs_events_drain(events);
	while (event != NULL) {
		struct ffs_event *next = event->next;
		if (event->owned)
			free(event);
		event = next;
	}
}

void ffs_events_fini(struct ffs_events *events)
{
	ffs_events_discard(events);
	(void)ffs_sys_close(events->fd);
	pthread_mutex_destroy(&events->lock);
}

void ffs_eventfd_kick(int fd)
{
	/* Fails only when the counter is full, which is as readable as it gets. */
	uint64_t one = 1;
	ssize_t result = write(fd, &one, sizeof(one));
	(void)result;
}

void ffs_eventfd_clear(int fd)
{
	uint64_t count;
	ssize_t result = read(fd, &count, sizeof(count));
	(void)result;
}

void ffs_events_push(struct ffs_events *events, struct ffs_event *event)
{
	event->next = NULL;
	pthread_mutex_lock(&events->lock);
	bool first = events->head == NULL;
	*events->tail = event;
	events->tail = &event->next;
	/* Kicked under the lock: a drain in between would leave the descriptor readable for nothing. */
	if (first)
		ffs_eventfd_kick(events->fd);
	pthread_mutex_unlock(&events->lock);
}

struct ffs_event *ffs_events_drain(struct ffs_events *events)
{
	pthread_mutex_lock(&events->lock);
	struct ffs_event *head = events->head;
	events->head = NULL;
	events->tail = &events->head;
	ffs_eventfd_clear(events->fd);
	pthread_mutex_unlock(&events->lock);
	return head;
}
