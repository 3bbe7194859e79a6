/*
 * Reading files without waiting for the disk: reads are added, submitted together, and reaped when
 * they are done. One of these belongs to each loop.
 *
 * Two ways to do it, chosen when it is made (reads_ring.c, reads_threads.c): an io_uring, or, where
 * the kernel has none or refuses it, a few threads that wait in pread. Everything else is the same
 * for both and in reads.c: what an error, a short read or an interruption means.
 *
 *   - interrupted, or the kernel was short of something: again, so and so often;
 *   - the descriptor refuses the read (a file system without O_DIRECT): from the other descriptor;
 *   - short: the rest from the other descriptor, which asks for no alignment;
 *   - the end of the file before the bytes that are needed, anything else: an error.
 *
 * Whoever adds a read keeps it and its memory until `done` was called: the kernel writes there, and
 * a read that has begun cannot be called back. ffs_reads_drain waits for all of them.
 *
 * Some facts about io_uring: a ring belongs to the thread that enabled it (SINGLE_ISSUER), which
 * spares the kernel interrupting it (DEFER_TASKRUN: completions appear when the thread looks). Such
 * a ring's own descriptor does not wake who polls it; an eventfd that is registered does. It is
 * watched for edges, so that nobody has to read it. A submission may take fewer than
 * there are, and may have to be tried again; the kernel drops no completion (NODROP).
 *
 * Threads: the loop's alone, but for what init and fini do. Fork: the child has nothing of it.
 */
#ifndef FFS_STORAGE_READS_H
#define FFS_STORAGE_READS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * Reads under way at once. More wait in a queue, ready to be started: a disk (of a virtual machine,
 * say) may tell what it has done only when it has nothing left to do, and should get more before
 * anything is done with what it has read. Measured: docs/decisions/0004-cold-reads.md.
 */
#define FFS_READS_IN_FLIGHT_MAX 64u
#define FFS_READS_ADDED_MAX 256u
/* So many go to the kernel together: the disk begins while others are made ready. */
#define FFS_READS_TOGETHER_MAX 16u

enum ffs_reads_means {
	FFS_READS_AUTO, /* a ring if it can be had, else threads */
	FFS_READS_RING,
	FFS_READS_THREADS,
};

struct ffs_read {
	struct ffs_read *next;
	int fd;
	int other_fd; /* for what `fd` refuses or leaves; the same or another */
	uint8_t *target;
	uint64_t offset;
	uint32_t bytes;
	uint32_t needed; /* the file may end after so many of them */
	void (*done)(struct ffs_read *read);
	void *context;
	/* Filled here. */
	int error; /* 0 or -errno, when done */
	uint32_t got;
	uint32_t tries;
	bool refused; /* `fd` would not do it */
	int result;   /* of the last attempt, as pread and io_uring give it */
};

struct ffs_ring;
struct ffs_read_threads;

struct ffs_reads {
	struct ffs_ring *ring; /* NULL: threads */
	struct ffs_read_threads *threads;
	int fd;         /* rises when something is done: to be watched for edges */
	int ring_error; /* why there is no ring, an errno; 0: there is one, or it was not asked for */
	struct ffs_read *queue; /* added, not yet given to the ring or the threads */
	struct ffs_read **queue_tail;
	uint32_t in_flight;
	uint32_t added; /* in flight, or in the queue */
};

/* 0 or -errno. With FFS_READS_RING it fails where there is no ring. */
int ffs_reads_init(struct ffs_reads *reads, enum ffs_reads_means means);
/* In the thread that will use it, before anything else. */
void ffs_reads_enable(struct ffs_reads *reads);
/* Nothing may be under way any more. */
void ffs_reads_fini(struct ffs_reads *reads);

void ffs_reads_add(struct ffs_reads *reads, struct ffs_read *read);
/* How many were added and not started. */
static inline uint32_t ffs_reads_queued(const struct ffs_reads *reads)
{
	return reads->added - reads->in_flight;
}
/* Start what was added; false if the kernel took not all of it and has to be asked again soon. */
bool ffs_reads_submit(struct ffs_reads *reads);
/* Call `done` for all that have ended; those may add further reads. Returns how many ended. */
uint32_t ffs_reads_reap(struct ffs_reads *reads);
/* Wait until nothing is under way. */
void ffs_reads_drain(struct ffs_reads *reads);

/* ------------------------------------------------------------------------------- reads_ring.c */

/* 0, or -errno: -ENOSYS where this was built without liburing. */
int ffs_ring_open(struct ffs_ring **ring, int *fd);
void ffs_ring_close(struct ffs_ring *ring);
int ffs_ring_enable(struct ffs_ring *ring);
/* False if the submission queue is full. */
bool ffs_ring_put(struct ffs_ring *ring, struct ffs_read *read);
/* 0, or -EAGAIN if some have not been taken yet. */
int ffs_ring_submit(struct ffs_ring *ring);
/* The next one that has ended, its `result` filled; NULL if there is none. */
struct ffs_read *ffs_ring_take(struct ffs_ring *ring);
/* Until one has ended. */
void ffs_ring_wait(struct ffs_ring *ring);

/* ---------------------------------------------------------------------------- reads_threads.c */

int ffs_read_threads_open(struct ffs_read_threads **threads, int *fd);
/* Joins them. */
void ffs_read_threads_close(struct ffs_read_threads *threads);
void ffs_read_threads_put(struct ffs_read_threads *threads, struct ffs_read *read);
/* All that have ended, as a list. */
struct ffs_read *ffs_read_threads_take(struct ffs_read_threads *threads);
void ffs_read_threads_wait(struct ffs_read_threads *threads);

#endif
