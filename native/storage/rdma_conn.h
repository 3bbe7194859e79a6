/* A connection's queue pair, the card it is on, and what is under way: for rdma_*.c. See rdma.h. */
#ifndef FFS_STORAGE_RDMA_CONN_H
#define FFS_STORAGE_RDMA_CONN_H

#include "rdma/cm.h"
#include "rdma/queue_pair.h"
#include "storage/rdma.h"

/* A SEND is received into so many bytes; what a request has beyond that is fetched. */
#define FFS_RDMA_RECEIVE_BYTES 4096u
#define FFS_RDMA_RECEIVES 1024u /* of a card and loop: all that its connections have credit for */
#define FFS_RDMA_CREDITS 16u    /* requests that a connection may have unanswered, and the least */
#define FFS_RDMA_CREDITS_MIN 2u
#define FFS_RDMA_SENDS 512u /* places in a queue pair's send queue */
#define FFS_RDMA_SLOT_BYTES (16u << 10)
#define FFS_RDMA_SLOTS 128u /* answers under way on a card and loop */
#define FFS_RDMA_ENTRIES_MAX 256u
#define FFS_RDMA_SGES_MAX 16u
#define FFS_RDMA_BUCKETS 256u
#define FFS_FETCHES 2u /* of a transfer at once */
/* Places of the send queue that are left to transfers. */
#define FFS_RDMA_RESERVED (FFS_FETCHES * FFS_RDMA_CREDITS)

/* Something that the card does for a connection, in the order in which it was posted. */
struct ffs_posted {
	struct ffs_posted *next;
	enum {
		FFS_POSTED_FRAME, /* an answer */
		FFS_POSTED_PIECE, /* a part of a long range, whose answer comes later */
		FFS_POSTED_FETCH, /* bytes from the client */
	} kind;
};

/* An answer, and what it keeps until it is out. */
struct ffs_rdma_frame {
	struct ffs_posted posted;
	struct ffs_rdma_frame *next; /* spare ones */
	struct ffs_cold_use cold;
	struct ffs_last_frame last;
	uint8_t *slot; /* the header, then the body's part that is in no other memory */
};

/* A SEND, unpacked. */
struct ffs_message {
	struct ffs_header header; /* `body_bytes` without the remote */
	struct ffs_remote remote;
	const uint8_t *body;
	uint32_t have; /* bytes of it; the rest is to be fetched */
};

/* One RDMA READ of a transfer. */
struct ffs_fetch {
	struct ffs_posted posted;
	struct ffs_transfer *transfer;
};

/* A request whose bytes are fetched: descriptors or a grant, or a WRITE. */
struct ffs_transfer {
	struct ffs_transfer *next; /* waits for a buffer */
	struct ffs_header header;  /* `body_bytes` without the remote */
	struct ffs_remote remote;
	struct ffs_request *request; /* this, or a write */
	struct ffs_write *write;
	uint32_t body_bytes;   /* that are here, or asked for */
	uint32_t data_bytes;   /* likewise, of the chunk */
	uint32_t begun, ended; /* fetches */
	uint32_t told;         /* headers that answer nothing */
	struct ibv_mr *body_mr;
	struct ibv_mr *data_mr;
	struct ffs_fetch fetches[FFS_FETCHES];
};

/* What a READ by RDMA has behind its descriptors. */
struct ffs_rdma_reply {
	struct ffs_remote remote;
	uint32_t used;         /* of the client's room for answers */
	uint32_t unanswered;   /* descriptors */
	uint32_t silent_bytes; /* posted since the last header */
	uint32_t told;         /* headers that say so much and answer nothing */
};

struct ffs_rdma_conn {
	struct ffs_rdma_conn *next; /* in its bucket */
	struct ffs_conn *conn;
	struct ffs_rdma_card *card;
	struct ffs_qp qp;
	struct rdma_cm_id *end; /* connected it, and lives as long; NULL: they were exchanged */
	uint32_t credits;
	uint32_t requests; /* unanswered */
	struct ffs_posted *posted;
	struct ffs_posted **posted_tail;
	struct ffs_rdma_frame *streaming; /* of a long range, one piece after the other */
	struct ffs_posted piece;
	bool piece_posted;
	struct ffs_transfer *waiting; /* for buffers, in order; the first one's write is conn->write */
	struct ffs_transfer **waiting_tail;
	bool touched;
	struct ffs_rdma_conn *touched_next;
	bool starved; /* waits for a frame */
	struct ffs_rdma_conn *starved_next;
};

/* A device, as one loop uses it. */
struct ffs_rdma_card {
	enum ffs_end end; /* FFS_END_CARD */
	struct ffs_rdma_card *next;
	struct ffs_loop *loop;
	struct ffs_rdma_device *device;
	struct ibv_mr *arena; /* the group's */
	struct ffs_completions completions;
	struct ibv_srq *srq;
	struct ffs_pinned receives;
	struct ffs_pinned slots;
	struct ffs_rdma_frame *frames;
	struct ffs_rdma_frame *spare;
	uint32_t credits; /* that nobody has */
	uint32_t sges;    /* of a work request */
	struct ffs_rdma_conn *buckets[FFS_RDMA_BUCKETS];
	struct ffs_rdma_conn *touched;
	struct ffs_rdma_conn *starved;
	bool broken; /* tells of nothing any more: goes at the end of this round */
};

/* Whose completion it is, and whether that ends the oldest of what was posted. */
static inline uint64_t ffs_rdma_work_id(const struct ffs_conn *conn, bool ends)
{
	return conn->id << 1 | ends;
}

/* ---------------------------------------------------------------------------- rdma_connect.c */

/* The device and address that this daemon may use. */
struct ffs_rdma_wish ffs_rdma_wish_of(const struct ffs_group *group, bool by_cm);
/* A queue pair on the card, able to take receives. 0 or -errno. */
int ffs_rdma_open_pair(struct ffs_qp *qp, const struct ffs_rdma_card *card,
                       const struct ffs_rdma_path *path);
/* The connection goes by this queue pair, which is connected, from now on. On a fault the pair and
 * the end stay the caller's. */
enum ffs_rdma_fault ffs_rdma_enter(struct ffs_conn *conn, struct ffs_rdma_card *card,
                                   const struct ffs_qp *qp, struct rdma_cm_id *end);

/* ------------------------------------------------------------------------------ rdma_arena.c */

/* The read arena's registration on the device. -EBUSY while it is being made, or -errno. */
int ffs_rdma_find_arena(struct ffs_group *group, struct ffs_rdma_device *device,
                        struct ibv_mr **mr);
/* Go on with connections that waited for it. */
void ffs_rdma_resume(struct ffs_loop *loop);

/* --------------------------------------------------------------------------------- rdma_cm.c */

/* Offer to take a queue pair from this connection's client; one offer a connection. */
enum ffs_rdma_fault ffs_rdma_offer(struct ffs_conn *conn, const struct ffs_qp_end *peer,
                                   struct ffs_cm_offer *offer);
/* The client says that its queue pair has been taken: if so, the connection goes over. */
enum ffs_rdma_fault ffs_rdma_confirm(struct ffs_conn *conn);
/* Once in each of the loop's rounds: withdraw offers that nobody has taken up in time. */
void ffs_rdma_cm_tend(struct ffs_rdma_cm *cm);
/* The card goes: let go of queue pairs on it that nobody has confirmed. */
void ffs_rdma_cm_leave(struct ffs_rdma_cm *cm, const struct ffs_rdma_card *card);
/* At the loop's end. */
void ffs_rdma_cm_close(struct ffs_rdma_cm *cm);

/* ------------------------------------------------------------------------------- rdma_card.c */

/* The connection that this end is of; NULL if there is none. */
struct ffs_rdma_conn *ffs_rdma_find_end(const struct ffs_loop *loop, const struct rdma_cm_id *end);

/* The loop's card for this device, made if there is none. */
enum ffs_rdma_fault ffs_rdma_card_for(struct ffs_loop *loop, struct ffs_rdma_device *device,
                                      struct ffs_rdma_card **card, char *text);
struct ffs_rdma_conn *ffs_rdma_find(const struct ffs_rdma_card *card, uint32_t qpn);
/* Send to it, and see to its epoll, at the end of this round. */
void ffs_rdma_touch(struct ffs_rdma_conn *rdma);
/* The next one to end; it stays with the connection until then. */
void ffs_rdma_posted(struct ffs_rdma_conn *rdma, struct ffs_posted *posted);
/* NULL if all are under way: the connection is touched when one is not any more. */
struct ffs_rdma_frame *ffs_rdma_frame_take(struct ffs_rdma_conn *rdma);
void ffs_rdma_frame_give_back(struct ffs_rdma_card *card, struct ffs_rdma_frame *frame);

/* ---------------------------------------------------------------------------- rdma_receive.c */

/* A SEND has come; false if it breaks the protocol. */
bool ffs_rdma_take_message(struct ffs_conn *conn, const uint8_t *bytes, uint32_t length);
/* All of a request is here, or of a chunk, which is the callee's; false if it breaks the protocol.
 */
bool ffs_rdma_take_request(struct ffs_conn *conn, struct ffs_request *request);
bool ffs_rdma_take_chunk(struct ffs_conn *conn, struct ffs_write *write);
/* What a READ has behind its descriptors. */
struct ffs_rdma_reply *ffs_rdma_reply_of(struct ffs_request *request);

/* ------------------------------------------------------------------------------ rdma_fetch.c */

/* NULL without memory. */
struct ffs_transfer *ffs_transfer_new(const struct ffs_message *message);
/* Nothing of it is under way. */
void ffs_transfer_free(struct ffs_transfer *transfer);
/* Have what is missing fetched, as much as may be under way: the transfer is the connection's from
 * here on. False if the card refuses. */
bool ffs_transfer_go_on(struct ffs_conn *conn, struct ffs_transfer *transfer);
/* A fetch has ended; false if what it brought breaks the protocol, or the card refuses the next. */
bool ffs_rdma_end_fetch(struct ffs_conn *conn, struct ffs_posted *posted);
/* It never will: the connection closes. */
void ffs_rdma_drop_fetch(struct ffs_posted *posted);

/* ------------------------------------------------------------------------------- rdma_post.c */

/* Whether the send queue has room for so many requests, of those that transfers leave. */
bool ffs_rdma_has_places(const struct ffs_rdma_conn *rdma, uint32_t count);
/* Send a header that answers nothing, from memory that need not stay; false if the card refuses. A
 * card that takes no bytes when they are posted sends none. */
bool ffs_rdma_post_inline(struct ffs_conn *conn, const uint8_t header[FFS_FRAME_HEADER_BYTES]);

/* ----------------------------------------------------------------------------- rdma_stream.c */

/* A piece of the range that is being streamed is out. */
void ffs_rdma_end_piece(struct ffs_conn *conn);
/* The connection closes in the middle of a range, perhaps: its request is not answered any more. */
void ffs_rdma_end_stream(struct ffs_conn *conn, struct ffs_rdma_conn *rdma);

#endif
