/* What rdma.h promises, where there are no headers of libibverbs: nothing goes by RDMA. */
#ifndef FFS_HAVE_VERBS
#include <stdio.h>
#include <stdlib.h>

#include "core/sys.h"
#include "reader/batch.h"
#include "reader/rdma.h"

const struct ffs_transport ffs_rdma_reads, ffs_rdma_writes;

enum ffs_rdma_fault ffs_rdma_connect(struct ffs_ask *ask, const struct ffs_rdma_options *options,
                                     enum ffs_status *status, char *reason)
{
	(void)ask;
	(void)options;
	*status = FFS_OK;
	(void)snprintf(reason, FFS_RDMA_REASON_BYTES,
	               "this build has no RDMA: install libibverbs-dev and build it again");
	return FFS_RDMA_NOT_BUILT;
}

enum ffs_status ffs_rdma_ask(struct ffs_ask *ask)
{
	(void)ask;
	return FFS_ERR_NATIVE;
}

int ffs_rdma_fd(const struct ffs_rdma *rdma)
{
	(void)rdma;
	return -1;
}

bool ffs_rdma_own_domain(const struct ffs_rdma *rdma)
{
	(void)rdma;
	return false;
}

const char *ffs_rdma_device_name(const struct ffs_rdma *rdma)
{
	(void)rdma;
	return "";
}

void ffs_rdma_close(struct ffs_rdma *rdma)
{
	(void)rdma;
}

/* Nothing is registered, so nothing is remembered; but not NULL, which would be no memory. */
struct ffs_declared *ffs_rdma_declare(const void *memory, size_t bytes)
{
	(void)memory;
	(void)bytes;
	return ffs_sys_malloc(1);
}

void ffs_rdma_withdraw_declared(struct ffs_declared *declared)
{
	free(declared);
}

uint32_t ffs_rdma_regions(void)
{
	return 0;
}

uint64_t ffs_rdma_bytes_asked(void)
{
	return 0;
}

void ffs_rdma_forget(void)
{
}
#endif
