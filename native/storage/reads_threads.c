/* Reads by threads that wait in pread, where there is no io_uring: see reads.h. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "core/sys.h"
#include "storage/events.h"
#include "storage/reads.h"

#define THREADS 16u /* of each loop */

struct ffs_read_threads {
	int fd;
	pthread_t threads[THREADS];
	uint32_t count;
	bool started;
	pthread_mutex_t lock; /* for the fields below */
	pthread_cond_t added;
	pthread_cond_t finished;
	struct ffs_read *queue;
	struct ffs_read **queue_tail;
	struct ffs_read *ended;
	bool quit;
};

static void perform(struct ffs_read *read)
{
	ssize_t got = ffs_sys_pread(read->fd, read->target + read->got, read->bytes - read->got,
	                            (off_t)(read->offset + read->got));
	read->result = got < 0 ? -errno : (int)got;
}

/* With the lock held. */
static void end(struct ffs_read_threads *threads, struct ffs_read *read)
{
	bool first = threads->ended == NULL;
	read->next = threads->ended;
	threads->ended = read;
	if (first) {
		ffs_eventfd_kick(threads->fd);
		pthread_cond_signal(&threads->finished);
	}
}

static void *work(void *argument)
{
	struct ffs_read_threads *threads = argument;
	pthread_mutex_lock(&threads->lock);
	for (;;) {
		while (threads->queue == NULL && !threads->quit)
			pthread_cond_wait(&threads->added, &threads->lock);
		if (threads->queue == NULL)
			break;
		struct ffs_read *read = threads->queue;
		threads->queue = read->next;
		if (threads->queue == NULL)
			threads->queue_tail = &threads->queue;
		pthread_mutex_unlock(&threads->lock);
		perform(read);
		pthread_mutex_lock(&threads->lock);
		end(threads, read);
	}
	pthread_mutex_unlock(&threads->lock);
	return NULL;
}

/* At the first read, by the loop's thread, which has blocked all signals. */
static void start(struct ffs_read_threads *threads)
{
	threads->started = true;
	while (threads->count < THREADS &&
	       ffs_sys_thread(&threads->threads[threads->count], work, threads) == 0)
		threads->count++;
}

int ffs_read_threads_open(struct ffs_read_threads **made, int *fd)
{
	struct ffs_read_threads *threads = ffs_sys_calloc(1, sizeof(*threads));
	if (threads == NULL)
		return -ENOMEM;
	threads->fd = ffs_sys_eventfd(0);
	if (threads->fd < 0) {
		int error = -errno;
		free(threads);
		return error;
	}
	threads->queue_tail = &threads->queue;
	pthread_mutex_init(&threads->lock, NULL);
	pthread_cond_init(&threads->added, NULL);
	pthread_cond_init(&threads->finished, NULL);
	*made = threads;
	*fd = threads->fd;
	return 0;
}

void ffs_read_threads_close(struct ffs_read_threads *threads)
{
	pthread_mutex_lock(&threads->lock);
	threads->quit = true;
	pthread_cond_broadcast(&threads->added);
	pthread_mutex_unlock(&threads->lock);
	for (uint32_t i = 0; i < threads->count; i++)
		pthread_join(threads->threads[i], NULL);
	pthread_cond_destroy(&threads->added);
	pthread_cond_destroy(&threads->finished);
	pthread_mutex_destroy(&threads->lock);
	(void)ffs_sys_close(threads->fd);
	free(threads);
}

void ffs_read_threads_put(struct ffs_read_threads *threads, struct ffs_read *read)
{
	if (!threads->started)
		start(threads);
	/* Fewer threads are slower, and enough; without one the loop has to wait for the disk. */
	if (threads->count == 0)
		perform(read);
	pthread_mutex_lock(&threads->lock);
	if (threads->count == 0) {
		end(threads, read);
	} else {
		read->next = NULL;
		*threads->queue_tail = read;
		threads->queue_tail = &read->next;
		pthread_cond_signal(&threads->added);
	}
	pthread_mutex_unlock(&threads->lock);
}

struct ffs_read *ffs_read_threads_take(struct ffs_read_threads *threads)
{
	ffs_eventfd_clear(threads->fd);
	pthread_mutex_lock(&threads->lock);
	struct ffs_read *stack = threads->ended;
	threads->ended = NULL;
	pthread_mutex_unlock(&threads->lock);
	struct ffs_read *list = NULL;
	while (stack != NULL) {
		struct ffs_read *read = stack;
		stack = read->next;
		read->next = list;
		list = read;
	}
	return list;
}

void ffs_read_threads_wait(struct ffs_read_threads *threads)
{
	pthread_mutex_lock(&threads->lock);
	while (threads->ended == NULL)
		pthread_cond_wait(&threads->finished, &threads->lock);
	pthread_mutex_unlock(&threads->lock);
}
