/*
 * Which device, port and address to talk RDMA by.
 *
 * Every device of the machine is looked at, whatever its name and however many there are; new ones,
 * and ports, are looked for once a second at most, where none of what is known fits. One that was
 * taken out says so, and is chosen no more; what was made of it fails, and is taken down as ever. A
 * path is one usable (device, port, GID): an active port, RoCE v2, InfiniBand or iWARP (RoCE v1 if
 * its GID index is asked for). Of the paths that fit, one whose GID is the address that the TCP
 * connection has here is best: it leads where that connection leads.
 *
 * Devices stay open for as long as the process lives. Threads: any.
 * Fork: a child starts with none; it closes its copies of the descriptors, and nothing else of its
 * parent's may be touched there.
 */
#ifndef FFS_RDMA_DEVICE_H
#define FFS_RDMA_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#include "rdma/verbs.h"

#define FFS_RDMA_NAME_BYTES 64u

/* An open device: its context, and the protection domain of all that is reached by windows. */
struct ffs_rdma_device {
	struct ffs_rdma_device *next;
	struct ibv_context *context;
	struct ibv_pd *pd;
	char name[FFS_RDMA_NAME_BYTES];
	bool gone;    /* taken out, or broken for good */
	bool windows; /* it has type-2 memory windows */
	uint8_t ports;
	int sges_max;  /* of one work request */
	int wrs_max;   /* of one queue */
	uint8_t reads; /* RDMA READs that it serves at once, and asks for at once, a queue pair */
};

struct ffs_rdma_path {
	struct ffs_rdma_path *next;
	struct ffs_rdma_device *device;
	union ibv_gid gid;
	uint32_t gid_index;
	uint16_t lid;
	uint8_t port;
	uint8_t link; /* enum ffs_qp_link */
	uint8_t mtu;  /* enum ibv_mtu */
};

/* What the configuration asks for. */
struct ffs_rdma_wish {
	char device[FFS_RDMA_NAME_BYTES]; /* empty: any */
	int32_t gid_index;                /* -1: any */
	bool by_cm;                       /* rdma_cm finds the way: iWARP will do, and other subnets */
};

/*
 * The best path for a connection: `tcp_fd` is its socket, `peer` the other end if it is known
 * already (a daemon's case). On a fault `text` (FFS_RDMA_TEXT_BYTES) says what is missing.
 */
enum ffs_rdma_fault ffs_rdma_choose(int tcp_fd, const struct ffs_rdma_wish *wish,
                                    const struct ffs_qp_end *peer,
                                    const struct ffs_rdma_path **path, char *text);

/* A path of this device and port that is wished for; NULL if there is none. */
const struct ffs_rdma_path *ffs_rdma_at(const char *device, uint8_t port,
                                        const struct ffs_rdma_wish *wish);

/* The address that a socket has at this end, or at the other one, as 16 bytes: an IPv4 one as
 * ::ffff:a.b.c.d. False if it is of no such kind. */
bool ffs_rdma_socket_address(int fd, bool other_end, uint8_t address[16]);

/* Why memory could not be registered, errno `error`. */
enum ffs_rdma_fault ffs_rdma_explain(int error, size_t bytes, char *text);

/* Differs between a process and its forked child. */
uint32_t ffs_rdma_generation(void);

#endif
