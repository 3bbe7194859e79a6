/*
 * The table of located chunks (local.h): a hash table with a bound, and a clock that says what was
 * not used for long.
 */
#include <stdlib.h>
#include <string.h>

#include "core/mix64.h"
#include "core/sys.h"
#include "reader/local.h"

#define NONE UINT32_MAX
#define ROOM_MIN 64u

struct ffs_local *ffs_local_new(void)
{
	struct ffs_local *local = ffs_sys_calloc(1, sizeof(*local));
	if (local != NULL)
		local->spare = NONE;
	return local;
}

void ffs_local_forget(struct ffs_local *local)
{
	for (uint32_t i = 0; i < local->file_count; i++) {
		(void)ffs_sys_close(local->data_fds[i]);
		(void)ffs_sys_close(local->crc_fds[i]);
	}
	for (uint32_t i = 0; i < local->arrived_count; i++)
		(void)ffs_sys_close(local->arrived[i]);
	free(local->located);
	free(local->buckets);
	memset(local, 0, sizeof(*local));
	local->spare = NONE;
}

void ffs_local_free(struct ffs_local *local)
{
	if (local != NULL)
		ffs_local_forget(local);
	free(local);
}

static uint32_t *bucket_of(const struct ffs_local *local, uint64_t blob, uint32_t chunk,
                           uint32_t target)
{
	uint64_t hash = ffs_mix64(blob + ffs_mix64(((uint64_t)target << 32 | chunk) + FFS_GOLDEN64));
	return &local->buckets[(uint32_t)hash & (local->room - 1)];
}

uint32_t ffs_local_find(const struct ffs_local *local, uint64_t blob, uint32_t chunk,
                        uint32_t target)
{
	if (local->room == 0)
		return NONE;
	uint32_t at = *bucket_of(local, blob, chunk, target);
	while (at != NONE) {
		const struct ffs_located *found = &local->located[at];
		if (found->blob == blob && found->chunk == chunk && found->target == target)
			return at;
		at = found->next;
	}
	return NONE;
}

static void link_in(struct ffs_local *local, uint32_t at)
{
	struct ffs_located *located = &local->located[at];
	uint32_t *bucket = bucket_of(local, located->blob, located->chunk, located->target);
	located->next = *bucket;
	*bucket = at;
}

/* Twice the room; false at the bound or without memory. */
static bool grow(struct ffs_local *local)
{
	uint32_t old = local->room, room = old == 0 ? ROOM_MIN : old * 2;
	if (room > FFS_LOCATED_PER_CONNECTION_MAX)
		return false;
	struct ffs_located *located = ffs_sys_realloc(local->located, room * sizeof(*located));
	if (located == NULL)
		return false;
	local->located = located;
	uint32_t *buckets = ffs_sys_realloc(local->buckets, room * sizeof(*buckets));
	if (buckets == NULL)
		return false; /* what is larger than it says does no harm */
	local->buckets = buckets;
	local->room = room;
	memset(buckets, 0xff, room * sizeof(*buckets)); /* NONE */
	for (uint32_t i = 0; i < old; i++)
		link_in(local, i); /* there is no spare one when it grows */
	for (uint32_t i = old; i < room; i++) {
		located[i] = (struct ffs_located){.next = local->spare};
		local->spare = i;
	}
	return true;
}

static void unlink_from(struct ffs_local *local, uint32_t at)
{
	const struct ffs_located *located = &local->located[at];
	uint32_t *link = bucket_of(local, located->blob, located->chunk, located->target);
	while (*link != at)
		link = &local->located[*link].next;
	*link = located->next;
}

/* Make one spare that was not used for long and that this wave does not need. */
static bool give_back(struct ffs_local *local)
{
	if (local->release_count == FFS_LOCATE_CHUNKS_MAX)
		return false;
	for (uint32_t looked = 0; looked < 2 * local->room; looked++) {
		uint32_t at = local->hand;
		struct ffs_located *located = &local->located[at];
		local->hand = (at + 1) & (local->room - 1);
		if (located->wave == local->wave)
			continue;
		if (located->recent) {
			located->recent = false;
			continue;
		}
		if (located->state == FFS_LOCATED_KNOWN)
			local->release[local->release_count++] = located->pin;
		unlink_from(local, at);
		located->state = FFS_LOCATED_SPARE;
		located->next = local->spare;
		local->spare = at;
		return true;
	}
	return false;
}

uint32_t ffs_local_add(struct ffs_local *local, uint64_t blob, uint32_t chunk, uint32_t target)
{
	if (local->spare == NONE && !grow(local) && (local->room == 0 || !give_back(local)))
		return NONE;
	uint32_t at = local->spare;
	struct ffs_located *located = &local->located[at];
	local->spare = located->next;
	*located = (struct ffs_located){
		.blob = blob, .chunk = chunk, .target = target, .state = FFS_LOCATED_ASKED};
	link_in(local, at);
	return at;
}
