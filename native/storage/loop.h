/*
 * The data loop: threads that own data connections, answer READ from the chunk store by themselves,
 * and take WRITE in for Python to decide about.
 *
 *   client -> ffs._reader -> (wire) -> receive.c -> serve.c -> reply.c -> ffs_store_find -> extents
 *                                      receive.c -> writes.c -> event -> Python -> persist, ack
 *                                                               forward.c -> the chain's next
 * daemon
 *
 * A connection belongs to one loop from adoption to its end; only that thread touches it. Others
 * leave mail: a new connection, an answer to a write. Receiving goes through
 *
 *   HEADER --READ, PING--> BODY -----------------> queued request --> HEADER
 *      \----WRITE---> [WAITING for a buffer] --> BODY --> PAYLOAD --> event --> HEADER
 *
 * while an output cursor walks through the oldest queued request. Nothing waits for a slow peer: a
 * full socket parks the cursor until epoll says that there is room, and a connection with too much
 * queued is not read from. Who keeps memory or places from others has to go (peers.c). A frame that
 * breaks the protocol closes its connection and no other.
 *
 * Copies of payload: none where the page cache has it; else it is read into the send buffer.
 * Fork: the child of a process with loops may do nothing with them.
 */
#ifndef FFS_STORAGE_LOOP_H
#define FFS_STORAGE_LOOP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "core/frame.h"
#include "core/latency.h"
#include "core/limits.h"
#include "storage/buffers.h"
#include "storage/cold.h"
#include "storage/events.h"
#include "storage/grants.h"
#include "storage/reuse.h"
#include "storage/store.h"
#include "storage/writes.h"

#define FFS_TARGETS_MAX 256u
#define FFS_CONGESTION_BYTES_MAX 15u
#define FFS_RDMA_DEVICE_BYTES 64u
#define FFS_SUSPECTS_MAX 4096u /* that wait for Python */
#define FFS_PEERS_MAX 4096u    /* connections to other daemons */
#define FFS_SLOT_BITS 12 /* the low bits of a connection's or a peer's id: its place in a table */

/* A connection with this much unanswered is not read from. */
#define FFS_PENDING_REQUESTS_MAX 128u
#define FFS_PENDING_DESCRIPTORS_MAX (2 * FFS_FRAME_DESCRIPTORS_MAX)

#define FFS_TICK_MS 1000 /* how often the pace of peers is looked at */

/*
 * Ranges below the first bound go from a mapping or, below the second, through the send buffer;
 * others by sendfile. Many travel together, but one frame is all files or has none. Measured:
 * docs/decisions/0006-mapped-reads.md. A range that is a request's only one saves nobody a frame:
 * it goes by sendfile from FFS_LONE_SENDFILE_BYTES_MIN on.
 */
#define FFS_MAPPED_RANGE_BYTES_MAX (64u << 10)
#define FFS_LONE_SENDFILE_BYTES_MIN (16u << 10)
#define FFS_BUFFERED_RANGE_BYTES_MAX (64u << 10)
#define FFS_SHARED_FRAME_ENTRIES_MAX 256u
#define FFS_SHARED_FRAME_BYTES_MAX (4u << 20)
#define FFS_SEND_BUFFER_BYTES (256u << 10)
#define FFS_BARE_REPLIES_MAX 8u

struct ffs_group;
struct ffs_loop;
struct ffs_conn;
struct ffs_held;
struct ffs_rdma_card;
struct ffs_rdma_cm;
struct ffs_rdma_conn;
struct ffs_rdma_region;
struct ffs_rights;
struct msghdr;

/* A request that waits for its answers, or an answer that is a header alone (`count` 0). */
struct ffs_request {
	struct ffs_request *next;
	struct ffs_header header; /* of the request; for a bare answer the answer's own */
	uint64_t expires_ns;      /* 0: never */
	uint64_t received_ns;
	uint64_t bytes;    /* put into frames */
	uint64_t disk_ns;  /* the longest wait of them for a disk */
	uint32_t answered; /* descriptors before this one are done, or wait for the disk */
	uint32_t pending;  /* those that do */
	uint32_t count;
	uint8_t descriptors[]; /* as received */
};

/* A READ whose last frame this is. */
struct ffs_last_frame {
	uint64_t received_ns; /* 0: it is not the last one */
	uint64_t built_ns;
	uint64_t disk_ns;
	uint64_t bytes;
	uint64_t trace_id;
	uint64_t blob;
	uint32_t ranges;
};

/* The head, then for each small range its CRCs and its bytes. */
#define FFS_OUTPUT_PARTS_MAX (1 + 2 * FFS_SHARED_FRAME_ENTRIES_MAX) /* at most IOV_MAX, 1024 */

/* Bytes of a file that are still to be sent. */
struct ffs_file_piece {
	int fd;
	uint32_t left;
	uint64_t offset;
};

/* The frame that is being sent: pieces of memory and of mapped files, then pieces of files. */
struct ffs_output {
	struct ffs_output *next;
	int part;
	int part_count;
	struct iovec parts[FFS_OUTPUT_PARTS_MAX];
	uint32_t pin_count;
	struct ffs_chunk *pins[FFS_SHARED_FRAME_ENTRIES_MAX]; /* chunks that are sent from */
	struct ffs_last_frame last;
	struct ffs_rights *rights; /* descriptors that go with the first byte */
	uint32_t file, file_count; /* those before `file` are sent */
	struct ffs_file_piece files[FFS_SHARED_FRAME_ENTRIES_MAX];
	struct ffs_cold_use cold; /* ranges from the disk that are in it */
	uint8_t head[FFS_FRAME_HEADER_BYTES + FFS_SHARED_FRAME_ENTRIES_MAX * FFS_REPLY_ENTRY_BYTES];
	uint8_t crcs[FFS_CHUNK_BLOCKS_MAX * sizeof(uint32_t)];
	uint8_t payload[FFS_SEND_BUFFER_BYTES];
};

enum ffs_receive_state {
	FFS_RECEIVE_HEADER,
	FFS_RECEIVE_BODY,
	FFS_RECEIVE_PAYLOAD,
	FFS_RECEIVE_WAITING,
	FFS_RECEIVE_DISCARD, /* the payload of a write that was refused */
};

/* What has arrived behind a write that waits for its buffer. */
struct ffs_ahead {
	uint32_t at;
	uint32_t count;
	uint8_t bytes[];
};

/* What a loop's epoll tells about; the first member of it. */
enum ffs_end {
	FFS_END_CONN, /* somebody who asks us */
	FFS_END_PEER, /* another daemon, whom we ask */
	FFS_END_CARD, /* what RDMA connections have been sent, or have sent */
	FFS_END_CM,   /* who comes by rdma_cm */
};

struct ffs_conn {
	enum ffs_end end;
	int fd; /* -1: closed, freed at the end of the round */
	struct ffs_loop *loop;
	uint64_t id;
	struct ffs_mail mail;
	struct ffs_event *closed_event; /* made beforehand */
	bool local;                     /* a client on this host: may LOCATE */
	uint8_t hop;                    /* of all its writes, once there was one */
	bool has_hop;
	struct ffs_grants *grants;  /* not NULL: opened by a token, and may do what they say */
	struct ffs_held *held;      /* what it has located (locate.c) */
	struct ffs_rdma_conn *rdma; /* not NULL: its frames go by RDMA (rdma.h) */
	uint32_t interest;          /* epoll events asked for */

	enum ffs_receive_state state;
	uint8_t header_bytes[FFS_FRAME_HEADER_BYTES];
	uint32_t header_used;
	struct ffs_header header;
	uint32_t body_used;
	uint32_t payload_used;
	uint32_t checked_bytes;      /* of the payload, against its CRCs */
	struct ffs_request *request; /* READ being received */
	struct ffs_write *write;     /* WRITE being received */
	struct ffs_ahead *ahead;     /* NULL: nothing */
	uint64_t begun_ns;           /* when this frame began, or reading was resumed; 0: neither */
	uint64_t begun_bytes;        /* received since */
	uint64_t active_ns;          /* when anything happened last */
	uint64_t ticket;             /* WAITING */
	struct ffs_conn *waiting_next;

	struct ffs_request *queue_head;
	struct ffs_request **queue_tail;
	uint32_t queued;
	uint32_t queued_descriptors;
	uint32_t unanswered; /* writes that Python decides about */
	bool answered;       /* some of them in this round's mail */
	struct ffs_conn *answered_next;
	struct ffs_output *output;
	uint64_t output_ns;    /* when it got this one */
	uint64_t output_bytes; /* sent of it */
	bool hungry;           /* waits for one */
	struct ffs_conn *hungry_next;
	struct ffs_conn *dead_next;
	struct ffs_cold_conn cold;
	bool listing; /* in line for the scan */
	struct ffs_conn *listing_next;
	bool disk_last; /* its last frame came from the disk: the next one is for what is in memory */
};

/* How the bytes of a range get to the socket. */
enum ffs_strategy {
	FFS_BY_MAPPING,  /* from the page cache, many ranges to a frame */
	FFS_BY_SENDFILE, /* from the page cache, in a frame of its own */
	FFS_BY_BUFFER,   /* read into the send buffer first */
	FFS_BY_DISK,     /* from the disk through the page cache */
	FFS_BY_DIRECT,   /* from the disk directly */
	FFS_STRATEGIES,
};

/* The scan for one LIST at a time: those who wait for it, the one that it is for first. */
struct ffs_lister {
	struct ffs_conn *head;
	struct ffs_conn *tail;
	enum {
		FFS_LISTER_IDLE,
		FFS_LISTER_SCANNING,
		FFS_LISTER_READY, /* waits to be sent */
	} state;
	uint16_t status;
	struct ffs_store *store;
	struct ffs_key_scan scan;
};

/* Written by the loop's thread alone, read by any. */
struct ffs_loop_counts {
	_Atomic uint64_t strategy_ranges[FFS_STRATEGIES];
	_Atomic uint64_t strategy_bytes[FFS_STRATEGIES];
	_Atomic uint64_t frames;
	_Atomic uint64_t send_calls;
	_Atomic uint64_t short_sends; /* the socket took a part, or nothing */
	_Atomic uint64_t queued_ns;   /* of all ranges, from their request's arrival to their frame */
	_Atomic uint64_t queued_ns_max;
	_Atomic uint64_t slow_reads;
	_Atomic uint64_t ranges;
	_Atomic uint64_t read_bytes;
	_Atomic uint64_t write_bytes;
	_Atomic uint64_t errors;
	_Atomic uint64_t direct_refused; /* ranges that should have been read directly */
	_Atomic uint64_t forwards;       /* chunks sent to another daemon, and their bytes */
	_Atomic uint64_t forward_bytes;
	_Atomic uint64_t forward_send_calls;
	_Atomic uint64_t rdma_connections; /* that have gone over to it */
	_Atomic uint64_t rdma_bytes;       /* written to clients */
};

/* Only the loop's thread counts: no need for the cost of an atomic addition. */
static inline void ffs_count(_Atomic uint64_t *counter, uint64_t add)
{
	uint64_t before = atomic_load_explicit(counter, memory_order_relaxed);
	atomic_store_explicit(counter, before + add, memory_order_relaxed);
}

struct ffs_loop {
	struct ffs_group *group;
	uint32_t index;
	int epoll_fd;
	int mail_fd;
	pthread_t thread;
	bool running;
	pthread_mutex_t lock; /* for the two below */
	struct ffs_mail *mail;
	bool quit;
	struct ffs_conn *conns[FFS_CONNECTIONS_PER_DAEMON_MAX];
	struct ffs_conn *waiting[FFS_HOPS_MAX]; /* for buffers, oldest ticket first */
	struct ffs_conn *dead;
	struct ffs_conn *answered; /* have answers to be sent since this round's mail */
	struct ffs_peer *due;      /* have something to send since this round's mail */
	struct ffs_peer *dead_peers;
	atomic_bool closes_peers; /* asked to */
	struct ffs_lister lister;
	struct ffs_output *spare_outputs;
	uint32_t spare_output_count;
	_Atomic uint32_t output_count; /* those spare and those in use; others only look */
	struct ffs_conn *hungry;       /* for outputs, the longest waiting first */
	struct ffs_conn **hungry_tail;
	atomic_bool looks_for_idle; /* asked to, by whoever wants places */
	uint64_t now_ns;            /* when this round began */
	uint64_t checked_ns;        /* when the pace of peers was looked at last */
	uint64_t slow_ns;           /* when the first of these slow reads was told */
	uint32_t slow_told;
	uint64_t refused_ns; /* when the first of these refused requests was told */
	uint32_t refused_told;
	uint32_t refused_left_out; /* since the last one that was told */
	atomic_bool revokes;       /* chunks were dropped that somebody has pinned */
	struct ffs_loop_counts counts;
	struct ffs_latency reads;  /* of requests, from their arrival until their last byte is out */
	struct ffs_latency queued; /* of ranges, until their frame was made */
	struct ffs_cold_loop cold;
	struct ffs_rdma_card *cards;
	struct ffs_rdma_cm *cm; /* NULL: nobody has asked for it */
	uint32_t going_over;    /* connections that wait with a CONNECT_QP */
	uint8_t scratch[64 << 10];
};

/* A store that the loops serve; lives until the group ends, even if another takes its place. */
struct ffs_attachment {
	struct ffs_attachment *next;
	struct ffs_group *group;
	struct ffs_store *store;
	struct ffs_event *stopped_event;
};

struct ffs_target_slot {
	uint32_t target_id;
	_Atomic(struct ffs_attachment *) attachment;
	_Atomic uint32_t chain_version; /* that of its chain, as far as Python has told us */
};

/* Which device connections may go over to RDMA on. */
struct ffs_rdma_options {
	bool off;
	bool no_exchange;                   /* queue pairs are connected by rdma_cm alone */
	bool no_cm;                         /* never by it */
	char device[FFS_RDMA_DEVICE_BYTES]; /* empty: any */
	int32_t gid_index;                  /* -1: any */
	uint32_t sges_max;                  /* of one work request; 0: as many as the device has */
};

struct ffs_group {
	pid_t owner;
	uint32_t loop_count;
	struct ffs_loop *loops;
	char congestion[FFS_CONGESTION_BYTES_MAX + 1];
	_Atomic uint64_t slow_read_ns; /* what takes longer is told */
	struct ffs_slowest slowest;
	struct ffs_events events;
	struct ffs_buffers buffers[FFS_HOPS_MAX]; /* for chunks being received, each hop its own */
	enum ffs_io io;
	struct ffs_arena read_arena;
	struct ffs_buffers read_buffers; /* of it, for what comes from the disk */
	struct ffs_reuse reuse;
	struct ffs_rdma_options rdma;
	struct ffs_target_slot targets[FFS_TARGETS_MAX];
	atomic_uint target_count;

	pthread_mutex_t lock; /* for the fields below */
	pthread_cond_t idle;
	atomic_bool closed;        /* set with the lock held */
	_Atomic uint32_t located;  /* chunks that are pinned for clients on this host */
	_Atomic uint32_t suspects; /* told to Python and not taken yet */
	_Atomic uint32_t granted;  /* ranges of blobs, of all connections */
	struct ffs_grant_key grant_keys[FFS_GRANT_KEYS];
	struct ffs_attachment *attachments;
	uint64_t next_serial;
	uint32_t conn_count;
	atomic_uint places_wanted;
	uint16_t free_conn_slots[FFS_CONNECTIONS_PER_DAEMON_MAX];
	struct ffs_write **writes; /* by slot; NULL is free */
	uint32_t *write_generations;
	uint32_t write_room;
	uint32_t write_hint;
	uint32_t persisting;
	struct ffs_rdma_region *regions;
	uint64_t next_peer_serial;
	struct ffs_peer *peers[FFS_PEERS_MAX]; /* by slot; NULL is free */
};

static inline uint32_t ffs_slot_of(uint64_t id)
{
	return (uint32_t)(id & ((UINT64_C(1) << FFS_SLOT_BITS) - 1));
}

/* The loop that has, or had, this connection or peer. */
static inline struct ffs_loop *ffs_loop_of(const struct ffs_group *group, uint64_t id)
{
	return &group->loops[(id >> FFS_SLOT_BITS) % group->loop_count];
}

/* ------------------------------------------------------------------------------------- group.c */

struct ffs_group_options {
	uint32_t loop_count;
	uint64_t write_buffer_bytes;
	uint64_t read_buffer_bytes; /* a multiple of FFS_ARENA_PIECE_BYTES_MAX */
	const char *congestion;
	uint64_t slow_read_ns; /* what takes longer is told */
	enum ffs_io io;
	enum ffs_reads_means reads;
	struct ffs_rdma_options rdma;
};

struct ffs_group *ffs_group_open(const struct ffs_group_options *options, int *error);
/* Join the threads, close the connections, wait for what is being persisted. Idempotent. */
void ffs_group_close(struct ffs_group *group);
void ffs_group_free(struct ffs_group *group);
/* 0, or -EBUSY if another group serves the store, -ENOMEM, -ENOSPC at FFS_TARGETS_MAX. */
int ffs_group_add_store(struct ffs_group *group, struct ffs_store *store);
/* Take over a connected socket; its id or -errno (the caller keeps the descriptor then).
 * `token_id`: it was opened by that token; NULL: by the cluster key. */
int64_t ffs_group_adopt(struct ffs_group *group, int fd, bool local, const uint8_t *token_id);
/* Have it closed by its loop, if it still is there then. Any thread; 0 or -ENOMEM. */
int ffs_group_close_conn(struct ffs_group *group, uint64_t connection_id);
/* Make a socket ready for what we do with it; 0 or -errno. */
int ffs_group_tune(const struct ffs_group *group, int fd);
/* The store of a target, NULL if it is not here. Lives as long as the group. */
struct ffs_store *ffs_group_store(struct ffs_group *group, uint32_t target_id);
/* The version of the target's chain that writes are judged by; 0 or -ENOENT. Any thread. */
int ffs_group_set_chain_version(struct ffs_group *group, uint32_t target_id, uint32_t version);
/* 0 where it was not set. */
uint32_t ffs_group_chain_version(const struct ffs_group *group, uint32_t target_id);

/* -------------------------------------------------------------------------------------- loop.c */

int ffs_loop_start(struct ffs_loop *loop, struct ffs_group *group, uint32_t index,
                   enum ffs_reads_means reads);
void ffs_loop_stop(struct ffs_loop *loop);
/* Close what others may use to wake the loop even after it has stopped. */
void ffs_loop_fini(struct ffs_loop *loop);
/* False, and the mail is not taken, once the loop has been told to quit. */
bool ffs_loop_post(struct ffs_loop *loop, struct ffs_mail *mail);
void ffs_loop_kick(struct ffs_loop *loop);
struct ffs_conn *ffs_loop_find(struct ffs_loop *loop, uint64_t connection_id);
/* Close now, free when the round is over. */
void ffs_conn_close(struct ffs_conn *conn);
/* Tell epoll what the connection waits for, if that has changed. */
void ffs_conn_watch(struct ffs_conn *conn);
void ffs_conn_queue(struct ffs_conn *conn, struct ffs_request *request);

/* ------------------------------------------------------------------------------------- peers.c */

/* Something happened on the connection; its frame may have begun. */
void ffs_conn_note(struct ffs_conn *conn);
/* Its next frame has its own time. */
void ffs_conn_begin(struct ffs_conn *conn);
/* Once a second, close those who hold up others or a frame of their own. */
void ffs_loop_close_slow(struct ffs_loop *loop);
/* Close the longest idle connection if places were asked for, and are still wanted. */
void ffs_loop_close_idle(struct ffs_loop *loop);
/* Have so many closed, at most one by each loop; replaces what was asked for before. Any thread. */
void ffs_group_close_idle(struct ffs_group *group, uint32_t count);
/* Whether a send buffer can be had; one who finds none queues up and is sent to in its turn. */
bool ffs_loop_has_output(const struct ffs_loop *loop);
void ffs_conn_hunger(struct ffs_conn *conn);
void ffs_conn_hunger_no_more(struct ffs_conn *conn);
void ffs_loop_feed(struct ffs_loop *loop);

/* ----------------------------------------------------------------------------------- receive.c */

/* Read what has arrived; queues requests, tells about writes, may close the connection. */
void ffs_conn_receive(struct ffs_conn *conn);
/* Give buffers to waiting connections, oldest ticket first. */
void ffs_loop_serve_waiting(struct ffs_loop *loop);
/* Those who wait for a hop's buffers are others, or in another order. */
void ffs_loop_queue_changed(struct ffs_loop *loop, uint8_t hop);
/* Drop what a closing connection was in the middle of receiving. */
void ffs_conn_forget(struct ffs_conn *conn);
/* Get the buffer for conn->write, whose header is conn->header. False if it has to wait: go_on
 * (receive.c) is called when it has it, or was refused (conn->write is NULL). */
bool ffs_conn_want_buffer(struct ffs_conn *conn);
/* The CONNECT_QP that it waited with can be answered. */
void ffs_conn_resume(struct ffs_conn *conn);
/* A chunk is here: `right` if its blocks match their CRCs. */
void ffs_conn_finish_write(struct ffs_conn *conn, struct ffs_write *write, bool right);
/* Begin a request that is described by its header. NULL without memory. */
struct ffs_request *ffs_request_new(const struct ffs_header *header, size_t descriptor_bytes);
/* Its answer is a header with this status alone: the request becomes it. */
void ffs_request_end(struct ffs_request *request, uint16_t status);
/* A write's body is here: it must agree with its header. */
bool ffs_write_take_descriptor(struct ffs_write *write, uint32_t payload_bytes);

/* ------------------------------------------------------------------------------------- reply.c */

/*
 * Go on with the oldest request, which is a READ: a frame of what is in memory, pinned; what is not
 * is on its way from here on. False if that leaves nothing to be sent.
 */
bool ffs_reply_build(struct ffs_conn *conn, struct ffs_output *output);
/* A frame of what came from the disk; there must be some. */
void ffs_reply_build_cold(struct ffs_conn *conn, struct ffs_output *output);
/* Where a descriptor's bytes are, pinned, or why there are none. */
uint16_t ffs_request_find(struct ffs_loop *loop, const struct ffs_request *request, uint32_t index,
                          struct ffs_range *range);
/* The daemon's part of the times that a client may ask for: since the request came, and of the
 * disks. They fit 32 bits, or are said to be as long as that. */
void ffs_reply_set_times(struct ffs_header *header, const struct ffs_request *request,
                         uint64_t disk_ns, uint64_t now_ns);
/* What slow.c wants to know of a READ that ends with this frame. */
void ffs_request_note_last(struct ffs_last_frame *last, const struct ffs_request *request,
                           uint64_t now_ns);
/* The header of an answer to a READ. */
struct ffs_header ffs_request_reply(const struct ffs_request *request, uint32_t entries,
                                    uint32_t body_bytes, uint32_t payload_bytes);
/* One range more goes out. */
void ffs_loop_count_range(struct ffs_loop *loop, enum ffs_strategy strategy, uint32_t bytes);

/* -------------------------------------------------------------------------------------- slow.c */

/* Ranges of this request go into a frame now, after having waited. */
void ffs_loop_note_queued(struct ffs_loop *loop, const struct ffs_request *request, uint32_t ranges,
                          uint64_t now_ns);
/* The last frame of a READ is out: tell Python if that took long. */
void ffs_conn_finish_read(struct ffs_conn *conn, const struct ffs_last_frame *last);

/* ----------------------------------------------------------------------------------- refused.c */

/* Tell Python that a request, or a GRANT itself, was refused to who came by a token. */
void ffs_tell_refused(struct ffs_conn *conn, const struct ffs_header *header);
/* The same of a READ or what else names blobs in its descriptors; tells the first such. */
void ffs_tell_refused_read(struct ffs_conn *conn, const struct ffs_request *request);

/* ------------------------------------------------------------------------------------- serve.c */

/* Send what is queued, as far as the socket takes it. */
void ffs_conn_send(struct ffs_conn *conn);
/* Whether a frame could be made for it now. */
bool ffs_conn_has_work(const struct ffs_conn *conn);
/* The oldest request leaves the queue; what waits for the disk keeps it. */
void ffs_conn_dequeue(struct ffs_conn *conn);
/* One of the descriptors that waited for the disk is answered, or never will be (`conn` NULL). */
void ffs_request_answered(struct ffs_conn *conn, struct ffs_request *request);
void ffs_output_release(struct ffs_loop *loop, struct ffs_output *output);

/* ------------------------------------------------------------------------------------ locate.c */

/* Answer a LOCATE with one frame and the descriptors that go with it. */
void ffs_locate(struct ffs_conn *conn, const struct ffs_request *request,
                struct ffs_output *output);
/* Unpin what a RELEASE names; false if it names what the connection does not hold. */
bool ffs_release(struct ffs_conn *conn, const struct ffs_request *request);
/* If it was asked for, end connections that keep dropped chunks from being freed (but for those
 * whose client has mapped files): their clients notice before they return what they have read. */
void ffs_loop_revoke(struct ffs_loop *loop);
/* Unpin everything: the connection has ended. */
void ffs_release_all(struct ffs_conn *conn);
/* sendmsg with the output's descriptors, which are closed once they are on their way. */
ssize_t ffs_rights_send(int fd, struct msghdr *message, struct ffs_output *output);
void ffs_rights_drop(struct ffs_output *output);

/* -------------------------------------------------------------------------------------- list.c */

/* Whether the request is one that makes sense; it is a LIST. */
bool ffs_list_makes_sense(const struct ffs_request *request);
/* Its oldest request is a LIST: it gets in line for the loop's scan, if it is not there yet. */
void ffs_list_want(struct ffs_conn *conn);
/* Whether the page that it wants is ready to be sent. */
bool ffs_list_ready(const struct ffs_conn *conn);
/* Answer the LIST, whose page is ready, with one frame. */
void ffs_list_build(struct ffs_conn *conn, struct ffs_output *output);
/* The connection closes. */
void ffs_list_forget(struct ffs_conn *conn);
/* Go on a little with the scan for who is first in line; true if it should go on at once. */
bool ffs_loop_list(struct ffs_loop *loop);

/* ----------------------------------------------------------------------------------- suspect.c */

/* Tell Python what a SUSPECT names; the answer's status. */
uint16_t ffs_suspect(struct ffs_conn *conn, const struct ffs_request *request);
/* Python has been told so many. */
void ffs_suspects_told(struct ffs_group *group, uint32_t count);

#endif
