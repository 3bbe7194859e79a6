/*
 * The data port's frames, as ffs/wire/frame.py defines them: header | body | payload.
 *
 * The packed structures below document the layout and give the offsets (checked when compiled);
 * they are never laid over received bytes. Values are read and written one by one, little-endian,
 * from any alignment. Whatever unpack lets through is inside the bounds of limits.h.
 *
 * Rules that both sides hold:
 * - an entry with a non-zero status carries no payload: its `bytes` is 0;
 * - an entry with status 0 of a request without FFS_FLAG_NO_CRC starts at the 4 KiB block under the
 *   descriptor's offset and ends at the end of the block of its last byte, or where the chunk ends;
 * - the CRCs in a reply's body belong to the entries with status 0, in order of the entries.
 */
#ifndef FFS_CORE_FRAME_H
#define FFS_CORE_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "core/limits.h"

#define FFS_MAGIC 0x31534646u /* "FFS1" as little-endian bytes */
#define FFS_VERSION 1u
#define FFS_REPLY_BIT 0x80u
#define FFS_FLAG_NO_CRC 0x01u
#define FFS_FLAG_MAPPED 0x02u /* LOCATE: the connection may not be ended for the sake of a drop */
#define FFS_FLAG_UNDER_WAY 0x04u /* reply by RDMA: answers nothing, bytes are on their way */

#define FFS_RDMA_PROGRESS_BYTES (1u << 20) /* so many without a header: the next one says so */

enum ffs_op {
	FFS_OP_READ = 1,
	FFS_OP_WRITE = 2,
	FFS_OP_PING = 3,
	FFS_OP_LOCATE = 4,  /* on local connections only, as is RELEASE */
	FFS_OP_RELEASE = 5, /* never answered */
	FFS_OP_LIST = 6,    /* of chunks behind `blob` and `chunk`: `offset` is how many, `length` 0 */
	FFS_OP_SUSPECT = 7,
	FFS_OP_CONNECT_QP = 8, /* the connection's READs and WRITEs go by RDMA from its answer on */
	FFS_OP_GRANT = 9,      /* of a connection opened by a token, answered by RDMA alone: grants.h */
};

/* How CONNECT_QP has queue pairs connected: its `flags`. */
enum ffs_connect_step {
	FFS_CONNECT_EXCHANGE = 0, /* request and answer are the two ends */
	FFS_CONNECT_OFFER = 1,    /* by rdma_cm: the answer says where to; nothing goes over yet */
	FFS_CONNECT_CONFIRM = 2,  /* that has been done; else as an exchange */
};

struct ffs_wire_header {
	uint32_t magic;
	uint8_t version;
	uint8_t op;
	uint16_t status;
	uint64_t request_id;
	uint64_t blob;
	uint64_t trace_id;
	uint32_t deadline_ms;
	uint32_t chain_version;
	uint32_t grant_id;
	uint8_t priority;
	uint8_t flags;
	uint16_t count;
	uint32_t body_bytes;
	uint32_t payload_bytes;
	uint32_t reserved;
	uint32_t header_crc; /* CRC32C of the 60 bytes before it */
} __attribute__((packed));

struct ffs_wire_read_descriptor {
	uint64_t blob;
	uint32_t chunk;
	uint32_t target;
	uint32_t offset;
	uint32_t length;
} __attribute__((packed));

struct ffs_wire_reply_entry {
	uint16_t index;
	uint16_t status;
	uint32_t bytes;
} __attribute__((packed));

struct ffs_wire_write_descriptor {
	uint32_t chunk;
	uint32_t target;
	uint32_t chain;
	uint32_t length;
} __attribute__((packed));

struct ffs_wire_location {
	uint16_t status;
	uint16_t file;
	uint32_t pin;
	uint32_t length;
	uint32_t reserved;
	uint64_t data_offset;
	uint64_t crc_offset;
} __attribute__((packed));

/* One end of a queue pair: what CONNECT_QP and its answer carry. */
struct ffs_wire_qp_end {
	uint64_t gid_first;
	uint64_t gid_last;
	uint32_t qpn;
	uint32_t psn;
	uint16_t lid;
	uint8_t link;
	uint8_t mtu;
	uint8_t reads;
	uint8_t reserved0;
	uint16_t requests;
	uint32_t request_bytes;
	uint32_t reserved1;
} __attribute__((packed));

/* Where a daemon takes one queue pair by rdma_cm: what answers FFS_CONNECT_OFFER. */
struct ffs_wire_cm_offer {
	uint8_t address[16];
	uint8_t secret[16];
	uint16_t port;
	uint8_t reserved[6];
} __attribute__((packed));

/* What stands before the body of a request that goes by RDMA. */
struct ffs_wire_remote {
	uint64_t body_address;
	uint64_t reply_address;
	uint64_t data_address;
	uint32_t body_key;
	uint32_t reply_key;
	uint32_t data_key;
	uint32_t reply_bytes;
	uint32_t frames;
	uint32_t reserved;
} __attribute__((packed));

#define FFS_READ_DESCRIPTOR_BYTES 24u
#define FFS_REPLY_ENTRY_BYTES 8u
#define FFS_WRITE_DESCRIPTOR_BYTES 16u
#define FFS_LOCATION_BYTES 32u
#define FFS_PIN_BYTES 4u /* of one entry of a RELEASE: a u32 */
#define FFS_QP_END_BYTES 40u
#define FFS_CM_SECRET_BYTES 16u
#define FFS_CM_OFFER_BYTES 40u
#define FFS_REMOTE_BYTES 48u
#define FFS_REMOTE_ADDRESS_BYTES 8u /* of one destination: a u64 */

/* A header in host order; magic, version and CRC exist only on the wire. */
struct ffs_header {
	uint8_t op;
	uint8_t priority;
	uint8_t flags;
	uint16_t status;
	uint16_t count;
	uint64_t request_id;
	uint64_t blob;
	uint64_t trace_id;
	union {
		uint32_t deadline_ms;
		uint32_t queued_ns; /* READ's reply: from the request's arrival until this frame was made */
	};
	union {
		uint32_t chain_version;
		uint32_t disk_ns; /* READ's reply: of that, the longest wait for a disk */
	};
	uint32_t grant_id;
	uint32_t body_bytes;
	uint32_t payload_bytes;
};

struct ffs_read_descriptor {
	uint64_t blob;
	uint32_t chunk;
	uint32_t target;
	uint32_t offset;
	uint32_t length;
};

struct ffs_reply_entry {
	uint16_t index;
	uint16_t status;
	uint32_t bytes;
};

struct ffs_write_descriptor {
	uint32_t chunk;
	uint32_t target;
	uint32_t chain;
	uint32_t length;
};

/* Where a chunk lies: in which of the files whose descriptors this connection was sent, data and
 * CRCs. It stays there until `pin` is given back or the connection ends. */
struct ffs_location {
	uint16_t status; /* not 0: nothing else means anything */
	uint16_t file;
	uint32_t pin;
	uint32_t length;
	uint64_t data_offset;
	uint64_t crc_offset;
};

enum ffs_qp_link {
	FFS_LINK_INFINIBAND = 1,
	FFS_LINK_ROCE2 = 2,
	FFS_LINK_ROCE1 = 3, /* only if its GID index is asked for */
	FFS_LINK_IWARP = 4, /* by rdma_cm alone */
};

struct ffs_qp_end {
	uint64_t gid_first, gid_last; /* the GID's 16 bytes as they are, as two little-endian numbers */
	uint32_t qpn;
	uint32_t psn;
	uint16_t lid;  /* InfiniBand */
	uint8_t link;  /* enum ffs_qp_link */
	uint8_t mtu;   /* enum ibv_mtu: 1 to 5 are 256 to 4,096 bytes; the smaller of both is used */
	uint8_t reads; /* RDMA READs of the other end that this one serves at once */
	uint16_t requests;      /* the daemon's: how many may be unanswered; the client's: 0 */
	uint32_t request_bytes; /* the daemon's: the longest SEND that it takes; the client's: 0 */
};

/* Why a daemon refuses CONNECT_QP (`flags` of its answer), or a client does not ask. */
enum ffs_rdma_fault {
	FFS_RDMA_FINE = 0,
	FFS_RDMA_NOT_BUILT,       /* compiled without the headers of libibverbs */
	FFS_RDMA_NO_LIBRARY,      /* libibverbs cannot be loaded */
	FFS_RDMA_NO_DEVICE,       /* no device, or not the one that was asked for */
	FFS_RDMA_NO_PORT,         /* no port is active, or has an address that can be used */
	FFS_RDMA_OTHER_SUBNET,    /* the other end's link or subnet is none of ours */
	FFS_RDMA_MEMLOCK,         /* memory cannot be registered: RLIMIT_MEMLOCK */
	FFS_RDMA_NO_COPY_ON_FORK, /* a kernel that would move registered memory away at a fork */
	FFS_RDMA_NO_ROOM,         /* no credits, queue pairs or memory are left */
	FFS_RDMA_OFF,             /* switched off by its configuration */
	FFS_RDMA_SYSTEM,          /* the device or its driver failed */
	FFS_RDMA_OTHER_WAY,       /* queue pairs are connected there by another way than this one */
	FFS_RDMA_NO_CM,           /* librdmacm cannot be loaded, or was not built for */
	FFS_RDMA_NOT_REACHED,     /* rdma_cm did not get there, or was turned away */
};

/* One queue pair is taken at an address (an IPv4 one as ::ffff:a.b.c.d), from who knows a secret
 * that was made for it. */
struct ffs_cm_offer {
	uint8_t address[16];
	uint8_t secret[FFS_CM_SECRET_BYTES];
	uint16_t port;
};

/* Where a request's parts lie in the client's memory. `body` is all of it, this structure
 * included; `reply` is where the answers' bodies and edges are to be written. */
struct ffs_remote {
	uint64_t body_address;
	uint64_t reply_address;
	uint64_t data_address; /* WRITE: of the chunk; READ: 0, each descriptor has its own */
	uint32_t body_key;
	uint32_t reply_key;
	uint32_t data_key;
	uint32_t reply_bytes;
	uint32_t frames; /* so many receives are ready for answers: one for each descriptor at least */
};

/* ------------------------------------------------ little-endian loads and stores, any alignment */

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define FFS_LE16(value) __builtin_bswap16(value)
#define FFS_LE32(value) __builtin_bswap32(value)
#define FFS_LE64(value) __builtin_bswap64(value)
#else
#define FFS_LE16(value) (value)
#define FFS_LE32(value) (value)
#define FFS_LE64(value) (value)
#endif

static inline uint16_t ffs_load_u16(const uint8_t *at)
{
	uint16_t value;
	memcpy(&value, at, sizeof(value));
	return FFS_LE16(value);
}

static inline uint32_t ffs_load_u32(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof(value));
	return FFS_LE32(value);
}

static inline uint64_t ffs_load_u64(const uint8_t *at)
{
	uint64_t value;
	memcpy(&value, at, sizeof(value));
	return FFS_LE64(value);
}

static inline void ffs_store_u16(uint8_t *at, uint16_t value)
{
	value = FFS_LE16(value);
	memcpy(at, &value, sizeof(value));
}

static inline void ffs_store_u32(uint8_t *at, uint32_t value)
{
	value = FFS_LE32(value);
	memcpy(at, &value, sizeof(value));
}

static inline void ffs_store_u64(uint8_t *at, uint64_t value)
{
	value = FFS_LE64(value);
	memcpy(at, &value, sizeof(value));
}

/* --------------------------------------------------------------------------------------- frames */

/* Whose requests go first where they wait for the disk. Any higher number is as FFS_BATCH. */
enum ffs_priority {
	FFS_TRAINING = 0, /* somebody waits */
	FFS_BATCH = 1,    /* nobody does: copies, scans */
	FFS_PRIORITIES,
};

enum ffs_frame_fault {
	FFS_FRAME_GOOD = 0,
	FFS_FRAME_BAD_MAGIC,
	FFS_FRAME_BAD_VERSION,
	FFS_FRAME_BAD_CRC,
	FFS_FRAME_TOO_MANY, /* count, body or payload above its bound in limits.h */
};

/* Write the 64 bytes of a header, its CRC included. */
void ffs_header_pack(uint8_t out[FFS_FRAME_HEADER_BYTES], const struct ffs_header *header);

/* Check magic, version, CRC and bounds, then fill `header`; on a fault `header` is untouched. */
enum ffs_frame_fault ffs_header_unpack(struct ffs_header *header,
                                       const uint8_t in[FFS_FRAME_HEADER_BYTES]);

/* What a fault means, for error messages. */
const char *ffs_frame_fault_text(enum ffs_frame_fault fault);

void ffs_read_descriptor_pack(uint8_t out[FFS_READ_DESCRIPTOR_BYTES],
                              const struct ffs_read_descriptor *descriptor);
void ffs_read_descriptor_unpack(struct ffs_read_descriptor *descriptor,
                                const uint8_t in[FFS_READ_DESCRIPTOR_BYTES]);

/* The blob alone, for who asks whether it was granted. */
static inline uint64_t ffs_read_descriptor_blob(const uint8_t in[FFS_READ_DESCRIPTOR_BYTES])
{
	return ffs_load_u64(in + offsetof(struct ffs_wire_read_descriptor, blob));
}

void ffs_reply_entry_pack(uint8_t out[FFS_REPLY_ENTRY_BYTES], const struct ffs_reply_entry *entry);
void ffs_reply_entry_unpack(struct ffs_reply_entry *entry, const uint8_t in[FFS_REPLY_ENTRY_BYTES]);

void ffs_write_descriptor_pack(uint8_t out[FFS_WRITE_DESCRIPTOR_BYTES],
                               const struct ffs_write_descriptor *descriptor);
void ffs_write_descriptor_unpack(struct ffs_write_descriptor *descriptor,
                                 const uint8_t in[FFS_WRITE_DESCRIPTOR_BYTES]);

void ffs_qp_end_pack(uint8_t out[FFS_QP_END_BYTES], const struct ffs_qp_end *end);
/* False, and `end` is untouched, if link or MTU are none that exist. */
bool ffs_qp_end_unpack(struct ffs_qp_end *end, const uint8_t in[FFS_QP_END_BYTES]);

void ffs_cm_offer_pack(uint8_t out[FFS_CM_OFFER_BYTES], const struct ffs_cm_offer *offer);
void ffs_cm_offer_unpack(struct ffs_cm_offer *offer, const uint8_t in[FFS_CM_OFFER_BYTES]);

void ffs_remote_pack(uint8_t out[FFS_REMOTE_BYTES], const struct ffs_remote *remote);
void ffs_remote_unpack(struct ffs_remote *remote, const uint8_t in[FFS_REMOTE_BYTES]);

void ffs_location_pack(uint8_t out[FFS_LOCATION_BYTES], const struct ffs_location *location);
void ffs_location_unpack(struct ffs_location *location, const uint8_t in[FFS_LOCATION_BYTES]);

/* -------------------------------------------------------------------------- ranges and blocks */

/* How many checksum blocks cover `bytes` that start at a block's start. */
static inline uint32_t ffs_block_count(uint32_t bytes)
{
	return bytes / FFS_BLOCK_BYTES + (bytes % FFS_BLOCK_BYTES != 0);
}

/* Bytes between the block's start and `offset`: the edge in front of a range. */
static inline uint32_t ffs_head_bytes(uint32_t offset)
{
	return offset % FFS_BLOCK_BYTES;
}

/* Most bytes that a range widened to blocks can have, the chunk's end not considered. */
static inline uint64_t ffs_widened_bytes(uint32_t offset, uint32_t length)
{
	uint64_t end = (uint64_t)offset + length;
	uint64_t last = (end + FFS_BLOCK_BYTES - 1) / FFS_BLOCK_BYTES * FFS_BLOCK_BYTES;
	return last - (offset - ffs_head_bytes(offset));
}

#endif
