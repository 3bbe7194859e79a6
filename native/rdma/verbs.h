/*
 * libibverbs, loaded when it is first wanted: a table of its functions.
 *
 *   reader/rdma*.c, storage/rdma*.c -> region, queue_pair, device -> THIS -> libibverbs -> the card
 *
 * Nothing is linked with the library: a machine without it imports, builds and runs all else. The
 * header's inline functions that call into the library must therefore not be used; those that go
 * through a context's table (post, poll, windows) are fine.
 *
 * Threads: any. Fork: the table stays good in a child; what was opened by it does not (device.h).
 */
#ifndef FFS_RDMA_VERBS_H
#define FFS_RDMA_VERBS_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stddef.h>

#include "core/frame.h"

#undef ibv_get_device_list
#undef ibv_query_port
#undef ibv_reg_mr

#define FFS_RDMA_TEXT_BYTES 200u /* of a reason, for people */

#define FFS_VERBS(X)                                                                               \
	X(ibv_get_device_list)                                                                         \
	X(ibv_free_device_list)                                                                        \
	X(ibv_get_device_name)                                                                         \
	X(ibv_open_device)                                                                             \
	X(ibv_close_device)                                                                            \
	X(ibv_query_device)                                                                            \
	X(_ibv_query_gid_ex)                                                                           \
	X(ibv_alloc_pd)                                                                                \
	X(ibv_dealloc_pd)                                                                              \
	X(ibv_reg_mr)                                                                                  \
	X(ibv_dereg_mr)                                                                                \
	X(ibv_create_comp_channel)                                                                     \
	X(ibv_destroy_comp_channel)                                                                    \
	X(ibv_create_cq)                                                                               \
	X(ibv_destroy_cq)                                                                              \
	X(ibv_get_cq_event)                                                                            \
	X(ibv_ack_cq_events)                                                                           \
	X(ibv_get_async_event)                                                                         \
	X(ibv_ack_async_event)                                                                         \
	X(ibv_create_srq)                                                                              \
	X(ibv_destroy_srq)                                                                             \
	X(ibv_create_qp)                                                                               \
	X(ibv_modify_qp)                                                                               \
	X(ibv_destroy_qp)                                                                              \
	X(ibv_is_fork_initialized)                                                                     \
	X(ibv_wc_status_str)

#define FFS_VERBS_POINTER(name) __typeof__(name) *(name);
struct ffs_verbs {
	FFS_VERBS(FFS_VERBS_POINTER)
};
#undef FFS_VERBS_POINTER

/* Fill a table (`functions`) from a library, which stays loaded: drivers do not like to go. False,
 * and `text` says why, if it is not here (`package` has it) or has not got all of them. */
bool ffs_rdma_load(const char *library, const char *package, const char *const *names, size_t count,
                   void *functions, char *text);

/* The table; NULL if the library is not here, or too old, and `text` (FFS_RDMA_TEXT_BYTES) says
 * so. */
const struct ffs_verbs *ffs_verbs_load(char *text);
/* The same for whoever has something open: it is loaded then. */
const struct ffs_verbs *ffs_verbs(void);

/* Registers a part of a dma-buf, memory of another device. Newer than the others: NULL where the
 * library has no such function. */
typedef struct ibv_mr *ffs_reg_dmabuf_mr_function(struct ibv_pd *pd, uint64_t offset, size_t length,
                                                  uint64_t address, int fd, int access);
ffs_reg_dmabuf_mr_function *ffs_verbs_reg_dmabuf_mr(void);

/* Write a reason for people. */
void ffs_rdma_say(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
