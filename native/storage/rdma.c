/* What is said of RDMA whether it is built or not. See rdma.h. */
#include "storage/rdma.h"

void ffs_rdma_refuse(const struct ffs_request *request, enum ffs_rdma_fault fault,
                     struct ffs_output *output)
{
	struct ffs_header header = request->header;
	header.op |= FFS_REPLY_BIT;
	header.status = FFS_ERR_UNAVAILABLE;
	header.flags = (uint8_t)fault;
	header.count = 0;
	header.body_bytes = 0;
	ffs_header_pack(output->head, &header);
	output->parts[0] = (struct iovec){output->head, FFS_FRAME_HEADER_BYTES};
	output->part = 0;
	output->part_count = 1;
}

#ifndef FFS_HAVE_VERBS
void ffs_rdma_answer(struct ffs_conn *conn, const struct ffs_request *request,
                     struct ffs_output *output)
{
	(void)conn;
	ffs_rdma_refuse(request, FFS_RDMA_NOT_BUILT, output);
}
#endif
