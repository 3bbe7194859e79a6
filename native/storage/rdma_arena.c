/*
 * The read arena, registered on each device that connections go over on.
 *
 * Previous hop: receive.c with a CONNECT_QP. Registering pins every page, which takes as long as
 * the arena is large: so a thread does it, once for each device and all loops. The connections that
 * want it wait meanwhile: nothing is read from them, and all others are served.
 *
 * Failure: those that waited are refused, and the next one to ask has it tried again.
 * Threads: any; the group's lock is held for looks alone. Fork: as the loop.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "core/sys.h"
#include "storage/rdma_conn.h"

struct ffs_rdma_region {
	struct ffs_rdma_region *next;
	struct ffs_group *group;
	struct ffs_rdma_device *device;
	pthread_t thread;
	bool made; /* the thread has done with it: for good, or not */
	int error;
	struct ibv_mr *mr;
};

static int pin(const struct ffs_rdma_region *region, struct ibv_mr **mr)
{
	struct ffs_group *group = region->group;
	int error = ffs_buffers_map(&group->read_buffers);
	if (error != 0)
		return error;
	errno = 0;
	*mr = ffs_reg_mr(region->device->pd, group->read_arena.bytes, group->read_arena.size,
	                 IBV_ACCESS_LOCAL_WRITE);
	if (*mr != NULL)
		return 0;
	return errno != 0 ? -errno : -EIO;
}

static void *make(void *argument)
{
	struct ffs_rdma_region *region = argument;
	struct ffs_group *group = region->group;
	struct ibv_mr *mr = NULL;
	int error = pin(region, &mr);
	pthread_mutex_lock(&group->lock);
	region->mr = mr;
	region->error = error;
	region->made = true;
	pthread_mutex_unlock(&group->lock);
	for (uint32_t i = 0; i < group->loop_count; i++)
		ffs_loop_kick(&group->loops[i]);
	return NULL;
}

/* With the group's lock held: the device's region, which is being made from now on if there was
 * none. NULL if that cannot be. */
static struct ffs_rdma_region *region_of(struct ffs_group *group, struct ffs_rdma_device *device)
{
	struct ffs_rdma_region *region = group->regions;
	while (region != NULL && region->device != device)
		region = region->next;
	if (region != NULL)
		return region;
	region = ffs_sys_calloc(1, sizeof(*region));
	if (region == NULL)
		return NULL;
	region->group = group;
	region->device = device;
	sigset_t all, before; /* signals are for the interpreter's main thread */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	int error = ffs_sys_thread(&region->thread, make, region);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error != 0) {
		free(region);
		return NULL;
	}
	region->next = group->regions;
	group->regions = region;
	return region;
}

int ffs_rdma_find_arena(struct ffs_group *group, struct ffs_rdma_device *device, struct ibv_mr **mr)
{
	pthread_mutex_lock(&group->lock);
	struct ffs_rdma_region *region = region_of(group, device);
	int error = region == NULL ? -ENOMEM : !region->made ? -EBUSY : region->error;
	if (error == 0)
		*mr = region->mr;
	bool failed = region != NULL && region->made && error != 0;
	if (failed) { /* whoever comes next may be luckier */
		struct ffs_rdma_region **link = &group->regions;
		while (*link != region)
			link = &(*link)->next;
		*link = region->next;
	}
	pthread_mutex_unlock(&group->lock);
	if (failed) {
		pthread_join(region->thread, NULL);
		free(region);
	}
	return error;
}

/* What the device's arena has to do with the answer is known: it is made, was not to be had, or the
 * answer needs none. */
static bool is_known(const struct ffs_conn *conn, const struct ffs_request *request)
{
	struct ffs_group *group = conn->loop->group;
	struct ffs_rdma_wish wish =
		ffs_rdma_wish_of(group, request->header.flags != FFS_CONNECT_EXCHANGE);
	char text[FFS_RDMA_TEXT_BYTES];
	const struct ffs_rdma_path *path;
	struct ffs_qp_end peer;
	if (group->rdma.off || request->header.flags == FFS_CONNECT_CONFIRM ||
	    !ffs_qp_end_unpack(&peer, request->descriptors) ||
	    ffs_rdma_choose(conn->fd, &wish, &peer, &path, text) != FFS_RDMA_FINE)
		return true;
	pthread_mutex_lock(&group->lock);
	const struct ffs_rdma_region *region = region_of(group, path->device);
	bool known = region == NULL || region->made;
	pthread_mutex_unlock(&group->lock);
	return known;
}

bool ffs_rdma_is_ready(struct ffs_conn *conn, const struct ffs_request *request)
{
	bool ready = is_known(conn, request);
	conn->loop->going_over += !ready;
	return ready;
}

void ffs_rdma_resume(struct ffs_loop *loop)
{
	uint32_t left = 0;
	for (uint32_t i = 0; i < FFS_CONNECTIONS_PER_DAEMON_MAX; i++) {
		struct ffs_conn *conn = loop->conns[i];
		if (conn == NULL || conn->state != FFS_RECEIVE_WAITING || conn->request == NULL)
			continue;
		if (is_known(conn, conn->request))
			ffs_conn_resume(conn);
		else
			left++;
	}
	loop->going_over = left;
}

void ffs_rdma_group_fini(struct ffs_group *group)
{
	while (group->regions != NULL) {
		struct ffs_rdma_region *region = group->regions;
		group->regions = region->next;
		pthread_join(region->thread, NULL);
		if (region->mr != NULL)
			(void)ffs_verbs()->ibv_dereg_mr(region->mr);
		free(region);
	}
}
