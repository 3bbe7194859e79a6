/*
 * LIST: a page of what a target has, from its table, for a replica that compares itself with us.
 *
 * Previous hop: receive.c queues the request, serve.c finds it to be its connection's oldest. Next:
 * keys.c, a few thousand chunks a round, so that reads go on meanwhile; serve.c sends the page.
 *
 * A loop scans for one connection at a time, which bounds the memory; the others stand in line.
 * Who cannot be sent to when its page is ready loses it, and gets in line again.
 *
 * The asker names the version of the chain at which it began to take part in writes. Until we
 * judge writes by that version or a later one there may be some that neither its list nor its
 * store will have, so it is told to come again. What is asked for first and dropped or written
 * meanwhile may be in the page or not.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "core/sys.h"
#include "storage/loop.h"

#define STEP_VISITS 4096

_Static_assert(FFS_LIST_CHUNKS_MAX *FFS_KEY_BYTES <= FFS_SEND_BUFFER_BYTES,
               "a page fits the send buffer");

static void descriptor_of(const struct ffs_request *request, struct ffs_read_descriptor *wanted)
{
	ffs_read_descriptor_unpack(wanted, request->descriptors);
}

bool ffs_list_makes_sense(const struct ffs_request *request)
{
	struct ffs_read_descriptor wanted;
	descriptor_of(request, &wanted);
	return wanted.offset >= 1 && wanted.offset <= FFS_LIST_CHUNKS_MAX && wanted.length == 0;
}

void ffs_list_want(struct ffs_conn *conn)
{
	struct ffs_lister *lister = &conn->loop->lister;
	if (conn->listing || conn->queue_head == NULL || conn->queue_head->header.op != FFS_OP_LIST)
		return;
	conn->listing = true;
	conn->listing_next = NULL;
	if (lister->head == NULL)
		lister->head = conn;
	else
		lister->tail->listing_next = conn;
	lister->tail = conn;
}

bool ffs_list_ready(const struct ffs_conn *conn)
{
	const struct ffs_lister *lister = &conn->loop->lister;
	return lister->head == conn && lister->state == FFS_LISTER_READY;
}

void ffs_list_forget(struct ffs_conn *conn)
{
	struct ffs_lister *lister = &conn->loop->lister;
	if (!conn->listing)
		return;
	conn->listing = false;
	if (lister->head == conn) {
		lister->head = conn->listing_next;
		lister->state = FFS_LISTER_IDLE;
		ffs_key_scan_end(&lister->scan);
		return;
	}
	struct ffs_conn *before = lister->head;
	while (before->listing_next != conn)
		before = before->listing_next;
	before->listing_next = conn->listing_next;
	if (lister->tail == conn)
		lister->tail = before;
}

/* -------------------------------------------------------------------------------------- the scan
 */

static uint16_t begin(struct ffs_loop *loop, const struct ffs_request *request)
{
	struct ffs_lister *lister = &loop->lister;
	struct ffs_read_descriptor wanted;
	descriptor_of(request, &wanted);
	ffs_key_scan_begin(&lister->scan, wanted.blob, wanted.chunk, wanted.offset);
	if (request->expires_ns != 0 && ffs_monotonic_ns() > request->expires_ns)
		return FFS_ERR_DEADLINE;
	lister->store = ffs_group_store(loop->group, wanted.target);
	if (lister->store == NULL)
		return FFS_ERR_STALE_LAYOUT;
	if (ffs_group_chain_version(loop->group, wanted.target) < request->header.chain_version)
		return FFS_ERR_STALE_CHAIN;
	return FFS_OK;
}

static void step(struct ffs_loop *loop)
{
	struct ffs_lister *lister = &loop->lister;
	if (lister->state == FFS_LISTER_IDLE) {
		lister->status = begin(loop, lister->head->queue_head);
		lister->state = FFS_LISTER_SCANNING;
	}
	int result = 0;
	if (lister->status == FFS_OK)
		result = ffs_key_scan_step(lister->store, &lister->scan, STEP_VISITS);
	if (result == 1)
		return;
	if (result != 0)
		lister->status = FFS_ERR_BUSY;
	/* After the scan: a target that was stopped or closed meanwhile may have lost chunks. */
	if (lister->status == FFS_OK &&
	    (atomic_load(&lister->store->stopped) || atomic_load(&lister->store->closed)))
		lister->status = FFS_ERR_TARGET_STOPPED;
	lister->state = FFS_LISTER_READY;
}

bool ffs_loop_list(struct ffs_loop *loop)
{
	struct ffs_lister *lister = &loop->lister;
	if (lister->head == NULL)
		return false;
	if (lister->state != FFS_LISTER_READY)
		step(loop);
	if (lister->state != FFS_LISTER_READY)
		return true;
	struct ffs_conn *conn = lister->head;
	if (conn->output == NULL)
		ffs_conn_send(conn);
	if (ffs_list_ready(conn) && conn->output != NULL) /* what came from the disk is in the way */
		ffs_list_forget(conn);
	ffs_conn_watch(conn);
	return lister->head != NULL && lister->state != FFS_LISTER_READY;
}

void ffs_list_build(struct ffs_conn *conn, struct ffs_output *output)
{
	const struct ffs_lister *lister = &conn->loop->lister;
	const struct ffs_header *request = &conn->queue_head->header;
	assert(ffs_list_ready(conn));
	uint32_t count = lister->status == FFS_OK ? (uint32_t)lister->scan.count : 0;
	struct ffs_header header = {
		.op = FFS_OP_LIST | FFS_REPLY_BIT,
		.status = lister->status,
		.request_id = request->request_id,
		.trace_id = request->trace_id,
		.chain_version = request->chain_version,
		.priority = request->priority,
		.payload_bytes = count * FFS_KEY_BYTES,
	};
	ffs_header_pack(output->head, &header);
	for (uint32_t i = 0; i < count; i++)
		ffs_key_pack(output->payload + i * FFS_KEY_BYTES, &lister->scan.keys[i]);
	output->parts[0] = (struct iovec){output->head, FFS_FRAME_HEADER_BYTES};
	output->parts[1] = (struct iovec){output->payload, header.payload_bytes};
	output->part = 0;
	output->part_count = count > 0 ? 2 : 1;
	ffs_list_forget(conn);
}
