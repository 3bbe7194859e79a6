/* What cm.h promises, where there is no header of librdmacm: nothing is connected by rdma_cm. */
#ifndef FFS_HAVE_CM
#include <errno.h>

#include "rdma/cm.h"

enum ffs_rdma_fault ffs_cm_open(struct ffs_cm *cm, char *text)
{
	*cm = (struct ffs_cm){.fd = -1};
	ffs_rdma_say(text, "this build has no rdma_cm: install librdmacm-dev and build it again");
	return FFS_RDMA_NO_CM;
}

void ffs_cm_close(struct ffs_cm *cm)
{
	(void)cm;
}

void ffs_cm_forget(struct ffs_cm *cm)
{
	(void)cm;
}

enum ffs_cm_news ffs_cm_next(struct ffs_cm *cm, struct ffs_cm_event *event)
{
	(void)cm;
	*event = (struct ffs_cm_event){.news = FFS_CM_NONE};
	return FFS_CM_NONE;
}

int ffs_cm_bind(struct ffs_cm *cm, const uint8_t address[16], struct rdma_cm_id **end)
{
	(void)cm;
	(void)address;
	*end = NULL;
	return -ENOSYS;
}

int ffs_cm_listen(struct rdma_cm_id *end)
{
	(void)end;
	return -ENOSYS;
}

int ffs_cm_dial(struct rdma_cm_id *end, const uint8_t address[16], uint16_t port, int wait_ms)
{
	(void)end;
	(void)address;
	(void)port;
	(void)wait_ms;
	return -ENOSYS;
}

int ffs_cm_find_route(struct rdma_cm_id *end, int wait_ms)
{
	(void)end;
	(void)wait_ms;
	return -ENOSYS;
}

int ffs_cm_ask(struct rdma_cm_id *end, const struct ffs_qp *qp,
               const uint8_t secret[FFS_CM_SECRET_BYTES])
{
	(void)end;
	(void)qp;
	(void)secret;
	return -ENOSYS;
}

int ffs_cm_finish(struct rdma_cm_id *end, struct ffs_qp *qp)
{
	(void)end;
	(void)qp;
	return -ENOSYS;
}

int ffs_cm_accept(struct rdma_cm_id *end, struct ffs_qp *qp, uint8_t reads)
{
	(void)end;
	(void)qp;
	(void)reads;
	return -ENOSYS;
}

uint16_t ffs_cm_port(struct rdma_cm_id *end)
{
	(void)end;
	return 0;
}

const struct ffs_rdma_path *ffs_cm_path(const struct rdma_cm_id *end,
                                        const struct ffs_rdma_wish *wish)
{
	(void)end;
	(void)wish;
	return NULL;
}

void ffs_cm_end(struct rdma_cm_id *end)
{
	(void)end;
}
#endif
