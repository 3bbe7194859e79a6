/* Reads by io_uring: see reads.h. Without liburing at build time there is none, and threads do it.
 */
#include <errno.h>
#include <stdlib.h>

#include "core/sys.h"
#include "storage/reads.h"

#ifdef FFS_HAVE_LIBURING

#include <liburing.h>

#define ENTRIES FFS_READS_IN_FLIGHT_MAX
#define SUBMIT_TRIES_MAX 16

struct ffs_ring {
	struct io_uring ring;
	uint32_t unsubmitted;
	int event_fd;
};

static int setup(struct io_uring *ring, unsigned int flags)
{
	if (ffs_sys_fails(FFS_SYS_URING_SETUP))
		return -errno;
	return io_uring_queue_init(ENTRIES, ring, flags);
}

static int setup_best(struct io_uring *ring)
{
	unsigned int best =
		IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	int result = setup(ring, IORING_SETUP_R_DISABLED | best);
	if (result == -EINVAL) /* before Linux 6.1 */
		result = setup(ring, IORING_SETUP_R_DISABLED);
	return result;
}

static int register_eventfd(struct ffs_ring *ring)
{
	if (ffs_sys_fails(FFS_SYS_URING_REGISTER))
		return -errno;
	return io_uring_register_eventfd(&ring->ring, ring->event_fd);
}

int ffs_ring_open(struct ffs_ring **made, int *fd)
{
	struct ffs_ring *ring = ffs_sys_calloc(1, sizeof(*ring));
	if (ring == NULL)
		return -ENOMEM;
	ring->event_fd = ffs_sys_eventfd(0);
	int result = ring->event_fd < 0 ? -errno : setup_best(&ring->ring);
	if (result == 0) {
		result = register_eventfd(ring);
		if (result != 0)
			io_uring_queue_exit(&ring->ring);
	}
	if (result != 0) {
		if (ring->event_fd >= 0)
			(void)ffs_sys_close(ring->event_fd);
		free(ring);
		return result;
	}
	*made = ring;
	*fd = ring->event_fd;
	return 0;
}

void ffs_ring_close(struct ffs_ring *ring)
{
	io_uring_queue_exit(&ring->ring);
	(void)ffs_sys_close(ring->event_fd);
	free(ring);
}

int ffs_ring_enable(struct ffs_ring *ring)
{
	/* liburing 2.3 declares a function for this that its library does not have. */
	return (int)syscall(SYS_io_uring_register, ring->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
	                    NULL, 0);
}

bool ffs_ring_put(struct ffs_ring *ring, struct ffs_read *read)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->ring);
	if (sqe == NULL)
		return false;
	uint8_t *target = read->target + read->got;
	uint32_t bytes = read->bytes - read->got;
	uint64_t offset = read->offset + read->got;
	io_uring_prep_read(sqe, read->fd, target, bytes, offset);
	io_uring_sqe_set_data(sqe, read);
	ring->unsubmitted++;
	return true;
}

static int enter(struct io_uring *ring)
{
	if (ffs_sys_fails(FFS_SYS_URING_ENTER))
		return -errno;
	return io_uring_submit(ring);
}

int ffs_ring_submit(struct ffs_ring *ring)
{
	for (int i = 0; ring->unsubmitted > 0 && i < SUBMIT_TRIES_MAX; i++) {
		int taken = enter(&ring->ring);
		if (taken > 0)
			ring->unsubmitted -= (uint32_t)taken;
	}
	return ring->unsubmitted == 0 ? 0 : -EAGAIN;
}

struct ffs_read *ffs_ring_take(struct ffs_ring *ring)
{
	struct io_uring_cqe *cqe;
	if (io_uring_peek_cqe(&ring->ring, &cqe) != 0)
		return NULL;
	struct ffs_read *read = io_uring_cqe_get_data(cqe);
	read->result = cqe->res;
	io_uring_cqe_seen(&ring->ring, cqe);
	enum ffs_sys_fault fault = ffs_sys_fault(FFS_SYS_URING_READ);
	if (fault == FFS_SYS_FAILS)
		read->result = -errno;
	else if (fault == FFS_SYS_SHORT && read->result > 1)
		read->result = 1;
	return read;
}

void ffs_ring_wait(struct ffs_ring *ring)
{
	int taken = io_uring_submit_and_wait(&ring->ring, 1);
	if (taken > 0)
		ring->unsubmitted -= (uint32_t)taken;
}

#else

int ffs_ring_open(struct ffs_ring **ring, int *fd)
{
	(void)ring;
	(void)fd;
	return -ENOSYS;
}

void ffs_ring_close(struct ffs_ring *ring)
{
	(void)ring;
}

int ffs_ring_enable(struct ffs_ring *ring)
{
	(void)ring;
	return -ENOSYS;
}

bool ffs_ring_put(struct ffs_ring *ring, struct ffs_read *read)
{
	(void)ring;
	(void)read;
	return false;
}

int ffs_ring_submit(struct ffs_ring *ring)
{
	(void)ring;
	return -ENOSYS;
}

struct ffs_read *ffs_ring_take(struct ffs_ring *ring)
{
	(void)ring;
	return NULL;
}

void ffs_ring_wait(struct ffs_ring *ring)
{
	(void)ring;
}

#endif
