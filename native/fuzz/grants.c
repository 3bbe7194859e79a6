/*
 * Target `grants`: what a token's holder shows a daemon, one GRANT after the other.
 *
 * Input: GRANTs. A byte of flags, the number of ranges, then for each how far it lies behind the
 * one before and how long it is, 16 bits each; with FLAG_RAW as many bytes, which are the whole of
 * the body but for its MAC.
 * Promised: exactly those blobs may be read, or written, that a genuine grant for this token has
 * named which is not over, however grants overlap; what was refused changes nothing; nothing is
 * left.
 */
#include <string.h>
#include <time.h>

#include "core/blake2b.h"
#include "fuzz/fuzz.h"
#include "storage/loop.h"

#define BLOBS (1u << 14)
#define KEY_ID 7u
#define RANGES_MAX 255u
#define BODY_BYTES_MAX (FFS_GRANT_HEAD_BYTES + RANGES_MAX * FFS_GRANT_RANGE_BYTES + FFS_MAC_BYTES)
#define LATER_S 3600u

enum {
	FLAG_READ = FFS_MAY_READ,
	FLAG_WRITE = FFS_MAY_WRITE,
	FLAG_FORGED = 4,
	FLAG_OVER = 8,
	FLAG_OTHER_TOKEN = 16,
	FLAG_OTHER_KEY = 32,
	FLAG_LATER = 64, /* one of two times at which it is over */
	FLAG_RAW = 128,
};

static const uint8_t token_id[FFS_TOKEN_ID_BYTES] = {1, 2, 3};
static struct ffs_group group;
static struct ffs_loop loop = {.group = &group};
static struct ffs_conn conn = {.loop = &loop};

/* Whether each blob was granted, as plainly as it can be kept. */
static struct {
	uint8_t may[BLOBS];
} model;

static struct ffs_request *shown; /* with room for a body */

static uint16_t take_u16(const uint8_t **at)
{
	uint16_t value = ffs_load_u16(*at);
	*at += 2;
	return value;
}

static void sign(uint8_t flags, size_t bytes)
{
	ffs_mac(shown->descriptors + bytes, group.grant_keys[0].key, shown->descriptors, bytes);
	if ((flags & FLAG_FORGED) != 0)
		shown->descriptors[bytes] ^= 1;
}

/* Put a grant together; returns the bytes before its MAC. `good`: it is what it should be. */
static size_t make_grant(uint8_t flags, uint8_t count, const uint8_t *at, bool *good)
{
	uint8_t *body = shown->descriptors;
	uint64_t now_s = (uint64_t)time(NULL);
	uint64_t over_s = (flags & FLAG_OVER) != 0 ? 1 : now_s + 600;
	uint64_t last = 0;
	*good = true;
	memset(body, 0, FFS_GRANT_HEAD_BYTES);
	body[0] = 1;
	body[1] = flags & (FLAG_READ | FLAG_WRITE);
	body[2] = count;
	ffs_store_u32(body + 4, (flags & FLAG_OTHER_KEY) != 0 ? KEY_ID + 1 : KEY_ID);
	ffs_store_u64(body + 8, (flags & FLAG_LATER) != 0 ? over_s + LATER_S : over_s);
	memcpy(body + 16, token_id, sizeof(token_id));
	body[16] ^= (flags & FLAG_OTHER_TOKEN) != 0;
	body += FFS_GRANT_HEAD_BYTES;
	for (uint32_t i = 0; i < count; i++, body += FFS_GRANT_RANGE_BYTES) {
		uint64_t first = last + take_u16(&at) % 64; /* 0: the one before is met */
		uint64_t end = first + take_u16(&at) % 32;
		*good = *good && first > last;
		ffs_store_u64(body, first);
		ffs_store_u64(body + 8, end);
		last = end;
	}
	return FFS_GRANT_HEAD_BYTES + count * (size_t)FFS_GRANT_RANGE_BYTES;
}

static void note(uint8_t flags, uint8_t count)
{
	const uint8_t *at = shown->descriptors + FFS_GRANT_HEAD_BYTES;
	for (uint32_t i = 0; i < count; i++, at += FFS_GRANT_RANGE_BYTES)
		for (uint64_t blob = ffs_load_u64(at); blob <= ffs_load_u64(at + 8) && blob < BLOBS; blob++)
			model.may[blob] |= flags & (FLAG_READ | FLAG_WRITE);
}

/* At the ends of what was just shown, where a mistake would be. */
static void check_ends(uint8_t count)
{
	const uint8_t *at = shown->descriptors + FFS_GRANT_HEAD_BYTES;
	for (uint32_t i = 0; i < 2u * count; i++, at += 8) {
		uint64_t end = ffs_load_u64(at);
		for (uint64_t blob = end > 0 ? end - 1 : 0; blob <= end + 1 && blob < BLOBS; blob++) {
			bool read = ffs_grants_allow(&conn, blob, FFS_MAY_READ);
			bool write = ffs_grants_allow(&conn, blob, FFS_MAY_WRITE);
			FFS_PROMISE(read == ((model.may[blob] & FFS_MAY_READ) != 0));
			FFS_PROMISE(write == ((model.may[blob] & FFS_MAY_WRITE) != 0));
		}
	}
}

static void show(uint8_t flags, uint8_t count, const uint8_t *at)
{
	bool good;
	size_t bytes = make_grant(flags, count, at, &good);
	sign(flags, bytes);
	shown->count = count;
	bool passed_over = (flags & (FLAG_OVER | FLAG_OTHER_KEY)) != 0;
	good = good && (flags & (FLAG_FORGED | FLAG_OTHER_TOKEN)) == 0;
	FFS_PROMISE(ffs_grants_take(&conn, shown) == (passed_over || good));
	if (good && !passed_over)
		note(flags, count);
	check_ends(count);
}

/* Whatever it says, it is read within its bounds; and it is another token's. */
static void show_raw(uint8_t count, const uint8_t *bytes, size_t size)
{
	size_t body = FFS_GRANT_HEAD_BYTES + count * (size_t)FFS_GRANT_RANGE_BYTES;
	memset(shown->descriptors, 0, body);
	memcpy(shown->descriptors, bytes, size < body ? size : body);
	shown->descriptors[16] = 0xFF;
	sign(0, body);
	shown->count = count;
	(void)ffs_grants_take(&conn, shown);
}

void ffs_fuzz_fix(uint8_t *data, size_t size)
{
	(void)data;
	(void)size;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct ffs_grant_key keys[FFS_GRANT_KEYS] = {{.id = KEY_ID, .key = {9, 8, 7}}};
	(void)argc;
	(void)argv;
	shown = calloc(1, sizeof(*shown) + BODY_BYTES_MAX);
	FFS_PROMISE(shown != NULL);
	(void)pthread_mutex_init(&group.lock, NULL);
	ffs_group_set_grant_keys(&group, keys);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;
	if (size > FFS_FUZZ_INPUT_BYTES_MAX)
		return 0;
	conn.grants = ffs_grants_new(token_id);
	FFS_PROMISE(conn.grants != NULL);
	memset(&model, 0, sizeof(model));
	while (end - data >= 2) {
		uint8_t flags = data[0], count = data[1];
		size_t bytes = 4u * (size_t)count;
		data += 2;
		if (count == 0 || bytes > (size_t)(end - data))
			break;
		if ((flags & FLAG_RAW) != 0)
			show_raw(count, data, bytes);
		else
			show(flags, count, data);
		data += bytes;
	}
	ffs_grants_free(&group, conn.grants);
	conn.grants = NULL;
	FFS_PROMISE(atomic_load(&group.granted) == 0);
	return 0;
}
