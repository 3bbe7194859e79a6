/*
 * Memory of callers, registered with the card: once for what is declared to be used again (rings,
 * tensors), else for as long as a call holds it.
 *
 * What is declared stays where it is until it is taken back: its owner holds a buffer of it. So a
 * registration never outlives the memory it was made for, which is why nothing else is kept: pages
 * that were unmapped and mapped anew at the same address are other pages.
 *
 * Threads: any, one lock. Fork: a child registers anew what it uses; its parent's registrations are
 * the parent's.
 */
#ifndef FFS_RDMA_REGION_H
#define FFS_RDMA_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ibv_mr;
struct ibv_pd;

/* What is registered: memory of this process, or of another device, which is a part of a dma-buf
 * and has its address there: nobody here follows that. */
struct ffs_lent {
	const uint8_t *memory;
	size_t bytes;
	int dmabuf; /* its descriptor, -1: this process's memory */
	uint64_t dmabuf_at;
};

/* Memory that was declared. */
struct ffs_declared {
	struct ffs_declared *next;
	const uint8_t *memory;
	size_t bytes;
};

/* One registration. */
struct ffs_region {
	struct ffs_region *next;
	struct ffs_lent lent;
	struct ibv_pd *pd;
	struct ibv_mr *mr;
	int access;
	uint32_t users;
	bool declared; /* stays when nobody uses it */
};

/* The declaration is the caller's memory until it is withdrawn, which must be when no call uses the
 * region. */
void ffs_region_declare(struct ffs_declared *declared, const void *memory, size_t bytes);
void ffs_region_withdraw(struct ffs_declared *declared);

/* Have memory registered in `pd` with at least `access`. 0 or -errno. `shared`: a declared region's
 * registration may be used, and used by others. */
int ffs_region_hold(struct ffs_region **region, struct ibv_pd *pd, const struct ffs_lent *lent,
                    int access, bool shared);
void ffs_region_drop(struct ffs_region *region);

/* How many registrations there are: for tests. */
uint32_t ffs_regions_count(void);

/* In a child: all are the parent's. */
void ffs_regions_forget(void);

#endif
