/*
 * Totals of this process and its fork generation: the only mutable globals of the module.
 *
 * Fork: the child's handler bumps the generation, by which connections of the parent are recognised
 * and refused, and starts the counters again from zero.
 */
#ifndef FFS_READER_COUNTERS_H
#define FFS_READER_COUNTERS_H

#include <stdint.h>

#include "core/latency.h"

#define FFS_COUNTERS(X)                                                                            \
	X(payload_bytes)       /* asked for and landed */                                              \
	X(wire_bytes_received) /* headers, bodies, payload and edges */                                \
	X(wire_bytes_sent)                                                                             \
	X(edge_bytes)  /* received around unaligned ranges, only to check their blocks */              \
	X(local_bytes) /* payload and edges read from files of this host */                            \
	X(rdma_bytes)  /* payload and edges that daemons have written here by RDMA */                  \
	X(ranges)      /* READ operations that ended with status 0 */                                  \
	X(frames)      /* reply frames received */                                                     \
	X(syscalls_recv)                                                                               \
	X(syscalls_send)                                                                               \
	X(crc_failures)                                                                                \
	X(connections_closed) /* by the engine, for a fault or to revoke a destination */

#define FFS_COUNTER_FIELD(name) uint64_t name;
struct ffs_counts {
	FFS_COUNTERS(FFS_COUNTER_FIELD)
};
#undef FFS_COUNTER_FIELD

/* Add what one call has counted. Threads: any. */
void ffs_counters_add(const struct ffs_counts *counts);
void ffs_counters_read(struct ffs_counts *counts);

struct ffs_batch;
/* A call of reads has ended: add it to the durations, and to the slowest if it is one of them. */
void ffs_counters_note_read(const struct ffs_batch *batch);

/* Durations of the process's calls: their sum, then how many fell into each bucket. */
void ffs_counters_read_latency(uint64_t sum[FFS_LATENCY_NUMBERS]);
/* The slowest calls of the last minute, the slowest first; how many. */
uint32_t ffs_counters_slowest(uint64_t now_ns, struct ffs_slow_read reads[FFS_SLOWEST_MAX]);

/* Differs between a process and its forked child. */
uint32_t ffs_generation(void);

/* Install the fork handler, once a process. Returns 0 or an errno. */
int ffs_fork_guard_install(void);

#endif
