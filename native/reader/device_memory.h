/*
 * Memory of another device, a GPU's, that the daemon's card may write to: a part of a dma-buf.
 *
 *   ffs.client.rdma.DeviceMemory -> batch_calls.c -> rdma_leg.c -> rdma/region.h
 *
 * Addresses are the device's. Nothing here follows them, so nothing checks what has landed: who
 * reads into such memory does without CRCs, and says so (`verify`).
 *
 * Fork: the descriptor is inherited as any; what was registered is not (region.h).
 */
#ifndef FFS_READER_DEVICE_MEMORY_H
#define FFS_READER_DEVICE_MEMORY_H

#include <stddef.h>
#include <stdint.h>

struct ffs_device_memory {
	int fd;          /* the dma-buf's, our own */
	uint8_t *memory; /* its address */
	size_t bytes;
	uint64_t offset; /* of `memory` in the dma-buf */
};

#endif
