/* What both ways of reading have in common: see reads.h. */
#include "storage/reads.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#define TRIES_MAX 64u

int ffs_reads_init(struct ffs_reads *reads, enum ffs_reads_means means)
{
	int result = 0;
	memset(reads, 0, sizeof(*reads));
	reads->fd = -1;
	reads->queue_tail = &reads->queue;
	if (means != FFS_READS_THREADS) {
		result = ffs_ring_open(&reads->ring, &reads->fd);
		reads->ring_error = -result;
	}
	if (means == FFS_READS_THREADS || (means == FFS_READS_AUTO && result != 0))
		result = ffs_read_threads_open(&reads->threads, &reads->fd);
	return result;
}

void ffs_reads_enable(struct ffs_reads *reads)
{
	if (reads->ring != NULL)
		(void)ffs_ring_enable(reads->ring);
}

void ffs_reads_fini(struct ffs_reads *reads)
{
	assert(reads->added == 0);
	if (reads->ring != NULL)
		ffs_ring_close(reads->ring);
	if (reads->threads != NULL)
		ffs_read_threads_close(reads->threads);
	reads->ring = NULL;
	reads->threads = NULL;
	reads->fd = -1;
}

static void enqueue(struct ffs_reads *reads, struct ffs_read *read)
{
	read->next = NULL;
	*reads->queue_tail = read;
	reads->queue_tail = &read->next;
}

void ffs_reads_add(struct ffs_reads *reads, struct ffs_read *read)
{
	read->error = 0;
	read->got = 0;
	read->tries = 0;
	read->refused = false;
	reads->added++;
	enqueue(reads, read);
}

bool ffs_reads_submit(struct ffs_reads *reads)
{
	uint32_t together = 0;
	while (reads->queue != NULL && reads->in_flight < FFS_READS_IN_FLIGHT_MAX) {
		struct ffs_read *read = reads->queue;
		struct ffs_read *next = read->next; /* it may be done before this returns */
		if (reads->ring == NULL)
			ffs_read_threads_put(reads->threads, read);
		else if (!ffs_ring_put(reads->ring, read))
			break;
		reads->in_flight++;
		reads->queue = next;
		if (next == NULL)
			reads->queue_tail = &reads->queue;
		if (reads->ring != NULL && ++together % FFS_READS_TOGETHER_MAX == 0)
			(void)ffs_ring_submit(reads->ring); /* what is not taken, below */
	}
	return reads->ring == NULL || ffs_ring_submit(reads->ring) == 0;
}

/* Whether the other descriptor may do better. */
static bool refusal(const struct ffs_read *read, int error)
{
	return read->fd != read->other_fd &&
	       (error == -EINVAL || error == -EOPNOTSUPP || error == -ENOSYS);
}

/* What the last attempt has come to: true if the read is over. */
static bool conclude(struct ffs_read *read)
{
	int result = read->result;
	if ((result == -EINTR || result == -EAGAIN) && read->tries++ < TRIES_MAX)
		return false;
	if (refusal(read, result)) {
		read->refused = true;
		read->fd = read->other_fd;
		return false;
	}
	if (result > 0) {
		read->got += (uint32_t)result;
		if (read->got >= read->needed)
			return true;
		read->fd = read->other_fd;
		return false;
	}
	read->error = result == 0 || result == -EAGAIN || result == -EINTR ? -EIO : result;
	return true;
}

uint32_t ffs_reads_reap(struct ffs_reads *reads)
{
	uint32_t ended = 0;
	struct ffs_read *list = NULL;
	if (reads->threads != NULL)
		list = ffs_read_threads_take(reads->threads);
	for (;;) {
		struct ffs_read *read = list;
		if (reads->ring != NULL)
			read = ffs_ring_take(reads->ring);
		else if (read != NULL)
			list = read->next;
		if (read == NULL)
			return ended;
		reads->in_flight--;
		if (!conclude(read)) {
			enqueue(reads, read);
			continue;
		}
		reads->added--;
		ended++;
		read->done(read);
	}
}

void ffs_reads_drain(struct ffs_reads *reads)
{
	while (reads->added > 0) {
		(void)ffs_reads_submit(reads);
		if (reads->in_flight > 0 && reads->ring != NULL)
			ffs_ring_wait(reads->ring);
		else if (reads->in_flight > 0)
			ffs_read_threads_wait(reads->threads);
		(void)ffs_reads_reap(reads);
	}
}
