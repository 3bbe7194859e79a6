/*
 * Target `reader`: a client's engine against a server that answers whatever it likes.
 *
 * Input: flags, size of pieces, number of operations, KiB of memory; 20 bytes for each operation;
 * then the reply stream. Wherever the engine waits, the next piece arrives; after the last one the
 * server closes. Request ids count from 1, so replies can be right.
 * Promised: every operation gets a final status, no read is called done without as many bytes, a
 * page is what it should be, and
 * (by the sanitizer) nothing outside the caller's memory is touched.
 */
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz/fuzz.h"
#include "reader/ask.h"
#include "reader/batch.h"
#include "reader/team.h"

#define SCRIPT_BYTES 4u
#define OP_SCRIPT_BYTES 20u
#define OPS_MAX 64u
#define MEMORY_BYTES_MAX (256u << 10)
#define POLLS_MAX (4 * FFS_FUZZ_INPUT_BYTES_MAX)

enum {
	FLAG_WRITE = 1,     /* a batch of writes, otherwise reads */
	FLAG_UNCHECKED = 2, /* reads without CRCs */
	FLAG_RAW = 4,       /* operations as they are, mostly for the planner to refuse */
	FLAG_LIST = 8,      /* instead of a batch, pages of a target's chunks, one for each operation */
};

struct script {
	uint8_t flags;
	uint8_t piece;
	uint32_t ops;
	uint32_t memory_bytes;
	const uint8_t *op_bytes;
	const uint8_t *stream;
	size_t stream_bytes;
};

static struct {
	struct script script;
	int fd; /* the server's end */
	size_t sent;
	bool closed;
	uint32_t polls;
	uint32_t pieces;
} server;

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
ssize_t __real_recvmsg(int fd, struct msghdr *message, int flags);
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags);

/* The engine waits: take what it has sent, and say the next thing. */
static void serve(void)
{
	static uint8_t taken[64 << 10];
	while (recv(server.fd, taken, sizeof(taken), MSG_DONTWAIT) > 0)
		;
	size_t left = server.script.stream_bytes - server.sent;
	if (left > 0) {
		ssize_t sent = send(server.fd, server.script.stream + server.sent,
		                    ffs_fuzz_piece(server.script.piece, server.pieces++, left),
		                    MSG_DONTWAIT | MSG_NOSIGNAL);
		server.sent += sent > 0 ? (size_t)sent : left;
	} else if (!server.closed) {
		(void)shutdown(server.fd, SHUT_WR);
		server.closed = true;
	}
	FFS_PROMISE(++server.polls < POLLS_MAX);
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms)
{
	serve();
	return __real_poll(fds, count, timeout_ms);
}

/* Where the engine has one connection it waits in the receive itself. */
ssize_t __wrap_recvmsg(int fd, struct msghdr *message, int flags)
{
	if ((flags & MSG_DONTWAIT) == 0)
		serve();
	return __real_recvmsg(fd, message, flags | MSG_DONTWAIT);
}

static bool parse(struct script *script, const uint8_t *data, size_t size)
{
	if (size < SCRIPT_BYTES || size > FFS_FUZZ_INPUT_BYTES_MAX)
		return false;
	script->flags = data[0];
	script->piece = data[1];
	script->ops = data[2] % (OPS_MAX + 1);
	script->memory_bytes = (data[3] + 1u) << 10;
	script->op_bytes = data + SCRIPT_BYTES;
	size_t stream_at = SCRIPT_BYTES + script->ops * OP_SCRIPT_BYTES;
	if (size < stream_at)
		return false;
	script->stream = data + stream_at;
	script->stream_bytes = size - stream_at;
	return true;
}

void ffs_fuzz_fix(uint8_t *data, size_t size)
{
	struct script script;
	if (parse(&script, data, size))
		ffs_fuzz_fix_frames(data + (size - script.stream_bytes), script.stream_bytes);
}

/* One operation in the caller's array (see ffs/_reader.pyi). */
static void write_op(uint8_t *raw, const struct script *script, const uint8_t *in)
{
	uint32_t offset = ffs_load_u32(in + 8);
	uint32_t length = ffs_load_u32(in + 12);
	uint32_t place = ffs_load_u32(in + 16);
	bool writes = (script->flags & FLAG_WRITE) != 0;
	if ((script->flags & FLAG_RAW) == 0) {
		place %= script->memory_bytes;
		length = length % (script->memory_bytes - place) + 1;
		offset %= FFS_CHUNK_BYTES_MAX - length + 1;
	}
	ffs_store_u64(raw, ffs_load_u32(in));
	ffs_store_u64(raw + 8, place);
	ffs_store_u32(raw + 16, ffs_load_u32(in + 4));
	ffs_store_u32(raw + 20, 1);
	ffs_store_u32(raw + 24, offset);
	ffs_store_u32(raw + 28, length);
	ffs_store_u16(raw + (writes ? 38 : 34), FFS_STATUS_PENDING);
}

/* No more bytes were called good than the server has sent. */
static void check_results(const struct ffs_batch *batch)
{
	uint64_t good_bytes = 0;
	for (uint32_t i = 0; i < batch->op_count; i++) {
		const struct ffs_operation *op = &batch->ops[i];
		FFS_PROMISE(op->state == FFS_OP_FINAL && op->status != FFS_STATUS_PENDING);
		if (op->status == FFS_OK)
			good_bytes += batch->kind == FFS_OP_READ ? op->length : FFS_FRAME_HEADER_BYTES;
	}
	FFS_PROMISE(good_bytes <= server.sent);
	FFS_PROMISE(batch->kind != FFS_OP_READ || batch->counts.payload_bytes == good_bytes);
	FFS_PROMISE(batch->counts.wire_bytes_received <= server.sent);
}

static int never(void *context)
{
	(void)context;
	return 0;
}

static void run_batch(const struct script *script, int fd, uint8_t *raw, uint8_t *memory)
{
	struct ffs_conn conn = {0};
	struct ffs_shared shared = {0}; /* with nobody: there are no hedges and no other threads */
	struct ffs_batch batch = {.interrupted = never, .shared = &shared};
	uint32_t bad;
	batch.kind = (script->flags & FLAG_WRITE) != 0 ? FFS_OP_WRITE : FFS_OP_READ;
	FFS_PROMISE(ffs_conn_init(&conn, fd, false, false) == 0);
	FFS_PROMISE(ffs_batch_init(&batch, script->ops, 1) == 0);
	if (ffs_plan(&batch, raw, memory, script->memory_bytes, &bad) == NULL) {
		batch.verify = batch.kind == FFS_OP_READ && (script->flags & FLAG_UNCHECKED) == 0;
		FFS_PROMISE(ffs_conn_claim(&conn) == FFS_CONN_CLAIMED);
		batch.legs[0].conn = &conn;
		ffs_batch_start_clock(&batch, 60000, 0);
		ffs_drive_start(&batch);
		FFS_PROMISE(ffs_drive(&batch) == 0);
		(void)ffs_plan_results(&batch, raw);
		check_results(&batch);
		ffs_conn_release(&conn);
	}
	ffs_batch_fini(&batch);
	ffs_conn_fini(&conn);
}

/* Each page behind the one before, until one fails. */
static void run_list(const struct script *script, int fd)
{
	struct ffs_conn conn = {0};
	struct ffs_read_descriptor wanted = {.target = 1, .offset = script->memory_bytes >> 10};
	enum ffs_status status = FFS_OK;
	FFS_PROMISE(ffs_conn_init(&conn, fd, false, false) == 0);
	for (uint32_t i = 0; i < script->ops && status == FFS_OK; i++) {
		struct ffs_ask ask = {
			.conn = &conn,
			.request = {.op = FFS_OP_LIST, .count = 1, .body_bytes = FFS_READ_DESCRIPTOR_BYTES},
			.payload_bytes_max = wanted.offset * FFS_ASK_KEY_BYTES,
			.deadline_ns = ffs_now_ns() + INT64_C(60000000000),
			.interrupted = never,
		};
		FFS_PROMISE(ffs_conn_claim(&conn) == FFS_CONN_CLAIMED);
		ffs_read_descriptor_pack(conn.scratch->send + FFS_ASK_BODY_AT, &wanted);
		status = ffs_ask(&ask);
		uint32_t bytes = status == FFS_OK ? ask.answer.payload_bytes : 0;
		FFS_PROMISE(bytes <= ask.payload_bytes_max && bytes <= server.sent);
		FFS_PROMISE(status != FFS_STATUS_PENDING);
		if (!ffs_ask_page_is_right(conn.scratch->body, bytes, wanted.blob, wanted.chunk))
			status = FFS_ERR_PROTOCOL;
		if (status == FFS_OK && bytes > 0) {
			const uint8_t *last = conn.scratch->body + bytes - FFS_ASK_KEY_BYTES;
			uint64_t blob = ffs_load_u64(last);
			FFS_PROMISE(blob >= wanted.blob);
			wanted.blob = blob;
			wanted.chunk = ffs_load_u32(last + 8);
		}
		ffs_conn_release(&conn);
	}
	ffs_conn_fini(&conn);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct script script;
	int ends[2];
	if (!parse(&script, data, size))
		return 0;
	/* Of the exact sizes, so that a byte too far is seen. */
	uint8_t *raw = calloc(script.ops + 1, FFS_OP_BYTES);
	uint8_t *memory = calloc(1, script.memory_bytes);
	FFS_PROMISE(raw != NULL && memory != NULL);
	FFS_PROMISE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
	for (uint32_t i = 0; i < script.ops; i++)
		write_op(raw + (size_t)i * FFS_OP_BYTES, &script,
		         script.op_bytes + (size_t)i * OP_SCRIPT_BYTES);
	memset(&server, 0, sizeof(server));
	server.script = script;
	server.fd = ends[1];
	if ((script.flags & FLAG_LIST) != 0)
		run_list(&script, ends[0]);
	else
		run_batch(&script, ends[0], raw, memory);
	(void)close(ends[1]);
	free(memory);
	free(raw);
	return 0;
}
