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
	pthread_mutex_lock(&events->lock);
	while (events->head != NULL) {
		struct ffs_event *event = events->head;
		events->head = event->next;
		if (event->owned)
			free(event);
	}
	events->tail = &events->head;
	pthread_mutex_unlock(&events->lock);
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

ssize_t ffs_events_take(struct ffs_events *events, struct ffs_event **copies)
{
	pthread_mutex_lock(&events->lock);
	size_t count = 0;
	for (struct ffs_event *event = events->head; event != NULL; event = event->next)
		count++;
	*copies = ffs_sys_calloc(count + 1, sizeof(struct ffs_event));
	if (*copies == NULL) {
		pthread_mutex_unlock(&events->lock);
		return -ENOMEM;
	}
	struct ffs_event *event = events->head;
	for (size_t i = 0; i < count; i++) {
		struct ffs_event *next = event->next;
		(*copies)[i] = *event;
		if (event->owned)
			free(event);
		event = next;
	}
	events->head = NULL;
	events->tail = &events->head;
	ffs_eventfd_clear(events->fd);
	pthread_mutex_unlock(&events->lock);
	return (ssize_t)count;
}
