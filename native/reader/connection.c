/* See connection.h. */
#include "reader/connection.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/time.h>

#include "core/sys.h"
#include "reader/counters.h"

int ffs_conn_init(struct ffs_conn *conn, int fd, bool local, bool mapped)
{
	atomic_store_explicit(&conn->fd, -1, memory_order_relaxed);
	if (local && (conn->local = ffs_local_new()) == NULL)
		return -ENOMEM;
	if (local)
		conn->local->mapped = mapped;
	const struct timeval wait = {.tv_usec = FFS_RECEIVE_WAIT_NS / 1000};
	if (ffs_sys_set_blocking(fd, true) != 0 ||
	    ffs_sys_setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait)) != 0)
		return -errno;
	atomic_store_explicit(&conn->fd, fd, memory_order_relaxed);
	conn->generation = ffs_generation();
	conn->next_request_id = 1;
	return 0;
}

static void close_descriptor(struct ffs_conn *conn)
{
	int fd = ffs_conn_fd(conn);
	if (fd < 0)
		return;
	if (conn->rdma != NULL) /* first: it may still be written by */
		ffs_rdma_close(conn->rdma);
	conn->rdma = NULL;
	/* A forked child may hold a copy of the descriptor: without shutdown the peer would not notice
	 * our close. In that child itself the shutdown would end the parent's connection. */
	if (conn->generation == ffs_generation())
		(void)ffs_sys_shutdown(fd, SHUT_RDWR);
	(void)ffs_sys_close(fd);
	if (conn->local != NULL)
		ffs_local_forget(conn->local);
	atomic_store_explicit(&conn->fd, -1, memory_order_relaxed);
	atomic_store_explicit(&conn->bytes_in_flight, 0, memory_order_relaxed);
}

void ffs_conn_fini(struct ffs_conn *conn)
{
	close_descriptor(conn);
	ffs_local_free(conn->local);
	conn->local = NULL;
	free(conn->scratch);
	conn->scratch = NULL;
}

bool ffs_conn_alive(const struct ffs_conn *conn)
{
	return ffs_conn_fd(conn) >= 0 && conn->generation == ffs_generation() &&
	       !atomic_load_explicit(&conn->close_wanted, memory_order_relaxed);
}

enum ffs_conn_claim ffs_conn_claim(struct ffs_conn *conn)
{
	/* The generation comes first: in a child, `busy` may have been true for ever. */
	if (conn->generation != ffs_generation())
		return FFS_CONN_DEAD;
	if (atomic_exchange_explicit(&conn->busy, true, memory_order_acquire))
		return FFS_CONN_IN_USE;
	if (!ffs_conn_alive(conn)) {
		ffs_conn_release(conn);
		return FFS_CONN_DEAD;
	}
	if (conn->scratch == NULL)
		conn->scratch = ffs_sys_aligned_alloc(64, sizeof(*conn->scratch));
	if (conn->scratch == NULL) {
		ffs_conn_release(conn);
		return FFS_CONN_NO_MEMORY;
	}
	return FFS_CONN_CLAIMED;
}

/* The wish is looked at after `busy` is given up, and ffs_conn_close takes `busy` after it has made
 * the wish known: one of the two sees the other, so a wish is never lost. */
void ffs_conn_release(struct ffs_conn *conn)
{
	atomic_store_explicit(&conn->bytes_in_flight, 0, memory_order_relaxed);
	atomic_store(&conn->busy, false);
	if (!atomic_load(&conn->close_wanted) || atomic_exchange(&conn->busy, true))
		return;
	close_descriptor(conn);
	atomic_store(&conn->busy, false);
}

void ffs_conn_revoke(struct ffs_conn *conn)
{
	close_descriptor(conn);
}

void ffs_conn_close(struct ffs_conn *conn)
{
	if (conn->generation != ffs_generation()) {
		close_descriptor(conn);
		return;
	}
	atomic_store(&conn->close_wanted, true);
	if (atomic_exchange(&conn->busy, true))
		return; /* the owner sees the wish at its next tick, or when it releases */
	ffs_conn_release(conn);
}
